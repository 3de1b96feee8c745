"""How hosts are reached and logged in to: keys, agent, ~/.ssh/config, jumps, host keys. On real sshd."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import AuthError, ConfigError, ConnectError, HostKeyError
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.command import Command
from skylib.transport.ssh import SshTransport
from skylib.transport.ssh_params import SshSettings
from tests.testbed import Host, Testbed

Connect = Callable[..., SshTransport]
WHO = Command.sh('echo "$USER@$(hostname)"')


@pytest.fixture
def connect(isolated_home: Path) -> Iterator[Connect]:
    """Makes transports of this test's home and closes them."""
    made: list[SshTransport] = []

    def make(host: str, *, settings: SshSettings | None = None, **address: object) -> SshTransport:
        transport = SshTransport(
            HostAddress(kind="ssh", host=host, **address),  # type: ignore[arg-type]
            home=SkyHome(isolated_home / ".sky"),
            settings=settings or SshSettings(connect_timeout_s=5),
        )
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.close()


def write_config(home: Path, text: str, name: str = "config") -> None:
    path = home / ".ssh" / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)


def who(transport: SshTransport) -> str:
    return transport.run(WHO, timeout_s=20).check().stdout.decode().strip()


def make_key(path: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(path), *options], check=True)
    return path


def admit(host: Host, key: Path) -> None:
    """Lets a further key in."""
    line = shlex.quote(key.with_name(f"{key.name}.pub").read_text().strip())
    host.sh(f"echo {line} >> ~/.ssh/authorized_keys", check=True)


def reload_sshd(host: Host, *lines: str) -> None:
    """Puts lines before the others of sshd_config, and has sshd read it."""
    text = shlex.quote("\n".join(lines) + "\n")
    script = f"""{{ printf %s {text}; cat /etc/ssh/sshd_config; }} > /etc/ssh/new && mv /etc/ssh/new /etc/ssh/sshd_config
sshd -t && kill -HUP $(cat /run/sshd.pid)"""
    host.sh(script, user="root", check=True)
    host.wait_ssh()


# --- keys


def test_key_that_is_named_is_used(ssh_hosts: list[Host], connect: Connect) -> None:
    """user and identity_file of the address are enough."""
    host = ssh_hosts[0]
    assert who(connect(host.ip, user="other", identity_file=str(host.key_path))) == f"other@{host.name}"


@pytest.mark.parametrize("kind", [("ed25519",), ("ecdsa",), ("rsa", "-b", "3072")], ids=lambda kind: kind[0])
def test_default_keys_are_found(
    make_host: Callable[..., Host], connect: Connect, isolated_home: Path, kind: tuple[str, ...]
) -> None:
    """Without a word about keys, ~/.ssh/id_ed25519, id_ecdsa and id_rsa are tried."""
    host = make_host()
    (isolated_home / ".ssh").mkdir(mode=0o700)
    admit(host, make_key(isolated_home / ".ssh" / f"id_{kind[0]}", "-t", *kind))
    assert who(connect(host.ip, user="sky")) == f"sky@{host.name}"


def test_refused_key_is_an_auth_error_that_names_it(ssh_hosts: list[Host], testbed: Testbed, connect: Connect) -> None:
    """A key that opens nothing: the error names key, account and host."""
    host = ssh_hosts[0]
    with pytest.raises(AuthError) as caught:
        connect(host.ip, user="sky", identity_file=str(testbed.second_key_path)).connect()
    assert str(testbed.second_key_path) in str(caught.value)
    assert caught.value.host == host.ip
    assert caught.value.tried == (str(testbed.second_key_path),)  # type: ignore[attr-defined]


def test_no_key_at_all_is_an_auth_error(ssh_hosts: list[Host], connect: Connect) -> None:
    """Nothing to offer is said as that."""
    with pytest.raises(AuthError, match="no key to offer"):
        connect(ssh_hosts[0].ip, user="sky").connect()


def test_missing_identity_file_is_named(ssh_hosts: list[Host], connect: Connect, tmp_path: Path) -> None:
    """A key file that the caller named must exist."""
    with pytest.raises(AuthError, match="does not exist") as caught:
        connect(ssh_hosts[0].ip, user="sky", identity_file=str(tmp_path / "id_none")).connect()
    assert "id_none" in str(caught.value)


def test_missing_identity_file_of_the_configuration_is_passed_over(
    ssh_hosts: list[Host], connect: Connect, isolated_home: Path
) -> None:
    """ssh_config often names keys that are not there; the next one counts."""
    host = ssh_hosts[0]
    write_config(isolated_home, f"IdentityFile ~/.ssh/id_nowhere\nIdentityFile {host.key_path}\n")
    assert who(connect(host.ip, user="sky")) == f"sky@{host.name}"


def test_encrypted_key_says_what_to_do(ssh_hosts: list[Host], testbed: Testbed, connect: Connect) -> None:
    """Without agent and passphrase: AuthError that names the file and both remedies."""
    with pytest.raises(AuthError) as caught:
        connect(ssh_hosts[0].ip, user="sky", identity_file=str(testbed.encrypted_key_path)).connect()
    assert str(testbed.encrypted_key_path) in str(caught.value)
    assert "agent" in str(caught.value.hint)
    assert "passphrase" in str(caught.value.hint)


def test_passphrase_opens_an_encrypted_key(ssh_hosts: list[Host], testbed: Testbed, connect: Connect) -> None:
    """The passphrase is asked for with the file's name, and never shows in a repr."""
    asked: list[str] = []

    def passphrase(path: str) -> str:
        asked.append(path)
        return testbed.encrypted_key_passphrase

    settings = SshSettings(passphrase=passphrase)
    key = str(testbed.encrypted_key_path)
    assert who(connect(ssh_hosts[0].ip, user="sky", identity_file=key, settings=settings)).startswith("sky@")
    assert asked == [key]
    assert "passphrase" not in repr(settings)


def test_wrong_passphrase_is_said(ssh_hosts: list[Host], testbed: Testbed, connect: Connect) -> None:
    """A wrong passphrase is not confused with a missing one, and is not in the error."""
    settings = SshSettings(passphrase=lambda path: "guess-the-word")
    with pytest.raises(AuthError, match="passphrase is wrong") as caught:
        connect(ssh_hosts[0].ip, user="sky", identity_file=str(testbed.encrypted_key_path), settings=settings).connect()
    assert "guess-the-word" not in str(caught.value)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """The socket of a running ssh-agent without keys."""
    path = str(tmp_path / "agent.sock")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield path
    process.terminate()
    process.wait(10)
    process.stdout.close()


def load(agent: str, *keys: Path, passphrase: str = "") -> None:
    ask = f"{agent}.ask"
    Path(ask).write_text(f"#!/bin/sh\necho {shlex.quote(passphrase)}\n")
    Path(ask).chmod(0o700)
    env = {"SSH_AUTH_SOCK": agent, "SSH_ASKPASS": ask, "SSH_ASKPASS_REQUIRE": "force", "PATH": "/usr/bin:/bin"}
    for key in keys:
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, stdin=subprocess.DEVNULL)


def test_agent_keys_are_used(
    ssh_hosts: list[Host], testbed: Testbed, connect: Connect, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encrypted key that the agent holds needs no passphrase, named or not."""
    load(agent, testbed.encrypted_key_path, passphrase=testbed.encrypted_key_passphrase)
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    host = ssh_hosts[0]
    assert who(connect(host.ip, user="sky")).startswith("sky@")
    assert who(connect(host.ip, user="other", identity_file=str(testbed.encrypted_key_path))).startswith("other@")


def test_identity_agent_of_the_configuration_is_asked(
    ssh_hosts: list[Host], connect: Connect, agent: str, isolated_home: Path
) -> None:
    """IdentityAgent names another agent than the environment does."""
    load(agent, ssh_hosts[0].key_path)
    write_config(isolated_home, f"IdentityAgent {agent}\n")
    assert who(connect(ssh_hosts[0].ip, user="sky")).startswith("sky@")


def test_key_that_is_named_goes_before_a_crowded_agent(
    ssh_hosts: list[Host], connect: Connect, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten foreign keys in the agent would use up the server's tries; the one that was named is offered first."""
    load(agent, *(make_key(tmp_path / f"k{number}", "-t", "ed25519") for number in range(10)))
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    host = ssh_hosts[0]
    assert who(connect(host.ip, user="sky", identity_file=str(host.key_path))).startswith("sky@")
    with pytest.raises(AuthError, match="MaxAuthTries"):
        connect(host.ip, user="sky").connect()


def test_identities_only_leaves_the_agent_alone(
    ssh_hosts: list[Host],
    testbed: Testbed,
    connect: Connect,
    agent: str,
    isolated_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """IdentitiesOnly: only keys that are named are offered."""
    load(agent, ssh_hosts[0].key_path)
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    write_config(isolated_home, f"IdentitiesOnly yes\nIdentityFile {testbed.second_key_path}\n")
    with pytest.raises(AuthError) as caught:
        connect(ssh_hosts[0].ip, user="sky").connect()
    assert caught.value.tried == (str(testbed.second_key_path),)  # type: ignore[attr-defined]


# --- configuration and jumps


def test_alias_and_include_of_the_users_configuration(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """An alias in a file that ~/.ssh/config includes by a relative glob is known; the files stay as they are."""
    host = ssh_hosts[1]
    (isolated_home / ".ssh" / "conf.d").mkdir(parents=True)
    text = f"Host gpu\n  HostName {host.ip}\n  User other\n  IdentityFile {host.key_path}\n"
    write_config(isolated_home, "Include conf.d/*\n")
    write_config(isolated_home, text, "conf.d/lab")
    assert who(connect("gpu")) == f"other@{host.name}"
    assert (isolated_home / ".ssh" / "conf.d" / "lab").read_text() == text


def test_broken_configuration_is_a_config_error(connect: Connect, isolated_home: Path) -> None:
    """A line that cannot be parsed is named before anything is connected."""
    write_config(isolated_home, "Host a\n  ???\n")
    with pytest.raises(ConfigError, match="line 2"):
        connect("10.255.255.1").connect()


def test_jump_over_two_hosts(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """Both hops are resolved by the configuration, their host keys are checked, and the last host sees the second."""
    first, second, last = ssh_hosts
    write_config(
        isolated_home,
        f"""IdentityFile {last.key_path}
Host one
  HostName {first.ip}
  User other
Host two
  HostName {second.ip}
  User sky
Host last
  HostName {last.ip}
  User sky
  ProxyJump one,two
""",
    )
    transport = connect("last")
    assert who(transport) == f"sky@{last.name}"
    seen = transport.run(Command.sh('echo "$SSH_CONNECTION"')).stdout.split()[0].decode()
    assert seen == second.ip
    known = (isolated_home / ".sky" / "known_hosts").read_text()
    assert [line.split()[0] for line in known.splitlines()] == [first.ip, second.ip, last.ip]
    with contextlib.closing(transport.forward("127.0.0.1", 22)) as channel:
        assert channel.receive(4) == b"SSH-"


def test_jump_of_the_address(ssh_hosts: list[Host], connect: Connect) -> None:
    """proxy_jump of the address needs no configuration file; the target's key is tried on the jump host too."""
    first, last = ssh_hosts[0], ssh_hosts[1]
    jump = f"other@{first.ip}:{first.port}"
    assert who(connect(last.ip, user="sky", identity_file=str(last.key_path), proxy_jump=jump)) == f"sky@{last.name}"


def test_refusal_by_a_jump_host_names_it(ssh_hosts: list[Host], connect: Connect) -> None:
    """It is the jump host that refused, and the error says so."""
    first, last = ssh_hosts[0], ssh_hosts[1]
    jump = f"nobody-there@{first.ip}"
    with pytest.raises(AuthError, match=f"nobody-there@{first.ip}") as caught:
        connect(last.ip, user="sky", identity_file=str(last.key_path), proxy_jump=jump).connect()
    assert caught.value.host == f"{first.ip} (jump host of {last.ip})"


def test_jump_host_that_cannot_reach_the_target(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """The error says which way was tried."""
    first = ssh_hosts[0]
    write_config(isolated_home, f"IdentityFile {first.key_path}\nUser sky\n")
    with pytest.raises(ConnectError, match=r"jump host could not connect to 127\.0\.0\.1:1\b"):
        connect("127.0.0.1", port=1, proxy_jump=first.ip).connect()


def test_proxy_command(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """ProxyCommand gives the stream; it ends with the connection."""
    host = ssh_hosts[0]
    script = isolated_home / "through.py"
    script.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536):\n"
        "        s.sendall(data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536):\n"
        "    os.write(1, data)\n"
    )
    write_config(isolated_home, f"ProxyCommand python3 {script} %h %p\nIdentityFile {host.key_path}\n")
    assert who(connect(host.ip, user="sky")) == f"sky@{host.name}"


# --- host keys


def test_new_host_is_written_down_once(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """The first connection keeps the key in ~/.sky/known_hosts; the user's file is not made."""
    host = ssh_hosts[0]
    for _ in range(2):
        transport = connect(host.ip, user="sky", identity_file=str(host.key_path))
        transport.connect()
        transport.close()
    known = (isolated_home / ".sky" / "known_hosts").read_text()
    assert known == f"{host.ip} ssh-ed25519 {_public_key(host)}\n"
    assert not (isolated_home / ".ssh").exists()


def test_changed_host_key_stops(make_host: Callable[..., Host], connect: Connect, isolated_home: Path) -> None:
    """A host with another key than last time: HostKeyError with both fingerprints, and no key is offered to it."""
    host = make_host()
    transport = connect(host.ip, user="sky", identity_file=str(host.key_path))
    transport.connect()
    before = host.host_key_fingerprint
    transport.close()
    host.regenerate_host_key()
    with pytest.raises(HostKeyError) as caught:
        transport.connect()
    error = caught.value
    assert (error.expected, error.seen) == (before, host.host_key_fingerprint)  # type: ignore[attr-defined]
    assert before in str(error)
    assert host.host_key_fingerprint in str(error)
    assert (error.file, error.line) == (str(isolated_home / ".sky" / "known_hosts"), 1)  # type: ignore[attr-defined]


def test_users_known_hosts_decide(ssh_hosts: list[Host], connect: Connect, isolated_home: Path) -> None:
    """A contradiction in the user's own file stops; the right key there (hashed) is enough, and ours stays empty."""
    right, wrong = ssh_hosts[0], ssh_hosts[1]
    (isolated_home / ".ssh").mkdir(mode=0o700)
    users = isolated_home / ".ssh" / "known_hosts"
    transport = connect(right.ip, user="sky", identity_file=str(right.key_path))
    for host, name in ((wrong, right.ip), (right, right.ip)):
        users.write_text(f"{name} ssh-ed25519 {_public_key(host)}\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(users)], check=True, capture_output=True)
        if host is wrong:
            with pytest.raises(HostKeyError):
                transport.connect()
        else:
            transport.connect()
    assert not (isolated_home / ".sky" / "known_hosts").exists()


def test_key_type_on_record_is_asked_for(make_host: Callable[..., Host], connect: Connect, isolated_home: Path) -> None:
    """A host known by its RSA key is not taken for changed because it has an ed25519 key too."""
    host = make_host()
    host.sh("ssh-keygen -q -t rsa -b 3072 -N '' -f /etc/ssh/ssh_host_rsa_key", user="root", check=True)
    reload_sshd(host, "HostKey /etc/ssh/ssh_host_rsa_key")
    public = host.sh("cat /etc/ssh/ssh_host_rsa_key.pub", user="root", check=True).stdout.split()
    (isolated_home / ".ssh").mkdir(mode=0o700)
    (isolated_home / ".ssh" / "known_hosts").write_text(f"{host.ip} {public[0]} {public[1]}\n")
    assert who(connect(host.ip, user="sky", identity_file=str(host.key_path))).startswith("sky@")


def _public_key(host: Host) -> str:
    scan = subprocess.run(["ssh-keyscan", "-t", "ed25519", host.ip], capture_output=True, text=True, check=True)
    return scan.stdout.split()[2]


# --- nobody there


def test_refused_connection_is_a_connect_error(connect: Connect) -> None:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectError, match="refused") as caught:
        connect("127.0.0.1", port=port, user="sky").connect()
    assert caught.value.retryable


def test_name_that_does_not_resolve_is_a_connect_error(connect: Connect) -> None:
    """A host name without an address."""
    with pytest.raises(ConnectError, match="does not resolve"):
        connect("no-such-host.invalid", user="sky").connect()


def test_silent_port_is_a_connect_error_in_time(connect: Connect) -> None:
    """Something accepts the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectError):
            connect("127.0.0.1", port=port, user="sky", settings=SshSettings(connect_timeout_s=0.5)).connect()


def test_server_that_is_no_ssh_is_a_connect_error(ssh_hosts: list[Host], connect: Connect, tmp_path: Path) -> None:
    """A web server on the port: the error shows what was seen."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n" * 3)
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        settings = SshSettings(connect_timeout_s=2, connect_attempts=1)
        with pytest.raises(ConnectError):
            connect("127.0.0.1", port=server.getsockname()[1], user="sky", settings=settings).connect()
        thread.join(10)
