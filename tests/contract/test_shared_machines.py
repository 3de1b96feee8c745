"""Machines that share their state in a database: what one can say of the others' own clusters."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import ConnectError
from skylib.models.cluster import ClusterStatus
from skylib.models.node import HostAddress
from skylib.ops import execute, status
from skylib.session import Session
from tests.records import cluster_record, node_record


@pytest.fixture
def machine(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Session]]:
    """From now on this is the machine of that name; its session."""
    made: dict[str, Session] = {}

    def become(name: str) -> Session:
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        if name not in made:
            made[name] = Session(tmp_path / name, config={"db": database})
        return made[name]

    yield become
    for session in made.values():
        session.close()


def test_a_machine_says_nothing_of_clusters_that_are_local_to_another(
    tmp_path: Path, machine: Callable[[str], Session]
) -> None:
    """A refresh leaves them as they are, and does not call them UNREACHABLE; their own machine tells how they are."""
    near = machine("near")
    node = node_record(root=str(tmp_path / "rank0"), address=HostAddress(kind="local", host=near.machine))
    near.store.begin_launch(cluster_record("own", nodes=(node,), infra="local"))
    record = near.store.settle("own", ClusterStatus.UP, at=200.0, cluster_id="own-1")
    assert near.can_reach(record)

    far = machine("far")
    assert not far.can_reach(record)
    assert status.status(far, refresh_first=True) == [record]
    assert far.store.cluster("own") == record
    with pytest.raises(ConnectError, match="is `local` to machine 'near") as caught:
        execute.queue(far, "own")
    assert "use the cluster from near" in str(caught.value.hint)

    assert status.status(machine("near"), refresh_first=True) == []
