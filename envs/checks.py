"""Checks of one environment: what would make training on it fail, go wrong unseen, or take longer.

    findings, measured = check("path/to/file.py:MyEnv")

The environment is stepped with random actions; what an agent makes of it is `mbrl check-env`'s part. Step numbers
count actions since the sample began; lengths of episodes are environment steps, action repeat included.
"""

import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from envs import Name, make_env
from envs.errors import EnvError
from envs.vector import GOOD_STEPS
from envs.wrappers import Env, Obs, Result, as_image

Array = np.ndarray[Any, Any]
Watch = Callable[[str], None]

ENOUGH = 500
"""Environment steps in which most episodes end, if they end at all."""
EXACT = 2**24
"""Whole numbers above this are rounded in float32."""

COUNTED = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

# What Gymnasium's checker says that makes no difference here: agents do not look at the bounds of
# observations, and rescale actions themselves.
IRRELEVANT = ("A Box observation space m", "symmetric and normalized space", "different from the unwrapped version")

SEED = "super().reset(seed=seed)  # first line of reset(); then draw every random number from self.np_random"
TIME_LIMIT = "env = gymnasium.wrappers.TimeLimit(env, max_episode_steps=1000)  # or the option --max-episode-steps 1000"
RETURNS = "reset() returns (obs, info); step() returns (obs, float(reward), terminated, truncated, info)"
SPACE = "correct the environment's observation_space, or what reset() and step() return"


@dataclass(frozen=True)
class Finding:
    severity: str
    """error: training would fail or be ruined; warning: it would be worse than need be; note: good to know."""
    check: str
    """Which check found it."""
    what: str
    mend: str
    """One line that mends it: of code, or a command."""


class Broken(Exception):
    """The environment cannot be looked at any further, and why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


def check(
    name: Name, *, steps: int = 1000, seconds: float = 20.0, watch: Watch = lambda where: None, **kwargs: Any
) -> tuple[list[Finding], dict[str, Any]]:
    """What was found, and what was measured.

    Args:
        steps: environment steps of the sample.
        seconds: the sample ends after so many, if the steps take longer.
        watch: is told what is about to be called, so that somebody can say where it hung.
        kwargs: of `make_env`.
    """
    findings: list[Finding] = []
    sample: Sample | None = None
    try:
        env, twin = _make(name, watch, kwargs), _make(name, watch, kwargs)
        probe = _insert_probe(env)
        env.action_space.seed(0)
        findings += [*check_images(probe.observation_space), *check_seeds(env, watch)]
        findings += check_determinism(env, twin, watch, seconds / 4)
        sample = Sample(env, probe)
        sample.run(steps, seconds, watch)
        findings += sample.findings()
        findings += check_with_gymnasium(_raw(twin), watch)
        with calling(watch, "close", "close()"):
            env.close()
            twin.close()
    except Broken as broken:
        findings += [broken.finding, *(sample.findings() if sample else [])]
    watch("")
    return findings, sample.measured() if sample else {}


@contextmanager
def calling(
    watch: Watch, check: str, where: str, readable: tuple[type[Exception], ...] = (EnvError,), severity: str = "error"
) -> Iterator[None]:
    """Whatever is raised inside is the environment's fault.

    Args:
        where: what is done to it.
        readable: errors that say themselves what to do.
        severity: of others.

    Raises:
        Broken: in place of it.
    """
    watch(where)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, readable):
            raise Broken(explained(check, where, str(error))) from error
        raise Broken(_raised(check, where, error, severity)) from error


def explained(check: str, where: str, message: str) -> Finding:
    """An error whose message says what, why and, in its last sentence, how."""
    message = re.sub(r"\s+", " ", message)
    for end in (". ", "; "):
        what, _, mend = message.rpartition(end)
        if what:
            return Finding("error", check, f"{where}: {what}", mend)
    return Finding("error", check, f"{where}: {message}", "as the message says")


def _raised(check: str, where: str, error: BaseException, severity: str) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    between = (str(Path(__file__).parent), gymnasium.__path__[0])
    own = [frame for frame in frames if not frame.filename.startswith(between)]
    tail = "".join(traceback.format_list(own[-2:]) + traceback.format_exception_only(error)).rstrip()
    mend = f"correct {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else RETURNS
    survived = " (training restarts an environment that breaks seldom)" if severity == "warning" else ""
    return Finding(severity, check, f"{where} raised {type(error).__name__}{survived}\n{tail}", mend)


# ---- construction ------------------------------------------------------------------------------


def _make(name: Name, watch: Watch, kwargs: dict[str, Any]) -> Env:
    with calling(watch, "construction", "making the environment"):
        return make_env(name, **kwargs)


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


def _innermost(env: Env) -> gymnasium.Wrapper[Any, Any, Any, Any]:
    """The innermost of this package's wrappers."""
    assert isinstance(env, gymnasium.Wrapper)
    while isinstance(env.env, gymnasium.Wrapper) and type(env.env).__module__.startswith("envs."):
        env = env.env
    return env


def _insert_probe(env: Env) -> Probe:
    inner = _innermost(env)
    inner.env = Probe(inner.env)
    return inner.env


def _raw(env: Env) -> Env:
    """The environment as its author made it, without what `gymnasium.make` and this package put around it."""
    env = _innermost(env).env
    while isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker):
        env = env.env
    return env


def time_limit(env: Env) -> int | None:
    """Steps after which episodes are cut, as far as wrappers and spec tell."""
    spec = env.unwrapped.spec
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return None if spec is None else spec.max_episode_steps


# ---- single checks -----------------------------------------------------------------------------


def check_images(space: spaces.Space[Any]) -> list[Finding]:
    """What looks like a picture, but is not taken for one."""
    findings = []
    for path, leaf in _leaves(space):
        if not isinstance(leaf, spaces.Box) or len(leaf.shape) != 3 or as_image(leaf) is not None:
            continue
        if sorted(leaf.shape)[1] >= 16 >= min(leaf.shape):
            what = f"observation '{_key(path)}' {leaf.shape} looks like a picture, but is {leaf.dtype}, neither uint8 "
            what += "nor in [0, 1]: "
            what += f"it is encoded as a vector of {np.prod(leaf.shape)} numbers"
            mend = "spaces.Box(0, 255, shape, np.uint8)  # and return (255 * picture).astype(np.uint8)"
            findings.append(Finding("warning", "image-type", what, mend))
    return findings


def check_seeds(env: Env, watch: Watch) -> list[Finding]:
    """Whether a seed decides how an episode begins."""

    def start(seed: int) -> Obs:
        with calling(watch, "reset", f"reset(seed={seed})"):
            return _copy(env.reset(seed=seed)[0])

    first = start(0)
    if (key := _differs(first, start(0))) is not None:
        what = f"reset(seed=0) twice gives two different observations '{key}': runs with a seed cannot be repeated"
        return [Finding("warning", "seed", what, SEED)]
    if all(_differs(first, start(seed)) is None for seed in range(1, 5)):
        what = "every seed gives the same first observation: episodes begin without chance, or the seed is ignored"
        return [Finding("note", "seed", what, f"if episodes should differ: {SEED}")]
    return []


def check_determinism(env: Env, twin: Env, watch: Watch, seconds: float, steps: int = 50) -> list[Finding]:
    """Whether a seed and the actions decide an episode, also in another instance: runs are continued by that."""
    actions = [env.action_space.sample() for _ in range(steps)]
    first = _play(env, actions, watch, seconds)
    for other, which in ((env, "a second time"), (twin, "in another instance of the environment")):
        again = _play(other, actions[: len(first) - 1], watch, seconds)
        for step, (a, b) in enumerate(zip(first, again)):
            key = _differs(a[0], b[0])
            if key is None and a[1:] == b[1:]:
                continue
            subject = f"observation '{key}'" if key is not None else "the reward or the episode's end"
            what = f"the same seed and actions {which} give another episode: {subject} differs at step {step}"
            if step > 0 or other is twin:  # else the seed's own check has said it
                what += "; an interrupted run then begins a new episode where it stopped"
                return [Finding("warning", "determinism", what, SEED)]
            return []
    return []


def _play(env: Env, actions: Sequence[Any], watch: Watch, seconds: float) -> list[tuple[Obs, float, bool, bool]]:
    """An episode from seed 0, the reset first; ends with the actions, the episode or the seconds."""
    end = time.perf_counter() + seconds
    with calling(watch, "reset", "reset(seed=0)"):
        played = [(_copy(env.reset(seed=0)[0]), 0.0, False, False)]
    for step, action in enumerate(actions, 1):
        if played[-1][2] or played[-1][3] or time.perf_counter() > end:
            break
        with calling(watch, "step", f"step {step} after reset(seed=0), action {_short(action)},"):
            obs, reward, terminated, truncated, _ = env.step(action)
        played.append((_copy(obs), float(reward), bool(terminated), bool(truncated)))
    return played


def check_with_gymnasium(env: Env, watch: Watch) -> list[Finding]:
    """What Gymnasium's own checker objects to.

    It raises where its rules are broken. What of that spoils training is found by this module's checks, so here
    it is a warning.
    """
    mend = "gymnasium.utils.env_checker.check_env(env.unwrapped, skip_render_check=True)  # says it again"
    findings = []
    watch("gymnasium.utils.env_checker.check_env")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            findings.append(Finding("warning", "gymnasium", f"{type(error).__name__}: {error}", mend))
    texts = {re.sub(r"\x1b\[\d+m|^WARN: ", "", re.sub(r"\x1b\[\d+m", "", str(w.message))): None for w in caught}
    relevant = [text for text in texts if not any(part in text for part in IRRELEVANT)]
    return findings + [Finding("note", "gymnasium", text, mend) for text in relevant]


# ---- a sample ----------------------------------------------------------------------------------


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
        where = f"step {count}, action {_short(action)},"
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
        for path, space in _leaves(self.probe.observation_space):
            raw = self.probe.obs
            for part in path:
                raw = raw[part]
            key, value = _key(path), np.asarray(raw)
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
                what = f"observation '{key}' is {_short(raw)} {when}, which is not in {space}"
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


# ---- helpers -----------------------------------------------------------------------------------


def _leaves(
    space: spaces.Space[Any], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], spaces.Space[Any]]]:
    """(path into the observation, space) of everything that is no Dict or Tuple."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for part, sub in parts:
            yield from _leaves(sub, (*path, part))
    else:
        yield path, space


def _key(path: tuple[str | int, ...]) -> str:
    return "/".join(map(str, path)) or "observation"


def _copy(obs: Obs) -> Obs:
    return {key: np.array(value) for key, value in obs.items()}


def _differs(a: Obs, b: Obs) -> str | None:
    """The first key that is not the same in both."""
    return next((key for key in a if not np.array_equal(a[key], b[key], equal_nan=a[key].dtype.kind == "f")), None)


def _short(value: Any) -> str:
    text = np.array2string(value, precision=3, threshold=8) if isinstance(value, np.ndarray) else str(value)
    return re.sub(r"\s+", " ", text if len(text) <= 100 else f"{text[:100]} ...")
