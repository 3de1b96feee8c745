"""cluster.json: what every node of a cluster keeps about it, so that its state can be rebuilt from the nodes alone.

Written at bring-up as the claim on the account (runtime/node_files.py); the node's agent keeps `job_ids`, and on the head
`autostop`, up to date (agent/mark.py). It comes from a machine, so nothing in it is believed before it was checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import attrs

from skylib.errors import InvalidSpecError
from skylib.models.autostop import MAX_HOOK, WAIT_FOR
from skylib.models.cluster import AutostopRecord, check_cluster_name
from skylib.models.frozen_map import FrozenMap
from skylib.models.node import Gpu, HostAddress

__all__ = ["MAX_MARK_BYTES", "SCHEMA", "ClusterMark", "JobIds", "MarkMember", "read_mark"]

SCHEMA = 2
MAX_MARK_BYTES = 8 * 1024 * 1024  # a thousand nodes of eight devices need three
_MAX_MEMBERS = 10_000
_MAX_TEXT = 4096
_MAX_JOB_IDS_TEXT = 256 * 1024
_MAX_DEPTH = 12
_LARGEST = 1e15
_RANGE = re.compile(r"([1-9][0-9]{0,9})(?:-([1-9][0-9]{0,9}))?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_T = TypeVar("_T")


@attrs.frozen
class JobIds:
    """Ids of jobs, in order, kept as ranges: (first, last) of each."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> JobIds:
        """From "1-5,7". Raises ValueError for any other text, and for ranges that do not ascend."""
        found: list[tuple[int, int]] = []
        for part in text.split(",") if text else ():
            match = _RANGE.fullmatch(part)
            if match is None:
                raise ValueError(f"{part[:40]!r} is no range of job ids")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or (found and first <= found[-1][1]):
                raise ValueError(f"ranges of job ids do not ascend at {part!r}")
            found.append((first, last))
        return cls(tuple(found))

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, job_id: object) -> bool:
        return isinstance(job_id, int) and any(first <= job_id <= last for first, last in self.ranges)

    def __or__(self, other: JobIds) -> JobIds:
        merged: list[tuple[int, int]] = []
        for first, last in sorted((*self.ranges, *other.ranges)):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return JobIds(tuple(merged))


@attrs.frozen(kw_only=True)
class MarkMember:
    """One node. root: what `$HOME` is there. address: how its cluster's maker reached it (no key, but maybe where one is).

    Schema 1 knows rank, host, ip and root; the rest is then empty and `address` None.
    """

    rank: int
    host: str
    ip: str
    root: str
    temp_dir: str = ""
    env: str = ""
    python: str = ""
    address: HostAddress | None = None
    cpus: int = 0
    memory_gib: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    price_per_hour: float | None = None
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)
    runtime_digest: str = ""

    def to_json(self) -> dict[str, object]:
        address = self.address.to_json() if self.address else None
        return {**attrs.asdict(self), "address": address, "custom": dict(self.custom)}


@attrs.frozen(kw_only=True)
class ClusterMark:
    """The content of one cluster.json. rank: of the node that keeps it, None in schema 1.

    owner: the client hash of the home that has the cluster; home: where that home is. versions: skylib, protocol, ray.
    """

    name: str
    cluster_id: str
    infra: str
    owner: str = ""
    home: str = ""
    rank: int | None = None
    launched_at: float = 0.0
    resources: Mapping[str, object] = attrs.field(factory=dict, eq=False)
    autostop: AutostopRecord | None = None
    lease_s: float | None = None
    members: tuple[MarkMember, ...] = ()
    ray_port: int = 0
    dashboard_port: int = 0
    versions: Mapping[str, str] = attrs.field(factory=FrozenMap)
    job_ids: JobIds = attrs.field(factory=JobIds)
    schema: int = SCHEMA

    def member(self, rank: int | None) -> MarkMember | None:
        """The member of that rank."""
        return next((each for each in self.members if each.rank == rank), None)

    def to_json(self) -> dict[str, object]:
        """As schema 2 has it; `cluster` repeats the name for readers of schema 1."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "cluster": self.name,
            "cluster_id": self.cluster_id,
            "infra": self.infra,
            "owner": self.owner,
            "home": self.home,
            "rank": self.rank,
            "launched_at": self.launched_at,
            "resources": dict(self.resources),
            "autostop": attrs.asdict(self.autostop) if self.autostop else None,
            "lease_s": self.lease_s,
            "members": [member.to_json() for member in self.members],
            "ports": {"ray": self.ray_port, "dashboard": self.dashboard_port},
            "versions": dict(self.versions),
            "job_ids": str(self.job_ids),
        }


def read_mark(text: str) -> ClusterMark:
    """From the text of a cluster.json of schema 1 or 2. Raises ValueError, in few words, for anything else."""
    if len(text) > MAX_MARK_BYTES:
        raise ValueError(f"it is larger than {MAX_MARK_BYTES} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(data, Mapping):
        raise ValueError("it is no JSON object")
    schema = data.get("schema")
    if schema not in (1, SCHEMA) or isinstance(schema, bool):
        raise ValueError(f"its schema is {str(schema)[:40]}, this skylib reads 1 and {SCHEMA}")
    try:
        return _mark(data, int(schema))
    except InvalidSpecError as error:
        raise ValueError(error.message) from None


def _mark(data: Mapping[str, object], schema: int) -> ClusterMark:
    ports = _map(data, "ports")
    members = _members(data)
    rank = _maybe(data, "rank", _count)
    if schema > 1 and rank not in {member.rank for member in members}:
        raise ValueError(f"rank {rank} is none of its members")
    cluster_id = _text(data, "cluster_id")
    if not _ID.fullmatch(cluster_id):
        raise ValueError(f"{cluster_id[:40]!r} is no cluster id")
    return ClusterMark(
        name=check_cluster_name(_text(data, "cluster" if schema == 1 else "name")),
        cluster_id=cluster_id,
        infra=_text(data, "infra"),
        owner=_text(data, "owner", ""),
        home=_text(data, "home", ""),
        rank=rank,
        launched_at=_number(data, "launched_at"),
        resources=_plain(dict(_map(data, "resources"))),
        autostop=_autostop(data),
        lease_s=_maybe(data, "lease_s", _number) or None,
        members=members,
        ray_port=_count(data if schema == 1 else ports, "ray_port" if schema == 1 else "ray"),
        dashboard_port=_count(ports, "dashboard"),
        versions=FrozenMap({str(key): str(value) for key, value in _map(data, "versions").items()}),
        job_ids=JobIds.parse(_text(data, "job_ids", "", limit=_MAX_JOB_IDS_TEXT)),
        schema=schema,
    )


def _plain(value: _T, depth: int = 0) -> _T:
    """The same, when it is not nested too deep to be written again."""
    if depth > _MAX_DEPTH:
        raise ValueError("its resources are nested too deep")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for each in inner:
        _plain(each, depth + 1)
    return value


def _members(data: Mapping[str, object]) -> tuple[MarkMember, ...]:
    listed = _list(data, "members")
    if not 0 < len(listed) <= _MAX_MEMBERS:
        raise ValueError(f"it names {len(listed)} members")
    members = sorted((_member(each) for each in listed), key=lambda member: member.rank)
    if [member.rank for member in members] != list(range(len(members))):
        raise ValueError("the ranks of its members are not 0, 1, 2, ... each once")
    kinds = {member.address.kind for member in members if member.address is not None}
    if kinds - {"local" if data.get("infra") == "local" else "ssh"}:
        raise ValueError(f"a member of {data.get('infra')} cannot be reached by {', '.join(sorted(kinds))}")
    return tuple(members)


def _member(entry: object) -> MarkMember:
    if not isinstance(entry, Mapping):
        raise ValueError("a member is no JSON object")
    return MarkMember(
        rank=_count(entry, "rank"),
        host=_text(entry, "host"),
        ip=_text(entry, "ip"),
        root=_path(entry, "root"),
        temp_dir=_path(entry, "temp_dir", ""),
        env=_path(entry, "env", ""),
        python=_path(entry, "python", ""),
        address=_address(entry),
        cpus=_count(entry, "cpus"),
        memory_gib=_number(entry, "memory_gib"),
        gpus=tuple(_gpu(each) for each in _list(entry, "gpus")),
        price_per_hour=_maybe(entry, "price_per_hour", _number),
        custom=_custom(entry),
        runtime_digest=_text(entry, "runtime_digest", ""),
    )


def _custom(entry: Mapping[str, object]) -> FrozenMap[str, float]:
    given = _map(entry, "custom")
    return FrozenMap({name: _number(given, name) for name in given})


def _address(entry: Mapping[str, object]) -> HostAddress | None:
    given = _map(entry, "address")
    if not given:
        return None
    host = _text(given, "host")
    if host.startswith("-") or any(letter.isspace() or letter in "@/" for letter in host):
        raise ValueError(f"{host[:40]!r} is no host")
    port = _maybe(given, "port", _count)
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{port} is no port")
    words = {name: _text(given, name) for name in ("user", "identity_file", "proxy_jump") if given.get(name) is not None}
    return HostAddress(kind=_text(given, "kind"), host=host, port=port, **words)


def _gpu(entry: object) -> Gpu:
    if not isinstance(entry, Mapping):
        raise ValueError("a GPU is no JSON object")
    return Gpu(
        index=_count(entry, "index"),
        name=_text(entry, "name"),
        memory_gib=_number(entry, "memory_gib"),
        uuid=_text(entry, "uuid", ""),
    )


def _autostop(data: Mapping[str, object]) -> AutostopRecord | None:
    given = _map(data, "autostop")
    if not given:
        return None
    wait_for, hook = given.get("wait_for"), given.get("hook")
    if hook is not None and (not isinstance(hook, str) or "\0" in hook or len(hook) > MAX_HOOK):
        raise ValueError(f"its hook is {_shown(hook)}")
    return AutostopRecord(
        idle_minutes=_number(given, "idle_minutes"),
        down=given.get("down") is True,
        wait_for=wait_for if isinstance(wait_for, str) and wait_for in WAIT_FOR else WAIT_FOR[0],
        hook=hook or None,
        hook_timeout_s=_maybe(given, "hook_timeout_s", _number) or None,
    )


def _maybe(data: Mapping[str, object], name: str, read: Callable[[Mapping[str, object], str], _T]) -> _T | None:
    return None if data.get(name) is None else read(data, name)


def _text(data: Mapping[str, object], name: str, default: str | None = None, *, limit: int = _MAX_TEXT) -> str:
    value = data.get(name, default)
    if not isinstance(value, str) or not value.isprintable() or len(value) > limit or (not value and default is None):
        raise ValueError(f"its {name} is {_shown(value)}")
    return value


def _path(data: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = _text(data, name, default)
    if value and not value.startswith("/"):
        raise ValueError(f"its {name} is {_shown(value)}, no absolute path")
    return value


def _number(data: Mapping[str, object], name: str) -> float:
    value = data.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LARGEST:
        raise ValueError(f"its {name} is {_shown(value)}")
    return float(value)


def _count(data: Mapping[str, object], name: str) -> int:
    value = data.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"its {name} is {_shown(value)}")
    return value


def _map(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"its {name} is {_shown(value)}")
    return value


def _list(data: Mapping[str, object], name: str) -> Sequence[object]:
    value = data.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"its {name} is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
