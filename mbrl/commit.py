"""The commit of this code; imports nothing heavy, so that anything may ask."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """The commit of the code, with a + where files differ from it; None outside a checkout of it."""
    here = Path(__file__).parent

    def ask(*command: str) -> str:
        answer = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5, check=True)
        return answer.stdout.strip()

    try:
        ask("git", "ls-files", "--error-unmatch", Path(__file__).name)  # it may be installed inside another project
        commit = ask("git", "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if ask("git", "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
