"""Trainer: the one loop that every agent shares.

    act -> step -> remember -> learn as much as is owed -> log -> evaluate -> checkpoint

Steps are ENVIRONMENT steps, action repeat included, resets not counted. A decision is one action of one
environment. N parallel environments, A action dims.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mbrl.checkpoint import Checkpoints, as_tensors, describe_agent, pack
from mbrl.driver import Driver
from mbrl.errors import UserError
from mbrl.evaluation import Interrupted, evaluate
from mbrl.interfaces import Adviser, Agent, EnvStates, Log, OwnLoop, Rows, State
from mbrl.progress import Pace, Progress, Scores
from mbrl.quality import Imaginer, judge
from mbrl.randomness import own_randomness, seed_everything
from mbrl.replay import Replay
from mbrl.run import peak_memory_mb, write_status
from mbrl.signals import StopRequest
from mbrl.spaces import space_to_json
from mbrl.steps import Steps
from mbrl.suspension import identity, suspend

if TYPE_CHECKING:
    from mbrl.training import TrainConfig

Metrics = dict[str, Any]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    env_steps: int
    updates: int
    seconds: float
    """Wall-clock of the whole run, earlier parts included."""
    scores: Scores
    """Returns of the last evaluation, by "mode" and "sample"."""
    report: dict[str, Any]
    """The agent's last report: scalars, and arrays to draw."""
    signal: int | None
    """The signal that interrupted the run, if one did."""
    notes: list[str]
    """What the user should know about how the run was continued."""

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


class Trainer:
    """The loop's parts. Between two iterations its state is whole, and a checkpoint can be taken."""

    def __init__(
        self,
        agent: Agent,
        envs: VectorEnv[Any, Any, Any],
        replay: Replay,
        config: TrainConfig,
        log: Log,
        eval_envs: VectorEnv[Any, Any, Any] | None,
        seed: int,
        screen: Rows | None,
    ) -> None:
        self.agent, self.replay, self.config, self.log = agent, replay, config, log
        self.driver, self.eval_envs, self.screen, self.seed = Driver(envs), eval_envs, screen, seed
        self.generator = np.random.default_rng(seed)
        n = envs.num_envs
        self.progress = Progress(running_return=[0.0] * n, running_length=[0] * n)
        self.checkpoints: Checkpoints | None = None
        self.env_states: EnvStates | None = None
        self.run_config: dict[str, Any] = {}
        self.stop = StopRequest()
        self.last_report: dict[str, Any] = {}
        self.notes: list[str] = []
        self.score: float | None = None  # of the agent as it is
        self.begin = self.saved_at = time.monotonic()
        self.since_line, self.since_row = Pace(), Pace()  # of metrics, and for people
        self.step: Steps
        self.state: State
        self.action: Tensor

    def start(self) -> None:
        """Seed everything, reset, and take the first decision."""
        seed_everything(self.seed)
        self.progress.next_log = self.config.log_every
        self.progress.next_eval = next_evaluation(0, self.config)
        self.step = self.driver.reset(self.seed)
        self._heed_restarts()
        self.state = self.agent.initial_state(self.driver.num_envs)
        self.action = self.driver.action_spec.zero(self.driver.num_envs)
        if not isinstance(self.agent, OwnLoop):
            self._decide()

    def run(self) -> None:
        progress = self.progress
        if progress.finished and self._over():
            return
        progress.finished = False
        if progress.next_eval > self.driver.env_steps:  # what is asked for may have changed since then
            progress.next_eval = next_evaluation(self.driver.env_steps, self.config)
        if isinstance(self.agent, OwnLoop):
            self.agent.run(self)
            return
        while True:
            self._learn()
            if self.settle():
                return
            self._interact()

    def settle(self) -> bool:
        """Evaluate, log and save what is due; whether to leave."""
        progress = self.progress
        over, step = self._over(), self.driver.env_steps
        if not self.stop and (over or step >= progress.next_eval):
            self._evaluate(self.config.final_episodes if over else self.config.eval_episodes)
        if not self.stop and (over or step >= progress.next_log):
            self._write_metrics()
            progress.finished = over
        leave = over or bool(self.stop)  # asked once: a signal from here on comes too late for this save
        due = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_every
        best = self.score is not None and self.score == progress.best
        if self.checkpoints is not None and (leave or due or best):
            self._save()
        self.score = None  # a later checkpoint is of another agent
        return leave

    def _over(self) -> bool:
        minutes = self.config.minutes
        in_time = minutes is None or self.wall < 60 * minutes
        return self.driver.env_steps >= self.config.steps or not in_time

    @property
    def wall(self) -> float:
        return self.progress.wall + time.monotonic() - self.begin

    def _decide(self) -> None:
        """Filter the step, remember it, choose the next action: at random during the prefill."""
        self.action, self.state = self.agent.act(self.step, self.state, explore=True)
        self.replay.add(self.step, self.agent.latents(self.state))
        if self.config.random_prefill and self.driver.decisions < self.config.prefill:
            self.action = self.driver.action_spec.sample(self.driver.num_envs, self.generator)

    def _interact(self) -> None:
        progress, before = self.progress, self.driver.decisions
        self.advance(self.action)
        self._decide()
        if progress.learning:
            progress.owed += self._update_ratio * (self.driver.decisions - before)
        elif self.driver.decisions >= self.config.prefill and self._can_sample():
            self._begin_learning()
            progress.owed += self.config.pretrain

    @property
    def _update_ratio(self) -> float:
        asked = self.config.update_ratio
        return float(getattr(self.agent, "update_ratio", 0.5)) if asked is None else asked

    def _begin_learning(self) -> None:
        progress = self.progress
        progress.learning = True
        progress.first_update_wall, progress.first_update_step = self.wall, self.driver.env_steps
        for advice in self.agent.advise(self.replay) if isinstance(self.agent, Adviser) else []:
            self.note(f"{advice.what}: {advice.option} may help")

    def advance(self, action: Tensor) -> None:
        """Action (N, A): step the environments, and keep count of their episodes."""
        progress = self.progress
        with self._saved_on_error(env_states=False):  # some may have made the step, others not
            self.step = self.driver.step(action)
        self._heed_restarts()
        reward, is_first, is_last = self.step.reward.tolist(), self.step.is_first, self.step.is_last
        for i in range(self.driver.num_envs):
            progress.running_return[i] += reward[i]
            progress.running_length[i] += 0 if is_first[i] else self.driver.action_repeat
            if is_last[i]:
                score = progress.running_return[i]
                self.log.episode(self.driver.env_steps, score, progress.running_length[i])
                progress.returns.append(score)
                progress.running_return[i], progress.running_length[i] = 0.0, 0

    def begin_episodes(self) -> None:
        """Reset the environments whose episode ended with the newest step, for who cannot wait for the next."""
        with self._saved_on_error(env_states=False):
            self.step = self.driver.begin_episodes(self.step)
        self._heed_restarts()

    def learned(self, updates: int, metrics: Metrics, flops: float | None) -> None:
        """Of a loop of its own: the number of updates so far, the metrics of the last and the FLOPs of one."""
        if not self.progress.learning:
            self._begin_learning()
        self.progress.updates, self.progress.flops_per_update = updates, flops
        self._count(metrics)

    def _heed_restarts(self) -> None:
        """Where an environment broke and was restarted, its episode ends, truncated, with the last good step."""
        progress = self.progress
        before, progress.env_restarts = progress.env_restarts, progress.env_restarts + self.driver.restarts
        for i in self.driver.faults:
            self.replay.close_episode(i)
            progress.running_return[i], progress.running_length[i] = 0.0, 0
        if progress.env_restarts.bit_length() > before.bit_length():  # the 1st, 2nd, 4th, 8th, ...
            i, fault = next(iter(self.driver.faults.items()))
            self.note(
                f"environment {i} broke at step {self.driver.env_steps} and was restarted; an unfinished episode ends "
                f"there, as if truncated (restarts so far: {progress.env_restarts}): {fault}"
            )

    @contextmanager
    def _saved_on_error(self, env_states: bool) -> Iterator[None]:
        """A broken environment must not cost the run: whatever is raised inside, a checkpoint is written."""
        try:
            yield
        except Interrupted:
            raise
        except Exception:
            if self.checkpoints is not None:
                self._save(env_states)
                self.note("the run was saved before the error, and the same command continues it")
            raise

    def _learn(self) -> None:
        """Do the updates that are owed; a request to stop leaves the rest for later."""
        progress = self.progress
        while progress.owed > 1 - 1e-6 and not self.stop and self._can_sample():
            metrics = self._update()
            progress.owed -= 1
            progress.updates += 1
            self._count(metrics)

    def _update(self) -> Metrics:
        """One update; the arithmetic of the very first is counted, where a graph of the GPU does not hide it."""
        progress = self.progress
        if progress.updates or getattr(self.agent, "device", _CPU).type != "cpu":
            return self.agent.update(self.replay)
        with FlopCounterMode(display=False) as counter:  # rounds otherwise: a resumed run must not count again
            metrics = self.agent.update(self.replay)
        progress.flops_per_update = counter.get_total_flops()
        return metrics

    def _count(self, metrics: Metrics) -> None:
        """Add an update's metrics to those of the next line."""
        progress = self.progress
        self._check_finite(metrics)
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, Tensor) else value
            progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.counts[name] = progress.counts.get(name, 0) + 1
        if self.screen is not None and self.since_row.seconds > 10:
            self._show(self._averages())

    def _averages(self) -> dict[str, float]:
        """The metrics of the updates since the last line."""
        progress = self.progress
        return {name: float(value) / progress.counts[name] for name, value in progress.sums.items()}

    def _can_sample(self) -> bool:
        return self.replay.ready(int(getattr(self.agent, "min_steps", 1)))

    def _check_finite(self, metrics: Metrics) -> None:
        losses = {name: value for name, value in metrics.items() if name.startswith("train/loss/")}
        total = metrics.get("train/loss/total", sum(losses.values()))
        if np.isfinite(float(total)):  # the one number that is waited for in every update
            return
        names = [name for name, value in metrics.items() if not np.isfinite(float(value))]
        where, batch = "", getattr(self.agent, "last_batch", None)
        if self.checkpoints is not None and batch is not None:
            path = self.checkpoints.directory / "nonfinite_batch.pt"
            torch.save({"metrics": metrics, "batch": pack(as_tensors(batch))}, path)
            where = f" The batch is in {path}."
        raise UserError(
            f"{', '.join(names)} became non-finite in update {self.progress.updates} (environment step "
            f"{self.driver.env_steps}).{where} Look there for extreme observations or rewards; otherwise "
            "train with a smaller learning rate. The last checkpoint is from before: the same command "
            "continues from it"
        )

    def _write_metrics(self) -> None:
        """One line of metrics: averages over the updates since the last one."""
        progress, step = self.progress, self.driver.env_steps
        metrics = self._averages()
        ratio = progress.updates / max(1, self.driver.decisions)
        fps, _ = self.since_line.lap(step, progress.updates)
        times = {"time/fps": fps, "time/updates": progress.updates, "time/replay_ratio": ratio}
        self.log.scalars(step, {**metrics, **times, "time/seconds": self.wall, **self._about_envs()})
        self._show(metrics)
        progress.sums, progress.counts, progress.returns = {}, {}, []
        progress.next_log = next_multiple(step, self.config.log_every)

    def _about_envs(self) -> Metrics:
        """Restarts since the start of the run, and the largest environment process, where there are some."""
        memory: list[float] = getattr(self.driver.envs.unwrapped, "worker_memory", list)()
        size: Metrics = {"env/worker_rss_mb": max(memory)} if memory else {}
        return {"train/env_restarts": float(self.progress.env_restarts), **size}

    def note(self, text: str) -> None:
        """Something that the user should know, now and in the result; not twice."""
        if text in self.notes:
            return
        self.notes.append(text)
        if self.screen is not None:
            self.screen.note(text)

    def _show(self, metrics: dict[str, Any]) -> None:
        """A row for people; also between two lines of metrics, as a sign of life."""
        progress = self.progress
        fps, ups = self.since_row.lap(self.driver.env_steps, progress.updates)
        if self.screen is None:
            return
        score, error = progress.scores.get("mode"), self.last_report.get("report/open_loop_error")
        self.screen.row({
            "step": self.driver.env_steps,
            "return": float(np.mean(progress.returns)) if progress.returns else None,
            "eval": (float(np.mean(score)), float(np.std(score))) if score else None,
            "model": model_loss(metrics),
            "horizon-15 error": float(error[min(14, len(error) - 1)]) if error is not None else None,
            "updates/s": ups,
            "steps/s": fps,
            "left": self._seconds_left(),
        })  # fmt: skip

    def _seconds_left(self) -> float | None:
        """Measured from the first update on; None before there is anything to measure."""
        progress, config = self.progress, self.config
        by_clock = None if config.minutes is None else 60 * config.minutes - self.wall
        steps = self.driver.env_steps - progress.first_update_step
        if not progress.learning or steps <= 0:
            return by_clock
        pace = (self.wall - progress.first_update_wall) / steps
        by_steps = pace * max(0, config.steps - self.driver.env_steps)
        return by_steps if by_clock is None else min(by_steps, by_clock)

    def _evaluate(self, episodes: int) -> None:
        """Score the mode and a sample of the policy; a request to stop discards both."""
        progress, step, begin = self.progress, self.driver.env_steps, time.monotonic()
        if self.eval_envs is not None:
            envs, limit = self.eval_envs, self.config.eval_limit
            score = partial(evaluate, self.agent, envs, 1_000_000 + self.seed, episodes, note=self.note, limit=limit)
            if self.screen is not None:
                self.screen.heartbeat(f"step {step}, evaluating {episodes} episodes")
            try:
                with self._saved_on_error(env_states=True):
                    modes = ("mode", "sample")
                    scores = {mode: score(explore=mode == "sample", stop=self.stop.__bool__).tolist() for mode in modes}
                    quality = self._judge(envs)
            except Interrupted:
                return
            self.log.scalars(step, {"time/updates": progress.updates, **quality})
            for mode, returns in scores.items():
                self.log.evaluation(step, mode, returns)
            progress.scores = scores
            self.score = float(np.mean(scores["mode"]))
            progress.best = max(self.score, self.score if progress.best is None else progress.best)
        if progress.learning:
            with own_randomness(self.seed):
                self.last_report = self.agent.report(self.replay)
            self.log.scalars(step, self.last_report)
        progress.next_eval = next_evaluation(step, self.config)
        for pace in (self.since_line, self.since_row):
            pace.begin += time.monotonic() - begin  # it is that of training

    def _judge(self, envs: VectorEnv[Any, Any, Any]) -> Metrics:
        """The quality of the agent's world model, where it has one and has begun to learn it."""
        probes = self.config.eval_probes
        if not (probes and self.progress.learning and isinstance(self.agent, Imaginer)):
            return {}
        return judge(self.agent, envs, 2_000_000 + self.seed, probes, stop=self.stop.__bool__)

    def result(self) -> Result:
        return Result(
            env_steps=self.driver.env_steps,
            updates=self.progress.updates,
            seconds=self.wall,
            scores=self.progress.scores,
            report=self.last_report,
            signal=None if self.progress.finished else self.stop.signal,
            notes=self.notes,
        )

    def totals(self) -> dict[str, float]:
        """How far the run is and what it took, for status.json."""
        flops = self.progress.flops_per_update
        return {
            "step": self.driver.env_steps,
            "seconds": round(self.wall, 1),
            "updates": self.progress.updates,
            "parameters": self.agent.num_parameters,
            "peak_memory_mb": peak_memory_mb(),
            **({} if flops is None else {"flops_per_update": flops}),
        }

    def _save(self, env_states: bool = True) -> None:
        assert self.checkpoints is not None
        agent_state, step = self.agent.state_dict(), self.driver.env_steps
        self.checkpoints.save(step, agent_state, suspend(self, env_states), self.replay, self._about())
        write_status(self.checkpoints.directory, "running", **self.totals())
        self.saved_at = time.monotonic()

    def _about(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        envs, progress = self.driver.envs, self.progress
        return {
            "wall": self.wall,
            "updates": progress.updates,
            "score": self.score,
            "finished": progress.finished,
            "identity": identity(self),
            "agent": describe_agent(self.agent),
            "observation_space": space_to_json(envs.single_observation_space),
            "action_space": space_to_json(envs.single_action_space),
        }


def model_loss(metrics: dict[str, Any]) -> float | None:
    """All losses but those of the behaviour; None before there are any."""
    others = {f"train/loss/{name}" for name in ("policy", "value", "repval", "total")}
    losses = [v for k, v in metrics.items() if k.startswith("train/loss/") and k not in others]
    return sum(losses) if losses else None


def next_multiple(step: int, every: int) -> int:
    """The next multiple of ``every`` after ``step``."""
    return (step // every + 1) * every


def next_evaluation(step: int, config: TrainConfig) -> float:
    """The first step after ``step`` to evaluate at; infinity where there is none but the end."""
    regular = [next_multiple(step, config.eval_every)] if config.eval_every else []
    return min([*regular, *(at for at in config.eval_at if at > step)], default=math.inf)
