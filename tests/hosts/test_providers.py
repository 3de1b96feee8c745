"""Pools of real SSH hosts: what each has, and why the others cannot serve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import AuthError, ConnectError, HostKeyError, NoCapacityError, NoOfferError
from skylib.facts.hardware import probe
from skylib.models.node import HostAddress
from skylib.models.resources import Resources
from skylib.optimizer.rank import rank
from skylib.paths import SkyHome
from skylib.providers.base import NodeHandle, NodeState, ProviderContext
from skylib.providers.registry import Registry
from skylib.providers.ssh_pool import SshPoolProvider
from skylib.transport.pool import Transports
from skylib.transport.ssh_params import SshSettings
from tests.testbed import Host, Testbed, pool_yaml

pytestmark = pytest.mark.hosts
MakeHost = Callable[..., Host]


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    root = tmp_path / "sky"
    root.mkdir()
    return SkyHome(root)


@pytest.fixture
def context(home: SkyHome) -> Iterator[ProviderContext]:
    settings = SshSettings(connect_timeout_s=1.5, connect_attempts=1)
    with Transports(home, settings=settings) as transports:
        yield ProviderContext(home=home, transports=transports.get, patience_s=20.0)


def address_of(host: Host) -> HostAddress:
    return HostAddress(kind="ssh", host=host.ip, user=host.user, port=host.port, identity_file=str(host.key_path))


def test_a_host_tells_what_it_has(ssh_hosts: list[Host], context: ProviderContext) -> None:
    """Facts of a real host: its account, its addresses with the one that SSH reaches first, its ports, its Python."""
    host = ssh_hosts[0]
    facts = probe(context.transports(address_of(host)))
    assert (facts.user, facts.uid, facts.home, facts.hostname) == ("sky", 1000, "/home/sky", host.name)
    assert facts.internal_ips[0] == host.ip
    assert 22 in facts.listening
    assert facts.home_file_system == "tmpfs"
    assert any(python.path.startswith("/usr/bin/python3") for python in facts.pythons)
    assert abs(facts.clock_offset_s) < 5
    assert (facts.gpus, facts.cluster, facts.runtime_digest, facts.notes) == ((), None, "", ())


def test_a_probe_is_quick_on_an_open_connection(ssh_hosts: list[Host], context: ProviderContext) -> None:
    """The second probe of a host, without the cost of connecting, takes well under a second."""
    transport = context.transports(address_of(ssh_hosts[0]))
    probe(transport)
    began = time.perf_counter()
    probe(transport)
    assert time.perf_counter() - began < 2.0


def test_free_hosts_are_taken_in_the_order_of_the_file(
    ssh_hosts: list[Host], home: SkyHome, context: ProviderContext
) -> None:
    """Two of three hosts make a cluster of two, the first in the file is the head, and the third was not needed."""
    home.ssh_node_pools.write_text(pool_yaml(list(reversed(ssh_hosts))))
    want = Resources(infra="ssh/lab", cpus="1+")
    placement = rank(Registry(plug_ins=()).survey(want, 2, context), want, 2)
    assert [offer.host for offer in placement.chosen] == [ssh_hosts[2].ip, ssh_hosts[1].ip]
    assert [(lost.offer.host, lost.fits) for lost in placement.lost] == [(ssh_hosts[0].ip, True)]


def test_own_hosts_come_before_this_machine(ssh_hosts: list[Host], home: SkyHome, context: ProviderContext) -> None:
    """Without an infra, a free SSH host is taken rather than this machine."""
    home.ssh_node_pools.write_text(pool_yaml(ssh_hosts[:1]))
    survey = Registry(plug_ins=()).survey(Resources(), 1, context)
    assert rank(survey, Resources(), 1).infra == "ssh/lab"


def test_more_nodes_than_the_pool_has(ssh_hosts: list[Host], home: SkyHome, context: ProviderContext) -> None:
    """Asking a pool of three for four nodes is NoOfferError, with a reason for each host."""
    home.ssh_node_pools.write_text(pool_yaml(ssh_hosts))
    want = Resources(infra="ssh/lab")
    with pytest.raises(NoOfferError, match="nothing can serve 4 nodes") as caught:
        rank(SshPoolProvider().survey(want, 4, context), want, 4)
    assert set(caught.value.reasons) == {host.ip for host in ssh_hosts}  # type: ignore[attr-defined]


def test_gpus_are_counted_by_device_and_model(
    make_host: MakeHost, ssh_hosts: list[Host], home: SkyHome, context: ProviderContext
) -> None:
    """A host with two models serves a request for either, up to how many of that model it has."""
    mixed = make_host()
    mixed.install_fake_nvidia_smi(["NVIDIA A100-SXM4-80GB, 81920", "NVIDIA A100-SXM4-80GB, 81920", "NVIDIA L4, 23034"])
    home.ssh_node_pools.write_text(pool_yaml([ssh_hosts[0], mixed]))

    def refused(accelerators: str) -> dict[str, str]:
        survey = SshPoolProvider().survey(Resources(infra="ssh/lab", accelerators=accelerators), 1, context)
        return {refusal.host: refusal.reason for refusal in survey.refusals}

    plain = ssh_hosts[0].ip
    assert refused("A100-80GB:2") == {plain: "has no A100-80GB (no GPU)"}
    assert refused("L4") == {plain: "has no L4 (no GPU)"}
    assert refused("L4:2") == {plain: "has no L4 (no GPU)", mixed.ip: "has 1 x L4, 2 asked"}
    assert refused("H100")[mixed.ip] == "has no H100 (has 2 x A100-80GB, 1 x L4)"
    assert refused("80GB+:2") == {plain: "has no GPU with 80 GB or more (no GPU)"}


def test_a_broken_driver_is_told_where_gpus_are_asked_for(
    make_host: MakeHost, home: SkyHome, context: ProviderContext
) -> None:
    """A nvidia-smi that fails leaves a host without GPUs, which serves others and says so to those who want them."""
    host = make_host()
    host.write_file(
        "/usr/local/bin/nvidia-smi", b"#!/bin/sh\necho 'Failed to initialize NVML'\nexit 255\n", mode=0o755, owner="root"
    )
    home.ssh_node_pools.write_text(pool_yaml([host]))
    assert len(SshPoolProvider().survey(Resources(infra="ssh"), 1, context).offers) == 1
    (refusal,) = SshPoolProvider().survey(Resources(infra="ssh", accelerators="L4"), 1, context).refusals
    assert refusal.reason == "has no L4 (no GPU), nvidia-smi failed (exit status 255): Failed to initialize NVML"


def test_each_host_that_cannot_be_asked_says_why(
    testbed: Testbed, make_host: MakeHost, ssh_hosts: list[Host], home: SkyHome, context: ProviderContext
) -> None:
    """Silent, refusing the key, showing another key: each has its reason and error, and the good host is still found."""
    good, silent, picky, other = ssh_hosts[0], make_host(), make_host(), make_host()
    probe(context.transports(address_of(other)))  # its key is on record now
    context.transports(address_of(other)).close()
    other.regenerate_host_key()
    silent.cut()
    lines = [f"lab:\n  user: sky\n  identity_file: {good.key_path}\n  hosts:"]
    lines += [f"  - {{ip: {host.ip}, port: {host.port}}}" for host in (good, silent, other)]
    lines += [f"  - {{ip: {picky.ip}, identity_file: {testbed.second_key_path}}}"]
    home.ssh_node_pools.write_text("\n".join(lines) + "\n")
    survey = SshPoolProvider().survey(Resources(infra="ssh/lab"), 1, context)
    assert [offer.host for offer in survey.offers] == [good.ip]
    found = {refusal.host: (type(refusal.cause), refusal.temporary) for refusal in survey.refusals}
    assert found == {silent.ip: (ConnectError, True), picky.ip: (AuthError, False), other.ip: (HostKeyError, False)}
    reasons = {refusal.host: refusal.reason.partition(":")[0] for refusal in survey.refusals}
    assert reasons == {silent.ip: "unreachable", picky.ip: "key refused", other.ip: "host key changed"}
    (status,) = SshPoolProvider().check(context)
    assert (status.usable, status.hosts, len(status.problems)) == (True, (good.ip,), 3)
    node = NodeHandle(rank=0, infra="ssh/lab", host=silent.ip, address=address_of(silent))
    assert SshPoolProvider().observe([node], context) == {node: NodeState.UNKNOWN}


def test_a_silent_host_does_not_hold_up_what_can_do_without_it(
    make_host: MakeHost, ssh_hosts: list[Host], home: SkyHome
) -> None:
    """With enough other hosts a silent one is given up after the patience, long before its connection times out."""
    silent = make_host()
    silent.cut()
    home.ssh_node_pools.write_text(pool_yaml([silent, *ssh_hosts]))
    with Transports(home, settings=SshSettings(connect_timeout_s=60)) as transports:
        context = ProviderContext(home=home, transports=transports.get, patience_s=0.2)
        began = time.monotonic()
        survey = SshPoolProvider().survey(Resources(infra="ssh/lab"), 3, context)
        assert time.monotonic() - began < 30
        silent.restore()
    assert [offer.host for offer in survey.offers] == [host.ip for host in ssh_hosts]
    assert [(refusal.host, refusal.temporary) for refusal in survey.refusals] == [(silent.ip, True)]


def test_waiting_for_a_silent_host_is_no_capacity(
    make_host: MakeHost, ssh_hosts: list[Host], home: SkyHome, context: ProviderContext
) -> None:
    """When the pool would be large enough with the host that is silent now, the error may be retried."""
    silent = make_host()
    silent.crash()
    home.ssh_node_pools.write_text(pool_yaml([ssh_hosts[0], silent]))
    want = Resources(infra="ssh/lab")
    with pytest.raises(NoCapacityError) as caught:
        rank(SshPoolProvider().survey(want, 2, context), want, 2)
    assert "unreachable" in caught.value.reasons[silent.ip]  # type: ignore[attr-defined]


def test_a_host_without_python_is_found_and_told_by_check(
    make_host: MakeHost, home: SkyHome, context: ProviderContext
) -> None:
    """The probe needs no Python there; the check says that there is none."""
    bare = make_host(pythons=())
    home.ssh_node_pools.write_text(pool_yaml([bare]))
    assert context.facts(SshPoolProvider().survey(Resources(), 1, context).offers[0].address).pythons == ()
    (status,) = SshPoolProvider().check(context)
    assert status.problems == (f"{bare.ip}: no Python, conda or uv was found",)


def test_an_account_that_serves_another_home_is_held(
    make_host: MakeHost, home: SkyHome, context: ProviderContext
) -> None:
    """cluster.json on the host holds its account for the cluster that it names, and for nobody else."""
    host = make_host()
    body = {"cluster": "train", "cluster_id": "7", "owner": "ab12", "home": "/home/bob/.sky"}
    host.write_file("/home/sky/.sky/cluster.json", json.dumps(body, indent=1).encode())
    home.ssh_node_pools.write_text(pool_yaml([host]))
    (refusal,) = SshPoolProvider().survey(Resources(), 1, context).refusals
    assert refusal.reason.startswith("held by cluster 'train' of ab12, whose home is /home/bob/.sky (")
    own = ProviderContext(home=home, transports=context.transports, cluster_id="7")
    assert len(SshPoolProvider().survey(Resources(), 1, own).offers) == 1


def test_a_login_shell_that_talks_does_not_disturb_the_probe(make_host: MakeHost, context: ProviderContext) -> None:
    """Banners of .bashrc, and a HOME that sshd sets, change nothing in the answer."""
    host = make_host()
    host.write_file("/home/sky/.bashrc", b"echo 'Welcome!'; echo 'skylib-probe 9'; export OMP_NUM_THREADS=1\n")
    facts = probe(context.transports(address_of(host)))
    assert (facts.home, facts.hostname) == ("/home/sky", host.name)


def test_an_alias_of_the_ssh_config_is_a_host(
    ssh_hosts: list[Host], isolated_home: Path, home: SkyHome, context: ProviderContext
) -> None:
    """A pool may name a host by its alias in ~/.ssh/config, with everything that is said there."""
    host = ssh_hosts[0]
    (isolated_home / ".ssh").mkdir(mode=0o700)
    (isolated_home / ".ssh/config").write_text(
        f"Host box\n  HostName {host.ip}\n  User sky\n  IdentityFile {host.key_path}\n"
    )
    home.ssh_node_pools.write_text("lab:\n  hosts: [box]\n")
    (offer,) = SshPoolProvider().survey(Resources(infra="ssh/lab"), 1, context).offers
    assert (offer.host, context.facts(offer.address).hostname) == ("box", host.name)
