"""The registry: own providers, plug-ins, broken plug-ins, and which of them an infra means."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from skylib.errors import ConfigError
from skylib.models.node import HostAddress
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.receipts import InfraStatus
from skylib.models.resources import Resources
from skylib.optimizer.rank import rank
from skylib.paths import SkyHome
from skylib.providers.base import NodeMaker, Provider, ProviderContext
from skylib.providers.local import LocalProvider
from skylib.providers.registry import GROUP, Registry
from skylib.providers.ssh_pool import SshPoolProvider
from skylib.transport.local import LocalTransport


class Plugged:
    """A provider from outside with one machine."""

    name = "plugged"
    preference = 50

    def survey(self, want: Resources, num_nodes: int, context: ProviderContext) -> Survey:
        address = HostAddress(kind="ssh", host="p")
        return Survey(offers=(Offer(infra="plugged/here", host="p", address=address, cpus=64, memory_gib=512.0),))

    def check(self, context: ProviderContext) -> Sequence[InfraStatus]:
        return (InfraStatus(infra="plugged/here", usable=True, hosts=("p",)),)


class Failing:
    """A provider that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no credentials")


class NoProvider:
    """Something else."""

    name = "none"


def point(name: str, what: str) -> EntryPoint:
    return EntryPoint(name=name, value=f"{__name__}:{what}", group=GROUP)


@pytest.fixture
def context(tmp_path: Path) -> ProviderContext:
    return ProviderContext(home=SkyHome(tmp_path / "sky"), transports=lambda address: LocalTransport(address.host))


def names(providers: Sequence[Provider]) -> list[str]:
    return [provider.name for provider in providers]


def test_own_providers_need_no_installation() -> None:
    """ssh and local are there without any entry point; own SSH hosts come first."""
    registry = Registry(plug_ins=())
    assert names(registry.all()) == ["ssh", "local"]
    assert all(isinstance(provider, NodeMaker) for provider in registry.all())


def test_the_entry_points_of_the_package_are_its_own_providers() -> None:
    """An installed skylib's own entry points do not count as plug-ins that clash with it."""
    own = [
        EntryPoint(name=kind.name, value=f"{kind.__module__}:{kind.__qualname__}", group=GROUP)
        for kind in (LocalProvider, SshPoolProvider)
    ]
    registry = Registry(plug_ins=own)
    assert (names(registry.all()), dict(registry.broken)) == (["ssh", "local"], {})


def test_plug_ins_are_found_and_stand_between_own_hosts_and_this_machine() -> None:
    """A provider from outside is used like our own, in the order of preference."""
    registry = Registry(plug_ins=[point("plugged", "Plugged")])
    assert names(registry.all()) == ["ssh", "plugged", "local"]
    assert names(registry.of("plugged/here")) == ["plugged"]


def test_an_explicit_provider_replaces_any() -> None:
    """What is given by hand wins over our own and over plug-ins."""
    given = Plugged()
    registry = Registry({"local": given, "plugged": given}, plug_ins=[point("plugged", "Failing")])
    assert registry.of("local") == (given,)
    assert dict(registry.broken) == {}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("Failing", "RuntimeError: no credentials"),
        ("Missing", "AttributeError"),
        ("NoProvider", "it lacks preference, survey, check"),
        ("Plugged", "calls itself 'plugged'"),
    ],
)
def test_a_broken_plug_in_is_named_when_it_is_asked_for(what: str, reason: str) -> None:
    """ConfigError names the plug-in, where it comes from and what is wrong; everything else goes on working."""
    registry = Registry(plug_ins=[point("odd", what)])
    with pytest.raises(ConfigError, match=f"plug-in 'odd' .*{what}.*{reason}"):
        registry.of("odd")
    assert names(registry.of("local")) == ["local"]


def test_a_plug_in_cannot_take_our_names() -> None:
    """A plug-in called like one of ours is refused and ours stays."""
    registry = Registry(plug_ins=[point("local", "Plugged")])
    assert isinstance(registry.of("local")[0], LocalProvider)


def test_an_infra_that_nobody_serves_is_named_with_its_neighbour() -> None:
    """ConfigError tells the infra, what there is and the nearest name."""
    with pytest.raises(ConfigError, match="no provider serves infra 'locl'") as caught:
        Registry(plug_ins=()).of("locl")
    assert caught.value.hint == "did you mean 'local'?"


def test_no_infra_means_all(context: ProviderContext) -> None:
    """Without a place every provider is asked, broken plug-ins are told as refusals, and own hosts count first."""
    registry = Registry(plug_ins=[point("plugged", "Plugged"), point("odd", "Failing")])
    found = registry.survey(Resources(cpus="32+"), 1, context)
    assert [offer.host for offer in found.offers] == ["p"]
    assert {refusal.infra for refusal in found.refusals} >= {"odd"}
    assert rank(found, Resources(cpus="32+"), 1).infra == "plugged/here"


def test_only_the_infras_that_are_asked_for_are_surveyed(context: ProviderContext) -> None:
    """A task with a place asks nobody else, so a broken plug-in does not matter to it."""
    registry = Registry(plug_ins=[point("plugged", "Plugged"), point("odd", "Failing")])
    found = registry.survey(Resources(infra="plugged"), 1, context)
    assert ([offer.infra for offer in found.offers], found.refusals) == (["plugged/here"], ())


def test_check_tells_of_every_infra_and_every_broken_one(context: ProviderContext) -> None:
    """A pool file that is wrong, or a plug-in that is broken, is a line and no exception."""
    context.home.root.mkdir()
    context.home.ssh_node_pools.write_text("lab: 1\n")
    registry = Registry(plug_ins=[point("plugged", "Plugged"), point("odd", "Failing")])
    found = {status.infra: (status.usable, status.reason) for status in registry.check(context)}
    assert set(found) == {"ssh", "plugged/here", "local", "odd"}
    assert "expected a map with hosts" in found["ssh"][1]
    assert "no credentials" in found["odd"][1]
    assert (found["plugged/here"][0], found["local"][0]) == (True, True)


def test_refusals_of_broken_plug_ins_do_not_count_as_capacity(context: ProviderContext) -> None:
    """A plug-in that cannot be loaded is nothing to wait for."""
    found = Registry(plug_ins=[point("odd", "Failing")]).survey(Resources(cpus="9999+"), 1, context)
    assert [refusal.temporary for refusal in found.refusals if isinstance(refusal, Refusal)] == [False, False]


