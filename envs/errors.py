"""EnvError: a mistake that the user can mend; the message says what, why and how."""


class EnvError(ValueError):
    """Says what went wrong with an environment, why, and the line that mends it."""


def missing_extra(name: str, error: ImportError, extra: str) -> str:
    """The message where a suite's package is not installed."""
    return f'{name} needs a missing package ({error}). Run: pip install "mbrl-toolkit[{extra}]"'
