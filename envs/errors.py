"""EnvError: a mistake that the user can mend; the message says what, why and how."""


class EnvError(ValueError):
    """Says what went wrong with an environment, why, and the line that mends it."""
