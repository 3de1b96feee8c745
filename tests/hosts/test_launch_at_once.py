"""Many clients and one cluster's name at the same moment, on real hosts, the state in a file or in a database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skylib
from skylib.errors import ClusterBusy
from skylib.session import Session
from tests.homes import KINDS, make_home
from tests.lab import Lab, make_lab
from tests.processes import Child, run_at_once
from tests.testbed import Host

PROCESSES = 8
PATIENCE_S = 200.0
BUSY = -1


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Settings of a client whose state is in SQLite or in PostgreSQL."""
    return dict(make_home(request.param, tmp_path / "unused").config)


@pytest.fixture
def crowded(warm_hosts: list[Host], wheels: Path, tmp_path: Path, config: dict[str, object]) -> Iterator[Lab]:
    """A fresh home on the warm hosts."""
    made = make_lab(tmp_path / "sky", warm_hosts, wheels=wheels, config=config)
    yield made
    for record in made.client.status():
        made.client.down(record.name, purge=True)
    made.client.close()


def _launches(lab: Lab, config: dict[str, object]) -> list[int]:
    """What each of the processes that launch at once got: its job's id, or BUSY."""

    def launch() -> bytes:
        with skylib.Client(lab.home, config=config) as client:
            try:
                job = client.launch(lab.task("true", num_nodes=2), "one")
            except ClusterBusy:
                return json.dumps(BUSY).encode()
            job.wait(timeout_s=PATIENCE_S)
            return json.dumps(job.id).encode()

    return [json.loads(said) for said in run_at_once([launch] * PROCESSES, timeout_s=PATIENCE_S)]


def _lives(lab: Lab, config: dict[str, object]) -> int:
    """How many clusters there ever were."""
    session = Session(lab.home, config=config)
    try:
        return len(session.store.history())
    finally:
        session.close()


def test_launches_of_one_name_share_one_cluster(crowded: Lab, config: dict[str, object]):
    """8 processes launch one name at once: one makes the cluster, the others wait for it and use it."""
    ids = _launches(crowded, config)
    assert sorted(ids) == list(range(1, PROCESSES + 1))
    assert [record.name for record in crowded.client.status()] == ["one"]
    assert _lives(crowded, config) == 1
    crowded.client.down("one")
    crowded.assert_nothing_left()


def test_who_does_not_wait_is_told_that_the_cluster_is_busy(crowded: Lab, config: dict[str, object]):
    """With locks.timeout_s=0 one of the 8 makes the cluster; whoever comes meanwhile gets ClusterBusy at once."""
    ids = _launches(crowded, {**config, "locks": {"timeout_s": 0}})
    jobs = [number for number in ids if number != BUSY]
    assert sorted(jobs) == list(range(1, len(jobs) + 1))
    assert 1 <= len(jobs) < PROCESSES
    assert _lives(crowded, config) == 1
    crowded.client.down("one")
    crowded.assert_nothing_left()


def test_a_forked_child_goes_on_with_the_client(crowded: Lab, config: dict[str, object]):
    """A child that is forked while the parent works submits through the same Client, and so does the parent."""
    client = crowded.client
    client.launch(crowded.task("true"), "one").wait(timeout_s=PATIENCE_S)

    def submit() -> bytes:
        return json.dumps(client.exec("echo child", "one").wait(timeout_s=PATIENCE_S).job_id).encode()

    def in_child(work: Callable[[], bytes]) -> Callable[[Child], None]:
        return lambda child: child.say(work())

    ids = [1]
    children = [Child(in_child(submit)) for _ in range(2)]
    ids += [client.exec("echo parent", "one").wait(timeout_s=PATIENCE_S).job_id for _ in range(3)]
    for child in children:
        ids.append(json.loads(child.heard(timeout_s=PATIENCE_S)))
        assert child.ended() == 0
    assert sorted(ids) == [1, 2, 3, 4, 5, 6]
    assert [job.status for job in client.queue("one")] == [skylib.JobStatus.SUCCEEDED] * 6
    client.down("one")
    crowded.assert_nothing_left()
