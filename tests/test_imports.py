"""Imports point one way: envs <- nothing, mbrl <- nothing, agents <- mbrl; scripts and benchmarks see all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"mbrl", "agents", "envs", "scripts", "benchmarks", "tests"}
ALLOWED = {
    "mbrl": {"mbrl"},
    "agents": {"agents", "mbrl"},
    "envs": {"envs"},
    "benchmarks": {"benchmarks", "scripts", "agents", "envs", "mbrl"},
    "scripts": {"scripts", "benchmarks", "agents", "envs", "mbrl"},
}


def imported_packages(file: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it: inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no files in {package}/"
    wrong = {
        str(file.relative_to(ROOT)): sorted(bad)
        for file in files
        if (bad := (imported_packages(file) & PACKAGES) - ALLOWED[package])
    }
    assert not wrong


def test_the_walk_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("def late():\n    from agents.dreamer import Dreamer\n    import envs.gym\n")
    assert imported_packages(file) == {"agents", "envs"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are in memory after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize("words", [["--help"], ["check-env", "--help"]])
def test_help_of_the_command_line_needs_neither_torch_nor_environments(words: list[str]) -> None:
    heavy = {"torch", "gymnasium", "numpy", "mujoco", "dm_control", "matplotlib", "tyro"}
    statement = f"from scripts.main import main\ntry: main({words})\nexcept SystemExit: pass"
    assert (
        not loaded_by(
            f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    exec({statement!r})"
        )
        & heavy
    )


def test_importing_envs_loads_no_simulator() -> None:
    assert not loaded_by("import envs") & {"mujoco", "dm_control", "torch", "ale_py"}
