"""A sample of an environment: random actions for a while, and what came of them.

Step numbers count actions since the sample began; lengths of episodes are environment steps, action repeat included.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from envs.findings import SPACE, Finding, Watch, calling, key_of, leaves, short
from envs.vector import GOOD_STEPS
from envs.wrappers import Env, Obs, Result

Array = np.ndarray[Any, Any]

ENOUGH = 500
"""Environment steps in which most episodes end, if they end at all."""
EXACT = 2**24
"""Whole numbers above this are rounded in float32."""

COUNTED = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

TIME_LIMIT = "env = gymnasium.wrappers.TimeLimit(env, max_episode_steps=1000)  # or the option --max-episode-steps 1000"


class Probe(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers what the environment itself observed last."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.obs: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.obs, info = self.env.reset(seed=seed, options=options)
        return self.obs, info

    def step(self, action: Any) -> Result:
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        return self.obs, reward, terminated, truncated, info  # type: ignore[return-value]


def time_limit(env: Env) -> int | None:
    """Steps after which episodes are cut, as far as wrappers and spec tell."""
    spec = env.unwrapped.spec
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return None if spec is None else spec.max_episode_steps


@dataclass
class Seen:
    """What one observation key has been."""

    first: Array
    changed: Array
    """Of which numbers a second value was seen."""
    largest: float = 0.0

    def add(self, value: Array) -> None:
        self.changed |= value != self.first
        if value.dtype.kind == "f" and value.size:
            self.largest = max(self.largest, float(np.abs(value).max()))


@dataclass
class Sample:
    """Random actions for a while, and what came of them.

    Args:
        env: as `make_env` gives it.
        probe: inside of it, around the environment itself.
    """

    env: Env
    probe: Probe
    seen: dict[str, Seen] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    ends: list[tuple[int, bool, bool]] = field(default_factory=list)
    """Of each episode that ended: its length, terminated, truncated."""
    observations: int = 0
    seconds: float = 0.0
    """Inside the environment."""
    after_end: str | None = None
    """What a step after an episode's end does."""
    odd: dict[tuple[str, str], Finding] = field(default_factory=dict)
    """The first finding of each check and key."""

    @property
    def fault(self) -> str:
        """Severity of a fault now: training restarts an environment that breaks seldom."""
        return "warning" if len(self.rewards) > GOOD_STEPS else "error"

    @property
    def repeat(self) -> int:
        return int(self.env.get_wrapper_attr("action_repeat"))

    def run(self, steps: int, seconds: float, watch: Watch) -> None:
        end, repeat, count, done = time.perf_counter() + seconds, self.repeat, 0, True
        while count * repeat < steps and time.perf_counter() < end:
            if done:
                self._reset(count, watch)
                length = 0
            action = self.env.action_space.sample()
            count, length = count + 1, length + 1
            terminated, truncated = self._step(count, action, watch)
            done = terminated or truncated
            if done:
                self.ends.append((length * repeat, terminated, truncated))
        if done and count:
            self._step_after_end(watch)

    def _reset(self, count: int, watch: Watch) -> None:
        seed = 0 if count == 0 else None
        begin = time.perf_counter()
        with calling(watch, "reset", f"reset() before step {count + 1}", severity=self.fault):
            obs, _ = self.env.reset(seed=seed)
        self.seconds += time.perf_counter() - begin
        self._look(obs, f"after reset(), before step {count + 1}")

    def _step(self, count: int, action: Any, watch: Watch) -> tuple[bool, bool]:
        where = f"step {count}, action {short(action)},"
        with calling(watch, "step", where, severity=self.fault):
            begin = time.perf_counter()
            obs, reward, terminated, truncated, _ = self.env.step(action)
            self.seconds += time.perf_counter() - begin
            self.rewards.append(float(reward))
            over = bool(terminated), bool(truncated)
        if not np.isfinite(self.rewards[-1]):
            mend = "correct the reward in step(); where it divides, guard against zero"
            self._once(self.fault, "reward-finite", "", f"the reward is {reward} at step {count}", mend)
        self._look(obs, f"at step {count}")
        return over

    def _step_after_end(self, watch: Watch) -> None:
        """Training never does this; it is only reported."""
        watch("step after the end of an episode")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.env.step(self.env.action_space.sample())
                self.after_end = "goes on"
            except Exception as error:
                self.after_end = f"raises {type(error).__name__}"

    def _look(self, obs: Obs, when: str) -> None:
        self.observations += 1
        self._look_at_raw(when)
        assert isinstance(self.env.observation_space, spaces.Dict)
        for key, space in self.env.observation_space.spaces.items():
            value = np.array(obs[key])
            seen = self.seen.setdefault(key, Seen(value, np.zeros(value.shape, bool)))
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                bad = value[~np.isfinite(value)][0]
                mend = "correct the observation in reset() and step(); float32 holds numbers up to 3e38"
                self._once(self.fault, "observation-finite", key, f"observation '{key}' is {bad} {when}", mend)
                continue
            seen.add(value)
            if isinstance(space, spaces.Box) and space.shape == value.shape:
                outside = (value < space.low) | (value > space.high)
                if outside.any():
                    at = tuple(map(int, np.argwhere(outside)[0]))
                    what = f"observation '{key}'{list(at)} is {value[at]:.6g} {when}, outside its bounds "
                    what += f"{space.low[at]:.6g} to {space.high[at]:.6g}"
                    self._once("warning", "observation-bounds", key, what, SPACE)

    def _look_at_raw(self, when: str) -> None:
        """What the conversion to float32, uint8 and one-hot vectors would hide."""
        for path, space in leaves(self.probe.observation_space):
            raw = self.probe.obs
            for part in path:
                raw = raw[part]
            key, value = key_of(path), np.asarray(raw)
            if isinstance(space, spaces.Box) and space.dtype == np.uint8 and value.dtype != np.uint8:
                if value.dtype.kind == "f":
                    what = f"observation '{key}' is {value.dtype} {when}, its space says uint8: it is cut to whole "
                    what += "numbers, and a picture between 0 and 1 becomes black"
                    mend = "picture = (255 * picture).astype(np.uint8)  # before it is returned"
                    self._once("error", "observation-type", key, what, mend)
                elif value.size and (value.min() < 0 or value.max() > 255):
                    what = f"observation '{key}' holds {value.min()} to {value.max()} {when}, its space says uint8: "
                    self._once("error", "observation-type", key, what + "they wrap around at 256", SPACE)
            elif isinstance(space, spaces.Box) and value.dtype.kind in "iu" and value.size:
                if np.abs(value.astype(np.float64)).max() > EXACT:
                    what = f"observation '{key}' holds whole numbers above {EXACT} {when}; float32 rounds those"
                    self._once("warning", "observation-type", key, what, "give differences or shares in place of them")
            elif isinstance(space, COUNTED) and not space.contains(int(raw) if value.ndim == 0 else raw):
                what = f"observation '{key}' is {short(raw)} {when}, which is not in {space}"
                self._once("error", "observation-bounds", key, what, SPACE)

    def _once(self, severity: str, check: str, key: str, what: str, mend: str) -> None:
        self.odd.setdefault((check, key), Finding(severity, check, what, mend))

    def findings(self) -> list[Finding]:
        return [*self.odd.values(), *self._constants(), *self._rewards(), *self._episodes()]

    def _constants(self) -> Iterator[Finding]:
        if self.observations < 10:
            return
        finite = {key: seen for key, seen in self.seen.items() if ("observation-finite", key) not in self.odd}
        constant = [key for key, seen in finite.items() if not seen.changed.any()]
        if finite and len(constant) == len(self.seen):
            what = f"no observation changed in {self.observations} of them: an agent would be blind"
            yield Finding("warning", "constant", what, "return self._observe().copy()  # the state after this step")
            return
        if constant:
            kept = [key for key in self.seen if key not in constant]
            names = ", ".join(f"'{key}'" for key in constant)
            what = f"never changed in {self.observations} observations: {names}"
            mend = f"env = gymnasium.wrappers.FilterObservation(env, {kept})  # if they never do"
            yield Finding("note", "constant", what, mend)
        for key, seen in finite.items():
            still = int((~seen.changed).sum())
            if key not in constant and seen.first.ndim == 1 and still:
                what = f"{still} of the {seen.first.size} numbers of '{key}' never changed in "
                what += f"{self.observations} observations"
                yield Finding("note", "constant", what, "leave them out of the observation, if they never do")

    def _rewards(self) -> Iterator[Finding]:
        sizes = np.abs([reward for reward in self.rewards if np.isfinite(reward)])
        if not sizes.size:
            return
        largest = float(sizes.max())
        if largest == 0:
            what = f"every reward was 0 in {sizes.size} random actions: what earns others must be found by chance"
            mend = "reward progress towards the goal too, or look longer: mbrl check-env ENV --steps 20000"
            yield Finding("note", "reward-scale", what, mend)
            return
        scale = f"env = gymnasium.wrappers.TransformReward(env, lambda r: {1 / largest:.1g} * r)"
        if largest > 1e3:
            what = f"rewards are up to {largest:.3g}: advantages are normalised, and the reward and value heads "
            what += "(symexp two-hot) hold returns up to 4.8e8, in ever coarser steps"
            yield Finding("warning" if largest > 1e5 else "note", "reward-scale", what, scale)
        elif largest < 1e-3:
            what = f"rewards are at most {largest:.3g}: advantages are not scaled up where returns stay below 1, and "
            what += "the bonus for random actions (entropy) outweighs them"
            yield Finding("warning" if largest < 1e-4 else "note", "reward-scale", what, scale)

    def _episodes(self) -> Iterator[Finding]:
        steps, limit = len(self.rewards) * self.repeat, time_limit(self.env)
        if not self.ends and limit is None and steps >= ENOUGH:
            what = f"no episode ended in {steps} steps, and there is no time limit: an evaluation, which plays "
            what += "whole episodes, may never end"
            yield Finding("warning", "time-limit", what, TIME_LIMIT)
        if not self.ends:
            return
        lengths = [length for length, _, _ in self.ends]
        short = sum(length <= self.repeat for length in lengths)
        if short > 0.5 * len(lengths):
            what = f"{short} of {len(lengths)} episodes ended with their first action: there is little to plan ahead"
            severity = "warning" if short == len(lengths) else "note"
            yield Finding(severity, "episode-length", what, "return terminated=False until the task is over")
        both = sum(terminated and truncated for _, terminated, truncated in self.ends)
        if both:
            what = f"{both} of {len(self.ends)} episodes were terminated and truncated at once; such an end counts as "
            what += "terminated, with no value beyond it"
            yield Finding("note", "episode-end", what, "truncated = self.t >= limit and not terminated")
        same = len(lengths) >= 3 and len(set(lengths)) == 1 and lengths[0] > self.repeat
        if same and not any(truncated for _, _, truncated in self.ends):
            what = f"all {len(lengths)} episodes were terminated after exactly {lengths[0]} steps: is that a time "
            what += "limit? Then agents should not learn that the world ends there"
            mend = "return obs, reward, False, self.t >= limit, info  # truncated, not terminated"
            yield Finding("note", "episode-end", what, mend)

    def measured(self) -> dict[str, Any]:
        lengths = [length for length, _, _ in self.ends]
        steps = len(self.rewards) * self.repeat
        finite = [reward for reward in self.rewards if np.isfinite(reward)]
        largest = {key: seen.largest for key, seen in self.seen.items() if seen.first.dtype.kind == "f"}
        return {
            "steps": steps,
            "steps_per_second": round(steps / max(self.seconds, 1e-9), 1),
            "episodes": len(lengths),
            "episode_length": [min(lengths), max(lengths)] if lengths else None,
            "terminated": sum(terminated for _, terminated, _ in self.ends),
            "truncated": sum(truncated for _, _, truncated in self.ends),
            "reward": [min(finite), max(finite)] if finite else None,
            "largest_observation": largest,
            "time_limit": time_limit(self.env),
            "step_after_end": self.after_end,
        }
