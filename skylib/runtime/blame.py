"""Errors of steps, as bring-up tells them: which host, which step, what was seen there. Pure."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any

from skylib.errors import AgentReplyError, BringUpError, SkyError

__all__ = ["failed_start", "named", "open_doors"]


def named(error: BaseException, cluster: str, host: str, step: str) -> BaseException:
    """A failure of one host's step as BringUpError; what is not a SkyError stays itself."""
    if not isinstance(error, SkyError) or isinstance(error, BringUpError):
        return error
    return BringUpError(
        f"cluster {cluster!r} did not come up: {step} failed on {host}: {error.message}",
        cluster=cluster,
        host=host,
        step=step,
        command="ray start" if step == "runtime.ray" else error.command,
        evidence=error.evidence,
        hint=error.hint,
        attempts=(error,),
    )


def failed_start(error: BaseException, cluster: str, hosts: Sequence[str], timeout_s: float) -> BaseException:
    """What is told of a start that failed; most errors stay themselves. hosts: of the nodes, by rank."""
    if isinstance(error, queue.Empty):
        return BringUpError(
            f"Ray did not have all {len(hosts)} nodes of {cluster!r} within {timeout_s:g} s",
            cluster=cluster,
            host=hosts[0],
            step="runtime.ready",
        )
    if isinstance(error, AgentReplyError):
        missing: list[int] = getattr(error, "missing_ranks", None) or [0]
        return BringUpError(
            f"cluster {cluster!r} did not come up: {error.message}",
            cluster=cluster,
            host=hosts[missing[0]],
            step="runtime.ready",
            evidence=getattr(error, "detail", None) or error.evidence,
            attempts=(error,),
        )
    return error


def open_doors(found: Sequence[Mapping[str, Any]], cluster: str, hosts: Sequence[str]) -> BringUpError | None:
    """What is told of ports of our Ray that answer strangers (agent/doors.py); None when there are none."""
    if not found:
        return None
    first = found[0]
    host, port = hosts[first["rank"]], int(first["port"])
    return BringUpError(
        f"port {port} of cluster {cluster!r} on {host} is open to others: it answers {first['how']}",
        cluster=cluster,
        host=host,
        port=port,
        step="runtime.doors",
        evidence="\n".join(f"{hosts[door['rank']]}:{door['port']} answers {door['how']}" for door in found),
        hint="whoever reaches it can run code as your account, so the cluster was not kept; "
        f"remove ~/skypilot-runtime on {host} to have the environment made anew",
    )
