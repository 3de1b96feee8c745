"""Clusters as records: what the store keeps and the verbs return."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

import attrs

from skylib.errors import InvalidSpecError
from skylib.models.frozen_map import FrozenMap
from skylib.models.node import Gpu, HostAddress

__all__ = ["AutostopRecord", "ClusterRecord", "ClusterStatus", "NodeRecord", "check_cluster_name", "check_is_text"]

_NAME = re.compile(r"[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?")


def check_cluster_name(name: str) -> str:
    """The name, when it is one: a letter, then letters, digits and `-_.`, ending in a letter or digit, up to 63.

    Raises InvalidSpecError.
    """
    if len(check_is_text(name)) > 63 or not _NAME.fullmatch(name):
        raise InvalidSpecError(
            f"{name!r} is not a cluster name",
            field="cluster_name",
            hint="start with a letter, go on with letters, digits, '-', '_' or '.', end with a letter or digit; at most 63",
        )
    return name


def check_is_text(name: object, *, field: str = "cluster_name") -> str:
    """What may be asked for as a name, whether or not there can be one of that name. Raises InvalidSpecError."""
    if isinstance(name, str) and "\0" not in name and not any("\ud800" <= each <= "\udfff" for each in name):
        return name
    shown = "an int" if isinstance(name, int) else f"{name!r:.80}"
    raise InvalidSpecError(f"{field} must be text, not {shown}", field=field)


class ClusterStatus(str, Enum):
    """INIT: being made, or broken. UNREACHABLE: it exists, but we cannot know how it is (unreachable is not gone)."""

    INIT = "INIT"
    UP = "UP"
    AUTOSTOPPING = "AUTOSTOPPING"
    STOPPED = "STOPPED"
    UNREACHABLE = "UNREACHABLE"


@attrs.frozen(kw_only=True)
class AutostopRecord:
    """idle_minutes: after how long without work the nodes end Ray by themselves. down: release the hosts, too.

    wait_for: what counts as work, "jobs_and_ssh", "jobs" or "none" (then it is the time since the timer was set, or a job
    began). hook: a script that runs on the head before, for hook_timeout_s at most (None: an hour).
    """

    idle_minutes: float
    down: bool = False
    wait_for: str = "jobs_and_ssh"
    hook: str | None = None
    hook_timeout_s: float | None = None


@attrs.frozen(kw_only=True)
class NodeRecord:
    """One node of a cluster. rank 0 is the head. host: the provider's name for the machine.

    root: what `$HOME` is there (absolute). internal_ip: where the other nodes reach it. ray_node_id: of our internal
    Ray. runtime_digest: of the private environment. custom: countable resources besides, as the pool file names them.
    """

    rank: int
    host: str
    address: HostAddress
    internal_ip: str
    root: str
    temp_dir: str
    env: str
    python: str
    cpus: int = 0
    memory_gib: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    price_per_hour: float | None = None
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)
    ray_node_id: str = ""
    runtime_digest: str = ""

    def to_json(self) -> dict[str, object]:
        return {**attrs.asdict(self), "address": self.address.to_json(), "custom": dict(self.custom)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> NodeRecord:
        fields = dict(data)
        fields["address"] = HostAddress.from_json(fields["address"])  # type: ignore[arg-type]
        fields["gpus"] = tuple(Gpu(**gpu) for gpu in fields.get("gpus", ()))  # type: ignore[attr-defined]
        fields["custom"] = FrozenMap(fields.get("custom") or {})  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class ClusterRecord:
    """What is known of a cluster. Times are unix seconds. cluster_id: unique for each life of a name.

    resources: the request it was made for, as YAML-able data. setup_seen: nothing is kept here; nodes know. lease_s: for
    how long without a client's contact the nodes keep it, None for ever.
    """

    name: str
    cluster_id: str
    status: ClusterStatus
    status_since: float
    infra: str
    num_nodes: int
    launched_at: float
    nodes: tuple[NodeRecord, ...] = ()
    resources: Mapping[str, object] = attrs.field(factory=dict)
    ray_port: int = 0
    dashboard_port: int = 0
    ray_version: str = ""
    autostop: AutostopRecord | None = None
    owner: str = ""
    last_use: str = ""
    lease_s: float | None = None

    @property
    def head(self) -> NodeRecord:
        """The node of rank 0. Raises IndexError when the cluster has no nodes yet."""
        return self.nodes[0]

    @property
    def price_per_hour(self) -> float | None:
        """Dollars an hour of all nodes that have a price; None when none has."""
        prices = [node.price_per_hour for node in self.nodes if node.price_per_hour is not None]
        return sum(prices) if prices else None

    def to_json(self) -> dict[str, object]:
        """A JSON-able dict; `from_json` gives an equal record."""
        return {
            **attrs.asdict(self, recurse=False),
            "status": self.status.value,
            "nodes": [node.to_json() for node in self.nodes],
            "resources": dict(self.resources),
            "autostop": attrs.asdict(self.autostop) if self.autostop else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> ClusterRecord:
        fields = dict(data)
        fields["status"] = ClusterStatus(fields["status"])
        fields["nodes"] = tuple(NodeRecord.from_json(node) for node in fields["nodes"])  # type: ignore[attr-defined]
        autostop = fields.get("autostop")
        fields["autostop"] = AutostopRecord(**autostop) if autostop else None  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]
