"""Attacks on a cluster's Ray, from another host and from another account: nobody gets in."""

from __future__ import annotations

import json

from tests.lab import Lab
from tests.testbed import Host

SSH = 22
RAY_CLIENT = 10001
PYTHON = "~/skypilot-runtime/bin/python"

# argv: ip, ports. Prints {port: what was answered} of those that answered anything. What comes out of a TLS server that
# was spoken to in clear is an alert (0x15), no answer.
ATTACK = r"""
import json, socket, ssl, sys
body = json.dumps({"entrypoint": "touch /tmp/broken-in"}).encode()
head = b"%s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nConnection: close\r\n"
head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
said = {}
def hear(port, data, tls=False):
    try:
        with socket.create_connection((sys.argv[1], port), timeout=5) as connection:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                connection = context.wrap_socket(connection)
            connection.sendall(data)
            answer = connection.recv(200)
            if answer and not answer.startswith(b"\x15\x03"):
                said.setdefault(port, []).append(repr(answer))
    except OSError:
        pass
preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
for port in map(int, sys.argv[2:]):
    hear(port, head % (b"GET /api/version", 0))
    for path in (b"/api/job_agent/jobs/", b"/api/jobs/", b"/get_or_create_runtime_env"):
        hear(port, head % (b"POST " + path, len(body)) + body)
    hear(port, preface)
    hear(port, preface, tls=True)
print(json.dumps(said))
"""
JOIN = """
import ray
ray.init(address="%s", configure_logging=False, logging_level=50)
print("joined", len(ray.nodes()))
"""


def http_ports(host: Host) -> set[int]:
    """Of the node's agents and metrics, as the command that starts Ray gives them."""
    words = json.loads(host.sh("cat ~/.sky/agent.json", check=True).stdout)["ray_start"]["argv"]
    names = ("--dashboard-agent-listen-port=", "--runtime-env-agent-port=", "--metrics-export-port=")
    return {int(word.partition("=")[2]) for word in words if word.startswith(names)}


def attack(by: Host, target: str, ports: set[int], *, user: str = "sky") -> dict[str, list[str]]:
    """What the ports say, by port."""
    numbers = " ".join(map(str, sorted(ports)))
    done = by.sh(f"python3 - {target} {numbers}", user, 120, stdin=ATTACK.encode(), check=True)  # type: ignore[arg-type]
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_no_port_of_a_node_answers_another_host(shared: Lab) -> None:
    """GET, POST of a job, HTTP/2 in clear and in TLS without a certificate: silence, on every port of every node."""
    for host, by in zip(shared.hosts, [*shared.hosts[1:], shared.hosts[0]], strict=True):
        ports = host.listening_ports() - {SSH}
        assert http_ports(host) <= ports
        assert attack(by, host.ip, ports) == {}
        assert host.sh("ls /tmp/broken-in").returncode != 0


def test_there_is_no_ray_client(shared: Lab) -> None:
    """Nothing listens where Ray's client server would, by its default or as it is told."""
    words = json.loads(shared.hosts[0].sh("cat ~/.sky/agent.json", check=True).stdout)["ray_start"]["argv"]
    told = next(int(word.partition("=")[2]) for word in words if word.startswith("--ray-client-server-port="))
    for host in shared.hosts:
        assert not host.listening_ports() & {RAY_CLIENT, told}


def test_ray_lets_in_whoever_has_a_certificate_and_nobody_else(shared: Lab) -> None:
    """`ray.init` from a node's own machine joins with the cluster's certificates and is refused without."""
    head, worker = shared.client.cluster("shared").nodes()[:2]
    host = next(host for host in shared.hosts if host.ip == worker.internal_ip)
    program = (JOIN % f"{head.internal_ip}:6380").encode()
    names = ("SERVER_CERT=$HOME/.sky/tls/node.crt", "SERVER_KEY=$HOME/.sky/tls/node.key", "CA_CERT=$HOME/.sky/tls/ca.crt")
    certificates = " ".join(["RAY_USE_TLS=1 SKYLIB_RAY_DOORS=guarded", *(f"RAY_TLS_{name}" for name in names)])
    inside = host.sh(f"env {certificates} timeout 60 {PYTHON} -", timeout_s=70, stdin=program)
    assert "joined 3" in inside.stdout, inside.stderr
    outside = host.sh(f"timeout 20 {PYTHON} -", timeout_s=40, stdin=program)
    assert "joined" not in outside.stdout


def test_another_account_of_the_machine_is_a_stranger(shared: Lab) -> None:
    """Its requests to any port of the head, the dashboard's as well, are cut; ours to the dashboard are answered."""
    record = shared.client.cluster("shared").nodes()[0]
    host = next(host for host in shared.hosts if host.ip == record.internal_ip)
    ports = host.listening_ports() - {SSH}
    assert 8266 in ports
    assert attack(host, "127.0.0.1", ports, user="other") == {}
    assert attack(host, host.ip, ports, user="other") == {}
    assert "200 OK" in attack(host, "127.0.0.1", {8266})["8266"][0]


def test_files_and_sockets_are_the_accounts_own(shared: Lab) -> None:
    """Another account reaches neither the agent's socket nor Ray's, and reads no key; keys are nowhere on the client."""
    sockets = (
        "import glob, os, socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX).connect(path)\n"
        "        print('reached', path)\n"
        "    except OSError as error:\n"
        "        print('refused', error.errno)\n"
    )
    for host in shared.hosts:
        find = "find ~/.sky/agent.sock /tmp/ray_skypilot* -type s"
        paths = host.sh(find, check=True).stdout.split()
        assert len(paths) >= 3
        done = host.sh(f"python3 - {' '.join(paths)}", "other", stdin=sockets.encode(), check=True)
        assert set(done.stdout.split("\n")[:-1]) == {"refused 13"}
        assert host.sh("cat /home/sky/.sky/tls/node.key; ls /tmp/ray_skypilot", "other").stdout == ""
        assert host.sh("stat -c %a ~/.sky/tls ~/.sky/tls/* /tmp/ray_skypilot", check=True).stdout.split() == [
            "700",
            *["600"] * 4,
            "700",
        ]
    kept = [path for path in shared.home.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert [path for path in kept if "wheels" not in path.parts] == []


def test_the_dashboard_takes_jobs_from_our_account(shared: Lab) -> None:
    """`ray job submit` to 127.0.0.1:8266 on the head runs, through an agent that answers its own node alone."""
    record = shared.client.cluster("shared").nodes()[0]
    host = next(host for host in shared.hosts if host.ip == record.internal_ip)
    submit = "~/skypilot-runtime/bin/ray job submit --address http://127.0.0.1:8266 -- echo through-the-dashboard"
    done = host.sh(f"env -u SKYLIB_CLUSTER_ID {submit}", timeout_s=120)
    assert "through-the-dashboard" in done.stdout, done.stderr
