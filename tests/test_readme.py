"""Every command and every Python block of the README and of CONTRIBUTING runs.

The convention: a ```bash block holds one command a line, a ```python block a whole program; blocks run in
order, in one empty folder, with the console command of this checkout. Budgets are cut so that each takes
seconds, by these rules and no others:

- `mbrl train ...` gets `--preset debug --steps 300` (in place of its own), no pictures, and one evaluation of
  one episode, unless it asks for `--help`;
- `mbrl benchmark ...` gets `--preset debug --steps 300 --seeds 1` (in place of its own) and only CartPole;
- `--episodes N` becomes `--episodes 2`;
- in Python `laptop` becomes `debug`, and `steps=...` becomes `steps=300`;
- `make TARGET` is planned but not carried out (`make --dry-run`), since it would run these tests again;
- `pip install` and `python3 -m venv` likewise: pip resolves this checkout (`--dry-run`), the venv is tried
  without pip. `source` lines need a shell of their own and are checked for their file name only.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.main import COMMANDS

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(file: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / file).read_text())


def run(words: list[str], cwd: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def shorten(words: list[str]) -> list[str]:
    """The same `mbrl` command with a budget of seconds."""
    words = list(words)
    if "--episodes" in words:
        words[words.index("--episodes") + 1] = "2"
    if words[1] == "train" and "--help" not in words:
        for option in ("--steps", "--preset", "--minutes"):
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
        words += ["--preset", "debug", "--steps", "300", "--no-pictures"]
        words += ["--training.eval-every", "1_000_000", "--training.final-episodes", "1"]
    if words[1] == "benchmark":
        for option in ("--steps", "--preset", "--seeds"):
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
        words += ["--preset", "debug", "--steps", "300", "--seeds", "1", "--only", "CartPole"]
    return words


def run_line(line: str, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    program = Path(words[0]).name
    if program == "mbrl":
        run([sys.executable, "-m", "scripts.main", *shorten(words)[1:]], folder)
    elif program == "make":
        run(["make", "--dry-run", "--always-make", *words[1:]], ROOT)
    elif program == "pip":
        assert words[1] == "install", line
        words = [word for word in words if word != "-e"]  # needs nothing that is not here
        run([sys.executable, "-m", "pip", *words[1:], "--dry-run", "--no-deps", "--no-build-isolation"], ROOT)
    elif program == "python3":
        assert words[1:3] == ["-m", "venv"], line
        run([sys.executable, "-m", "venv", "--without-pip", words[3]], folder)
    elif program == "source":
        assert (folder / words[1]).is_file(), line
    elif program == "python":
        run([sys.executable, *words[1:]], folder)
    else:
        pytest.fail(f"no rule for how to run: {line}")


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_every_block_runs(file: str, tmp_path: Path) -> None:
    found = blocks(file)
    assert found
    for language, text in found:
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line, tmp_path)
        elif language == "python":
            program = re.sub(r"\blaptop\b", "debug", text)
            program = re.sub(r"\bsteps=[\d_]+", "steps=300", program)
            (tmp_path / "block.py").write_text(program)
            run([sys.executable, "block.py"], tmp_path)
        else:
            assert language in ("text", "toml"), f"{file}: how to run a {language} block?"


def test_the_readme_shows_the_main_commands_and_python() -> None:
    found = blocks("README.md")
    lines = [line for language, text in found if language == "bash" for line in text.splitlines()]
    commands = [f"mbrl {name}" for name in COMMANDS]
    for start in ("make demo", "make test", *commands):
        assert any(line.startswith(start) for line in lines), start
    assert next(len(text.strip().splitlines()) for language, text in found if language == "python") < 20


def test_every_path_in_the_file_map_exists() -> None:
    text = (ROOT / "README.md").read_text()
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    paths = re.findall(r"`([^`]+)`", " ".join(rows))
    assert len(paths) > 10
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mbrl").glob("*.py")}
    unnamed = modules - set(paths) - {"mbrl/__init__.py"}
    assert not unnamed, "modules that the file map does not name"
