"""Suites of other packages: an entry point in the group `mbrl.envs` makes every environment of one prefix.

    [project.entry-points."mbrl.envs"]
    metaworld = "my_adapter:make"

`metaworld/reach-v3` is then `my_adapter.make("reach-v3", render_mode=...)`, which returns a gymnasium.Env.
A factory that takes no `render_mode` is not given one.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from envs.errors import EnvError

GROUP = "mbrl.envs"


def find(name: str) -> Callable[..., Any] | None:
    """What makes this environment, if an installed package handles the part of its name before the "/".

    Raises:
        EnvError: two packages claim it, or the one that does cannot be imported.
    """
    prefix, separator, rest = name.partition("/")
    points = list(entry_points(group=GROUP, name=prefix)) if separator else []
    if not points:
        return None
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise EnvError(f"{name} is claimed by {' and by '.join(values)}. Uninstall all but one of their packages.")
    try:
        make = points[0].load()
    except (ImportError, AttributeError) as error:
        where = points[0].dist.name if points[0].dist is not None else values[0]
        raise EnvError(
            f"{name} is made by {values[0]} of the package {where}, which could not be imported: "
            f"{type(error).__name__}: {error}. Install what it needs, or run: pip uninstall {where}"
        ) from error
    return partial(make, rest)


def prefixes() -> list[str]:
    return sorted(entry_points(group=GROUP).names)
