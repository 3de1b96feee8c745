"""What goes wrong with a connection that stood, and what it is shared for: drops, cuts, crashes, forks, channels."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from skylib.errors import ConnectError, StagingError, TransportTimeout
from skylib.events import Event, Phase
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.runtime.agent_channel import Channel
from skylib.transport.base import ByteChannel
from skylib.transport.command import Command
from skylib.transport.fanout import fanout
from skylib.transport.ssh import SshTransport
from skylib.transport.ssh_params import SshSettings
from tests.testbed import Host

QUICK = SshSettings(connect_timeout_s=2, channel_timeout_s=2, keepalive_s=0.5, keepalive_missed=1)
"""A connection counts as lost after a second of silence."""


class Told:
    """A sink of events that counts connections."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def connections(self) -> int:
        return sum(event.step == "transport.connect" and event.phase is Phase.FINISHED for event in self.events)


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Callable[..., SshTransport]]:
    """Makes a transport to a host as sky, and closes it after the test."""
    made: list[SshTransport] = []

    def make(
        host: Host, *, told: Told | None = None, settings: SshSettings = QUICK, at: str | None = None, **address: object
    ) -> SshTransport:
        where = {"host": at or host.ip, "user": "sky", "identity_file": str(host.key_path), **address}
        transport = SshTransport(
            HostAddress(kind="ssh", **where),  # type: ignore[arg-type]
            home=SkyHome(tmp_path / "sky"),
            settings=settings,
            events=told or Told(),
        )
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.close()


def sessions(host: Host) -> list[int]:
    """Processes of sshd that serve an account."""
    return [pid for pid, command in host.processes() if command.startswith("sshd: sky")]


def drop_connections(host: Host) -> None:
    """Ends sshd's processes of sky's connections, as a broken network or an administrator does."""
    for pid in sessions(host):
        host.sh(f"kill -9 {pid}", user="root")


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "never true"
        time.sleep(0.01)


# --- kept and reused


def test_one_connection_serves_all_calls(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """Commands, files and forwards share one connection, also when many threads begin at once."""
    host, told = make_host(), Told()
    transport = reach(host, told=told, settings=SshSettings())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: transport.run(Command.of("true")).check(), range(40)))
    transport.put(b"x", "/home/sky/file")
    transport.forward("127.0.0.1", 22).close()
    assert told.connections == 1
    assert len(set(sessions(host))) <= 2  # sshd's monitor and its child


def test_no_more_than_eight_channels_at_once(ssh_hosts: list[Host], reach: Callable[..., SshTransport]) -> None:
    """Twenty-four threads at once: the host sees at most eight commands together, and all of them in the end."""
    transport = reach(ssh_hosts[0], settings=SshSettings())
    folder = transport.run(Command.of("mktemp", "-d")).check().stdout.decode().strip()
    script = 'touch "$1/$$"; sleep 0.1; ls "$1" | wc -l; rm "$1/$$"'
    with ThreadPoolExecutor(24) as pool:
        seen = list(pool.map(lambda _: int(transport.run(Command.sh(script, folder)).check().stdout), range(24)))
    assert 1 < max(seen) <= 8


def test_waiting_for_a_channel_has_a_bound(ssh_hosts: list[Host], reach: Callable[..., SshTransport]) -> None:
    """The ninth gets a clear error after its wait; a channel that is closed makes room."""
    transport = reach(ssh_hosts[0], settings=SshSettings(channel_wait_s=0.2))
    held = [transport.open(Command.of("cat")) for _ in range(8)]
    with pytest.raises(ConnectError, match="in use"):
        transport.run(Command.of("true"))
    held.pop().close()
    assert transport.run(Command.of("true")).ok
    for process in held:
        process.close()


def test_ended_streams_give_their_channel_back(ssh_hosts: list[Host], reach: Callable[..., SshTransport]) -> None:
    """Streams that were read to the end, dropped half way or never begun leave no channel taken."""
    transport = reach(ssh_hosts[0], settings=SshSettings(channel_wait_s=0.2))
    for _ in range(9):
        list(transport.stream(Command.of("echo", "x")))
        next(transport.stream(Command.sh("echo x; sleep 60")))
        transport.stream(Command.of("true"))
        with suppress(TransportTimeout):
            transport.run(Command.of("sleep", "60"), timeout_s=0.05)
    assert transport.run(Command.of("true")).ok


def test_host_that_takes_fewer_channels_is_served(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """MaxSessions 2: commands wait for each other, none fails."""
    host = make_host()
    host.sh("sed -i '1i MaxSessions 2' /etc/ssh/sshd_config; kill -HUP $(cat /run/sshd.pid)", user="root", check=True)
    host.wait_ssh()
    transport = reach(host, settings=SshSettings())
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: transport.run(Command.sh("sleep 0.05; echo $1", str(n))), range(18)))
    assert [int(one.stdout) for one in done] == list(range(18))


def test_keys_are_renewed_under_load(
    ssh_hosts: list[Host], reach: Callable[..., SshTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewing the connection's keys again and again while data and commands flow loses nothing."""
    import paramiko

    monkeypatch.setattr(paramiko.packet.Packetizer, "REKEY_BYTES", 2_000_000)
    transport = reach(ssh_hosts[0], settings=SshSettings())
    data = os.urandom(1 << 20) * 12

    def work(number: int) -> bool:
        if number % 4 == 0:
            return transport.run(Command.of("cat"), stdin=data, timeout_s=60).stdout == data
        return all(transport.run(Command.of("echo", "x"), timeout_s=60).stdout == b"x\n" for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(8)))


# --- lost and found


def test_dropped_connection_is_opened_again(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """A connection that died while nothing was asked is replaced without a word."""
    host, told = make_host(), Told()
    transport = reach(host, told=told)
    for expected in (1, 2, 3):
        assert transport.run(Command.of("true")).ok
        assert told.connections == expected
        drop_connections(host)


def test_command_that_was_running_is_not_repeated(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """A drop while a command runs is a ConnectError; the command ran once; the next one works."""
    host = make_host()
    transport = reach(host)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.run, Command.sh("echo ran >> ~/runs; sleep 60"))
        until(lambda: host.sh("cat ~/runs").stdout == "ran\n")
        drop_connections(host)
        with pytest.raises(ConnectError, match="lost") as caught:
            running.result(10)
    assert "not repeated" in str(caught.value.hint)
    assert transport.run(Command.of("cat", "runs")).stdout == b"ran\n"


def test_crashed_host_is_an_error_and_a_booted_one_is_reached_again(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """A crash says nothing to us: the silence is noticed in time; after the boot the same transport works."""
    host, told = make_host(), Told()
    transport = reach(host, told=told)
    transport.run(Command.of("true")).check()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.run, Command.of("sleep", "60"))
        until(lambda: any("sleep 60" in command for _, command in host.processes()))
        host.crash()
        with pytest.raises(ConnectError):
            running.result(20)
    assert time.monotonic() - started < 15
    host.boot()
    assert transport.run(Command.of("true")).ok
    assert told.connections == 2


def test_host_that_booted_unseen_is_reached_again(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """The host crashed and came back while nothing was asked: the first command finds out and is started once."""
    host, told = make_host(), Told()
    transport = reach(host, told=told, settings=SshSettings(connect_timeout_s=5, channel_timeout_s=2))
    transport.run(Command.of("true")).check()
    host.crash()
    host.boot()
    assert transport.run(Command.sh("echo ran >> ~/runs; cat ~/runs")).stdout == b"ran\n"
    assert told.connections == 2


def test_cut_link_is_noticed_in_time(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """Packets vanish: a running command, an open channel and a new command each end with ConnectError."""
    host = make_host()
    transport = reach(host)
    process = transport.open(Command.of("cat"))
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(process.receive)
        running = pool.submit(transport.run, Command.of("sleep", "60"))
        until(lambda: any("sleep 60" in command for _, command in host.processes()))
        host.cut()
        try:
            started = time.monotonic()
            with pytest.raises(ConnectError):
                running.result(20)
            assert receiving.result(20) == b""
            with pytest.raises(ConnectError):
                process.wait(10)
            with pytest.raises(ConnectError):
                transport.run(Command.of("true"))
            assert time.monotonic() - started < 15
        finally:
            host.restore()
    assert transport.run(Command.of("true")).ok


def test_cut_link_does_not_outlast_the_timeout_of_a_command(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """With patient settings the command's own time-out counts; that it ended cannot be confirmed, and this is said."""
    host = make_host()
    transport = reach(host, settings=SshSettings())
    transport.run(Command.of("true")).check()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.run, Command.of("sleep", "60"), timeout_s=1.5)
        until(lambda: any("sleep 60" in command for _, command in host.processes()))
        host.cut()
        try:
            with pytest.raises(TransportTimeout) as caught:
                running.result(10)
        finally:
            host.restore()
    assert caught.value.ended is False  # type: ignore[attr-defined]


def test_quiet_command_is_not_taken_for_lost(ssh_hosts: list[Host], reach: Callable[..., SshTransport]) -> None:
    """A command that says nothing for longer than the silence allowed goes on: the host answers when asked."""
    told = Told()
    transport = reach(ssh_hosts[0], told=told)
    assert transport.run(Command.sh("sleep 2.5; echo done")).stdout == b"done\n"
    assert told.connections == 1


def test_upload_over_a_cut_link_leaves_no_half_file(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """A put that is cut off is a ConnectError in time, and the target does not come to be; nor does it on a drop."""
    host = make_host()
    transport = reach(host)

    def trickle(trouble: Callable[[], None]) -> Iterator[bytes]:
        yield b"x" * 1_000_000
        until(lambda: "skylib-" in host.sh("ls -A ~/in").stdout)
        trouble()
        for _ in range(200):
            yield b"x" * 1_000_000

    try:
        with pytest.raises(ConnectError):
            transport.put(trickle(host.cut), "/home/sky/in/file")
    finally:
        host.restore()
    drop_connections(host)
    until(lambda: not any("cat" in command.split() for _, command in host.processes("sky")))
    with pytest.raises(ConnectError):
        transport.put(trickle(lambda: drop_connections(host)), "/home/sky/in/file")
    until(lambda: not any("cat" in command.split() for _, command in host.processes("sky")))
    assert "file" not in host.sh("ls -A ~/in").stdout.split()


def test_upload_of_known_size_is_checked(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """A file is renamed into place by the host only when all its bytes have come: a drop leaves nothing at all."""
    host = make_host()
    transport = reach(host)
    data = b"x" * 300_000_000
    with ThreadPoolExecutor(1) as pool:
        putting = pool.submit(transport.put, data, "/home/sky/in/file")
        until(lambda: "skylib-" in host.sh("ls -A ~/in").stdout)
        drop_connections(host)
        with pytest.raises(ConnectError):
            putting.result(20)
    until(lambda: host.sh("ls -A ~/in").stdout == "")


def test_full_disk_is_a_staging_error(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """A put onto a full disk names host, path and reason; the old file stays, nothing else does."""
    host = make_host(home_size_mib=64)
    transport = reach(host)
    transport.put(b"old", "/home/sky/in/file")
    host.fill_home(leave_bytes=1_000_000)
    for source in (b"x" * 5_000_000, iter([b"x" * 1_000_000] * 5)):
        with pytest.raises(StagingError) as caught:
            transport.put(source, "/home/sky/in/file")
        error = caught.value
        assert (error.host, error.path) == (host.ip, "/home/sky/in/file")  # type: ignore[attr-defined]
        assert "No space left on device" in str(error)
    host.unfill_home()
    assert host.sh("ls -A ~/in; cat ~/in/file").stdout == "file\nold"


class DroppingProxy:
    """A port that leads to a host, but drops the first connections without a word, as a busy sshd does."""

    def __init__(self, host: Host, drops: int) -> None:
        self._target = (host.ip, host.port)
        self._left = drops
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.seen += 1
                if self._left > 0:
                    self._left -= 1
                    connection.close()
                    continue
                there = socket.create_connection(self._target)
                for source, sink in ((connection, there), (there, connection)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize(("drops", "works"), [(2, True), (3, False)])
def test_busy_sshd_is_asked_again(
    ssh_hosts: list[Host], reach: Callable[..., SshTransport], drops: int, works: bool
) -> None:
    """Connections that are dropped before the greeting (MaxStartups) are tried again, a bounded number of times."""
    proxy = DroppingProxy(ssh_hosts[0], drops)
    try:
        transport = reach(
            ssh_hosts[0], at="127.0.0.1", port=proxy.port, settings=SshSettings(connect_attempts=3, connect_timeout_s=5)
        )
        if works:
            assert transport.run(Command.of("true")).ok
        else:
            with pytest.raises(ConnectError):
                transport.connect()
        assert proxy.seen == 3
    finally:
        proxy.close()


# --- fork


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that does `work` and ends at once."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_child_opens_its_own_connection(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """The child's command runs over another connection; the parent's open command and connection go on undisturbed."""
    told = Told()
    transport = reach(make_host(), told=told, settings=SshSettings())
    process = transport.open(Command.of("cat"))

    def work() -> None:
        assert transport.run(Command.of("echo", "child"), timeout_s=20).stdout == b"child\n"
        transport.close()

    assert in_child(work) == 0
    assert talk(process, b"still here") == b"still here"
    assert transport.run(Command.of("true")).ok
    assert told.connections == 1
    process.close()


def test_child_that_drops_everything_leaves_the_parent_alone(
    make_host: Callable[..., Host], reach: Callable[..., SshTransport]
) -> None:
    """A child that sends on, closes and forgets what it inherited does not break into the parent's stream."""
    told = Told()
    transport = reach(make_host(), told=told, settings=SshSettings())
    process = transport.open(Command.of("cat"))

    def work() -> None:
        import gc

        with suppress(ConnectError):
            process.send(b"from the child")
        assert process.receive() == b""
        process.close()
        transport.close()
        transport._processes.clear()
        gc.collect()

    assert in_child(work) == 0
    assert talk(process, b"still here") == b"still here"
    assert transport.run(Command.of("true")).ok
    assert told.connections == 1
    process.close()


def test_fork_while_threads_work(make_host: Callable[..., Host], reach: Callable[..., SshTransport]) -> None:
    """A fork in the middle of other threads' commands: the child works, the threads notice nothing."""
    told = Told()
    transport = reach(make_host(), told=told, settings=SshSettings())
    transport.connect()
    stop = threading.Event()

    def work() -> int:
        count = 0
        while not stop.is_set():
            transport.run(Command.of("true"), timeout_s=20).check()
            count += 1
        return count

    def child() -> None:
        transport.run(Command.of("true"), timeout_s=20).check()

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work) for _ in range(3)]
        try:
            assert [in_child(child) for _ in range(5)] == [0] * 5
        finally:
            stop.set()
        assert all(future.result(30) > 0 for future in working)
    assert told.connections == 1


def talk(channel: ByteChannel, message: bytes) -> bytes:
    channel.send(message)
    got = b""
    while len(got) < len(message):
        data = channel.receive()
        if not data:
            break
        got += data
    return got


# --- many hosts


def test_failures_of_some_hosts_leave_the_others_alone(ssh_hosts: list[Host], reach: Callable[..., SshTransport]) -> None:
    """Connecting to all at once: one that refuses is an outcome among the others."""
    good = [reach(host) for host in ssh_hosts]
    bad = reach(ssh_hosts[0], at="127.0.0.1", port=1)
    outcomes = fanout(lambda transport: transport.run(Command.of("true")).ok, [*good, bad])
    assert [outcome.ok for outcome in outcomes] == [True, True, True, False]
    assert isinstance(outcomes[-1].error, ConnectError)


def test_an_agents_channel_that_ended_holds_no_place(
    ssh_hosts: list[Host], reach: Callable[..., SshTransport]
) -> None:
    """Of a cluster that others took down, maybe: nobody closes it, and the connection has room for others all the same."""
    transport = reach(ssh_hosts[0], settings=attrs.evolve(QUICK, max_channels=1, channel_wait_s=10.0))
    greets = Command.of("echo", '{"hello": {}}')
    ended = [Channel(transport.open(greets)), Channel(transport.open(greets))]
    assert transport.run(Command.of("true"), timeout_s=10).ok
    assert all(channel.broken for channel in ended)
