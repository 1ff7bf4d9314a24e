"""RestartingVectorEnv: environments side by side, of which a broken one is replaced and the others go on.

An environment breaks when it raises, returns NaN or infinity, and, in a process of its own, also when it hangs
or dies. Its row then ends as truncated, with the last good observation and reward 0; `info` says how often it
was restarted (`env_restarts`) and why (`env_fault`), and the next reset gives that row a new environment. After
MAX_RESTARTS restarts of one environment with fewer than GOOD_STEPS good steps between them an EnvError ends it.

N environments. The parent decides who steps and who resets; a worker only does what it is told.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from envs.errors import EnvError
from envs.workers import Fault, Local, Make, Process

MAX_RESTARTS = 3
GOOD_STEPS = 50
RESET_PATIENCE = 10  # a reset, which may load a level or play an episode again, gets so many times a step's timeout
START_SECONDS = 120.0  # for a process to import everything and make its environment
CLOSE_SECONDS = 5.0  # for all processes together to close their environments
SLICES = 10  # a timeout is waited for in parts: of a process stopped by Ctrl-Z and continued, one part is lost

StepResult = tuple[Any, Any, Any, Any, dict[str, Any]]


class RestartingVectorEnv(VectorEnv[Any, Any, Any]):
    """
    Args:
        makers: one for each environment, with a flat Dict of observations; called again for each restart.
        parallel: a process for each environment.
        timeout: seconds that a step may take. An environment in this process cannot be timed out.
        memory_limit: MB of resident memory; a process that holds more is replaced when its episode is over.

    Raises:
        EnvError: an environment cannot be made, or broke too often; holds its traceback.
    """

    def __init__(
        self,
        makers: Sequence[Make],
        parallel: bool = False,
        timeout: float = 60.0,
        memory_limit: float | None = None,
    ) -> None:
        self.num_envs, self.timeout, self.memory_limit = len(makers), timeout, memory_limit
        self.workers: list[Local | Process] = [(Process if parallel else Local)(make) for make in makers]
        for worker in self.workers:
            worker.start()
        try:
            self._describe(self._receive(range(self.num_envs), START_SECONDS))
        except BaseException:
            self.close()
            raise
        self._obs: list[Any] = [None] * self.num_envs
        self._done = np.zeros(self.num_envs, bool)  # resets with the next step
        self._seeds: list[int | None] = [None] * self.num_envs
        self._good = [0] * self.num_envs  # steps since the last restart
        self._restarts = [0] * self.num_envs  # with fewer than GOOD_STEPS between them
        self._untold: dict[int, list[str]] = {}  # faults that no `info` has named yet

    def _describe(self, answers: dict[int, Any]) -> None:
        """Take spaces and metadata from the environments, which must agree."""
        for i, answer in answers.items():
            if isinstance(answer, Fault):
                if isinstance(answer.error, EnvError):
                    raise answer.error
                raise EnvError(f"Environment {i} could not be created: {answer.text}") from answer.error
            if answer[:2] != answers[0][:2]:
                raise EnvError(f"Environment {i} has other spaces than environment 0: {answer[:2]}, {answers[0][:2]}.")
        self.single_observation_space: Dict
        self.single_observation_space, self.single_action_space, metadata, self.render_mode = answers[0]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**metadata, "autoreset_mode": AutoresetMode.NEXT_STEP, "reset_mask": True}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i gets the seed plus i; `options["reset_mask"]` (N,) leaves the others as they are."""
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            options = dict(options)
            mask = options.pop("reset_mask")
        seeds = _spread(seed, self.num_envs)
        rows = np.flatnonzero(mask).tolist()
        self._prepare_reset(rows)
        for i in rows:
            self._seeds[i] = self._seeds[i] if seeds[i] is None else seeds[i]
            self._begin_reset(i, seeds[i], options)
        infos: dict[int, dict[str, Any]] = {}
        for i, (obs, infos[i]) in self._end_resets(rows, options).items():
            self._obs[i] = obs
        self._done[rows] = False
        return self._batch(), merge(self._tell(infos, rows), self.num_envs)

    def step(self, actions: Any) -> StepResult:
        """A row whose episode ended in the last step is reset; its action is ignored."""
        resets = np.flatnonzero(self._done).tolist()
        self._prepare_reset(resets)
        for i in resets:
            self._begin_reset(i)
        steps = []
        for i, action in enumerate(iterate(self.action_space, actions)):
            if i not in resets and i not in self._untold:
                self.workers[i].send("step", action)
                steps.append(i)
        results = self._receive(steps, self.timeout)
        for i in [i for i in steps if isinstance(results[i], Fault)]:
            self._fail(i, results.pop(i))
        broken = [i for i in self._untold if i not in resets]
        for i in results:
            self._good[i] += 1
        results |= {i: (obs, 0.0, False, False, info) for i, (obs, info) in self._end_resets(resets).items()}
        rewards, ends = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool)
        infos: dict[int, dict[str, Any]] = {}
        for i, result in results.items():
            self._obs[i], rewards[i], ends[0, i], ends[1, i], infos[i] = result
        ends[1, broken] = True
        self._done[:] = ends.any(0)
        infos = self._tell(infos, range(self.num_envs))
        return self._batch(), rewards, ends[0], ends[1], merge(infos, self.num_envs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """A method of every environment, or an attribute's value.

        Raises what an environment raises; one that dies meanwhile is restarted, and asked again.
        """
        return self._ask_all("call", [(name, args, kwargs)] * self.num_envs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """A list or tuple gives each environment its own value."""
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{len(values)} values of {name!r} for {self.num_envs} environments.")
        self._ask_all("set", [(name, value) for value in values])

    def render(self) -> tuple[Any, ...]:
        return self.call("render")

    def worker_memory(self) -> list[float]:
        """Resident memory of each environment's process, MB; empty without processes, or where nobody tells."""
        memory = [worker.memory() for worker in self.workers]
        return [size for size in memory if size is not None]

    def close_extras(self, **kwargs: Any) -> None:
        """Ask the environments to close; processes that do not end soon are killed."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self.workers:
            worker.ask_to_close()
        for worker in self.workers:
            worker.close(max(0.0, deadline - time.monotonic()))

    def _prepare_reset(self, rows: Iterable[int]) -> None:
        """Make new environments where they are broken, or their processes have grown too large."""
        for i in rows:
            if self.memory_limit is not None and (self.workers[i].memory() or 0.0) > self.memory_limit:
                self.workers[i].kill()
            self._start(i)

    def _begin_reset(self, i: int, seed: int | None = None, options: Any = None) -> None:
        seed = self._other_seed(i) if seed is None and self.workers[i].fresh else seed
        self.workers[i].send("reset", (seed, options))

    def _end_resets(self, rows: list[int], options: Any = None) -> dict[int, tuple[Any, dict[str, Any]]]:
        """Each row's (observation, info); what breaks is replaced and reset again, as often as is allowed."""
        results: dict[int, Any] = {}
        while left := [i for i in rows if i not in results]:
            results |= self._receive(left, self.timeout * RESET_PATIENCE)
            broken = [i for i in left if isinstance(results[i], Fault)]
            for i in broken:
                self._fail(i, results.pop(i))
            self._prepare_reset(broken)
            for i in broken:
                self._begin_reset(i, None, options)
        return results

    def _start(self, i: int) -> None:
        while not self.workers[i].running:
            self.workers[i].start()
            answer = self._receive([i], START_SECONDS)[i]
            if isinstance(answer, Fault):
                self._fail(i, answer)

    def _fail(self, i: int, fault: Fault) -> None:
        """Remove an environment that broke, and count it.

        Raises:
            EnvError: too often.
        """
        self.workers[i].kill()
        self._restarts[i] = 1 if self._good[i] >= GOOD_STEPS else self._restarts[i] + 1
        self._good[i] = 0
        if self._restarts[i] > MAX_RESTARTS:
            raise EnvError(
                f"Environment {i} broke {self._restarts[i]} times with fewer than {GOOD_STEPS} good steps in between; "
                f"it is not restarted again. Correct the environment. The last fault: {fault.text}"
            ) from fault.error
        self._untold.setdefault(i, []).append(fault.text)

    def _tell(self, infos: dict[int, dict[str, Any]], rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Add what happened to these rows, and forget it."""
        told = dict(infos)
        for i in rows:
            if texts := self._untold.pop(i, None):
                told[i] = {**told.get(i, {}), "env_restarts": len(texts), "env_fault": texts[-1]}
        return told

    def _other_seed(self, i: int) -> int | None:
        """For a new environment: of the vector's seed, but not the old one's, whose episodes would come again."""
        seed = self._seeds[i]
        if seed is None:
            return None
        return int(np.random.SeedSequence([seed, self.workers[i].starts]).generate_state(1)[0])

    def _ask_all(self, command: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        answers: dict[int, Any] = {}
        while left := [i for i in range(self.num_envs) if i not in answers]:
            for i in left:
                self._start(i)
            for i in left:
                self.workers[i].send(command, arguments[i])
            received = self._receive(left, self.timeout * RESET_PATIENCE)
            for i, answer in received.items():
                if isinstance(answer, Fault) and not self.workers[i].running:
                    self._fail(i, answer)
                else:
                    answers[i] = answer
        for answer in answers.values():
            if isinstance(answer, Fault):
                raise answer.error or EnvError(answer.text)
        return tuple(answers[i] for i in range(self.num_envs))

    def _receive(self, rows: Iterable[int], timeout: float) -> dict[int, Any]:
        """Everyone's answer, or the Fault in its place. They share the time, and none stays in a pipe."""
        answers: dict[int, Any] = {}
        slices = SLICES
        for i in rows:
            worker = self.workers[i]
            while not (ready := worker.poll(timeout / SLICES if slices else 0.0)) and slices:
                slices -= 1
            if ready:
                answers[i] = worker.receive()
            else:
                worker.kill()
                answers[i] = Fault(f"a timeout: no answer within {timeout:g} seconds")
        return answers

    def _batch(self) -> dict[str, np.ndarray[Any, Any]]:
        """The rows' observations as arrays (N, ...) that are the caller's."""
        spaces = self.single_observation_space.spaces.items()
        return {key: np.array([obs[key] for obs in self._obs], space.dtype) for key, space in spaces}


def merge(infos: Mapping[int, dict[str, Any]], n: int) -> dict[str, Any]:
    """The `info` of some of n rows in the form that Gymnasium's vectors give it: an array for each key, and under
    `_key` the rows that have it. What does not fit into one array of numbers stands in one of objects."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos.values() for key in info):
        values = {i: info[key] for i, info in infos.items() if key in info}
        nested = all(isinstance(value, dict) for value in values.values())
        merged[key] = merge(values, n) if nested else _side_by_side(values, n)
        merged[f"_{key}"] = np.zeros(n, bool)
        merged[f"_{key}"][list(values)] = True
    return merged


def _side_by_side(values: Mapping[int, Any], n: int) -> np.ndarray[Any, Any]:
    """(n, ...), zeros or None in the other rows."""
    if all(isinstance(value, bool | int | float | np.generic | np.ndarray) for value in values.values()):
        arrays = [np.asarray(value) for value in values.values()]
        kind = np.result_type(*arrays) if all(array.dtype.kind in "biuf" for array in arrays) else None
        if kind is not None and len({array.shape for array in arrays}) == 1:
            numbers = np.zeros((n, *arrays[0].shape), kind)
            numbers[list(values)] = arrays
            return numbers
    objects = np.full(n, None, object)
    for i, value in values.items():
        objects[i] = value
    return objects


def _spread(seed: Any, n: int) -> list[int | None]:
    """A seed for each environment."""
    if seed is None:
        return [None] * n
    seeds = [seed + i for i in range(n)] if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != n:
        raise ValueError(f"{len(seeds)} seeds for {n} environments.")
    return seeds
