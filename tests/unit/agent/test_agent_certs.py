"""Certificates of a cluster's Ray: who is trusted by them, for which names, and how they lie on a node."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509

from skylib.agent import certs
from skylib.agent.config import AgentConfig, NodeConfig, RayStart, tls_environment


def contexts(folder: Path, files: dict[str, str]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, which asks for a certificate, and a client's that has one."""
    certs.write_files(str(folder), files, "s")
    made = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / certs.AUTHORITY)
        context.load_cert_chain(folder / certs.CERTIFICATE, folder / certs.KEY)
        made.append(context)
    return made[0], made[1]


def hears(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    """Whether a client that looks for that name is let in and answered."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.sendall(wrapped.recv(16))
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ours.settimeout(10)
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            wrapped.sendall(b"hello")
            return wrapped.recv(16) == b"hello"
    except OSError:
        return False
    finally:
        ours.close()
        thread.join(10)


def test_nodes_of_a_cluster_trust_each_other_by_address_and_name(tmp_path: Path) -> None:
    """A node is let in and believed under its address, its name and as this machine itself, and under no other."""
    one, two = certs.make([certs.names_of("10.0.0.4", "alpha"), certs.names_of("10.0.0.5", "beta")], cluster_id="c1")
    server, _ = contexts(tmp_path / "one", one)
    _, client = contexts(tmp_path / "two", two)
    assert [hears(server, client, name) for name in ("10.0.0.4", "alpha", "127.0.0.1", "::1", "localhost")] == [True] * 5
    assert not hears(server, client, "10.0.0.5")


def test_nobody_else_is_let_in(tmp_path: Path) -> None:
    """Neither who has no certificate nor who has another cluster's."""
    names = [certs.names_of("10.0.0.4", "alpha")]
    server, _ = contexts(tmp_path / "ours", certs.make(names, cluster_id="c1")[0])
    _, stranger = contexts(tmp_path / "theirs", certs.make(names, cluster_id="c1")[0])
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    assert not hears(server, anybody, "10.0.0.4")
    assert not hears(server, stranger, "10.0.0.4")


def test_clocks_may_be_wrong_by_years() -> None:
    """A certificate is good from years before it was made to ten years after."""
    now = time.time()
    files = certs.make([["10.0.0.4"]], cluster_id="c1", now=now)[0]
    moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    for name in (certs.AUTHORITY, certs.CERTIFICATE):
        made = x509.load_pem_x509_certificate(files[name].encode())
        assert made.not_valid_before_utc < moment - datetime.timedelta(days=3650)
        assert made.not_valid_after_utc > moment + datetime.timedelta(days=3650)


@pytest.mark.parametrize(
    ("ip", "host", "names"),
    [
        ("10.0.0.4", "alpha.lan", ["10.0.0.4", "127.0.0.1", "::1", "localhost", "alpha.lan"]),
        ("10.0.0.4", "10.0.0.4", ["10.0.0.4", "127.0.0.1", "::1", "localhost"]),
        ("fd00::4", "2001:db8::1", ["fd00::4", "127.0.0.1", "::1", "2001:db8::1", "localhost"]),
        ("10.0.0.4", "what ever/", ["10.0.0.4", "127.0.0.1", "::1", "localhost"]),
        ("127.0.0.1", "-", ["127.0.0.1", "::1", "localhost"]),
    ],
)
def test_names_of_a_node(ip: str, host: str, names: list[str]) -> None:
    """Its address, this machine, and the pool's name for it where that can be one; each once."""
    assert certs.names_of(ip, host) == names


def config(root: Path, rank: int, argv: tuple[str, ...] = ()) -> AgentConfig:
    """One of two nodes of a cluster."""
    folder = root / f"rank{rank}"
    (folder / ".sky").mkdir(parents=True, exist_ok=True)
    nodes = tuple(NodeConfig(n, f"h{n}", f"10.0.0.{n + 1}", str(root / f"rank{n}"), 1, 1, (), {}) for n in (0, 1))
    given = {"cluster": "c", "cluster_id": "c1", "rank": rank, "role": "head", "root": str(folder), "socket": "s"}
    given.update(ray_port=6380, head_ip="10.0.0.1", nodes=[node._asdict() | {"gpus": []} for node in nodes])
    path = folder / ".sky" / "agent.json"
    path.write_text(json.dumps({**given, "ray_start": {"argv": argv, "env": {}} if argv else None}))
    values = dict.fromkeys(("temp_dir", "env", "socket", "infra", "user", "bundle"), "")
    return AgentConfig(
        path=str(path),
        cluster="c",
        cluster_id="c1",
        rank=rank,
        role="head",
        root=str(folder),
        ray_port=6380,
        head_ip="10.0.0.1",
        node_ip=nodes[rank].ip,
        nodes=nodes,
        autostop=None,
        ray_start=RayStart(argv, {}) if argv else None,
        **values,
    )


def test_the_head_keeps_its_own_and_tells_only_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files are 0600 in a folder 0700, the stamp among them; the authority's key is left nowhere, the head's is not told."""
    head = config(tmp_path, 0)
    assert certs.main(head.path, stamp="abc", token=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["1"]
    there = {name: Path(head.tls, name) for name in os.listdir(head.tls)}
    assert sorted(there) == ["ca.crt", "node.crt", "node.key", "stamp", "token"]
    assert stat.S_IMODE(os.stat(head.tls).st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in there.values()} == {0o600}
    assert there["stamp"].read_text() == "abc"
    assert there["token"].read_text() == told["1"]["token"]
    assert there["node.key"].read_text() != told["1"]["node.key"]
    assert x509.load_pem_x509_certificate(there["node.crt"].read_bytes()).extensions
    held = x509.load_pem_x509_certificate(told["1"]["node.crt"].encode())
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("10.0.0.2") in names.get_values_for_type(x509.IPAddress)


def test_who_starts_beside_it_waits_for_its_own_stamp(tmp_path: Path) -> None:
    """Files of an earlier bring-up are not taken for this one's."""
    certs.write_files(str(tmp_path / "tls"), {}, "old")
    assert not certs.wait_for_stamp(str(tmp_path / "tls"), "new", time.monotonic() + 0.05)
    threading.Timer(0.1, certs.write_files, (str(tmp_path / "tls"), {}, "new")).start()
    assert certs.wait_for_stamp(str(tmp_path / "tls"), "new", time.monotonic() + 20)


def test_what_speaks_to_ray_has_what_ray_was_started_with(tmp_path: Path) -> None:
    """From the command that starts Ray; without that, from the files, where there are any."""
    words = (
        "env",
        "PATH=/bin",
        "RAY_USE_TLS=1",
        "RAY_TLS_CA_CERT=/x/ca.crt",
        "RAY_AUTH_MODE=token",
        "SKYLIB_RAY_TLS_STAMP=a",
    )
    told = tls_environment(config(tmp_path, 0, (*words, "ray", "start", "--resources={}")))
    assert sorted(told) == ["RAY_AUTH_MODE", "RAY_TLS_CA_CERT", "RAY_USE_TLS", "SKYLIB_RAY_TLS_STAMP"]
    bare = config(tmp_path, 1)
    assert tls_environment(bare) == {}
    certs.write_files(bare.tls, dict.fromkeys((certs.AUTHORITY, certs.CERTIFICATE, certs.KEY), ""), "a")
    assert tls_environment(bare)["RAY_TLS_SERVER_KEY"] == f"{bare.tls}/node.key"
