"""Verbs about single nodes: a command on each, and what to type for a shell there."""

from __future__ import annotations

import os

from skylib.errors import InvalidSpecError
from skylib.models.cluster import NodeRecord
from skylib.session import Session
from skylib.transport.base import Completed
from skylib.transport.command import Command, quote
from skylib.transport.fanout import fanout

__all__ = ["run_on_all", "ssh_command"]


def run_on_all(session: Session, name: str, command: str, *, timeout_s: float | None = None) -> tuple[Completed, ...]:
    """A shell line on every node at once, in the node's root; a failing command is a value, an unreachable node an error."""
    record = session.require(name)
    with session.operation("run", name):

        def run(node: NodeRecord) -> Completed:
            return session.transport(node.address).run(Command.sh(command, cwd=node.root), timeout_s=timeout_s)

        outcomes = fanout(run, record.nodes)
    done = []
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        if outcome.value is not None:
            done.append(outcome.value)
    return tuple(done)


def ssh_command(session: Session, name: str, rank: int = 0) -> str:
    """The `ssh` line for a node; for a local node the shell line that goes to its root."""
    record = session.require(name)
    if not 0 <= rank < len(record.nodes):
        raise InvalidSpecError(
            f"cluster {name!r} has no rank {rank}", field="rank", hint=f"ranks go from 0 to {len(record.nodes) - 1}"
        )
    node = record.nodes[rank]
    address = node.address
    if address.kind == "local":
        return f"cd {quote(node.root)} && exec $SHELL"
    words = ["ssh"]
    if address.identity_file:
        words += ["-i", os.path.expanduser(address.identity_file)]
    if address.port:
        words += ["-p", str(address.port)]
    if address.proxy_jump:
        words += ["-J", address.proxy_jump]
    words.append(f"{address.user}@{address.host}" if address.user else address.host)
    return " ".join(quote(word) for word in words)
