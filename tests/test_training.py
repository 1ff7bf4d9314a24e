"""The training loop: what is counted, remembered, learnt, logged, evaluated, and when it stops."""

from __future__ import annotations

import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from gymnasium.vector import SyncVectorEnv
from toys import Counting, ListLog, Seeded, ToyAgent, make_replay

import envs as environments
from agents import make_agent
from mbrl.checkpoint import latest
from mbrl.errors import UserError
from mbrl.evaluation import evaluate
from mbrl.progress import Pace
from mbrl.trainer import Result, Trainer
from mbrl.training import TrainConfig, train

SMALL = TrainConfig(
    steps=60, prefill=20, update_ratio=0.5, eval_every=25, eval_episodes=3, final_episodes=4, log_every=10
)


def vector(n: int = 1, env: Any = Counting) -> SyncVectorEnv[Any, Any]:
    return SyncVectorEnv([env for _ in range(n)])


def run(
    config: TrainConfig = SMALL, n: int = 1, evaluation: int = 0, kind: Any = ToyAgent, **kwargs: Any
) -> tuple[Any, ...]:
    envs = vector(n)
    agent = toys.make_agent(envs, kind)
    replay, log = make_replay(agent, envs), ListLog()
    eval_envs = vector(evaluation, Seeded) if evaluation else None
    result: Result = train(agent, envs, replay, config, log, eval_envs=eval_envs, **kwargs)
    return result, agent, replay, log, envs


def test_updates_follow_the_decisions() -> None:
    config = TrainConfig(steps=60, prefill=20, update_ratio=0.3, pretrain=7)
    result, *_ = run(config)
    assert result.env_steps == 60
    assert result.updates == 7 + math.floor(0.3 * (60 - 20))
    result, *_ = run(config, n=4)
    assert result.updates == 7 + math.floor(0.3 * (result.env_steps - 20))


@pytest.mark.parametrize(("every", "at", "steps"), [(25, (), [25, 50, 60]), (0, (), [60]), (0, (7, 40), [7, 40, 60]),
                                                    (25, (50, 51, 999), [25, 50, 51, 60])])  # fmt: skip
def test_evaluations_are_regular_and_at_given_steps(every: int, at: tuple[int, ...], steps: list[int]) -> None:
    *_, log, _ = run(replace(SMALL, eval_every=every, eval_at=at), evaluation=2)
    assert [step for step, mode, _ in log.evaluations if mode == "mode"] == steps


def test_evaluations_that_are_asked_for_when_a_run_goes_on(tmp_path: Path) -> None:
    config = replace(SMALL, eval_every=0)
    run(replace(config, steps=20), evaluation=2, directory=tmp_path)
    *_, log, _ = run(replace(config, eval_at=(10, 33)), evaluation=2, directory=tmp_path, resume=latest(tmp_path))
    assert [step for step, mode, _ in log.evaluations if mode == "mode"] == [33, 60]


def test_steps_include_action_repeat() -> None:
    envs = vector()
    envs.action_repeat = 2  # type: ignore[attr-defined]
    agent = toys.make_agent(envs)
    log = ListLog()
    config = TrainConfig(steps=60, prefill=20, update_ratio=1)
    result = train(agent, envs, make_replay(agent, envs), config, log)
    assert (result.env_steps, result.updates) == (60, 30 - 20)
    assert log.episodes[0] == (6, 6.0, 6)  # three decisions rewarded with 1, 2, 3


def test_replay_holds_what_happened_with_the_latents_of_each_step() -> None:
    _, agent, replay, _, envs = run(TrainConfig(steps=50, prefill=1000))
    steps = replay.latest(replay.time).steps
    log = envs.envs[0].unwrapped.log
    assert np.array_equal(steps.obs["state"][0].numpy(), np.stack([entry[0] for entry in log]))
    assert np.allclose(steps.action[0, :, 0].numpy(), [entry[1] for entry in log])
    state = agent.initial_state(1)
    for t in range(replay.time):
        _, state = agent.act(steps[:, t], state, explore=False)
        stored = replay.arrays["latent/hidden"][0, t]
        assert torch.allclose(state["hidden"][0], stored, atol=1e-6)


def test_prefill_acts_at_random() -> None:
    class Still(ToyAgent):
        def act(self, step: Any, state: Any, explore: bool) -> Any:
            action, state = super().act(step, state, explore)
            return torch.zeros_like(action), state

    _, _, replay, *_ = run(TrainConfig(steps=50, prefill=30), kind=Still)
    steps = replay.latest(replay.time).steps
    actions = steps.action[~steps.is_first]
    assert (actions[:30].abs() > 0.01).float().mean() > 0.9
    assert (actions[30:] == 0).all()


def test_updates_are_as_many_as_suit_the_agent_unless_told() -> None:
    class Eager(ToyAgent):
        update_ratio = 2.0

    config = TrainConfig(steps=40, prefill=20)
    assert run(config)[0].updates == 20 * 0.5
    assert run(config, kind=Eager)[0].updates == 20 * 2
    assert run(replace(config, update_ratio=1), kind=Eager)[0].updates == 20


def test_metrics_are_averages_since_the_last_line() -> None:
    class Counter(ToyAgent):
        count = 0

        def update(self, replay: Any) -> Any:
            self.count += 1
            return {"train/count": float(self.count), "train/loss/total": torch.tensor(0.0)}

    config = TrainConfig(steps=40, prefill=20, update_ratio=1, log_every=10)
    _, _, _, log, _ = run(config, kind=Counter)
    lines: dict[int, dict[str, Any]] = {10: {}, 30: {}, 40: {}}
    for step, metrics in log.metrics:
        lines.setdefault(step, {}).update(metrics)
    assert "train/count" not in lines[10]
    assert lines[30]["train/count"] == pytest.approx(5.5)
    assert lines[40]["train/count"] == pytest.approx(15.5)
    assert lines[40]["time/updates"] == 20
    assert lines[40]["time/replay_ratio"] == pytest.approx(0.5)
    assert lines[40]["time/fps"] > 0


def test_evaluations_come_in_both_modes_and_at_the_end() -> None:
    result, _, _, log, _ = run(evaluation=2)
    assert [(step, mode, len(r)) for step, mode, r in log.evaluations] == [
        (25, "mode", 3), (25, "sample", 3),
        (50, "mode", 3), (50, "sample", 3),
        (60, "mode", 4), (60, "sample", 4),
    ]  # fmt: skip
    assert result.scores["mode"] == log.evaluations[-2][2]
    assert "report/truth" in result.report


def test_evaluation_leaves_no_trace_in_training() -> None:
    plain, scored = run()[1], run(evaluation=2)[1]
    for name, value in plain.modules.state_dict().items():
        assert torch.equal(value, scored.modules.state_dict()[name])


def test_evaluation_is_deterministic_and_leaves_randomness_alone() -> None:
    envs = vector(3, Seeded)
    agent = toys.make_agent(envs)
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(1), random.random())
    torch.manual_seed(5)
    random.seed(5)
    first = evaluate(agent, envs, seed=1, episodes=5, explore=True)
    assert (torch.rand(1), random.random()) == expected
    assert np.array_equal(first, evaluate(agent, envs, seed=1, episodes=5, explore=True))
    assert not np.array_equal(first, evaluate(agent, envs, seed=2, episodes=5, explore=True))


def test_short_episodes_are_not_over_counted() -> None:
    lengths = (1, 50)
    envs = SyncVectorEnv([lambda n=n: Counting(n) for n in lengths])  # type: ignore[misc]
    agent = toys.make_agent(envs)
    returns = evaluate(agent, envs, seed=0, episodes=4)
    assert returns.tolist() == [1.0, 3.0, 50 * 51 / 2, 51 * 52 / 2]


def test_minutes_limit_the_run() -> None:
    result, *_ = run(TrainConfig(steps=10**9, minutes=0.001, prefill=10**9))
    assert 0 < result.env_steps < 10**6


def test_a_non_finite_loss_stops_the_run_and_keeps_the_batch(tmp_path: Path) -> None:
    class Broken(ToyAgent):
        def update(self, replay: Any) -> Any:
            nan = torch.tensor(math.nan)
            return super().update(replay) | {"train/loss/dyn": nan, "train/loss/total": nan}

    with pytest.raises(UserError, match=r"train/loss/dyn.*update 1 .*nonfinite_batch"):
        run(kind=Broken, directory=tmp_path)
    saved = torch.load(tmp_path / "nonfinite_batch.pt", weights_only=True)
    assert saved["batch"]["steps"]["reward"].shape == (2, 4)
    assert math.isnan(saved["metrics"]["train/loss/dyn"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order(number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)

    class Interrupting(ToyAgent):
        def update(self, replay: Any) -> Any:
            os.kill(os.getpid(), number)
            return super().update(replay)

    config = TrainConfig(steps=1000, prefill=20, pretrain=50)
    result, _, _, log, _ = run(config, kind=Interrupting, evaluation=2)
    assert result.interrupted and result.signal == number
    assert (result.env_steps, result.updates) == (20, 1)
    assert signal.signal(number, before) is signal.SIG_DFL
    assert not log.evaluations


def test_the_screen_sees_rows() -> None:
    class Rows(list[dict[str, Any]]):
        def row(self, values: dict[str, Any]) -> None:
            self.append(values)

        def note(self, text: str) -> None: ...
        def heartbeat(self, text: str) -> None: ...

    rows = Rows()
    run(evaluation=2, screen=rows)
    assert rows[0]["step"] == 10 and rows[0]["return"] is not None and rows[0]["eval"] is None
    assert rows[-1]["step"] == 60 and rows[-1]["left"] == 0 and rows[-1]["eval"][0] > 0
    assert any(row["model"] is not None for row in rows)


def test_time_left_is_measured_from_the_first_update_on(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = vector()
    agent = toys.make_agent(envs)
    trainer = Trainer(agent, envs, make_replay(agent, envs), TrainConfig(steps=100), ListLog(), None, 0, None)
    assert trainer._seconds_left() is None
    trainer.progress.learning = True
    trainer.progress.first_update_step, trainer.progress.first_update_wall = 20, 1.0
    trainer.driver.decisions = 30
    monkeypatch.setattr(Trainer, "wall", 6.0)
    assert trainer._seconds_left() == pytest.approx(70 * 0.5)


def test_a_random_agent_runs_on_a_real_environment() -> None:
    envs = environments.make_envs("CartPole-v1", 2)
    agent = make_agent("random", None, envs.single_observation_space, envs.single_action_space)
    replay, log = make_replay(agent, envs), ListLog()
    result = train(agent, envs, replay, TrainConfig(steps=200, prefill=50), log, eval_envs=envs)
    assert 200 <= result.env_steps <= 201
    assert 10 < np.mean(result.scores["sample"]) < 60
    envs.close()


def test_each_lap_of_a_pace_begins_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 110.0
    monkeypatch.setattr("mbrl.progress.time.monotonic", lambda: now)
    pace = Pace(begin=100.0)
    assert pace.seconds == 10 and pace.lap(20, 5) == (2.0, 0.5)
    now = 114.0
    assert pace.lap(32, 5) == (3.0, 0.0)


def test_a_row_for_people_does_not_change_the_pace_that_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("mbrl.progress.time.monotonic", lambda: now)
    envs, log = vector(), ListLog()
    agent = toys.make_agent(envs)
    trainer = Trainer(agent, envs, make_replay(agent, envs), SMALL, log, None, 0, None)
    trainer.start()
    trainer.since_line.begin = trainer.since_row.begin = now
    trainer.advance(trainer.action)
    now = 5.0
    trainer._show({})
    trainer.advance(trainer.action)
    now = 10.0
    trainer._show({})
    trainer._write_metrics()
    assert log.metrics[-1][1]["time/fps"] == 0.2
