"""Bringing a cluster up, on nodes that exist in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence

import attrs
import pytest

from skylib.errors import BringUpError, PreflightError, StagingError
from skylib.events import Event, Phase
from skylib.models.node import HostAddress, NodeFacts
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.bringup import Member, Site, Tools, bring_up
from skylib.runtime.environment import Environment
from skylib.runtime.node_files import NodePlan
from skylib.transport.base import ByteChannel, Completed, Transport
from skylib.transport.command import Command
from skylib.transport.scripted import Call, Rule, ScriptedTransport

WAIT_S = 20.0
FACTS = NodeFacts(
    os="Linux",
    arch="x86_64",
    libc="glibc 2.36",
    home="/home/me",
    user="me",
    uid=1000,
    hostname="host0",
    cpus=4,
    memory_gib=16.0,
    disk_free_gib=50.0,
    home_file_system="ext4",
)


def site(hosts: int = 1, facts: NodeFacts = FACTS) -> Site:
    """A cluster of hosts host0, host1, ..."""
    members = tuple(
        Member(
            rank=rank,
            host=f"host{rank}",
            address=HostAddress(kind="ssh", host=f"host{rank}"),
            facts=facts,
            ip=f"10.0.0.{rank + 1}",
            root="/home/me",
            env="/home/me/skypilot-runtime",
            cpus=4,
            memory_gib=16.0,
        )
        for rank in range(hosts)
    )
    return Site(cluster="train", cluster_id="id-1", infra="ssh/lab", owner="o", user="me", home="/h", members=members)


def silent(channel: ByteChannel) -> None:
    """An agent that takes everything and answers nothing."""
    while channel.receive():
        pass


class Bench:
    """Nodes by host, and the tools that reach them."""

    def __init__(self, hosts: int = 1, rules: Callable[[int], Sequence[Rule]] = lambda rank: ()) -> None:
        certificates = json.dumps({str(rank): {} for rank in range(1, hosts)}).encode()
        usual = [Rule(" bridge", talk=silent), Rule(" certs ", certificates), Rule("", b"have\n")]
        self.nodes = {f"host{rank}": ScriptedTransport(f"host{rank}", [*rules(rank), *usual]) for rank in range(hosts)}
        self.stopping = threading.Event()
        self.events: list[Event] = []

    def transport(self, address: HostAddress) -> Transport:
        return self.nodes[address.host]

    def seen(self, event: Event) -> None:
        self.events.append(event)
        if event.step == "runtime.stop" and event.phase is Phase.STARTED:
            self.stopping.set()

    def agent(self, transport: Transport, node: NodePlan) -> AgentClient:
        return AgentClient(transport, Command.of("x", "bridge"), cluster="train", cluster_id="id-1", version="0")

    def tools(self, while_starting: Callable[[Sequence[NodePlan]], None]) -> Tools:
        return Tools(
            transport=self.transport,
            environment=lambda transport, facts, layout: Environment(
                env=layout.runtime_env, ray_version="2.9.3", digest="d", created=False
            ),
            agent=self.agent,
            events=self.seen,
            while_starting=while_starting,
            timeout_s=WAIT_S,
        )

    def commands(self) -> list[str]:
        return [line for node in self.nodes.values() for line in node.commands]


def full(nodes: Sequence[NodePlan]) -> None:
    raise StagingError("disk full", host="host0")


def test_ray_does_not_start_after_bring_up_has_failed():
    """A step that still waits for its channel when another fails never runs its command."""
    bench = Bench()
    direct = bench.transport

    def late(address: HostAddress) -> Transport:
        if threading.current_thread().name.startswith(("skylib-ray", "skylib-agent")):
            bench.stopping.wait(WAIT_S)
        return direct(address)

    bench.transport = late  # type: ignore[method-assign]
    with pytest.raises(StagingError):
        bring_up(site(), bench.tools(full))
    assert not [line for line in bench.commands() if "ray start" in line or "daemon" in line]


def test_bring_up_waits_for_what_is_under_way_when_it_fails():
    """A `ray start` that runs already has ended when the failure reaches the caller."""
    ended = threading.Event()
    begun = threading.Event()

    def starting(call: Call) -> bytes:
        begun.set()
        bench.stopping.wait(WAIT_S)
        ended.set()
        return b""

    bench = Bench(rules=lambda rank: [Rule("bin/ray start", starting)])

    def fail(nodes: Sequence[NodePlan]) -> None:
        begun.wait(WAIT_S)
        full(nodes)

    with pytest.raises(StagingError):
        bring_up(site(), bench.tools(fail))
    assert ended.is_set()


def test_ray_start_has_a_time_limit():
    """`ray start` is given as long as the whole start."""
    bench = Bench(rules=lambda rank: [Rule("bin/ray start", Completed(returncode=1, stdout=b"", stderr=b"no port"))])
    with pytest.raises(BringUpError) as caught:
        bring_up(site(), bench.tools(lambda nodes: None))
    assert caught.value.evidence == "no port"
    assert [call.timeout_s for call in bench.nodes["host0"].calls if "bin/ray start" in call.command.text()] == [WAIT_S]


def taken(call: Call) -> Completed:
    """What a node answers whose account another cluster has claimed."""
    if " -c " not in call.command.text() or b'"marks"' not in call.stdin:
        return Completed(returncode=0, stdout=b"have\n", stderr=b"")
    said = b'{"path": "/home/me/.sky/cluster.json", "cluster": "theirs", "home": "/other/.sky"}\n'
    return Completed(returncode=83, stdout=said, stderr=b"")


def test_a_cluster_that_came_first_is_named_before_anything_is_changed():
    """Where every host was taken meanwhile nothing of ours stands anywhere: a PreflightError."""
    bench = Bench(2, rules=lambda rank: [Rule("skypilot-runtime", taken)])
    with pytest.raises(PreflightError) as caught:
        bring_up(site(2), bench.tools(lambda nodes: None))
    assert (caught.value.step, caught.value.host) == ("preflight.claim", "host0")
    assert "theirs" in caught.value.message
    assert "/other/.sky" in (caught.value.hint or "")
    assert not [line for line in bench.commands() if "ray start" in line]


def test_one_host_that_was_taken_fails_the_cluster_and_is_named():
    """Where other hosts took their files already it is a BringUpError, after which these are cleaned."""
    bench = Bench(2, rules=lambda rank: [Rule("skypilot-runtime", taken)] if rank == 1 else [])
    with pytest.raises(BringUpError) as caught:
        bring_up(site(2), bench.tools(lambda nodes: None))
    assert (caught.value.step, caught.value.host) == ("runtime.claim", "host1")
    assert caught.value.other_cluster == "theirs"  # type: ignore[attr-defined]


def test_no_free_ports_are_told_with_host_and_step():
    """Where a machine's whole range is taken the error names cluster, host and step, and nothing is run there."""
    bench = Bench()
    with pytest.raises(PreflightError) as caught:
        bring_up(site(facts=attrs.evolve(FACTS, listening=tuple(range(20000, 24000)))), bench.tools(lambda nodes: None))
    error = caught.value
    assert (error.cluster, error.host, error.step) == ("train", "host0", "preflight.ports")
    assert error.problems[0].host == "host0"
    assert bench.commands() == []
