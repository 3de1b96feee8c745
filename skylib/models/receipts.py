"""What verbs that act on nodes give back."""

from __future__ import annotations

import attrs

__all__ = ["DownReceipt", "InfraStatus", "NodeReceipt"]


@attrs.frozen(kw_only=True)
class NodeReceipt:
    """What was taken away on one node.

    ended: pids of processes that were running and are gone. ports_closed: TCP ports of ours that were open and are shut.
    paths_removed: absolute. leftovers: what is still there, in words; empty when nothing is. error: why the node could
    not be cleaned, "" when it was.
    """

    rank: int
    host: str
    ended: tuple[int, ...] = ()
    ports_closed: tuple[int, ...] = ()
    paths_removed: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    error: str = ""

    @property
    def clean(self) -> bool:
        return not self.leftovers and not self.error


@attrs.frozen(kw_only=True)
class DownReceipt:
    """What `down` (or `stop`) did, node by node. released: the hosts are free for other clusters."""

    cluster_name: str
    nodes: tuple[NodeReceipt, ...] = ()
    released: bool = True
    logs_kept: str = ""

    @property
    def clean(self) -> bool:
        return all(node.clean for node in self.nodes)


@attrs.frozen(kw_only=True)
class InfraStatus:
    """Whether nodes can be had there. reason: why not, "" when usable. hosts: names of what can be used, or is in use."""

    infra: str
    usable: bool
    reason: str = ""
    hosts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
