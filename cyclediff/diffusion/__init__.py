"""The maths: schedules, steps, noise and denoisers. It knows no file and no configuration."""
