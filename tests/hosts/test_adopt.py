"""State that is lost is rebuilt from the nodes: discover and adopt on real hosts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import skylib
from skylib.models.discovered import ClusterHealth
from tests.lab import Lab, make_lab, texts
from tests.testbed import Host

UP = skylib.ClusterStatus.UP


@pytest.fixture
def other(warm_hosts: list[Host], wheels: Path, tmp_path: Path) -> Iterator[Lab]:
    """Another home that knows the same hosts and has no state; after the test whatever stands is taken down."""
    made = make_lab(tmp_path / "other" / "sky", warm_hosts, wheels=wheels)
    yield made
    for record in made.client.status():
        made.client.down(record.name, purge=True)
    made.client.close()


def lose(lab: Lab) -> None:
    """The home is gone, but for what its owner wrote into it by hand."""
    lab.client.close()
    shutil.rmtree(lab.home)


def test_a_cluster_whose_home_is_gone_goes_on_elsewhere(lab: Lab, other: Lab):
    """A job that runs is waited for by the home that adopted its cluster; logs, exec and down work there."""
    first = lab.client.launch(lab.task("echo early", num_nodes=2), "train")
    first.wait(timeout_s=60)
    job = lab.client.exec(lab.task("sleep 3; echo late $SKYPILOT_NODE_RANK", num_nodes=2), "train")
    before = lab.client.status("train")[0]
    lose(lab)

    (found,) = other.client.discover()
    assert (found.name, found.cluster_id, found.known) == ("train", before.cluster_id, False)
    assert (found.health, found.infra, found.home) == (ClusterHealth.UP, "ssh/lab", str(lab.home))
    assert (found.missing, dict(found.problems), list(found.job_ids)) == ((), {}, [1, 2])

    record = other.client.adopt("train")
    assert record.status is UP
    assert record.launched_at == before.launched_at
    assert [node.address for node in record.nodes] == [node.address for node in before.nodes]
    assert [(node.host, node.root, node.cpus, node.gpus) for node in record.nodes] == [
        (node.host, node.root, node.cpus, node.gpus) for node in before.nodes
    ]
    assert {each.job_id for each in other.client.queue("train")} == {1, 2}
    again = other.client.job("train", job.id)
    assert again.wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
    assert sorted(texts(list(again.logs()))) == ["late 0", "late 1"]
    assert texts(list(other.client.tail_logs("train", first.id))).count("early") == 2
    other.client.exec("true", "train").wait(timeout_s=60)
    assert other.client.down("train").clean
    other.assert_nothing_left()
