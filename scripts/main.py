"""The command `mbrl`: names a command, runs its file, and turns errors meant for the user into one message.

Nothing heavy is imported here: `mbrl --help` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from importlib.metadata import version

COMMANDS = {
    "train": "train an agent on an environment; the same command continues an interrupted run",
    "evaluate": "whole episodes with a trained agent; returns as a table or as JSON",
    "benchmark": "every agent on every task of a suite with every seed, and a report; the same command continues",
    "compare": "that report from runs that exist",
    "doctor": "what this machine has: versions, device, threads, rendering, memory, environments",
    "check-env": "whether an environment can be trained on; what would go wrong, and the line that mends it",
}

DISK = {
    errno.ENOSPC: "the disk is full; free some space, or put runs elsewhere with --runs-dir",
    errno.EDQUOT: "the disk quota is used up; free some space, or put runs elsewhere with --runs-dir",
    errno.EROFS: "the disk is read-only; put runs elsewhere with --runs-dir",
    errno.EACCES: "writing there is not permitted; put runs elsewhere with --runs-dir",
    errno.ENOTDIR: "that is a file where a directory is needed; put runs elsewhere with --runs-dir",
    errno.EEXIST: "that is a file where a directory is needed; put runs elsewhere with --runs-dir",
    errno.EPERM: "writing there is not permitted; put runs elsewhere with --runs-dir",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mbrl <command> [options]",
            "",
            *lines,
            "",
            "mbrl <command> --help   the options of a command; mbrl train ENV --help shows ENV's defaults",
            "mbrl --version          the version",
            "--debug                 with any command: show the traceback of an error",
            "",
            "start with: mbrl train CartPole-v1",
        ]
    )


def explain(error: BaseException) -> str | None:
    """The message for the user, or None where the error is a defect of ours and wants its traceback."""
    from envs.errors import EnvError
    from mbrl.errors import UserError

    if isinstance(error, UserError | EnvError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{DISK[error.errno]} ({error.strerror})"
    return None


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def run(command: str, argv: list[str], debug: bool) -> int:
    """Run one command; 0 when it did its work, 2 when the user can mend what went wrong."""
    try:
        return int(importlib.import_module(f"scripts.{command.replace('-', '_')}").main(argv) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            raise
        return fail(message)


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"mbrl-toolkit {version('mbrl-toolkit')}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean `mbrl {close[0]}`?" if close else f"there are: {', '.join(COMMANDS)}"
        return fail(f"unknown command '{command}'; {hint}")
    return run(command, rest, debug)


if __name__ == "__main__":
    sys.exit(main())
