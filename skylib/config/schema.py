"""Every configuration key: its type, default, bounds and meaning. The one place where keys are added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

__all__ = [
    "DATABASE",
    "SECTIONS",
    "AgentConfig",
    "Key",
    "LocksConfig",
    "LogsConfig",
    "ProvisionConfig",
    "RuntimeConfig",
    "SshConfig",
    "StagingConfig",
    "keys",
]


def _key(
    default: object,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    per_task: bool = False,
) -> Any:
    """A field that is a configuration key. Its type is that of the default; a float key takes whole numbers, too.

    per_task: a task's own `config:` may have it, for that launch or exec alone; not so what connections, the state or
    the logs of the home share.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return attrs.field(default=default, metadata={"meaning": meaning, **bounds, "per_task": per_task})


@attrs.frozen(kw_only=True)
class SshConfig:
    """How hosts are reached."""

    connect_timeout_s: float = _key(20.0, "Seconds for TCP, banner and login of one host together.", minimum=0.1)
    keepalive_s: float = _key(15.0, "Seconds of silence after which a connection is probed; 0 never probes.", minimum=0)
    max_channels: int = _key(
        8, "Channels open at once on one connection; more wait. sshd's own default limit is 10.", minimum=2, maximum=100
    )
    parallel: int = _key(32, "Connections being opened at once.", minimum=1, maximum=1000)
    user_config: str = _key("~/.ssh/config", "The OpenSSH client configuration that is read; empty reads none.")


@attrs.frozen(kw_only=True)
class ProvisionConfig:
    """How clusters come up."""

    timeout_s: float = _key(900.0, "Seconds for bringing up all nodes of a cluster.", minimum=1, per_task=True)
    min_disk_gib: float = _key(
        1.0, "Free GiB that a host's home must have before anything is written.", minimum=0, per_task=True
    )


@attrs.frozen(kw_only=True)
class AgentConfig:
    """The agent on the head node. node_lost_s: as it was when the cluster was brought up."""

    call_timeout_s: float = _key(60.0, "Seconds for one answer of the agent.", minimum=0.1, per_task=True)
    node_lost_s: float = _key(
        4.0,
        "Seconds that a host must be silent for its jobs to fail; never before Ray gives it up, after some 10 s.",
        minimum=1,
        maximum=3600,
        per_task=True,
    )


@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """The environment that the internal Ray runs in."""

    source: str = _key(
        "client",
        "Where nodes get packages from: client pushes wheels that are kept under the home; index lets nodes fetch.",
        choices=("client", "index"),
        per_task=True,
    )
    python: str = _key(
        "", "The Python to use on nodes, as 3.10 or an absolute path; empty takes the best one.", per_task=True
    )
    timeout_s: float = _key(600.0, "Seconds for making the environment on one node.", minimum=1, per_task=True)


@attrs.frozen(kw_only=True)
class LocksConfig:
    """Waiting for other operations."""

    timeout_s: float = _key(
        30.0, "Seconds to wait for another operation on the same cluster; 0 never waits.", minimum=0, per_task=True
    )


@attrs.frozen(kw_only=True)
class LogsConfig:
    """Logs of operations, under the home."""

    keep: int = _key(500, "Operation logs that are kept; the oldest go first.", minimum=1)


@attrs.frozen(kw_only=True)
class StagingConfig:
    """Snapshots of files on their way to nodes, under the home."""

    max_gib: float = _key(
        20.0,
        "GiB of staged files that are kept for the next launch; the longest unused go first, none while it is in use.",
        minimum=0,
    )


SECTIONS: dict[str, type] = {
    "ssh": SshConfig,
    "provision": ProvisionConfig,
    "agent": AgentConfig,
    "runtime": RuntimeConfig,
    "locks": LocksConfig,
    "logs": LogsConfig,
    "staging": StagingConfig,
}


@attrs.frozen(kw_only=True)
class Key:
    """One key, as the schema has it. name: dotted. kind: the type of its values. variable: its environment variable.

    per_task: whether a task's `config:` may have it.
    """

    name: str
    kind: type
    default: object
    meaning: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    per_task: bool

    @property
    def variable(self) -> str:
        return "SKYLIB_" + self.name.replace(".", "_").upper()


DATABASE = Key(
    name="db",
    kind=str,
    default="",
    meaning="The URL of a PostgreSQL database that state and settings are kept in; empty keeps them under the home.",
    minimum=None,
    maximum=None,
    choices=(),
    per_task=False,
)


def keys() -> Iterator[Key]:
    """All settings, in the order of the schema; `DATABASE`, which is in no section, is not among them."""
    for section, kind in SECTIONS.items():
        for field in attrs.fields(kind):
            yield Key(name=f"{section}.{field.name}", kind=type(field.default), default=field.default, **field.metadata)
