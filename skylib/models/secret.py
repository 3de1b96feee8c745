"""Secrets: text that shows itself only when asked to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from skylib.models.converters import env_map
from skylib.models.frozen_map import FrozenMap
from skylib.models.spec_errors import kind_of, spec_error

__all__ = ["Secret", "mask", "secret_map"]

_SHOWN = "<redacted>"


class Secret:
    """A value whose repr(), str() and format() are "<redacted>"; `reveal()` gives it.

    Equal to a Secret of the same value. Pickling keeps the value, so that a task can go to another process; nothing of
    skylib writes such a pickle anywhere.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        object.__setattr__(self, "_value", str(value))

    def reveal(self) -> str:
        return str(object.__getattribute__(self, "_value"))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Secret does not change")

    def __eq__(self, other: object) -> bool:
        return self.reveal() == other.reveal() if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __repr__(self) -> str:
        return _SHOWN

    def __str__(self) -> str:
        return _SHOWN

    def __reduce__(self) -> tuple[object, ...]:
        return Secret, (self.reveal(),)


def secret_map(value: object) -> FrozenMap[str, Secret]:
    """Variables by name, text or Secret each; InvalidSpecError else, without the value."""
    if value is not None and not isinstance(value, Mapping):
        raise spec_error(f"expected a map of variables, got {kind_of(value)}")
    plain = {name: inner.reveal() if isinstance(inner, Secret) else inner for name, inner in (value or {}).items()}
    return FrozenMap({name: Secret(inner) for name, inner in env_map(plain).items()})


def mask(shown: str, secrets: Mapping[str, Secret], *, as_name: bool = False) -> str:
    """`shown` with each secret's value replaced: by "<redacted>", or by `${NAME}`. The longest values go first."""
    values = {secret.reveal(): name for name, secret in secrets.items() if secret.reveal()}
    if not values:
        return shown
    longest_first = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    return re.sub(longest_first, lambda match: f"${{{values[match[0]]}}}" if as_name else _SHOWN, shown)
