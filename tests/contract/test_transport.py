"""What every transport does, on this machine, on a real SSH host and, where it can, in memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from skylib.errors import CommandError, ConnectError, InvalidSpecError, StagingError, TransportTimeout
from skylib.events import Event
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.base import ByteChannel, Completed, Process, Transport
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from skylib.transport.scripted import Rule, ScriptedTransport
from skylib.transport.ssh import SshTransport
from skylib.transport.ssh_params import SshSettings
from tests.testbed import Host

ODD_NAMES = ["plain", "with space", "quo'te\"s", "new\nline", "-dash", "dollar$HOME`id`", "ünï-cødé", "x" * 255]
EVERY_BYTE = bytes(range(256)) * 41 + b"\r\n\0\xff"


@attrs.frozen(kw_only=True)
class Node:
    """A node under test. folder: an empty directory there. events: what the transport has told so far."""

    transport: Transport
    folder: str
    events: list[Event]

    def sh(self, script: str, *args: str) -> Completed:
        return self.transport.run(Command.sh(script, *args), timeout_s=30)

    def eventually(self, script: str, *args: str) -> None:
        """Waits until `script` succeeds on the node."""
        deadline = time.monotonic() + 10
        while not self.sh(script, *args).ok:
            assert time.monotonic() < deadline, f"never true: {script}"


@pytest.fixture(params=["local", "ssh", "ssh-without-signals"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node with a real shell. The last one's sshd passes no signals on to commands, as sshd before 7.9."""
    events: list[Event] = []
    transport: Transport
    if request.param == "local":
        transport = LocalTransport(events=events.append)
    else:
        host: Host = request.getfixturevalue("ssh_hosts")[0]
        address = HostAddress(kind="ssh", host=host.ip, user=host.user, identity_file=str(host.key_path))
        signals = False if request.param == "ssh-without-signals" else None
        transport = SshTransport(
            address, home=SkyHome(tmp_path / "sky"), settings=SshSettings(signals=signals), events=events.append
        )
    folder = transport.run(Command.of("mktemp", "-d")).check().stdout.decode().strip()
    yield Node(transport=transport, folder=folder, events=events)
    transport.run(Command.of("rm", "-rf", folder))
    transport.close()


def _echo(channel: ByteChannel) -> int:
    while data := channel.receive():
        channel.send(data)
    return 0


@pytest.fixture(params=["local", "ssh", "scripted"])
def simple_node(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """A node that knows `echo hello`, `false`, and `cat`; for what a scripted node can do too."""
    if request.param == "scripted":
        failed = Completed(returncode=1, stdout=b"", stderr=b"")
        rules = [
            Rule("^echo hello$", b"hello\n"),
            Rule("^false$", failed),
            Rule("^cat$", lambda call: call.stdin, talk=_echo),
        ]
        yield ScriptedTransport("n", rules)
        return
    if request.param == "local":
        yield LocalTransport()
        return
    host: Host = request.getfixturevalue("ssh_hosts")[0]
    home = SkyHome(request.getfixturevalue("tmp_path") / "sky")
    address = HostAddress(kind="ssh", host=host.ip, user=host.user, identity_file=str(host.key_path))
    with SshTransport(address, home=home) as transport:
        yield transport


# --- what a scripted node does too


def test_output_and_status_are_values(simple_node: Transport) -> None:
    """A success and a failure are both Completed, with host, command and seconds."""
    done = simple_node.run(Command.of("echo", "hello"))
    assert (done.returncode, done.stdout, done.stderr, done.signal) == (0, b"hello\n", b"", None)
    assert (done.host, done.command) == (simple_node.host, "echo hello")
    assert done.seconds > 0
    assert simple_node.run(Command.of("false")).returncode == 1


def test_check_raises_for_a_failure(simple_node: Transport) -> None:
    """Completed.check gives itself, or CommandError with host and command."""
    with pytest.raises(CommandError) as caught:
        simple_node.run(Command.of("false")).check()
    assert (caught.value.returncode, caught.value.host, caught.value.command) == (1, simple_node.host, "false")


def test_stdin_of_bytes_and_of_parts(simple_node: Transport) -> None:
    """Stdin may be one piece or many."""
    assert simple_node.run(Command.of("cat"), stdin=b"abc").stdout == b"abc"
    assert simple_node.run(Command.of("cat"), stdin=(b"%d" % n for n in range(10))).stdout == b"0123456789"


def test_stream_gives_chunks_and_fails_at_the_end(simple_node: Transport) -> None:
    """A stream of a success ends; that of a failure raises CommandError."""
    assert b"".join(chunk.data for chunk in simple_node.stream(Command.of("cat"), stdin=b"abc")) == b"abc"
    with pytest.raises(CommandError):
        list(simple_node.stream(Command.of("false")))


def test_an_open_command_answers(simple_node: Transport) -> None:
    """What is sent comes back; after the end of stdin the command ends and wait says how."""
    process = simple_node.open(Command.of("cat"))
    assert isinstance(process, Process)
    for message in (b"one\n", b"two\n"):
        process.send(message)
        assert _exactly(process, len(message)) == message
    process.send(b"rest")
    process.send_eof()
    done = process.wait(10)
    assert (done.returncode, done.stdout) == (0, b"rest")
    assert process.receive() == b""
    process.close()


def test_closing_ends_a_blocked_receive(simple_node: Transport) -> None:
    """A reader that waits for a command that says nothing is released by close, from another thread."""
    process = simple_node.open(Command.of("cat"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(process.receive)
        process.close()
        assert waiting.result(10) == b""
    process.close()


def test_sending_after_close_is_a_connect_error(simple_node: Transport) -> None:
    """A channel that is closed takes nothing more."""
    process = simple_node.open(Command.of("cat"))
    process.close()
    with pytest.raises(ConnectError):
        process.send(b"x")


def test_files_go_there_and_back(simple_node: Transport, tmp_path: Path) -> None:
    """put of bytes, of parts and of a file; get makes the folder; both return the number of bytes."""
    source = tmp_path / "source"
    source.write_bytes(EVERY_BYTE)
    name = f"/tmp/skylib-contract-{os.getpid()}"
    try:
        for given in (EVERY_BYTE, iter([EVERY_BYTE[:100], b"", EVERY_BYTE[100:]]), source):
            assert simple_node.put(given, name) == len(EVERY_BYTE)
            back = tmp_path / "new" / "folder" / "back"
            assert simple_node.get(name, back) == len(EVERY_BYTE)
            assert back.read_bytes() == EVERY_BYTE
    finally:
        if not isinstance(simple_node, ScriptedTransport):
            simple_node.run(Command.of("rm", "-f", name))


def test_missing_file_is_a_staging_error(simple_node: Transport, tmp_path: Path) -> None:
    """get of nothing names host and path, and leaves nothing here."""
    with pytest.raises(StagingError) as caught:
        simple_node.get("/nowhere/file", tmp_path / "x")
    assert (caught.value.host, caught.value.path) == (simple_node.host, "/nowhere/file")  # type: ignore[attr-defined]
    assert list(tmp_path.glob("*x*")) == []


@pytest.mark.parametrize("target", ["relative", "", "/folder/"])
def test_relative_targets_are_refused(simple_node: Transport, target: str, tmp_path: Path) -> None:
    """Where a relative path ends would depend on the login's directory."""
    with pytest.raises(InvalidSpecError):
        simple_node.put(b"x", target)
    with pytest.raises(InvalidSpecError):
        simple_node.get(target, tmp_path / "x")


def test_missing_source_is_a_staging_error(simple_node: Transport, tmp_path: Path) -> None:
    """put of a local file that does not exist names it."""
    with pytest.raises(StagingError, match="missing"):
        simple_node.put(tmp_path / "missing", "/tmp/skylib-contract-never")


def test_closed_transport_opens_anew(simple_node: Transport) -> None:
    """close is no end: the next use works."""
    for _ in range(2):
        assert simple_node.run(Command.of("echo", "hello")).ok
        simple_node.close()


def test_refused_forward_is_a_connect_error(simple_node: Transport) -> None:
    """Nobody listens there: the error names the place."""
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1\b"):
        simple_node.forward("127.0.0.1", 1)


# --- what needs a real shell


def test_status_and_both_streams(node: Node) -> None:
    """stdout, stderr and the exit status are kept apart; stderr does not make a failure."""
    done = node.sh("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert node.sh("echo err >&2").ok


def test_every_byte_survives(node: Node) -> None:
    """Nothing is translated on the way, there and back."""
    assert node.transport.run(Command.of("cat"), stdin=EVERY_BYTE).stdout == EVERY_BYTE


def test_signal_is_named(node: Node) -> None:
    """A command that a signal ended has no exit status but the signal's name."""
    done = node.sh("kill -TERM $$")
    assert (done.returncode, done.signal, done.ok) == (None, "TERM", False)


def test_stderr_flood_does_not_hang(node: Node) -> None:
    """8 MB of stderr before a word on stdout: both streams are drained together."""
    done = node.sh("head -c 8000000 /dev/zero >&2; echo ok")
    assert (done.returncode, done.stdout, len(done.stderr)) == (0, b"ok\n", 8_000_000)


def test_all_three_streams_at_once(node: Node) -> None:
    """5 MB go in while 5 MB come out on each stream."""
    data = os.urandom(5_000_000)
    done = node.transport.run(Command.sh("tee /dev/stderr"), stdin=data, timeout_s=60)
    assert done.stdout == data
    assert done.stderr == data


def test_stdin_that_nobody_reads_is_no_error(node: Node) -> None:
    """A command may end before it has read its stdin."""
    done = node.transport.run(Command.sh("exit 3"), stdin=b"x" * 5_000_000, timeout_s=30)
    assert done.returncode == 3


def test_stdin_is_empty_when_none_is_given(node: Node) -> None:
    """A command without stdin sees its end at once."""
    assert node.transport.run(Command.of("cat"), timeout_s=10).stdout == b""


def test_error_of_the_source_ends_the_command_and_is_raised(node: Node) -> None:
    """An iterable that fails half way: its own error comes out, and the command is gone."""

    def source() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise KeyError("source")

    pid = f"{node.folder}/pid"
    with pytest.raises(KeyError, match="source"):
        node.transport.run(Command.sh('echo $$ > "$1"; cat > /dev/null; sleep 100', pid), stdin=source())
    node.eventually('! kill -0 "$(cat "$1")"', pid)


def test_environment_and_directory(node: Node) -> None:
    """env reaches the command, cwd is where it runs, whatever the names hold."""
    folder = f"{node.folder}/a 'b' $c"
    node.sh('mkdir "$1"', folder)
    command = Command.sh('printf "%s|%s" "$SKYT_X" "$PWD"', env={"SKYT_X": "a 'b'\n$c"}, cwd=folder)
    assert node.transport.run(command).stdout.decode() == f"a 'b'\n$c|{folder}"


def test_missing_directory_and_program_are_failures(node: Node) -> None:
    """As under any shell: 127 for a program that is not there, non-zero for a directory."""
    assert node.transport.run(Command.of("skylib-no-such-program")).returncode == 127
    done = node.transport.run(Command.of("true", cwd="/nowhere"))
    assert done.returncode == 1
    assert b"/nowhere" in done.stderr


def test_timeout_ends_the_whole_group(node: Node) -> None:
    """After the time-out neither the command nor its children run; what came until then is in the error."""
    pids = f"{node.folder}/pids"
    script = 'echo $$ > "$1"; sleep 300 & echo $! >> "$1"; echo begun; echo why >&2; sleep 300; echo never'
    started = time.monotonic()
    with pytest.raises(TransportTimeout) as caught:
        node.transport.run(Command.sh(script, pids), timeout_s=0.5)
    assert time.monotonic() - started < 8
    error = caught.value
    assert (error.stdout, error.stderr, error.timeout_s) == (b"begun\n", b"why\n", 0.5)  # type: ignore[attr-defined]
    assert error.ended is True  # type: ignore[attr-defined]
    assert error.host == node.transport.host
    assert len(node.sh('cat "$1"', pids).stdout.split()) == 2
    node.eventually('for p in $(cat "$1"); do if kill -0 "$p" 2>/dev/null; then exit 1; fi; done', pids)


def test_timeout_counts_for_a_command_that_closed_its_streams(node: Node) -> None:
    """A command that closes stdout and stderr and goes on is ended too."""
    with pytest.raises(TransportTimeout):
        node.transport.run(Command.sh("exec >&- 2>&-; sleep 300"), timeout_s=0.5)


def test_stream_comes_as_it_is_written(node: Node) -> None:
    """A chunk is there before the command has ended."""
    go = f"{node.folder}/go"
    script = 'echo first; while [ ! -e "$1" ]; do sleep 0.05; done; echo second; echo err >&2'
    chunks = node.transport.stream(Command.sh(script, go))
    assert next(chunks).data == b"first\n"
    node.sh(': > "$1"', go)
    rest = list(chunks)
    assert b"".join(chunk.data for chunk in rest if chunk.stream == "stdout") == b"second\n"
    assert b"".join(chunk.data for chunk in rest if chunk.stream == "stderr") == b"err\n"


def test_stream_that_is_dropped_ends_its_command(node: Node) -> None:
    """Closing the iterator ends the command over there."""
    pid = f"{node.folder}/pid"
    chunks = node.transport.stream(Command.sh('echo $$ > "$1"; echo begun; sleep 300', pid))
    assert next(chunks).data == b"begun\n"
    chunks.close()  # type: ignore[attr-defined]
    node.eventually('! kill -0 "$(cat "$1")"', pid)


def test_stream_that_is_never_begun_starts_nothing(node: Node) -> None:
    """The command starts with the first chunk that is asked for."""
    mark = f"{node.folder}/mark"
    node.transport.stream(Command.sh(': > "$1"', mark))
    assert not node.sh('test -e "$1"', mark).ok


def test_open_command_is_ended_by_close(node: Node) -> None:
    """close ends a command that does not care for its stdin."""
    pid = f"{node.folder}/pid"
    process = node.transport.open(Command.sh('echo $$ > "$1"; echo begun; exec sleep 300', pid))
    assert _exactly(process, 6) == b"begun\n"
    process.close()
    node.eventually('! kill -0 "$(cat "$1")"', pid)


def test_open_command_may_flood_stderr(node: Node) -> None:
    """stderr is drained while nobody receives; its tail is in the end's Completed."""
    process = node.transport.open(Command.sh("head -c 8000000 /dev/zero >&2; echo last >&2; cat"))
    process.send(b"ping")
    assert _exactly(process, 4) == b"ping"
    process.send_eof()
    done = process.wait(20)
    assert done.returncode == 0
    assert done.stderr.endswith(b"last\n")


def test_wait_has_a_timeout_that_ends_the_command(node: Node) -> None:
    """wait with a bound raises TransportTimeout, and the command is gone."""
    pid = f"{node.folder}/pid"
    process = node.transport.open(Command.sh('echo $$ > "$1"; echo begun; exec sleep 300', pid))
    assert _exactly(process, 6) == b"begun\n"
    with pytest.raises(TransportTimeout):
        process.wait(0.2)
    node.eventually('! kill -0 "$(cat "$1")"', pid)


def test_wait_tells_the_same_again(node: Node) -> None:
    """How a command ended can be asked more than once, and survives close."""
    process = node.transport.open(Command.sh("echo out; exit 4"))
    assert process.wait(10).returncode == 4
    process.close()
    assert (process.wait(10).returncode, process.wait().stdout) == (4, b"out\n")


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:12].encode("ascii", "replace").decode())
def test_files_with_odd_names(node: Node, name: str, tmp_path: Path) -> None:
    """put and get take any name that a file can have; parents are made, nothing else is left."""
    target = f"{node.folder}/new folder/{name}"
    assert node.transport.put(b"content", target, mode=0o640) == 7
    assert node.transport.get(target, tmp_path / "back") == 7
    assert (tmp_path / "back").read_bytes() == b"content"
    assert node.sh('stat -c %a -- "$1"', target).stdout == b"640\n"
    assert node.sh('find "$1" -type f | wc -l', f"{node.folder}/new folder").stdout.strip() in (b"1", b"2")


def test_put_replaces_in_one_step(node: Node) -> None:
    """Whoever has the old file open goes on reading the old content."""
    target = f"{node.folder}/file"
    node.transport.put(b"old", target)
    script = 'exec 3< "$1"; echo ready; read line; cat <&3'
    process = node.transport.open(Command.sh(script, target))
    assert _exactly(process, 6) == b"ready\n"
    node.transport.put(b"new!", target)
    process.send(b"\n")
    assert process.wait(10).stdout == b"old"
    assert node.sh('cat "$1"', target).stdout == b"new!"


def test_put_of_nothing_makes_an_empty_file(node: Node) -> None:
    """Zero bytes are a file too."""
    for number, empty in enumerate((b"", iter(()))):
        assert node.transport.put(empty, f"{node.folder}/{number}") == 0
        assert node.sh('test -f "$1" && ! test -s "$1"', f"{node.folder}/{number}").ok


def test_put_onto_a_folder_is_refused(node: Node) -> None:
    """A folder is not replaced by a file, and nothing is put into it."""
    with pytest.raises(StagingError, match=r"could not write") as caught:
        node.transport.put(b"x", node.folder)
    assert caught.value.path == node.folder  # type: ignore[attr-defined]
    assert node.sh('ls -A "$1"', node.folder).stdout == b""


def test_put_where_a_parent_is_a_file_is_refused(node: Node) -> None:
    """A folder that cannot be made is a StagingError with host and path."""
    node.transport.put(b"x", f"{node.folder}/file")
    with pytest.raises(StagingError) as caught:
        node.transport.put(b"x", f"{node.folder}/file/below")
    assert caught.value.host == node.transport.host


def test_put_leaves_nothing_when_its_source_fails(node: Node) -> None:
    """The error of the source comes out; neither the file nor a temporary one exists."""

    def source() -> Iterator[bytes]:
        yield b"x" * 300_000
        raise KeyError("source")

    with pytest.raises(KeyError):
        node.transport.put(source(), f"{node.folder}/file")
    node.eventually('test -z "$(ls -A "$1")"', node.folder)


def test_large_file_goes_there_and_back(node: Node, tmp_path: Path) -> None:
    """20 MB, compared by content."""
    content = os.urandom(1 << 20) * 20
    assert node.transport.put(content, f"{node.folder}/large") == len(content)
    assert node.transport.get(f"{node.folder}/large", tmp_path / "large") == len(content)
    assert (tmp_path / "large").read_bytes() == content


_LISTEN = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection = server.accept()[0]
while data := connection.recv(65536):
    connection.sendall(data[::-1])
connection.close()
"""


def test_forward_reaches_a_port_of_the_node(node: Node) -> None:
    """A stream to a port that only the node sees: both ways, the end, and close."""
    server = node.transport.open(Command.of("python3", "-c", _LISTEN))
    try:
        port = int(server.receive())
        channel = node.transport.forward("127.0.0.1", port)
        channel.send(b"abc")
        assert _exactly(channel, 3) == b"cba"
        channel.send_eof()
        assert channel.receive() == b""
        channel.close()
        channel.close()
        assert server.wait(10).returncode == 0
    finally:
        server.close()


def test_many_threads_share_one_transport(node: Node) -> None:
    """Eight threads with eighty commands each: every answer goes to who asked."""

    def work(thread: int) -> None:
        for number in range(80):
            word = f"{thread}-{number}"
            assert node.transport.run(Command.of("echo", word), timeout_s=60).stdout == f"{word}\n".encode()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_commands_are_told_as_events_with_secrets_masked(node: Node) -> None:
    """Each command is one event: host, status, sizes and seconds, and no value of a masked variable."""
    node.events.clear()
    secret = Command.of("true", env={"TOKEN": "hush"}, masked_env=frozenset({"TOKEN"}))
    node.transport.run(secret)
    (event,) = [event for event in node.events if event.step == "transport.run"]
    assert (event.facts["host"], event.facts["returncode"]) == (node.transport.host, 0)
    assert event.seconds is not None
    assert "hush" not in str(event.facts)


def test_interrupt_of_the_caller_ends_the_command(node: Node) -> None:
    """An exception that comes while a command is waited for, such as Ctrl-C, ends the command."""
    pid = f"{node.folder}/pid"

    def interrupt() -> Iterator[bytes]:
        node.eventually('test -s "$1"', pid)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        yield b""

    with pytest.raises(KeyboardInterrupt):
        node.transport.run(Command.sh('echo $$ > "$1"; exec sleep 300', pid), stdin=interrupt())
    node.eventually('! kill -0 "$(cat "$1")"', pid)


def _exactly(channel: ByteChannel, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = channel.receive(size - len(got))
        assert data, f"ended after {got!r}"
        got += data
    return got
