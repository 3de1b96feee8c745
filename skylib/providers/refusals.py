"""Why a machine will not serve, in words: from errors that were met, and from marks of other clusters. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from skylib.errors import AuthError, ConfigError, ConnectError, HostKeyError, SkyError, TransportTimeout
from skylib.models.node import NodeFacts
from skylib.models.offer import Refusal

__all__ = ["held_here", "mark_of_another", "refusal_of"]


def refusal_of(error: SkyError, *, infra: str, host: str) -> Refusal:
    """A machine that could not be asked. Only what may pass by itself is temporary, not a key or a setting."""
    if isinstance(error, HostKeyError):
        reason = "host key changed"
    elif isinstance(error, AuthError):
        reason = "key refused"
    elif isinstance(error, TransportTimeout):
        reason = "did not answer in time"
    elif isinstance(error, ConnectError):
        reason = "unreachable"
    elif isinstance(error, ConfigError):
        reason = "cannot be reached as configured"
    else:
        reason = "cannot be asked what it has"
    return Refusal(
        infra=infra,
        host=host,
        reason=f"{reason}: {error.message}",
        temporary=isinstance(error, (ConnectError, TransportTimeout)),
        cause=error,
    )


def held_here(
    claims: Mapping[tuple[str, str], str], *, infra: str, host: str, cluster_name: str | None, capacity: int = 1
) -> Refusal | None:
    """The refusal of a machine that this home knows to be held by another cluster; None when it is not."""
    holder = claims.get((infra, host))
    if holder is None or holder == cluster_name:
        return None
    return Refusal(infra=infra, host=host, reason=f"held by cluster {holder!r}", temporary=True, capacity=capacity)


def mark_of_another(
    facts: NodeFacts, *, infra: str, host: str, cluster_id: str | None, capacity: int = 1
) -> Refusal | None:
    """The refusal of an account whose cluster.json names another cluster, of whatever home; None when it is free."""
    mark = facts.cluster
    if mark is None or (cluster_id is not None and mark.get("cluster_id") == cluster_id):
        return None
    name, owner, home = mark.get("cluster"), mark.get("owner"), mark.get("home")
    if name:
        of = f" of {owner}" if owner else ""
        where = f", whose home is {home}" if home else ""
        held = f"held by cluster {name!r}{of}{where}"
        way_out = f"if nobody has it any more: client.adopt({name!r}), then client.down({name!r})"
    else:
        held = "held by a cluster whose cluster.json cannot be read"
        way_out = "if nobody has it any more: delete the cluster.json in ~/.sky or /tmp/ray_skypilot there"
    return Refusal(infra=infra, host=host, reason=f"{held} ({way_out})", temporary=True, capacity=capacity)
