"""A machine: how to reach it, and what it has."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["Gpu", "HostAddress", "NodeFacts", "PortHolder", "PythonFound"]


@attrs.frozen(kw_only=True)
class HostAddress:
    """How to reach a machine. kind: "ssh" or "local". host: IP, DNS name or alias of ~/.ssh/config.

    proxy_jump: OpenSSH's form, "user@host:port,user@host2". None means: as ~/.ssh/config says.
    """

    kind: str
    host: str = "localhost"
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    proxy_jump: str | None = None

    def is_elsewhere(self, machine: str) -> bool:
        """Whether this is `local` to another machine than the one that is called `machine`."""
        return self.kind == "local" and self.host not in ("localhost", machine)

    def to_json(self) -> dict[str, object]:
        return {key: value for key, value in attrs.asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> HostAddress:
        return cls(**data)  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class Gpu:
    """One device. memory_gib: as `nvidia-smi` reports it (MiB / 1024)."""

    index: int
    name: str
    memory_gib: float
    uuid: str = ""


@attrs.frozen(kw_only=True)
class PythonFound:
    """An interpreter on a node. version: (major, minor, micro). origin: "path", "conda" or "uv"."""

    path: str
    version: tuple[int, int, int]
    origin: str = "path"


@attrs.frozen(kw_only=True)
class PortHolder:
    """Who listens on a port of ours. uid: the account's number. pid: None when it is not visible to us."""

    port: int
    uid: int
    pid: int | None = None


@attrs.frozen(kw_only=True)
class NodeFacts:
    """What one probe of a node found. Sizes in GiB (2**30). home: the account's absolute home directory.

    temp_dir_owner: uid of /tmp/ray_skypilot, None when it does not exist. runtime_digest: of the environment that stands
    there, "" when there is none. cluster: the parsed cluster.json of the cluster that holds this account, or None.
    clock_offset_s: the node's clock minus ours. uv, conda: absolute paths, "" when missing.
    listening: every TCP port somebody listens on. boot: boot id and PID 1's start time, which changes at a reboot.
    notes: what could not be found out, in words ("nvidia-smi failed: ...").
    """

    os: str
    arch: str
    libc: str
    home: str
    user: str
    uid: int
    hostname: str
    cpus: int
    memory_gib: float
    disk_free_gib: float
    home_file_system: str
    gpus: tuple[Gpu, ...] = ()
    pythons: tuple[PythonFound, ...] = ()
    uv: str = ""
    conda: str = ""
    internal_ips: tuple[str, ...] = ()
    clock_offset_s: float = 0.0
    runtime_digest: str = ""
    temp_dir_owner: int | None = None
    cluster: Mapping[str, object] | None = None
    listening: tuple[int, ...] = ()
    port_holders: tuple[PortHolder, ...] = ()
    boot: str = ""
    notes: tuple[str, ...] = ()
