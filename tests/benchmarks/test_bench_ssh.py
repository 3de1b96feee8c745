"""How long commands and connections over SSH take, beside paramiko as shipped in the same run."""

from __future__ import annotations

import base64
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.command import Command
from skylib.transport.fanout import fanout
from skylib.transport.ssh import SshTransport
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.bench


def median_s(work: Callable[[], object], *, times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def transport_to(host: Host, home: Path) -> SshTransport:
    address = HostAddress(kind="ssh", host=host.ip, user=host.user, identity_file=str(host.key_path))
    return SshTransport(address, home=SkyHome(home))


def paramiko_client(host: Host) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    kind, key = host.host_key.split()
    client.get_host_keys().add(host.ip, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(key)))
    client.connect(host.ip, username=host.user, key_filename=str(host.key_path), allow_agent=False, look_for_keys=False)
    return client


def test_command_on_an_open_connection(ssh_hosts: list[Host], tmp_path: Path) -> None:
    """At most 8 ms for `true`; paramiko as shipped waits 40 ms for a delayed ACK."""
    transport, client = transport_to(ssh_hosts[0], tmp_path), paramiko_client(ssh_hosts[0])

    def shipped() -> None:
        _, out, _ = client.exec_command("true")
        assert out.channel.recv_exit_status() == 0

    ours_s = median_s(lambda: transport.run(Command.of("true")).check(), times=60)
    shipped_s = median_s(shipped, times=20)
    transport.close()
    client.close()
    print(
        f"\nwarm `true`: {ours_s * 1000:.1f} ms; paramiko as shipped: {shipped_s * 1000:.1f} ms; "
        f"ratio {ours_s / shipped_s:.2f}"
    )
    assert ours_s <= 0.008


def test_first_command(ssh_hosts: list[Host], tmp_path: Path) -> None:
    """Connecting, checking the host key, logging in and `true`, beside paramiko as shipped."""
    host = ssh_hosts[0]

    def ours() -> None:
        with transport_to(host, tmp_path) as transport:
            transport.run(Command.of("true")).check()

    def shipped() -> None:
        client = paramiko_client(host)
        client.exec_command("true")[1].channel.recv_exit_status()
        client.close()

    ours()
    ours_s, shipped_s = median_s(ours, times=10), median_s(shipped, times=10)
    print(
        f"\nconnect and `true`: {ours_s * 1000:.0f} ms; paramiko as shipped: {shipped_s * 1000:.0f} ms; "
        f"ratio {ours_s / shipped_s:.2f}"
    )


def test_twenty_hosts_connected_at_once(testbed: Testbed, tmp_path: Path) -> None:
    """At most 0.5 s until a command has run on each of 20 hosts, known ones, in the best of three rounds."""
    hosts = testbed.hosts(20)
    try:
        best = best_shipped = float("inf")
        for _ in range(4):  # in the first round the hosts are new, and their keys are written down
            transports = [transport_to(host, tmp_path) for host in hosts]
            started = time.perf_counter()
            outcomes = fanout(lambda transport: transport.run(Command.of("true")).check(), transports)
            best = min(best, time.perf_counter() - started)
            assert all(outcome.ok for outcome in outcomes), [outcome.error for outcome in outcomes if outcome.error]
            for transport in transports:
                transport.close()
            started = time.perf_counter()
            clients = [outcome.get() for outcome in fanout(paramiko_client, hosts)]
            best_shipped = min(best_shipped, time.perf_counter() - started)
            for client in clients:
                client.close()
        print(
            f"\n20 hosts connected: {best:.2f} s; paramiko as shipped in 20 threads, no command: {best_shipped:.2f} s; "
            f"ratio {best / best_shipped:.2f}"
        )
        assert best <= 0.5
    finally:
        for host in hosts:
            host.close()


def test_bytes_up_and_down(ssh_hosts: list[Host], tmp_path: Path) -> None:
    """256 MiB into the host's memory and back, beside paramiko's SFTP."""
    transport, client = transport_to(ssh_hosts[0], tmp_path), paramiko_client(ssh_hosts[0])
    data = b"\0" * (256 << 20)
    size_mb = len(data) / 1e6
    sftp = client.open_sftp()
    up_s = median_s(lambda: transport.put(data, "/home/sky/bench"), times=3)
    down_s = median_s(lambda: transport.get("/home/sky/bench", tmp_path / "bench"), times=3)
    shipped_s = median_s(lambda: sftp.putfo(io.BytesIO(data), "/home/sky/bench2"), times=1)
    transport.run(Command.of("rm", "-f", "/home/sky/bench", "/home/sky/bench2")).check()
    transport.close()
    client.close()
    print(
        f"\nput {size_mb / up_s:.0f} MB/s, get {size_mb / down_s:.0f} MB/s; "
        f"SFTP put of paramiko as shipped {size_mb / shipped_s:.0f} MB/s; ratio of put {up_s / shipped_s:.2f}"
    )
