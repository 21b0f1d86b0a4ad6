"""Numbers from pictures."""
