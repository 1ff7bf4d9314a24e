"""Vector environments of every kind give the same experience; mbrl.testing finds those that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from toy_envs import Counting, Same

from envs.vector import RestartingVectorEnv
from mbrl.testing import check_resets, check_vector_env, collect


class Foreign(VectorEnv[Any, Any, Any]):
    """Not Gymnasium's own, and of Gymnasium's interface it has what it must have only."""

    def __init__(self, inner: VectorEnv[Any, Any, Any]) -> None:
        self.inner, self.num_envs, self.metadata = inner, inner.num_envs, dict(inner.metadata)
        self.single_observation_space = inner.single_observation_space
        self.single_action_space = inner.single_action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        assert options is None or self.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        return self.inner.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self.inner.step(actions)


Makers = list[Callable[[], Any]]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
KINDS: dict[str, Callable[[Makers], VectorEnv[Any, Any, Any]]] = {
    "own": RestartingVectorEnv,
    "own parallel": partial(RestartingVectorEnv, parallel=True),
    **{f"sync {mode.value}": partial(SyncVectorEnv, autoreset_mode=mode) for mode in MODES},
    **{f"async {mode.value}": partial(AsyncVectorEnv, context="fork", autoreset_mode=mode) for mode in MODES},
    **{f"foreign {mode.value}": lambda m, mode=mode: Foreign(SyncVectorEnv(m, autoreset_mode=mode)) for mode in MODES},
}


# Where episodes end alone, those of a foreign SAME_STEP begin after an idle step: see test_driver.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != f"foreign {AutoresetMode.SAME_STEP.value}"])
def test_every_kind_gives_the_same_experience(kind: str) -> None:
    makers: Makers = [partial(Same, length) for length in (2, 3, 5)]
    check_vector_env(lambda: KINDS[kind](makers), lambda: SyncVectorEnv(makers), steps=30)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "parallel" not in kind])
def test_random_episodes_that_end_together_are_the_same(kind: str) -> None:
    makers: Makers = [Counting, Counting]
    check_vector_env(lambda: KINDS[kind](makers), lambda: SyncVectorEnv(makers), steps=30)


def test_disabled_resets_are_records_of_their_own() -> None:
    """Where episodes end apart, and random numbers differ from NEXT_STEP's."""
    makers: Makers = [Counting, partial(Counting, 5)]
    steps = collect(lambda: SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED), 40)
    time = steps.obs["state"][..., 0]
    assert torch.equal(steps.is_first[:, 1:], steps.is_last[:, :-1]) and steps.is_last.sum() > 6
    assert (time[steps.is_first] == 0).all() and (time.diff()[~steps.is_first[:, 1:]] == 1).all()
    assert torch.equal(steps.reward, time)


class Lying(Foreign):
    """Says something else of itself than it does."""

    def __init__(self, does: AutoresetMode, says: AutoresetMode) -> None:
        super().__init__(SyncVectorEnv([partial(Same, 3), partial(Same, 4)], autoreset_mode=does))
        self.metadata["autoreset_mode"] = says


class ResetsAll(Lying):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed)


class Unseeded(Foreign):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.inner.reset(seed=int(np.random.default_rng().integers(2**31)))


NEXT, SAME, DISABLED = MODES


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lying(SAME, NEXT), r"environments \[0\] were done in the step before.*must say SAME_STEP"),
        (lambda: Lying(NEXT, SAME), r"info\['final_obs'\]"),
        (lambda: ResetsAll(DISABLED, DISABLED), r"changed 'state' of environments outside of the mask"),
        (lambda: Unseeded(SyncVectorEnv([partial(Same, 3)])), r"same seed.*First difference: record 0, environment 0"),
        (lambda: SyncVectorEnv([partial(Same, 99)]), r"no episode ended within 20 steps"),
    ],
)
def test_what_is_wrong_is_said(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_vector_env(make, steps=20)


def test_a_difference_from_the_reference_is_said() -> None:
    check_resets(lambda: SyncVectorEnv([partial(Same, 3)]), 20)
    with pytest.raises(AssertionError, match=r"differs from the reference.*record 3, environment 0"):
        check_vector_env(
            lambda: SyncVectorEnv([partial(Same, 3)]), lambda: SyncVectorEnv([partial(Same, 4)]), steps=20
        )
