"""Mistakes that the user can fix."""


class UserError(Exception):
    """Its text is the one sentence shown: what, got, allowed, and what to do. The program ends with exit code 2."""


class TrainingFailed(UserError):
    """A training that cannot go on; its last good checkpoint is kept."""
