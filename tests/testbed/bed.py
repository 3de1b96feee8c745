"""The test bed: makes hosts on a network of their own, and the keys that open them."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tests.testbed.host import Host
from tests.testbed.image import HostSpec
from tests.testbed.keeper import Keeper
from tests.testbed.machine import TestbedError, TestbedUnavailable, missing_requirement, run

__all__ = ["Testbed", "pool_yaml"]


class Testbed:
    """A network of hosts that ends with this object, or with this process however it ends.

    key_path: private key of the accounts on every host. second_key_path: a key that opens nothing.
    encrypted_key_path, encrypted_key_passphrase: a key that opens the accounts too, behind a passphrase.
    Safe to use from several threads. Raises TestbedUnavailable where hosts cannot be made.
    """

    __test__ = False
    encrypted_key_passphrase = "correct horse battery staple"

    def __init__(self) -> None:
        reason = missing_requirement()
        if reason is not None:
            raise TestbedUnavailable(reason)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._hosts: list[Host] = []
        self._next = 10
        self._made = 0
        self._keeper = Keeper()
        try:
            keys = self._keeper.directory / "keys"
            keys.mkdir(mode=0o700)
            self.key_path = _make_key(keys / "id_ed25519")
            self.second_key_path = _make_key(keys / "id_other")
            self.encrypted_key_path = _make_key(keys / "id_encrypted", self.encrypted_key_passphrase)
            opening = (self.key_path, self.encrypted_key_path)
            self._authorized_keys = "".join(path.with_name(f"{path.name}.pub").read_text() for path in opening)
        except BaseException:
            self._keeper.close()
            raise

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The hosts' subnet; this machine has its first address."""
        return self._keeper.network

    @property
    def uplink(self) -> str:
        """This machine's interface to the hosts."""
        return self._keeper.uplink

    @property
    def directory(self) -> Path:
        """Where the bed keeps its files while it lives."""
        return self._keeper.directory

    @property
    def keeper_pid(self) -> int:
        """The process that all of the bed hangs on."""
        return self._keeper.pid

    def links(self) -> list[str]:
        """Interfaces on the hosts' bridge."""
        return [link["ifname"] for link in json.loads(self._keeper.run(["ip", "-json", "link", "show"], "--net"))]

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def host(
        self,
        *,
        name: str | None = None,
        home_size_mib: int = 4096,
        pythons: tuple[str, ...] | None = None,
        dead_dns: bool = False,
    ) -> Host:
        """A new host, booted, with sshd answering; name: "host<N>" by default; the other options are HostSpec's.

        Raises PythonMissing when this machine has no such Python.
        """
        with self._lock:
            self._made += 1
            spec = HostSpec(
                name=name or f"host{self._made}", home_size_mib=home_size_mib, pythons=pythons, dead_dns=dead_dns
            )
            ip = self._keeper.network[self._free_number()]
            host = Host(
                self._keeper, spec, ip, key_path=self.key_path, authorized_keys=self._authorized_keys
            )
            self._hosts = [*(h for h in self._hosts if not h.is_closed), host]
        try:
            host.boot()
        except BaseException:
            host.close()
            raise
        return host

    def _free_number(self) -> int:
        """The next host number on the subnet, going round; addresses of closed hosts come back last."""
        used = {int(host.ip.rpartition(".")[2]) for host in self._hosts if not host.is_closed}
        for step in range(240):
            number = 10 + (self._next - 10 + step) % 240
            if number not in used:
                self._next = number + 1
                return number
        raise TestbedError("240 hosts are up; close some")

    def hosts(self, count: int, *, home_size_mib: int = 4096, pythons: tuple[str, ...] | None = None) -> list[Host]:
        """`count` new hosts, booted at once."""
        with ThreadPoolExecutor(max_workers=max(1, min(count, 4))) as pool:
            made = [pool.submit(self.host, home_size_mib=home_size_mib, pythons=pythons) for _ in range(count)]
        return sorted((future.result() for future in made), key=lambda host: [int(n) for n in host.ip.split(".")])

    def close(self) -> None:
        """Ends every host and removes all that the bed made on this machine; nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            for host in self._hosts:
                host.crash()
            self._keeper.close()


def pool_yaml(hosts: Sequence[Host], *, name: str = "lab", user: str = "sky") -> str:
    """Text of an `ssh_node_pools.yaml` with one pool of these hosts."""
    key = json.dumps(str(hosts[0].key_path))
    lines = [f"{json.dumps(name)}:", f"  user: {user}", f"  identity_file: {key}", "  hosts:"]
    for host in hosts:
        lines += [f"    - ip: {host.ip}", f"      port: {host.port}"]
    return "\n".join(lines) + "\n"


def _make_key(path: Path, passphrase: str = "") -> Path:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", passphrase, "-C", path.name, "-f", str(path)])
    return path
