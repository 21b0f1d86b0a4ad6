"""The maths: schedules, steps, noise, denoisers and their paired evaluation, without files or configurations."""
