"""The worked example: what the page shows is the file, and the file trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import check_env
from scripts.main import main

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_shows_the_file() -> None:
    page, file = (DOCS / "custom_environment.md").read_text(), (DOCS / "catch.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert file in blocks and sum(block.count("\n") for block in blocks) < 60


def test_the_example_is_without_fault_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{DOCS / 'catch.py'}:Catch"
    report = check_env.examine(check_env.parse([name, "--preset", "debug", "--steps", "200"]))
    assert not [finding for finding in report["findings"] if finding["severity"] != "note"]
    line = ["train", name, "--preset", "debug", "--no-pictures", "--training.final-episodes", "1", "--steps", "200"]
    assert main([*line, "--runs-dir", str(tmp_path)]) == 0, capsys.readouterr()
    assert "action Box(1) + Discrete(2)" in capsys.readouterr().out
