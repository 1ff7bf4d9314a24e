"""How far ahead a world model can see: filter some steps, then dream with the actions that were really taken.

Letters: B sequences, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mbrl.interfaces import State
from mbrl.steps import Steps
from mbrl.world_model import WorldModel


@torch.no_grad()
def open_loop(model: WorldModel, steps: Steps, context: State, seen: int) -> dict[str, Any]:
    """What an agent reports of its model.

    Args:
        model: under test.
        steps: (B, T).
        context: (B,) state before the first step.
        seen: how many of the steps are filtered; the others are dreamt.

    Returns:
        "report/context": ``seen``; "report/open_loop_error": per dreamt step, the mean absolute error of
        vectors in the networks' units and of images in [0, 1]; of the first sequence "report/truth" and
        "report/dream" (T, dims) in the environment's units, or "report/video" (T, H, 3 W, C) truth, dream,
        error.
    """
    path = [context]
    for t in range(seen):
        path.append(model.observe(steps[:, t], path[-1]))
    for action in steps.action[:, seen:].unbind(1):
        path.append(model.step(path[-1], action))
    whole = {name: torch.stack([state[name] for state in path[1:]], 1) for name in context}

    future, dreamt = steps[:, seen:], {name: value[:, seen:] for name, value in whole.items()}
    valid = ~(future.is_first.cumsum(1) > 0)  # a dream knows nothing of resets
    error = (model.errors(future.obs, dreamt) * valid).sum(0) / valid.sum(0).clamp_min(1)
    result = {"report/context": seen, "report/open_loop_error": error.tolist()}
    return result | _pictures(steps[:1], model.decode({name: value[:1] for name, value in whole.items()}))


def _pictures(steps: Steps, decoded: dict[str, Tensor]) -> dict[str, Any]:
    """Truth and dream of one sequence (1, T), as an image strip where there are images, else as curves."""
    images = [key for key, value in steps.obs.items() if value.dtype == torch.uint8 and value.ndim == 5]
    if images:
        truth = steps.obs[images[0]][0].float() / 255
        dream = decoded[images[0]][0]
        strip = torch.cat([truth, dream, (dream - truth + 1) / 2], 2)
        return {"report/video": (strip * 255).round().to(torch.uint8).cpu().numpy()}
    keys = [key for key, value in steps.obs.items() if value.is_floating_point()]
    if not keys:
        return {}
    length = len(steps.reward[0])
    truth, dream = (
        torch.cat([obs[key][0].reshape(length, -1) for key in keys], -1) for obs in (steps.obs, decoded)
    )
    return {"report/truth": truth.cpu().numpy(), "report/dream": dream.cpu().numpy()}
