"""Ranking: who is chosen, why the others lost, and what it is when nobody can be."""

from __future__ import annotations

import pickle

import attrs
import pytest

from skylib.errors import NoCapacityError, NoOfferError
from skylib.models.node import Gpu, HostAddress
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.resources import Resources
from skylib.optimizer.rank import rank, share

L4 = (Gpu(index=0, name="NVIDIA L4", memory_gib=22.5),)


def offer(host: str, infra: str = "ssh/lab", **fields: object) -> Offer:
    known = {"address": HostAddress(kind="ssh", host=host), "cpus": 4, "memory_gib": 16.0}
    return Offer(infra=infra, host=host, **{**known, **fields})  # type: ignore[arg-type]


def survey(*found: Offer | Refusal) -> Survey:
    return Survey(
        offers=tuple(each for each in found if isinstance(each, Offer)),
        refusals=tuple(each for each in found if isinstance(each, Refusal)),
    )


def chosen(found: Survey, num_nodes: int = 1, **asked: object) -> list[str]:
    return [each.host for each in rank(found, Resources(**asked), num_nodes).chosen]  # type: ignore[arg-type]


def test_the_order_of_the_pool_decides_among_equals() -> None:
    """Of hosts that cost the same the first are taken, and the first of them is the head."""
    assert chosen(survey(offer("b"), offer("a"), offer("c")), 2) == ["b", "a"]


def test_the_cheapest_are_taken_and_own_hosts_are_free() -> None:
    """A host without a price costs nothing; the head is still the first in the pool."""
    found = survey(offer("dear", price_per_hour=3.0), offer("cheap", price_per_hour=1.0), offer("own"))
    placement = rank(found, Resources(), 2)
    assert [each.host for each in placement.chosen] == ["cheap", "own"]
    assert placement.price_per_hour == 1.0
    assert [(lost.offer.host, lost.reason) for lost in placement.lost] == [
        ("dear", "costs $3 an hour, those chosen at most $1")
    ]


def test_hosts_with_gpus_are_spared_when_none_are_asked_for() -> None:
    """A task without accelerators takes hosts without GPUs first."""
    assert chosen(survey(offer("gpu", gpus=L4), offer("plain"))) == ["plain"]


def test_a_cluster_stays_in_one_infra() -> None:
    """Two pools of one host each are not two nodes, since their hosts may not reach each other."""
    with pytest.raises(NoOfferError):
        rank(survey(offer("a", "ssh/one"), offer("b", "ssh/two")), Resources(), 2)
    found = survey(offer("a", "ssh/one"), offer("b", "ssh/two"), offer("c", "ssh/two"))
    assert chosen(found, 2) == ["b", "c"]


def test_infras_of_equal_price_count_in_the_order_of_the_survey() -> None:
    """Own hosts, which are surveyed first, come before this machine."""
    placement = rank(survey(offer("a"), offer("localhost", "local", capacity=1)), Resources(), 1)
    assert placement.infra == "ssh/lab"
    assert [(lost.reason, lost.fits) for lost in placement.lost] == [("ssh/lab comes before local", True)]


def test_why_each_other_offer_lost() -> None:
    """Those that fit were not needed, the others say what they lack; only the first are alternatives."""
    found = survey(offer("a"), offer("b"), offer("small", cpus=1), Refusal(infra="ssh/lab", host="x", reason="held"))
    placement = rank(found, Resources(cpus="2+"), 1)
    assert [(lost.offer.host, lost.reason) for lost in placement.lost] == [
        ("b", "not needed: 1 asked, others come first"),
        ("small", "has 1 CPU, 2+ asked"),
    ]
    assert [each.host for each in placement.alternatives] == ["b"]
    assert [each.host for each in placement.refusals] == ["x"]


def test_any_of_takes_the_cheapest_candidate() -> None:
    """Without an order the candidates compete by price."""
    found = survey(offer("big", gpus=L4, price_per_hour=2.0), offer("small", cpus=8, price_per_hour=1.0))
    choice = Resources(any_of=[{"accelerators": "L4"}, {"cpus": "8+"}])
    placement = rank(found, choice, 1)
    assert ([each.host for each in placement.chosen], placement.resources) == (["small"], choice.candidates()[1])


def test_ordered_takes_the_first_candidate_that_can_be_had() -> None:
    """With an order the first that can be had wins, whatever it costs."""
    found = survey(offer("big", gpus=L4, price_per_hour=2.0), offer("small", cpus=8, price_per_hour=1.0))
    choice = Resources(ordered=[{"accelerators": "H100"}, {"accelerators": "L4"}, {"cpus": "8+"}])
    assert [each.host for each in rank(found, choice, 1).chosen] == ["big"]


def test_a_budget_is_kept() -> None:
    """A host above max_hourly_cost is no candidate, and says so."""
    found = survey(offer("dear", price_per_hour=3.0))
    with pytest.raises(NoOfferError) as caught:
        rank(found, Resources(max_hourly_cost=2), 1)
    assert caught.value.reasons == {"dear": "costs $3 an hour, at most $2 asked"}  # type: ignore[attr-defined]


def test_hosts_that_the_cluster_has_already_come_first() -> None:
    """A cluster that is made again takes its own hosts, whatever else has come free."""
    found = survey(offer("a"), offer("b"), offer("c", price_per_hour=1.0))
    again = rank(found, Resources(), 2, held=[("ssh/lab", "c")])
    assert [each.host for each in again.chosen] == ["a", "c"]


def test_more_nodes_than_there_are_is_no_offer() -> None:
    """NoOfferError, with a reason for each host, when no waiting helps."""
    with pytest.raises(NoOfferError, match="nothing can serve 3 nodes of cpus: 2") as caught:
        rank(survey(offer("a"), offer("small", cpus=1)), Resources(cpus=2), 3)
    assert caught.value.reasons == {"a": "fits, but there are too few", "small": "has 1 CPU, 2 asked"}  # type: ignore[attr-defined]


def test_hosts_held_or_silent_now_are_no_capacity() -> None:
    """NoCapacityError, which may be retried, when there would be enough once others are free or answer."""
    held = Refusal(infra="ssh/lab", host="b", reason="held by cluster 'x'", temporary=True)
    gone = Refusal(infra="ssh/lab", host="c", reason="key refused", temporary=False)
    with pytest.raises(NoCapacityError, match="not enough hosts are free now for 2 nodes") as caught:
        rank(survey(offer("a"), held, gone), Resources(), 2)
    assert caught.value.retryable
    assert caught.value.reasons == {  # type: ignore[attr-defined]
        "b": "held by cluster 'x'",
        "c": "key refused",
        "a": "fits, but there are too few",
    }
    assert "b: held by cluster 'x'" in str(caught.value)
    with pytest.raises(NoOfferError):
        rank(survey(offer("a"), held, gone), Resources(), 3)


def test_errors_survive_pickling_with_their_attempts() -> None:
    """Reasons and attempts are there in another process."""
    with pytest.raises(NoOfferError) as caught:
        rank(survey(offer("a", cpus=1)), Resources(cpus=2), 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reasons, again.attempts) == (caught.value.reasons, caught.value.attempts)  # type: ignore[attr-defined]


def test_nothing_at_all_says_where_to_name_hosts() -> None:
    """Without any host the error tells how to have some."""
    with pytest.raises(NoOfferError, match="ssh_node_pools.yaml"):
        rank(Survey(), Resources(), 1)


def test_hosts_of_one_name_in_two_infras_are_told_apart() -> None:
    """Reasons are keyed by host, and by host and infra where that is not unique."""
    with pytest.raises(NoOfferError) as caught:
        rank(survey(offer("a", "ssh/one", cpus=1), offer("a", "ssh/two", cpus=1)), Resources(cpus=2), 1)
    assert set(caught.value.reasons) == {"a (ssh/one)", "a (ssh/two)"}  # type: ignore[attr-defined]


def test_nodes_on_one_machine_have_each_their_share() -> None:
    """Two nodes on this machine get half of its CPUs and memory, and every model of GPU by halves."""
    gpus = tuple(Gpu(index=index, name="NVIDIA L4" if index != 1 else "Tesla T4", memory_gib=16.0) for index in range(5))
    machine = offer("localhost", "local", cpus=5, memory_gib=16.0, gpus=gpus, capacity=2)
    placement = rank(survey(machine), Resources(accelerators="L4:2"), 2)
    assert [(each.cpus, each.memory_gib, [gpu.index for gpu in each.gpus]) for each in placement.chosen] == [
        (2, 8.0, [0, 2]),
        (2, 8.0, [3, 4]),
    ]


def test_a_share_that_is_too_small_is_told_as_such() -> None:
    """What the machine has as a whole is not what each node on it has."""
    machine = offer("localhost", "local", cpus=4, capacity=2)
    with pytest.raises(NoOfferError, match="has 2 CPUs, 4 asked for each of 2 nodes on it"):
        rank(survey(machine), Resources(cpus=4), 2)


def test_a_single_share_is_the_whole_machine() -> None:
    """One node on a machine gets what does not divide, too."""
    machine = offer("localhost", "local", cpus=5, capacity=3)
    assert share(machine, 1, Resources()) == (machine,)
    assert rank(survey(machine), Resources(), 1).chosen == (attrs.evolve(machine),)
