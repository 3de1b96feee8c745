"""Infra: where a task may run, as `cloud[/region[/zone]]`."""

from __future__ import annotations

import re

import attrs

from skylib.models.spec_errors import shown, spec_error

__all__ = ["Infra"]

_CLOUD = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)
_ALIASES = {"k8s": "kubernetes"}
_NAMED_WHOLE = frozenset({"kubernetes", "ssh"})  # all behind the first slash is one name, slashes included


@attrs.frozen(kw_only=True)
class Infra:
    """A place, None for each part that may be anything.

    For `ssh/<pool>` the region is the pool, for `k8s/<context>` the context, slashes included. Cloud names are not
    checked against a list here, since providers can be added from outside; a cloud nobody serves is refused at launch.
    """

    cloud: str | None = None
    region: str | None = None
    zone: str | None = None

    @classmethod
    def parse(cls, text: object) -> Infra:
        """`local`, `ssh/pool`, `aws/us-east-1/us-east-1a`, `k8s/ctx/with/slash`; `*` for any part."""
        expected = "expected infra such as local, ssh/<pool>, k8s/<context> or cloud/region/zone"
        if not isinstance(text, str):
            raise spec_error(f"{expected}, got {shown(text)}")
        cloud, _, rest = text.strip().partition("/")
        name = _any(cloud.lower())
        name = None if name is None else _ALIASES.get(name, name)
        if name is not None and not _CLOUD.fullmatch(name):
            raise spec_error(f"{expected}, got {shown(text)}")
        behind = [rest] if name in _NAMED_WHOLE else rest.split("/")
        parts = behind if "/" in text else []
        if len(parts) > 2 or not all(part.strip() == part and part for part in parts):
            raise spec_error(f"{expected}, got {shown(text)}")
        region, zone = [*map(_any, parts), None, None][:2]
        return cls(cloud=name, region=region, zone=zone)

    @property
    def pool(self) -> str | None:
        """The SSH node pool asked for; None when any will do or it is no SSH infra."""
        return self.region if self.cloud == "ssh" else None

    @property
    def is_any(self) -> bool:
        """True when every part may be anything."""
        return self == Infra()

    def __str__(self) -> str:
        parts = [self.cloud or "*", self.region or "*", self.zone or "*"]
        while len(parts) > 1 and parts[-1] == "*":
            parts.pop()
        return "/".join(parts)


def _any(part: str) -> str | None:
    return None if part == "*" else part
