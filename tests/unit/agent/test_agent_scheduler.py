"""Who starts where: a table of decisions, and what holds for every queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.config import NodeConfig
from skylib.agent.scheduler import Cluster, Demand, Placement, Rank, Waiting, impossible, parse_demand, schedule


def node(
    rank: int, *, cpus: float = 4, memory_gib: float = 16, gpus: tuple[str, ...] = (), custom: dict[str, float] | None = None
) -> NodeConfig:
    return NodeConfig(rank, f"host{rank}", f"10.0.0.{rank}", f"/root{rank}", cpus, memory_gib, gpus, custom or {})


A100S = ("A100", "A100", "A100", "A100")


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        ({}, Demand(0.5, 0, (), ())),
        ({"CPU": 0}, Demand(0, 0, (), ())),
        ({"CPU": 2, "GPU": 2}, Demand(2, 0, (("", 2),), ())),
        ({"GPU": 8, "accelerators": {"A100": 8}}, Demand(0.5, 0, (("a100", 8),), ())),
        ({"accelerators": {"A100": 0.25}}, Demand(0.5, 0, (("a100", 0.25),), ())),
        ({"accelerators": {"A100": 1.5}}, Demand(0.5, 0, (("a100", 2),), ())),
        ({"memory_gib": 4, "custom": {"disk": 1, "none": 0}}, Demand(0.5, 4, (), (("disk", 1),))),
    ],
)
def test_a_demand_is_read(demand: dict[str, object], expected: Demand) -> None:
    """Names of accelerators take the place of a bare count; more than one device is counted whole."""
    assert parse_demand(demand) == expected


@pytest.mark.parametrize(
    "demand", [{"CPU": -1}, {"GPU": float("nan")}, {"accelerators": {"A100": float("inf")}}, {"CPU": "x"}]
)
def test_a_demand_that_is_none_is_refused(demand: dict[str, object]) -> None:
    """Negative and endless amounts mean nothing."""
    with pytest.raises(ValueError):
        parse_demand(demand)


def test_ranks_follow_the_order_of_nodes_and_the_least_busy_come_first() -> None:
    """The head is rank 0 of every job that it takes part in."""
    cluster = Cluster([node(0), node(1), node(2)], [0, 1, 2], [(parse_demand({"CPU": 2}), (Rank(1, ()),))])
    assert cluster.place(2, parse_demand({})) == (Rank(0, ()), Rank(2, ()))
    assert cluster.place(3, parse_demand({})) == (Rank(0, ()), Rank(1, ()), Rank(2, ()))


def test_shares_of_a_device_are_packed() -> None:
    """Two halves go to one device, so that whole ones stay free."""
    cluster = Cluster([node(0, gpus=A100S)], [0], [])
    half, two = (
        parse_demand({"CPU": 0, "accelerators": {"A100": 0.5}}),
        parse_demand({"CPU": 0, "accelerators": {"A100": 3}}),
    )
    assert [cluster.place(1, half), cluster.place(1, half)] == [(Rank(0, ((0, 0.5),)),)] * 2
    assert cluster.place(1, two) == (Rank(0, ((1, 1.0), (2, 1.0), (3, 1.0))),)
    assert cluster.place(1, half) is None


def test_mixed_models_in_one_node_are_told_apart() -> None:
    """A named model gets its devices, any model what is left."""
    cluster = Cluster([node(0, gpus=("T4", "A100", "T4"))], [0], [])
    assert cluster.place(1, parse_demand({"accelerators": {"a100": 1}})) == (Rank(0, ((1, 1.0),)),)
    assert cluster.place(1, parse_demand({"GPU": 2})) == (Rank(0, ((0, 1.0), (2, 1.0))),)


@pytest.mark.parametrize(
    ("num_nodes", "demand", "why"),
    [
        (1, {}, ""),
        (2, {"CPU": 4}, ""),
        (3, {}, "the job asks for 3 nodes, the cluster has 2"),
        (0, {}, "at least one node"),
        (1, {"memory_gib": 17}, "17 GiB of memory on head (16 there), worker1 (16 there)"),
        (2, {"accelerators": {"A100": 1}}, "2 nodes at once, 1 of 2 can take it: it lacks 1 x A100 on worker1 (0 there)"),
        (1, {"GPU": 5}, "5 x GPU on head (4 there), worker1 (0 there)"),
        (1, {"custom": {"disk": 3}}, "3 x disk on head (2 there), worker1 (0 there)"),
    ],
)
def test_what_a_cluster_can_never_give(num_nodes: int, demand: dict[str, object], why: str) -> None:
    """In words that name the node and the amount."""
    nodes = [node(0, gpus=A100S, custom={"disk": 2}), node(1)]
    said = impossible(nodes, num_nodes, parse_demand(demand))
    assert why in said
    assert bool(said) == bool(why)


def test_a_dead_node_gives_nothing() -> None:
    """A job for two nodes waits while one of two is away."""
    assert Cluster([node(0), node(1)], [0], []).place(2, parse_demand({})) is None


NODES = st.lists(
    st.builds(
        lambda cpus, memory, gpus: (cpus, memory, tuple(gpus)),
        st.integers(1, 8),
        st.integers(1, 32),
        st.lists(st.sampled_from(["A100", "T4"]), max_size=4),
    ),
    min_size=1,
    max_size=4,
).map(lambda shapes: [node(rank, cpus=c, memory_gib=m, gpus=g) for rank, (c, m, g) in enumerate(shapes)])
DEMANDS = st.fixed_dictionaries(
    {"CPU": st.sampled_from([0, 0.5, 1, 3]), "memory_gib": st.sampled_from([0, 1, 8])},
    optional={
        "GPU": st.integers(0, 3),
        "accelerators": st.dictionaries(st.sampled_from(["A100", "T4"]), st.sampled_from([0.25, 0.5, 1, 2]), max_size=2),
    },
).map(parse_demand)


@given(NODES, st.lists(st.tuples(st.integers(1, 4), DEMANDS), max_size=12), st.data())
def test_fifo_holds_and_nothing_is_given_twice(
    nodes: list[NodeConfig], jobs: list[tuple[int, Demand]], data: st.DataObject
) -> None:
    """Jobs come and end in any order: the queue's first never waits for a later one, and no node gives more than it has."""
    queue = [
        Waiting(job_id, wanted, demand)
        for job_id, (wanted, demand) in enumerate(jobs)
        if not impossible(nodes, wanted, demand)
    ]
    running: dict[int, tuple[Demand, Placement]] = {}
    started: list[int] = []
    demands = {waiting.job_id: waiting.demand for waiting in queue}
    everything = [waiting.job_id for waiting in queue]
    alive = [each.rank for each in nodes]
    while queue:
        starts = schedule(Cluster(nodes, alive, running.values()), queue)
        assert starts or running, "the first job of the queue fits an empty cluster"
        for job_id, placement in starts:
            running[job_id] = (demands[job_id], placement)
        started += [job_id for job_id, _ in starts]
        queue = queue[len(starts) :]
        assert started == everything[: len(started)]
        _never_more_than_there_is(nodes, running)
        if running:
            del running[data.draw(st.sampled_from(sorted(running)))]


def _never_more_than_there_is(nodes: list[NodeConfig], running: dict[int, tuple[Demand, Placement]]) -> None:
    for each in nodes:
        here = [(demand, rank) for demand, placement in running.values() for rank in placement if rank.node == each.rank]
        assert sum(demand.cpus for demand, _ in here) <= each.cpus + 1e-6
        assert sum(demand.memory_gib for demand, _ in here) <= each.memory_gib + 1e-6
        for index, model in enumerate(each.gpus):
            shares = [(demand, share) for demand, rank in here for device, share in rank.devices if device == index]
            assert sum(share for _, share in shares) <= 1 + 1e-6
            assert all(model.lower() in dict(demand.gpus) or "" in dict(demand.gpus) for demand, _ in shares)
        for demand, rank in here:
            wanted = sum(count for _, count in demand.gpus)
            assert abs(sum(share for _, share in rank.devices) - wanted) < 1e-6
    for _, placement in running.values():
        assert len({rank.node for rank in placement}) == len(placement)
