"""The tree of errors: what failed, where, what was seen, what to do.

Every error carries its facts as attributes. The common ones, present on every instance (None when they do not apply):
host, step, command (secrets masked), evidence (what was seen, for instance the tail of stderr), hint (what to do).
`retryable` says whether the same call may succeed later without a change by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

__all__ = [
    "AgentError",
    "AgentReplyError",
    "AgentVersionError",
    "AuthError",
    "BringUpError",
    "ClusterBusy",
    "ClusterNotFound",
    "ClusterNotUp",
    "CommandError",
    "ConfigError",
    "ConnectError",
    "DatabaseUnreachable",
    "FactError",
    "HostKeyError",
    "InvalidSpecError",
    "JobFailed",
    "JobNotFound",
    "LockLost",
    "LockTimeout",
    "MigrationError",
    "NoCapacityError",
    "NoOfferError",
    "NotFoundError",
    "PoolNotFound",
    "PreflightError",
    "ProvisionError",
    "SkyError",
    "StagingError",
    "StateError",
    "StoreDamaged",
    "TransportError",
    "TransportTimeout",
]


class SkyError(Exception):
    """Base of every error that skylib raises on purpose.

    Facts given as keywords become attributes. Instances survive pickling with all of them.
    """

    retryable: bool = False
    host: str | None = None
    step: str | None = None
    command: str | None = None
    evidence: object = None
    hint: str | None = None
    _shown: ClassVar[tuple[str, ...]] = ("host", "step", "command", "evidence", "hint")

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def __str__(self) -> str:
        lines = [self.message]
        for name in self._shown:
            value = getattr(self, name, None)
            if value not in (None, "", (), []):
                text = str(value).strip()
                lines.append(f"  {name}: " + text.replace("\n", "\n    "))
        return "\n".join(lines)


def _rebuild(kind: type[SkyError], args: tuple[str, ...], facts: dict[str, object]) -> SkyError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(facts)
    return error


# The caller's input: never retried.


class InvalidSpecError(SkyError, ValueError):
    """A task, resource, cluster name or argument that cannot be meant so. Facts: file, line, field where known."""

    field: str | None = None
    file: str | None = None
    line: int | None = None


class ConfigError(SkyError, ValueError):
    """A configuration or pool file that cannot be used. Facts: file, line, key where known."""

    file: str | None = None
    line: int | None = None
    key: str | None = None


class NotFoundError(SkyError, LookupError):
    """Something was asked for by a name that does not exist."""


class ClusterNotFound(NotFoundError):
    """No cluster of that name in this home. Facts: cluster, known (names)."""

    cluster: str | None = None
    known: tuple[str, ...] = ()


class JobNotFound(NotFoundError):
    """No such job on that cluster. Facts: cluster, job_id."""

    cluster: str | None = None
    job_id: object = None


class PoolNotFound(NotFoundError):
    """No such pool in ssh_node_pools.yaml. Facts: pool, known (names), file."""

    pool: str | None = None
    known: tuple[str, ...] = ()


class ClusterNotUp(SkyError):
    """The cluster exists but is not UP. Facts: cluster, status, since."""

    cluster: str | None = None
    status: Any = None
    since: float | None = None


class ClusterBusy(SkyError):
    """Another operation holds the cluster. Facts: cluster, holder (pid, host, operation), since."""

    retryable = True
    cluster: str | None = None
    holder: Any = None
    since: float | None = None


class ProvisionError(SkyError):
    """No cluster came of it. Facts: cluster, attempts (every attempt made, with its reason)."""

    cluster: str | None = None
    attempts: tuple[Any, ...] = ()


class NoOfferError(ProvisionError):
    """Nothing that exists can serve the request. Facts: reasons (offer or host name -> why not)."""

    reasons: Mapping[str, str] = MappingProxyType({})


class NoCapacityError(ProvisionError):
    """Something could serve the request, but not enough of it is free now. Facts: reasons, holders (host -> cluster)."""

    retryable = True
    reasons: Mapping[str, str] = MappingProxyType({})
    holders: Mapping[str, str] = MappingProxyType({})


class BringUpError(ProvisionError):
    """A step on a node failed. Facts: cluster, host, step, command, evidence (stderr tail)."""


class PreflightError(ProvisionError):
    """A node cannot carry a cluster (no Python, full disk, a port held, ...). Facts: problems (one per host and cause)."""

    problems: tuple[Any, ...] = ()


class TransportError(SkyError):
    """The way to a node failed."""


class ConnectError(TransportError):
    """No connection to the host could be made or kept."""

    retryable = True


class AuthError(TransportError):
    """The host refused every key that we have. Facts: tried (key names)."""

    tried: tuple[str, ...] = ()


class HostKeyError(TransportError):
    """The host's key is not the one on record. Facts: expected, seen (SHA256 fingerprints), file, line."""

    expected: Any = None
    seen: Any = None
    file: str | None = None
    line: int | None = None


class TransportTimeout(TransportError, TimeoutError):
    """A remote command did not end in time and was ended. Facts: timeout_s, stdout, stderr (what came until then)."""

    retryable = True
    timeout_s: float | None = None


class CommandError(TransportError):
    """A remote command ended with a status that was not asked for. Facts: argv, returncode, signal, stdout, stderr."""

    returncode: int | None = None
    signal: str | None = None
    stdout: bytes = b""
    stderr: bytes = b""


class FactError(SkyError):
    """A node answered a question in a form that we do not know. Facts: fact, evidence."""


class AgentError(SkyError):
    """The cluster's agent could not be asked."""

    retryable = True


class AgentVersionError(AgentError):
    """Agent and client speak different protocols. Facts: ours, theirs."""

    retryable = False
    ours: object = None
    theirs: object = None


class AgentReplyError(AgentError):
    """The agent refused a request. Facts: verb, kind (its name for the cause)."""

    retryable = False
    kind: str = "internal"
    verb: str | None = None


class JobFailed(SkyError):
    """A job that was waited for did not succeed. Facts: cluster, job_id, status, exit_codes (by rank), cause, log_path.

    first_cause: skylib.FirstCause, the rank that failed first, None when the job did not fail by a rank.
    """

    cluster: str | None = None
    job_id: int | None = None
    status: Any = None
    exit_codes: tuple[int | None, ...] = ()
    cause: str = ""
    first_cause: Any = None
    log_path: str = ""


class StateError(SkyError):
    """The state under the home could not be read or written."""


class LockTimeout(StateError, TimeoutError):
    """A lock was not free in time. Facts: scope, holder, since, timeout_s."""

    retryable = True
    scope: str | None = None
    holder: Any = None
    since: float | None = None


class LockLost(StateError):
    """A lock did not last for as long as it was held. Facts: scope, since, lost_at, holder (who took it; None: unknown)."""

    scope: str | None = None
    holder: Any = None
    since: float | None = None
    lost_at: float | None = None


class DatabaseUnreachable(StateError):
    """The database could not be reached within a bound, or answers as one that takes no writes. Facts: waited_s, unsettled.

    unsettled: the last change was sent, and whether it was made is not known.
    """

    retryable = True
    waited_s: float | None = None
    unsettled: bool = False


class StoreDamaged(StateError):
    """The store's file cannot be read and was moved aside; the next call works on a new, empty one. Facts: saved, clusters.

    saved: paths of what was moved. clusters: name -> "infra: host" of each host that it held, as far as that can still
    be read from it.
    """

    saved: tuple[str, ...] = ()
    clusters: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class MigrationError(StateError):
    """The store is of another version than this skylib can use. Facts: ours, theirs."""

    ours: object = None
    theirs: object = None


class StagingError(SkyError, OSError):
    """Files could not be collected or delivered. Facts: path, host; failures (host -> message) when nodes failed."""

    path: str | None = None
