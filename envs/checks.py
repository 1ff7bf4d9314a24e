"""Checks of one environment: what would make training on it fail, go wrong unseen, or take longer.

    findings, measured = check("path/to/file.py:MyEnv")

The environment is stepped with random actions (`envs/sample.py`); what an agent makes of it is `mbrl check-env`'s
part.
"""

import re
import time
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from envs import Name, make_env
from envs.findings import Broken, Finding, Watch, calling, key_of, leaves, short
from envs.sample import Probe, Sample
from envs.wrappers import Env, Obs, as_image

# What Gymnasium's checker says that makes no difference here: agents do not look at the bounds of
# observations, and rescale actions themselves.
IRRELEVANT = ("A Box observation space m", "symmetric and normalized space", "different from the unwrapped version")

SEED = "super().reset(seed=seed)  # first line of reset(); then draw every random number from self.np_random"


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


# ---- construction ------------------------------------------------------------------------------


def _make(name: Name, watch: Watch, kwargs: dict[str, Any]) -> Env:
    with calling(watch, "construction", "making the environment"):
        return make_env(name, **kwargs)


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


# ---- single checks -----------------------------------------------------------------------------


def check_images(space: spaces.Space[Any]) -> list[Finding]:
    """What looks like a picture, but is not taken for one."""
    findings = []
    for path, leaf in leaves(space):
        if not isinstance(leaf, spaces.Box) or len(leaf.shape) != 3 or as_image(leaf) is not None:
            continue
        if sorted(leaf.shape)[1] >= 16 >= min(leaf.shape):
            what = f"observation '{key_of(path)}' {leaf.shape} looks like a picture, but is {leaf.dtype}, neither "
            what += "uint8 nor in [0, 1]: "
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
        with calling(watch, "step", f"step {step} after reset(seed=0), action {short(action)},"):
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


def _copy(obs: Obs) -> Obs:
    return {key: np.array(value) for key, value in obs.items()}


def _differs(a: Obs, b: Obs) -> str | None:
    """The first key that is not the same in both."""
    return next((key for key in a if not np.array_equal(a[key], b[key], equal_nan=a[key].dtype.kind == "f")), None)
