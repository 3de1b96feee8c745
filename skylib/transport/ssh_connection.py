"""One SSH connection to one host, over its jump hosts: dialled, verified, logged in, watched for signs of life."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs

from skylib.errors import ConnectError
from skylib.transport.host_keys import HostKeys, preferred_order
from skylib.transport.ssh_auth import log_in
from skylib.transport.ssh_errors import mapped
from skylib.transport.ssh_params import SshParams, SshSettings
from skylib.transport.ssh_wire import install

if TYPE_CHECKING:
    import paramiko

__all__ = ["Connection", "Slots", "dial"]

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org")
_WIRE_LOG = "skylib.wire"
"""paramiko's own log, off by default: it reports with a traceback what our callers get as a typed error."""
_RETRY_S = 0.3
_SIGNALS_SINCE = (7, 9)


class Slots:
    """Counts channels: at most `limit` at once, fewer when the host turned out to take fewer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._free = threading.Condition()

    def take(self, timeout_s: float) -> bool:
        with self._free:
            if not self._free.wait_for(lambda: self._taken < self._limit, timeout_s):
                return False
            self._taken += 1
            return True

    def give_back(self) -> None:
        with self._free:
            self._taken -= 1
            self._free.notify()

    def refused(self) -> bool:
        """The host refused the channel whose slot we hold. False when it was the only one: it takes none at all."""
        with self._free:
            if self._taken <= 1:
                return False
            self._limit = min(self._limit, self._taken - 1)
            return True

    @property
    def taken(self) -> int:
        with self._free:
            return self._taken


class _Link:
    """What paramiko takes for a socket. It belongs to one process, and notices when the host has gone silent.

    In a forked child every send fails, so that nothing there (a channel's destructor for one) can break into the
    parent's stream. `silence_s` is the time without a byte after which the connection counts as lost; with a `probe_s`
    of 0 nobody asks, and silence means nothing.
    """

    def __init__(self, inner: Any, *, probe_s: float, silence_s: float) -> None:
        self._inner = inner
        self._pid = os.getpid()
        self._probe_s = probe_s
        self._silence_s = silence_s
        self._heard = self._probed = time.monotonic()
        self._closed = False
        self.probe: Callable[[], None] | None = None

    def send(self, data: bytes) -> int:
        if os.getpid() != self._pid:
            raise BrokenPipeError(errno.EPIPE, "this connection belongs to the parent process")
        try:
            sent: int = self._inner.send(data)
            return sent
        except TimeoutError:
            self._check()
            raise

    def recv(self, size: int) -> bytes:
        try:
            data: bytes = self._inner.recv(size)
        except TimeoutError:
            self._check()
            raise
        self._heard = time.monotonic()
        return data

    def settimeout(self, seconds: float | None) -> None:
        self._inner.settimeout(seconds)

    def getpeername(self) -> Any:
        return self._inner.getpeername()

    def close(self) -> None:
        self._closed = True
        if os.getpid() == self._pid or isinstance(self._inner, socket.socket):
            self._inner.close()

    def _check(self) -> None:
        """Called by paramiko's reading thread ten times a second while nothing comes."""
        if self.probe is None or self._probe_s <= 0:
            return
        now = time.monotonic()
        silent = now - self._heard
        if silent > self._silence_s:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"no sign of life for {silent:.0f} s")
        if silent > self._probe_s and now - self._probed > self._probe_s:
            self._probed = now
            self.probe()


@attrs.frozen(kw_only=True, eq=False)
class Connection:
    """An open connection. chain: the transports of the jump hosts and, last, of the host itself."""

    params: SshParams
    settings: SshSettings
    chain: tuple[paramiko.Transport, ...]
    slots: Slots
    key: str

    @property
    def transport(self) -> paramiko.Transport:
        return self.chain[-1]

    @property
    def alive(self) -> bool:
        return all(transport.is_active() for transport in self.chain)

    @property
    def signals(self) -> bool:
        """Whether the host's sshd passes signals on to a command's process group: OpenSSH since 7.9."""
        if self.settings.signals is not None:
            return self.settings.signals
        found = re.search(r"OpenSSH_(\d+)\.(\d+)", self.transport.remote_version)
        return found is not None and (int(found.group(1)), int(found.group(2))) >= _SIGNALS_SINCE

    def close(self) -> None:
        for transport in reversed(self.chain):
            transport.close()

    def abandon(self) -> None:
        """Let go of it in a forked child: nothing is sent, the parent's connection goes on."""
        transport: Any
        for transport in reversed(self.chain):
            transport.active = False
            transport.sock.close()


def dial(params: SshParams, settings: SshSettings, host_keys: HostKeys) -> Connection:
    """Connect over all hops. Raises ConnectError, AuthError, HostKeyError; nothing stays open then.

    A server that is busy drops connections before it says a word (MaxStartups): that alone is tried again, with jitter.
    """
    attempt = 1
    while True:
        opened: list[paramiko.Transport] = []
        try:
            key = ""
            for hop in (*params.jumps, params):
                key = _hop(hop, params, settings, host_keys, opened)
            slots = Slots(settings.max_channels)
            return Connection(params=params, settings=settings, chain=tuple(opened), slots=slots, key=key)
        except BaseException as exc:
            for transport in reversed(opened):
                transport.close()
            if not (isinstance(exc, ConnectError) and getattr(exc, "dropped_early", False)):
                raise
            if attempt >= settings.connect_attempts:
                raise
        time.sleep(_RETRY_S * attempt * random.uniform(0.5, 1.5))
        attempt += 1


def _hop(
    hop: SshParams, target: SshParams, settings: SshSettings, host_keys: HostKeys, opened: list[paramiko.Transport]
) -> str:
    """Add one hop's transport to `opened`, reached through the last one there; the name of the key that was taken."""
    host = target.alias if hop is target else f"{hop.alias} (jump host of {target.alias})"
    with mapped(host, "connect"):
        raw = _socket(hop, settings, opened[-1] if opened else None, host)
    link = _Link(raw, probe_s=settings.keepalive_s, silence_s=settings.keepalive_s * (1 + settings.keepalive_missed))
    try:
        transport = _handshake(link, hop, settings, host_keys, host)
    except BaseException:
        link.close()
        raise
    opened.append(transport)
    remote = transport.get_remote_server_key()
    host_keys.check(hop.known_as, hop.port, remote.get_name(), remote.asbytes(), files=hop.known_hosts_files, host=host)
    with mapped(host, "log in"):
        key = log_in(transport, hop, settings, host=host)
    _watch(transport, link)
    return key


def _socket(hop: SshParams, settings: SshSettings, through: paramiko.Transport | None, host: str) -> Any:
    import paramiko

    if through is not None:
        destination, origin = (hop.hostname, hop.port), ("127.0.0.1", 0)
        try:
            return through.open_channel("direct-tcpip", destination, origin, timeout=settings.connect_timeout_s)
        except paramiko.ChannelException as exc:
            message = f"the jump host could not connect to {hop.hostname}:{hop.port}"
            raise ConnectError(message, host=host, step="connect", evidence=str(exc)) from exc
    if hop.proxy_command is not None:
        return paramiko.ProxyCommand(hop.proxy_command)
    raw = socket.create_connection((hop.hostname, hop.port), timeout=settings.connect_timeout_s)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: how long sent bytes may stay unacknowledged, in ms
        silence_ms = int(1000 * settings.keepalive_s * (1 + settings.keepalive_missed))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
    return raw


def _handshake(link: _Link, hop: SshParams, settings: SshSettings, host_keys: HostKeys, host: str) -> paramiko.Transport:
    transport = _transport(link, settings)
    options = transport.get_security_options()
    known = host_keys.kinds(hop.known_as, hop.port, hop.known_hosts_files)
    options.key_types = preferred_order(options.key_types, known)
    started = time.monotonic()
    try:
        with mapped(host, "connect"):
            transport.start_client(timeout=settings.connect_timeout_s)
            if not transport.initial_kex_done:
                raise TimeoutError(f"no SSH handshake within {settings.connect_timeout_s:g} s")
    except BaseException as exc:
        transport.close()
        if isinstance(exc, ConnectError):
            quickly = time.monotonic() - started < settings.connect_timeout_s / 2
            exc.__dict__["dropped_early"] = quickly and not transport.remote_version
        raise
    return transport


def _transport(link: _Link, settings: SshSettings) -> paramiko.Transport:
    import paramiko

    wire = logging.getLogger(_WIRE_LOG)
    if wire.level == logging.NOTSET:
        wire.setLevel(logging.CRITICAL + 1)
    transport = paramiko.Transport(link)  # type: ignore[arg-type]
    transport.set_log_channel(_WIRE_LOG)
    transport.use_compression(False)
    transport.banner_timeout = settings.connect_timeout_s
    transport.handshake_timeout = settings.connect_timeout_s
    transport.auth_timeout = settings.auth_timeout_s
    options = transport.get_security_options()
    options.ciphers = _first(options.ciphers, _CIPHERS)
    options.kex = _first(options.kex, _KEX)
    install(transport)
    return transport


def _first(supported: Iterable[str], wanted: Iterable[str]) -> tuple[str, ...]:
    supported = tuple(supported)
    return tuple(dict.fromkeys((*(name for name in wanted if name in supported), *supported)))


def _watch(transport: Any, link: _Link) -> None:
    """Ask for a sign of life when the host is silent: OpenSSH answers a request that it does not know, too."""
    import paramiko

    def probe() -> None:
        if transport.clear_to_send.is_set():
            message = paramiko.Message()
            message.add_byte(bytes([paramiko.common.MSG_GLOBAL_REQUEST]))
            message.add_string("keepalive@openssh.com")
            message.add_boolean(True)
            transport._send_user_message(message)

    link.probe = probe
