"""Fit: every reason why a machine or a cluster cannot serve, in words."""

from __future__ import annotations

import attrs
import pytest

from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.node import Gpu, HostAddress
from skylib.models.offer import Offer
from skylib.models.resources import Resources
from skylib.optimizer.fit import fits_cluster, why_not, why_not_any

A100 = tuple(Gpu(index=index, name="NVIDIA A100-SXM4-80GB", memory_gib=80.0) for index in range(2))
L4 = (Gpu(index=2, name="NVIDIA L4", memory_gib=22.5),)
ADDRESS = HostAddress(kind="ssh", host="a")


def offer(**fields: object) -> Offer:
    known = {"infra": "ssh/lab", "host": "a", "address": ADDRESS, "cpus": 2, "memory_gib": 7.6, "disk_free_gib": 50.0}
    return Offer(**{**known, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "asked", "reasons"),
    [
        ({}, {}, ()),
        ({}, {"cpus": "2+"}, ()),
        ({}, {"cpus": 1}, ()),
        ({}, {"cpus": 0.5}, ()),
        ({}, {"cpus": "4+"}, ("has 2 CPUs, 4+ asked",)),
        ({"cpus": 1}, {"cpus": 4}, ("has 1 CPU, 4 asked",)),
        ({"custom": {"FPGA": 2.0}}, {"accelerators": "fpga:2"}, ()),
        ({"custom": {"FPGA": 2.0}}, {"accelerators": "FPGA:3"}, ("has 2 x FPGA, 3 asked",)),
        ({}, {"memory": "8"}, ()),
        ({}, {"memory": "16+"}, ("has 7.6 GB of memory, 16+ asked",)),
        ({}, {"memory": "4x"}, ()),
        ({}, {"memory": "8x"}, ("has 7.6 GB of memory, 16 asked",)),
        ({}, {"disk_size": "1TB"}, ("has 50 GB of disk free, 1024 asked",)),
        ({}, {"infra": "ssh"}, ()),
        ({}, {"infra": "ssh/lab"}, ()),
        ({}, {"infra": "ssh/other"}, ("is in ssh/lab, ssh/other asked",)),
        ({}, {"infra": "local"}, ("is in ssh/lab, local asked",)),
        ({}, {"instance_type": "p4d.24xlarge"}, ("has no instance types, p4d.24xlarge asked",)),
        ({}, {"use_spot": True}, ("is not sold as spot",)),
        ({}, {"max_hourly_cost": 1.0}, ()),
        ({"price_per_hour": 2.5}, {"max_hourly_cost": 1.0}, ("costs $2.5 an hour, at most $1 asked",)),
        ({}, {"accelerators": "A100"}, ("has no A100 (no GPU)",)),
        ({"gpus": L4}, {"accelerators": "A100"}, ("has no A100 (has 1 x L4)",)),
        ({"gpus": A100 + L4}, {"accelerators": "A100-80GB:2"}, ()),
        ({"gpus": A100 + L4}, {"accelerators": "L4:0.5"}, ()),
        ({"gpus": A100 + L4}, {"accelerators": "A100-80GB:4"}, ("has 2 x A100-80GB, 4 asked",)),
        ({"gpus": A100 + L4}, {"accelerators": "24GB+:3"}, ()),
        (
            {"gpus": A100 + L4},
            {"accelerators": "nvidia:96GB+"},
            ("has no GPU with 96 GB or more (has 2 x A100-80GB, 1 x L4, with 24 GB, 80 GB each)",),
        ),
        (
            {"gpus": L4},
            {"cpus": "4+", "memory": "16+", "accelerators": "A100"},
            ("has 2 CPUs, 4+ asked", "has 7.6 GB of memory, 16+ asked", "has no A100 (has 1 x L4)"),
        ),
    ],
)
def test_a_machine_that_does_not_fit_says_every_reason(
    fields: dict[str, object], asked: dict[str, object], reasons: tuple[str, ...]
) -> None:
    """All reasons are told, each with what there is and what is asked; none when it fits."""
    assert why_not(offer(**fields), Resources(**asked)) == reasons  # type: ignore[arg-type]


def test_one_candidate_that_fits_is_enough() -> None:
    """With alternatives, a machine that serves one of them fits; else the reasons of all are told once."""
    choice = Resources(cpus="4+", any_of=[{"accelerators": "L4", "cpus": "1+"}, {"accelerators": "A100"}])
    assert why_not_any(offer(gpus=L4), choice) == ()
    assert why_not_any(offer(), choice) == ("has no L4 (no GPU)", "has 2 CPUs, 4+ asked", "has no A100 (no GPU)")


def cluster(nodes: int = 2, **fields: object) -> ClusterRecord:
    made = tuple(
        NodeRecord(
            rank=rank,
            host=f"h{rank}",
            address=ADDRESS,
            internal_ip="10.0.0.1",
            root="/home/sky",
            temp_dir="/tmp/ray_skypilot",
            env="",
            python="",
            **{"cpus": 2, "memory_gib": 8.0, **fields},  # type: ignore[arg-type]
        )
        for rank in range(nodes)
    )
    return ClusterRecord(
        name="c",
        cluster_id="1",
        status=ClusterStatus.UP,
        status_since=0.0,
        infra="ssh/lab",
        num_nodes=nodes,
        launched_at=0.0,
        nodes=made,
    )


@pytest.mark.parametrize(
    ("record", "asked", "num_nodes", "reasons"),
    [
        (cluster(), {}, 2, ()),
        (cluster(), {"cpus": "1+", "infra": "ssh"}, 1, ()),
        (cluster(), {}, 3, ("has 2 nodes, 3 asked",)),
        (cluster(1), {"infra": "local"}, 1, ("is in ssh/lab, local asked",)),
        (cluster(1), {"cpus": "4+"}, 1, ("node 0 (h0) has 2 CPUs, 4+ asked",)),
        (cluster(1, gpus=A100), {"accelerators": "A100-80GB:2"}, 1, ()),
        (cluster(1, gpus=A100), {"accelerators": ["H100", "A100-80GB"]}, 1, ()),
        (cluster(1, gpus=L4), {"accelerators": "A100:2"}, 1, ("node 0 (h0) has no A100 (has 1 x L4)",)),
        (cluster(1), {"disk_size": 5000, "max_hourly_cost": 0.01}, 1, ()),
    ],
)
def test_a_task_on_a_cluster_that_stands(
    record: ClusterRecord, asked: dict[str, object], num_nodes: int, reasons: tuple[str, ...]
) -> None:
    """A task runs on a cluster whose place, nodes and GPUs include what it asks; what it lacks is told node by node."""
    assert fits_cluster(record, Resources(**asked), num_nodes) == reasons  # type: ignore[arg-type]


def test_as_many_nodes_as_the_task_asks_must_fit() -> None:
    """A cluster of unequal nodes serves a task that fits enough of them."""
    record = cluster(2)
    bigger = attrs.evolve(record, nodes=(record.nodes[0], attrs.evolve(record.nodes[1], cpus=8)))
    assert fits_cluster(bigger, Resources(cpus="8+"), 1) == ()
    assert fits_cluster(bigger, Resources(cpus="8+"), 2) == ("node 0 (h0) has 2 CPUs, 8+ asked",)


def test_a_cluster_without_known_nodes_fits_nothing_yet() -> None:
    """While a cluster is being made its nodes are not known, and nobody is told otherwise."""
    record = attrs.evolve(cluster(), nodes=(), status=ClusterStatus.INIT)
    assert fits_cluster(record, Resources(), 1) == ("its nodes are not known yet (INIT)",)
