"""Ranking against brute force: no set of machines that fits is cheaper than the chosen one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import NoCapacityError, NoOfferError
from skylib.models.node import Gpu, HostAddress
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.resources import Resources
from skylib.optimizer.fit import why_not
from skylib.optimizer.rank import rank, share

GPUS = [("NVIDIA L4", 22.5), ("Tesla T4", 15.0), ("NVIDIA A100-SXM4-80GB", 80.0)]
INFRAS = ["ssh/one", "ssh/two", "local"]


@st.composite
def offers(draw: st.DrawFn) -> tuple[Offer, ...]:
    made = []
    for number in range(draw(st.integers(0, 6))):
        models = draw(st.lists(st.sampled_from(GPUS), max_size=4))
        made.append(
            Offer(
                infra=draw(st.sampled_from(INFRAS)),
                host=f"h{number}",
                address=HostAddress(kind="ssh", host=f"h{number}"),
                cpus=draw(st.integers(1, 8)),
                memory_gib=draw(st.sampled_from([2.0, 8.0, 31.2])),
                disk_free_gib=100.0,
                gpus=tuple(Gpu(index=index, name=name, memory_gib=size) for index, (name, size) in enumerate(models)),
                price_per_hour=draw(st.none() | st.integers(0, 5).map(float)),
            )
        )
    return tuple(made)


plain = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.sampled_from(["1", "4+", "8"]),
        "memory": st.sampled_from(["2+", "8", "32+"]),
        "accelerators": st.sampled_from(["L4", "T4:2", "A100-80GB", "16GB+:2", "L4:0.5"]),
        "infra": st.sampled_from([*INFRAS, "ssh"]),
        "max_hourly_cost": st.sampled_from([1.0, 3.0]),
    },
)
resources = plain.map(lambda fields: Resources(**fields)) | st.builds(
    lambda key, entries: Resources(**{key: entries}),
    st.sampled_from(["any_of", "ordered"]),
    st.lists(plain, min_size=1, max_size=3),
)


def cost(group: tuple[Offer, ...]) -> float:
    return math.fsum(offer.price_per_hour or 0.0 for offer in group)


def sets_that_fit(found: tuple[Offer, ...], candidate: Resources, num_nodes: int) -> list[tuple[Offer, ...]]:
    return [
        group
        for group in itertools.combinations(found, num_nodes)
        if len({offer.infra for offer in group}) == 1 and not any(why_not(offer, candidate) for offer in group)
    ]


@given(offers(), resources, st.integers(1, 3))
def test_no_set_that_fits_is_cheaper_than_the_chosen_one(
    found: tuple[Offer, ...], asked: Resources, num_nodes: int
) -> None:
    """The choice fits, and costs no more than any other; with an order, than any other of the first that can be had."""
    by_candidate = [sets_that_fit(found, candidate, num_nodes) for candidate in asked.candidates()]
    by_candidate = [groups for groups in by_candidate if groups]
    if not by_candidate:
        with pytest.raises(NoOfferError) as caught:
            rank(Survey(offers=found), asked, num_nodes)
        assert set(caught.value.reasons) == {offer.host for offer in found}  # type: ignore[attr-defined]
        return
    placement = rank(Survey(offers=found), asked, num_nodes)
    competing = by_candidate[0] if asked.is_ordered else [group for groups in by_candidate for group in groups]
    assert not any(why_not(offer, placement.resources) for offer in placement.chosen)
    assert cost(placement.chosen) == min(cost(group) for group in competing)
    assert len({offer.host for offer in placement.chosen}) == num_nodes
    assert {offer.host for offer in found} == {
        *(offer.host for offer in placement.chosen),
        *(lost.offer.host for lost in placement.lost),
    }
    assert all(lost.reason for lost in placement.lost)


@given(offers(), resources, st.integers(1, 3), st.permutations(range(6)))
def test_the_price_does_not_depend_on_the_order_of_the_survey(
    found: tuple[Offer, ...], asked: Resources, num_nodes: int, order: list[int]
) -> None:
    """The same machines in another order cost the same, and the same order gives the same machines."""
    def price(each: tuple[Offer, ...]) -> float | None:
        try:
            return cost(rank(Survey(offers=each), asked, num_nodes).chosen)
        except NoOfferError:
            return None

    assert price(found) == price(tuple(found[index] for index in order if index < len(found)))
    assert price(found) is None or rank(Survey(offers=found), asked, num_nodes) == rank(
        Survey(offers=found), asked, num_nodes
    )


@given(offers(), resources, st.integers(1, 4))
def test_waiting_is_advised_only_where_it_can_help(found: tuple[Offer, ...], asked: Resources, num_nodes: int) -> None:
    """NoCapacityError when the machines would do, were they not held; NoOfferError when not even then."""
    fits = any(sets_that_fit(found, candidate, num_nodes) for candidate in asked.candidates())
    held = [
        Refusal(infra=offer.infra, host=offer.host, reason="held", temporary=True)
        for offer in found
        if any(not why_not(offer, candidate) for candidate in asked.candidates())
    ]
    try:
        rank(Survey(refusals=tuple(held)), asked, num_nodes)
    except NoCapacityError:
        assert len(held) >= num_nodes
    except NoOfferError:
        assert not fits


@given(offers(), st.integers(1, 4))
def test_shares_never_exceed_the_machine(found: tuple[Offer, ...], parts: int) -> None:
    """Nodes on one machine have no device in common, and together no more memory than there is."""
    for offer in found:
        shares = share(offer, parts, Resources())
        devices = [gpu.index for each in shares for gpu in each.gpus]
        assert len(devices) == len(set(devices))
        assert set(devices) <= {gpu.index for gpu in offer.gpus}
        assert math.fsum(each.memory_gib for each in shares) <= offer.memory_gib * 1.000001
        assert sum(each.cpus for each in shares) <= max(offer.cpus, parts)
