"""Stands for `mbrl` in the tests of the benchmark's runner: trains nothing, in milliseconds.

`broken` tasks always die, `flaky` ones the first time; `slow` ones wait until runs/go (or the file that --go names)
is there, and save at SIGTERM.
"""

import fcntl
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(words: list[str]) -> int:
    option = {name: words[words.index(name) + 1] for name in ("--agent", "--seed", "--steps", "--runs-dir")}
    env, runs = words[1], Path(option["--runs-dir"])
    go = Path(words[words.index("--go") + 1]) if "--go" in words else runs / "go"
    run = runs / env / option["--agent"] / f"seed{option['--seed']}"
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock, (run / "starts").open("a") as starts:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = starts.tell() == 0
        print("started", file=starts, flush=True)
        if env == "broken" or (env == "flaky" and first):
            print("it broke")
            return 3
        signal.signal(signal.SIGTERM, lambda *_: (save(run, "interrupted", step=1), sys.exit(143)))
        save(run, "running", step=1)
        while env == "slow" and not go.exists():
            time.sleep(0.02)
        save(run, "finished", step=int(option["--steps"]))
    return 0


def save(run: Path, state: str, **values: Any) -> None:
    (run / "status.json").write_text(json.dumps({"state": state, "seconds": 1.0, **values}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
