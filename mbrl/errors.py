"""Errors meant for the user: what happened, why, and the line that mends it."""


class UserError(ValueError):
    """Something the user can mend. Commands print the message alone and exit with code 2."""
