"""How the tests of the command line run it."""

import pytest

from scripts.main import main

SHORT = ["--no-pictures", "--training.final-episodes", "1"]
TINY = ["--preset", "debug", *SHORT]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that must fail: exit code 2, one message, no traceback."""
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as exit:  # raised by the parsers of arguments
        code = exit.code if isinstance(exit.code, int) else 1
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert "Traceback" not in out + err
    assert 0 < len(err.strip().splitlines()) < 14, err
    return " ".join(err.replace("│", " ").split())
