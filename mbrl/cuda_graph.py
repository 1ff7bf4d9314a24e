"""A function of tensors recorded as a CUDA graph.

An update of a small model is some thousand small kernels, and launching them from Python takes far longer
than running them. Recorded once, they are launched together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


class CudaGraph:
    """Calls the function some times, records it, and from then on replays the recording.

    What can be recorded: a function whose every call does the same with tensors of the same shapes on the
    GPU. It may change tensors in place and draw random numbers; it must not wait for a value, nor bring
    anything from the CPU, nor replace a tensor that its next call reads.

    Args:
        function: of nests (dict, dataclass) of tensors; returns such nests.
        warmup: calls before the recording; CUDA libraries set themselves up in the first.
    """

    def __init__(self, function: Callable[..., Any], warmup: int = 3):
        self.function, self.left = function, warmup
        self.graph: Any = None
        self.inputs: tuple[Any, ...] = ()
        self.outputs: Any = None

    def __call__(self, *inputs: Any) -> Any:
        """What the function returns; the next call overwrites it."""
        if self.left:
            self.left -= 1
            return self._aside(inputs)
        if self.graph is None:
            self._record(inputs)
        for kept, new in zip(tensors(self.inputs), tensors(inputs), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.outputs

    def _aside(self, inputs: tuple[Any, ...]) -> Any:
        """On a stream of its own, as a recording is."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: tuple[Any, ...]) -> None:
        """Nothing is computed yet. The inputs given here are where later ones are copied to."""
        torch.cuda.synchronize()
        self.inputs, self.graph = inputs, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self.function(*inputs)


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors of a nest of dicts, tuples and dataclasses, in order."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, dict):
        for value in nest.values():
            yield from tensors(value)
    elif isinstance(nest, tuple):
        for value in nest:
            yield from tensors(value)
    elif is_dataclass(nest):
        for field in fields(nest):
            yield from tensors(getattr(nest, field.name))
