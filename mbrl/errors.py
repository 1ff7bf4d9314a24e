"""Errors meant for the user: what happened, why, and the line that mends it."""

from __future__ import annotations

from collections.abc import Mapping


class UserError(ValueError):
    """Something the user can mend. Commands print the message alone and exit with code 2."""


def check_least(config: object, option: str, least: Mapping[str, float]) -> None:
    """That each number of ``config`` named in ``least`` is at least so much; ``option``: what its options begin with.

    Raises:
        UserError: one is less.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value < bound:
            raise UserError(f"{option}.{name.replace('_', '-')} is {value}; it must be at least {bound}")
