"""What every provider keeps to, tried on this machine and on real SSH hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from skylib.errors import NoCapacityError
from skylib.models.infra import Infra
from skylib.models.node import HostAddress
from skylib.models.resources import Resources
from skylib.optimizer.fit import why_not_any
from skylib.optimizer.rank import rank
from skylib.paths import SkyHome
from skylib.providers.base import NodeHandle, NodeMaker, NodeSpec, NodeState, Provider, ProviderContext
from skylib.providers.local import LocalProvider
from skylib.providers.ssh_pool import SshPoolProvider
from skylib.transport.base import Completed, Transport
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from skylib.transport.pool import Transports
from tests.testbed import pool_yaml


class OnlyHardware(LocalTransport):
    """This machine without the clusters that may stand on it while tests run."""

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        done = super().run(command, stdin=stdin, timeout_s=timeout_s)
        kept = [line for line in done.stdout.split(b"\n") if not line.startswith((b"cluster\t", b"temp_cluster\t"))]
        return attrs.evolve(done, stdout=b"\n".join(kept))


@attrs.frozen(kw_only=True)
class Place:
    """A provider with machines. nodes: how many it can give at once. infra: where they are."""

    provider: Provider
    home: SkyHome
    transports: Callable[[HostAddress], Transport]
    infra: str
    nodes: int
    hosts: tuple[str, ...]

    def context(self, claims: Mapping[tuple[str, str], str] | None = None, **options: object) -> ProviderContext:
        return ProviderContext(home=self.home, transports=self.transports, claims=claims or {}, **options)  # type: ignore[arg-type]

    @property
    def maker(self) -> NodeMaker:
        assert isinstance(self.provider, NodeMaker)
        return self.provider

    def spec(self, context: ProviderContext) -> NodeSpec:
        asked = Resources(infra=self.infra)
        placement = rank(self.provider.survey(asked, self.nodes, context), asked, self.nodes)
        return NodeSpec(cluster_name="mine", cluster_id="1", infra=placement.infra, offers=placement.chosen)


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.hosts)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    home = SkyHome(tmp_path / "sky")
    if request.param == "local":
        yield Place(
            provider=LocalProvider(),
            home=home,
            transports=lambda address: OnlyHardware(),
            infra="local",
            nodes=2,
            hosts=("localhost",),
        )
        return
    hosts = request.getfixturevalue("ssh_hosts")
    home.root.mkdir()
    home.ssh_node_pools.write_text(pool_yaml(hosts))
    with Transports(home) as transports:
        yield Place(
            provider=SshPoolProvider(),
            home=home,
            transports=transports.get,
            infra="ssh/lab",
            nodes=len(hosts),
            hosts=tuple(host.ip for host in hosts),
        )


def unreachable(address: HostAddress) -> Transport:
    raise AssertionError(f"{address.host} was to be left alone")


def test_offers_are_machines_that_fit_and_are_in_its_infras(place: Place) -> None:
    """A survey offers what serves the request, under the provider's own name, each machine once."""
    want = Resources(cpus="1+", memory="0.1+")
    survey = place.provider.survey(want, place.nodes, place.context())
    assert tuple(offer.host for offer in survey.offers) == place.hosts
    assert {Infra.parse(offer.infra).cloud for offer in survey.offers} == {place.provider.name}
    assert [why_not_any(offer, want) for offer in survey.offers] == [()] * len(place.hosts)
    assert sum(offer.capacity for offer in survey.offers) >= place.nodes
    assert survey.refusals == ()


def test_machines_that_do_not_fit_say_all_that_they_lack(place: Place) -> None:
    """Every machine that is not offered is refused, with every reason and not as something to wait for."""
    want = Resources(infra=place.infra, cpus="4096+", accelerators="TPU-v99:8")
    survey = place.provider.survey(want, 1, place.context())
    assert survey.offers == ()
    assert tuple(refusal.host for refusal in survey.refusals) == place.hosts
    for refusal in survey.refusals:
        assert "4096+ asked" in refusal.reason
        assert "has no TPU-v99" in refusal.reason
        assert not refusal.temporary


def test_machines_held_by_another_cluster_are_not_even_asked(place: Place) -> None:
    """A machine that the home knows to be held is refused with the holder's name, without a connection."""
    claims = {(place.infra, host): "theirs" for host in place.hosts}
    context = attrs.evolve(place.context(claims), transports=unreachable)
    survey = place.provider.survey(Resources(infra=place.infra), 1, context)
    assert [(refusal.host, refusal.reason, refusal.temporary) for refusal in survey.refusals] == [
        (host, "held by cluster 'theirs'", True) for host in place.hosts
    ]


def test_what_a_cluster_holds_is_free_for_itself(place: Place) -> None:
    """The machines that the asking cluster has claimed are offered to it."""
    claims = {(place.infra, host): "mine" for host in place.hosts}
    survey = place.provider.survey(Resources(infra=place.infra), 1, place.context(claims, cluster_name="mine"))
    assert tuple(offer.host for offer in survey.offers) == place.hosts


def test_the_facts_of_a_survey_are_at_hand_afterwards(place: Place) -> None:
    """Nobody probes twice in one operation: what the survey learned is in the context."""
    context = place.context()
    offers = place.provider.survey(Resources(infra=place.infra), 1, context).offers
    known = context.probes.known()
    assert [known[offer.address].cpus for offer in offers] == [offer.cpus for offer in offers]


def test_the_same_spec_twice_gives_the_same_nodes(place: Place) -> None:
    """create is safe to repeat, and its nodes are in rank order, one for each offer."""
    context = place.context(cluster_name="mine")
    spec = place.spec(context)
    nodes = place.maker.create(spec, context)
    assert nodes == place.maker.create(spec, context)
    assert [(node.rank, node.host, node.address) for node in nodes] == [
        (rank, offer.host, offer.address) for rank, offer in enumerate(spec.offers)
    ]


def test_machines_that_were_taken_meanwhile_are_no_capacity(place: Place) -> None:
    """create refuses what another cluster has claimed since the survey, and names it."""
    spec = place.spec(place.context())
    late = place.context({(place.infra, place.hosts[0]): "theirs"})
    with pytest.raises(NoCapacityError) as caught:
        place.maker.create(spec, late)
    assert caught.value.reasons == {place.hosts[0]: "held by cluster 'theirs'"}  # type: ignore[attr-defined]


def test_nodes_that_answer_are_running(place: Place) -> None:
    """observe tells of every node that it is asked for."""
    context = place.context()
    nodes = place.maker.create(place.spec(context), context)
    assert place.maker.observe(nodes, context) == dict.fromkeys(nodes, NodeState.RUNNING)


def test_ending_what_is_not_there_is_success(place: Place) -> None:
    """terminate may be called again, and for machines that no longer exist."""
    stranger = NodeHandle(rank=0, infra=place.infra, host="gone", address=HostAddress(kind="ssh", host="192.0.2.99"))
    for _ in range(2):
        place.maker.terminate([stranger], place.context())


def test_check_tells_each_infra_with_its_hosts(place: Place) -> None:
    """Every infra there is has a line; a usable one names its hosts and has no reason."""
    (status,) = place.provider.check(place.context())
    assert (status.infra, status.usable, status.reason, status.hosts) == (place.infra, True, "", place.hosts)


def test_surveys_leave_the_home_alone(place: Place) -> None:
    """Looking around writes nothing but host keys that were met for the first time."""
    before = {path.name for path in place.home.root.glob("*")}
    place.provider.survey(Resources(infra=place.infra), 1, place.context())
    after = {path.name for path in place.home.root.glob("*")}
    assert after - before <= {"known_hosts", "locks"}
