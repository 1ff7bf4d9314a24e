"""The README's headline: made from stored scores, and the README says what they say."""

from pathlib import Path

import pytest
from test_summary import rows_of

from benchmarks import collect, headline

ROOT = Path(__file__).parent.parent
PLACE = "before\n<!-- toy: made by benchmarks/headline.py -->\nTO BE REPLACED\n<!-- toy: end -->\nafter\n"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    found = [
        *rows_of("dreamer", "dmc/walker-walk", (100, 500, 900), (300, 700, 900)),
        *rows_of("dreamer", "dmc/walker-run", (0, 100, 200), (0, 100, 200)),
        *rows_of("sac", "dmc/walker-walk", (0, 100, 300), (0, 100, 300)),
        *rows_of("sac", "dmc/walker-run", (0, 0, 300), (0, 0, 300)),
    ]
    (tmp_path / "toy").mkdir()
    collect.write_scores(tmp_path / "toy" / "scores.csv", found)
    (tmp_path / "README.md").write_text(PLACE)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    words = ["--readme", str(folder / "README.md"), "--agents", "dreamer,sac", *options]
    return headline.main([str(folder / "toy"), *words])


def test_the_section_is_written_in_its_place(stored: Path) -> None:
    assert run(stored, "--check") == 1 and (stored / "README.md").read_text() == PLACE
    assert run(stored) == 0 == run(stored, "--check")
    text = (stored / "README.md").read_text()
    assert text.startswith("before\n<!-- toy") and text.endswith("end -->\nafter\n") and "REPLACED" not in text
    assert "| dreamer | 0.10 [0.05, 0.15] | 0.35 [0.30, 0.40] | 0.55 [0.55, 0.55] |" in text
    assert "| sac | 0.00 [0.00, 0.00] | 0.05 [0.05, 0.05] | 0.30 [0.30, 0.30] |" in text
    assert "Averaged over the 2 tasks, dreamer scores 0.35 after 20,000 steps; sac scores 0.30 after 40,000." in text
    assert ", on 1 of 2 tasks (toy); elsewhere neither reaches it." in text
    assert "by steps to the target: dmc/walker-run (200 against 300 after 40k steps)." in text
    assert (stored / "toy" / "aggregate-curve.svg").read_text().count("<svg") == 1


def test_an_agent_that_does_not_catch_up_is_not_said_to(stored: Path) -> None:
    assert run(stored, "--agents", "sac,dreamer") == 0
    assert "Averaged" not in (stored / "README.md").read_text()


def test_a_readme_without_the_place(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stored / "README.md").write_text("nothing")
    assert run(stored) == 2 and (stored / "README.md").read_text() == "nothing"
    assert "<!-- toy: end -->" in capsys.readouterr().err


def test_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headline.main([str(tmp_path)]) == 2
    assert "no run is in" in capsys.readouterr().err


def test_the_readme_says_what_the_stored_scores_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert headline.main(["benchmarks/results/cpu8", "--check"]) == 0
