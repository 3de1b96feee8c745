"""The private environment on hosts that have nothing but Python and no internet."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import pytest

from skylib.errors import BringUpError, PreflightError, SkyError, StagingError
from skylib.facts.hardware import probe
from skylib.models.node import HostAddress, NodeFacts
from skylib.paths import SkyHome
from skylib.runtime.environment import Environment, ensure_environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.ports import RAY_DEFAULTS, HeadPorts, NodePorts
from skylib.runtime.ray_commands import RayNode, head_start, worker_start
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.fanout import fanout
from skylib.transport.ssh import SshTransport
from tests.lab import eventually
from tests.runtime_fixture import shared_wheelhouse
from tests.testbed import Host

pytestmark = pytest.mark.hosts

MakeHost = Callable[..., Host]
Reach = Callable[[Host], SshTransport]
LEFTOVERS = "ls -d ~/skypilot-runtime* 2>/dev/null; true"


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Reach]:
    """Opens a transport to a host; closed after the test."""
    opened: list[SshTransport] = []

    def open_to(host: Host) -> SshTransport:
        address = HostAddress(
            kind="ssh", host=host.ip, user="sky", port=host.port, identity_file=str(host.key_path), proxy_jump="none"
        )
        opened.append(SshTransport(address, home=SkyHome(tmp_path / "sky")))
        return opened[-1]

    yield open_to
    for transport in opened:
        transport.close()


@attrs.define
class Counting:
    """A transport that counts what it is asked to run. cut_after: bytes of stdin after which the sender dies."""

    inner: SshTransport
    commands: int = 0
    cut_after: int | None = None

    @property
    def host(self) -> str:
        return self.inner.host

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        self.commands += 1
        if self.cut_after is not None and stdin is not None and not isinstance(stdin, bytes):
            stdin = self._cut(stdin, self.cut_after)
        return self.inner.run(command, stdin=stdin, timeout_s=timeout_s)

    @staticmethod
    def _cut(pieces: Iterable[bytes], after: int) -> Iterator[bytes]:
        sent = 0
        for piece in pieces:
            yield piece
            sent += len(piece)
            if sent > after:
                raise KeyboardInterrupt


def ensure(transport: object, facts: NodeFacts) -> Environment:
    return ensure_environment(
        transport,  # type: ignore[arg-type]
        facts,
        NodeLayout(root=facts.home),
        wheelhouse=shared_wheelhouse(),
    )


def text(host: Host, script: str) -> str:
    """Stdout of a script in the account."""
    return str(host.sh(script, timeout_s=120).stdout).strip()


def test_a_host_with_nothing_but_python_gets_ray(make_host: MakeHost, reach: Reach) -> None:
    """Without internet, pip, venv or ensurepip the environment is made, and its own Ray runs from it."""
    host = make_host()
    transport = reach(host)
    made = ensure(transport, probe(transport))
    assert (made.env, made.ray_version, made.created) == ("/home/sky/skypilot-runtime", "2.9.3", True)
    assert "2.9.3" in text(host, f"{made.ray} --version")
    assert text(host, f"{made.python} -c 'import setuptools, pkg_resources, gpustat; print(1)' 2>/dev/null") == "1"
    assert text(host, LEFTOVERS) == made.env
    assert probe(transport).runtime_digest == made.digest


def test_an_environment_that_stands_costs_no_command(make_host: MakeHost, reach: Reach) -> None:
    """The second call asks the host nothing: the probe's digest is enough."""
    host = make_host()
    counting = Counting(reach(host))
    first = ensure(counting, probe(counting.inner))
    facts = probe(counting.inner)
    counting.commands = 0
    again = ensure(counting, facts)
    assert counting.commands == 0
    assert again == attrs.evolve(first, created=False)


def test_a_host_whose_python_is_too_new_is_named(make_host: MakeHost, reach: Reach) -> None:
    """Only 3.13 on the host: a typed error that says so and what to do, before anything is sent."""
    host = make_host(pythons=("3.13",))
    transport = Counting(reach(host))
    with pytest.raises(PreflightError, match=r"needs 3\.8 to 3\.11") as caught:
        ensure(transport, probe(transport.inner))
    assert "3.13" in str(caught.value.evidence)
    assert caught.value.hint
    assert transport.commands == 0
    assert text(host, LEFTOVERS) == ""


def test_a_full_home_is_told_and_left_clean(make_host: MakeHost, reach: Reach) -> None:
    """A disk that fills up on the way gives StagingError with the host; nothing is left, and room again makes it work."""
    host = make_host()
    transport = reach(host)
    facts = probe(transport)
    host.fill_home(leave_bytes=60 * 1024 * 1024)
    with pytest.raises(StagingError, match="too little disk") as caught:
        ensure(transport, facts)
    assert caught.value.host == transport.host
    assert text(host, LEFTOVERS) == ""
    host.unfill_home()
    assert ensure(transport, facts).created


def test_a_disk_known_to_be_small_is_refused_before_sending(make_host: MakeHost, reach: Reach) -> None:
    """What the probe found too small is PreflightError without a command."""
    transport = Counting(reach(make_host()))
    facts = attrs.evolve(probe(transport.inner), disk_free_gib=0.2)
    with pytest.raises(PreflightError, match="too little disk"):
        ensure(transport, facts)
    assert transport.commands == 0


def test_an_interrupted_install_is_made_again(make_host: MakeHost, reach: Reach) -> None:
    """The client is interrupted while it sends: the host has no half environment, and the next call makes a whole one."""
    host = make_host()
    transport = reach(host)
    facts = probe(transport)
    with pytest.raises(KeyboardInterrupt):
        ensure(Counting(transport, cut_after=50_000_000), facts)
    assert ensure(transport, probe(transport)).created
    assert text(host, LEFTOVERS) == "/home/sky/skypilot-runtime"


def test_a_crash_in_the_middle_is_made_again(make_host: MakeHost, reach: Reach) -> None:
    """The host loses power while it receives; after its boot the next call clears up and makes a whole one."""
    host = make_host()
    transport = reach(host)
    facts = probe(transport)
    outcome: list[BaseException] = []

    class Crashing(Counting):
        @staticmethod
        def _cut(pieces: Iterable[bytes], after: int) -> Iterator[bytes]:
            for number, piece in enumerate(pieces):
                if number == 300:
                    host.crash()
                yield piece

    def attempt() -> None:
        try:
            ensure(Crashing(transport, cut_after=0), facts)
        except SkyError as error:
            outcome.append(error)

    worker = threading.Thread(target=attempt, daemon=True)
    worker.start()
    worker.join(5)  # a silent network is not noticed at once; the host comes back meanwhile
    host.boot()
    other = reach(host)
    assert ensure(other, probe(other)).created
    assert text(host, LEFTOVERS) == "/home/sky/skypilot-runtime"
    transport.close()
    worker.join(60)
    assert not worker.is_alive()


def test_the_users_own_environment_is_not_touched(make_host: MakeHost, reach: Reach) -> None:
    """Variables and files of the account's own Pythons neither change nor matter."""
    host = make_host()
    host.write_file("/home/sky/.config/uv/uv.toml", b'index-url = "http://127.0.0.1:9/"\n')
    host.write_file("/home/sky/.config/pip/pip.conf", b"[global]\nindex-url = http://127.0.0.1:9/\n")
    listing = "find ~ -newer ~/mark -not -path '*/skypilot-runtime*' -not -path ~/mark -type f"
    text(host, "touch ~/mark")
    transport = reach(host)
    poison = {"PYTHONPATH": "/nowhere", "VIRTUAL_ENV": "/nowhere", "PIP_TARGET": "/nowhere", "UV_PYTHON": "/nowhere"}

    class Poisoned(Counting):
        def run(self, command: Command, **options: object) -> Completed:  # type: ignore[override]
            return self.inner.run(attrs.evolve(command, env=poison), **options)  # type: ignore[arg-type]

    assert ensure(Poisoned(transport), probe(transport)).created
    assert text(host, listing) == ""


def test_conda_makes_the_environment_where_it_is(make_host: MakeHost, reach: Reach) -> None:
    """A conda that has a Python in its cache is asked first, offline, with the environment's path; what it made is used."""
    host = make_host(pythons=("3.10", "3.11"))
    host.write_file("/home/sky/miniconda3/pkgs/python", b"")
    host.write_file("/home/sky/miniconda3/bin/conda", FAKE_CONDA.encode(), mode=0o755)
    transport = reach(host)
    facts = probe(transport)
    assert facts.conda == "/home/sky/miniconda3/bin/conda"
    made = ensure(transport, facts)
    assert made.created
    assert json.loads(text(host, f"cat {made.env}/conda-meta/history")) == ["--prefix", made.env, "python=3.10"]
    assert "2.9.3" in text(host, f"{made.ray} --version")
    assert not ensure(transport, probe(transport)).created


def test_a_conda_that_would_have_to_fetch_is_done_without(make_host: MakeHost, reach: Reach) -> None:
    """A conda with nothing in its cache is not let near its channels: a Python of the host serves."""
    host = make_host(pythons=("3.10", "3.11"))
    host.write_file("/home/sky/miniconda3/bin/conda", FAKE_CONDA.encode(), mode=0o755)
    transport = reach(host)
    made = ensure(transport, probe(transport))
    assert made.created
    assert text(host, f"ls -d {made.env}/conda-meta 2>/dev/null; true") == ""


def test_a_conda_that_fails_is_done_without(make_host: MakeHost, reach: Reach) -> None:
    """A conda without a way to its channels is no obstacle while a Python fits."""
    host = make_host()
    host.write_file("/home/sky/miniconda3/bin/conda", b"#!/bin/sh\necho no channels >&2\nexit 1\n", mode=0o755)
    transport = reach(host)
    made = ensure(transport, probe(transport))
    assert made.created
    assert text(host, LEFTOVERS) == made.env


def test_a_conda_that_fails_alone_is_told(make_host: MakeHost, reach: Reach) -> None:
    """When only conda could have helped, its own words are the evidence."""
    host = make_host()
    host.write_file("/home/sky/miniconda3/bin/conda", b"#!/bin/sh\necho no channels >&2\nexit 1\n", mode=0o755)
    transport = reach(host)
    facts = attrs.evolve(probe(transport), pythons=())
    with pytest.raises(BringUpError, match="conda could not make") as caught:
        ensure(transport, facts)
    assert "no channels" in str(caught.value.evidence)
    assert text(host, LEFTOVERS) == ""


@pytest.mark.ray
def test_three_nodes_of_one_machine_start_at_once_on_ports_of_ours(make_host: MakeHost, reach: Reach) -> None:
    """Head and workers started together find each other, share no socket or port, and listen where we say only."""
    host = make_host()
    transport = reach(host)
    ensure(transport, probe(transport))
    before = host.listening_ports()
    layout = NodeLayout(root="/home/sky")
    head = HeadPorts.at()
    nodes = [
        RayNode(rank=rank, ip=host.ip, cpus=1, layout=layout, ports=NodePorts.for_rank(rank, nodes_on_machine=3))
        for rank in range(3)
    ]
    commands = [head_start(nodes[0], head, cluster_id="t")]
    commands += [worker_start(node, f"{host.ip}:{head.ray}", cluster_id="t") for node in nodes[1:]]
    for outcome in fanout(lambda command: transport.run(command, timeout_s=120), commands):
        assert outcome.value is not None, outcome.error
        assert outcome.value.ok, outcome.value.stderr.decode()
    said = text(host, f"~/skypilot-runtime/bin/python -W ignore -c '{ASK_RAY}' {host.ip}:{head.ray} 2>/dev/null")
    assert json.loads(said.splitlines()[-1]) == [["skylib_rank_0"], ["skylib_rank_1"], ["skylib_rank_2"]]
    eventually(lambda: head.dashboard_metrics in host.listening_ports(), what="the dashboard's metrics")
    listening = host.listening_ports() - before
    workers = {port for node in nodes for port in range(node.ports.worker_min, node.ports.worker_max + 1)}
    fixed = {port for node in nodes for port in node.ports.fixed()} | {*head.fixed()}
    assert listening - workers <= fixed
    assert {6380, 8266, 8076} <= listening
    assert not listening & RAY_DEFAULTS
    assert text(host, "ls -d /tmp/ray /tmp/ray_skypilot/ray_current_cluster 2>/dev/null") == (
        "/tmp/ray_skypilot/ray_current_cluster"
    )


ASK_RAY = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print(json.dumps(sorted([name for name in node["Resources"] if name.startswith("skylib")] for node in ray.nodes())))
""".replace("'", '"')

# Makes what conda makes (a prefix with its own bin/python), from an interpreter of the host.
FAKE_CONDA = """#!/bin/sh
case " $* " in *" --offline "*) [ -e ~/miniconda3/pkgs/python ] || { echo "no package in the cache" >&2; exit 1; } ;; esac
while [ "$1" != --prefix ]; do shift; done
python=$(command -v python3.10 || command -v python3)
"$python" -m venv --without-pip "$2" || exit
mkdir -p "$2/conda-meta"
printf '["--prefix", "%s", "%s"]' "$2" "$3" >"$2/conda-meta/history"
"""
