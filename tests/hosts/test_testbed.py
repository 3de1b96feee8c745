"""The test bed itself: its hosts are what they claim to be, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest
import yaml

from tests.testbed import Host, Testbed, TestbedError, pool_yaml

pytestmark = pytest.mark.hosts
MakeHost = Callable[..., Host]
CHECKOUT = Path(__file__).resolve().parents[2]


@contextmanager
def ssh(
    host: Host, user: str = "sky", key_path: Path | None = None, passphrase: str | None = None
) -> Iterator[paramiko.SSHClient]:
    """A connection that checks the host's key against the one that the bed says it has."""
    client = paramiko.SSHClient()
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{host.ip} {host.host_key}")
    assert entry is not None
    assert entry.key is not None
    client.get_host_keys().add(host.ip, "ssh-ed25519", entry.key)
    client.connect(
        host.ip,
        host.port,
        user,
        key_filename=str(key_path or host.key_path),
        passphrase=passphrase,
        allow_agent=False,
        look_for_keys=False,
    )
    with client:
        yield client


def ask(client: paramiko.SSHClient, command: str) -> str:
    """Stdout of a command, without the last newline."""
    _, out, _ = client.exec_command(command, timeout=20)
    return out.read().decode().rstrip("\n")


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_the_ordinary_account_logs_in(ssh_hosts: list[Host]) -> None:
    """The test key opens `sky`, which is nobody special, at home in /home/sky on a host with its own name."""
    host = ssh_hosts[0]
    with ssh(host) as client:
        assert ask(client, "id -un; id -u; pwd; hostname; id -Gn") == f"sky\n1000\n{host.home}\n{host.name}\nsky"


def test_a_second_account_logs_in(ssh_hosts: list[Host]) -> None:
    """`other` is another user of the host, with a home of its own."""
    with ssh(ssh_hosts[0], user="other") as client:
        assert ask(client, "id -un; pwd; touch /home/sky/x 2>&1 | grep -o denied") == "other\n/home/other\ndenied"


def test_a_key_that_is_not_authorised_is_refused(ssh_hosts: list[Host], testbed: Testbed) -> None:
    """second_key_path opens nothing."""
    with pytest.raises(paramiko.AuthenticationException), ssh(ssh_hosts[0], key_path=testbed.second_key_path):
        pass


def test_the_encrypted_key_opens_with_its_passphrase(ssh_hosts: list[Host], testbed: Testbed) -> None:
    """encrypted_key_path logs in, but only when unlocked."""
    path = testbed.encrypted_key_path
    with pytest.raises(paramiko.PasswordRequiredException):
        paramiko.Ed25519Key.from_private_key_file(str(path))
    with ssh(ssh_hosts[0], key_path=path, passphrase=testbed.encrypted_key_passphrase) as client:
        assert ask(client, "echo in") == "in"


def test_hosts_reach_each_other_by_address(ssh_hosts: list[Host]) -> None:
    """One host reads the SSH banner of the next."""
    first, second, _ = ssh_hosts
    got = first.sh(f"timeout 5 bash -c 'exec 3<>/dev/tcp/{second.ip}/22; head -c 7 <&3'")
    assert got.stdout == "SSH-2.0"


def test_hosts_have_no_internet(ssh_hosts: list[Host]) -> None:
    """No route leads out and no name resolves."""
    host = ssh_hosts[0]
    assert "Network is unreachable" in host.sh("exec 3<>/dev/tcp/192.0.2.1/53").stderr
    assert host.sh("getent hosts example.com", timeout_s=10).returncode != 0


def test_localhost_has_both_addresses(ssh_hosts: list[Host]) -> None:
    """gRPC needs `::1 localhost` in the hosts file, else it asks a nameserver that is not there."""
    assert "::1" in ssh_hosts[0].sh("getent ahostsv6 localhost").stdout
    assert "127.0.0.1" in ssh_hosts[0].sh("getent ahostsv4 localhost").stdout


def test_the_machine_is_hidden(make_host: Callable[..., Host]) -> None:
    """A host shows a plain Debian: nothing of this machine's homes, /opt, /usr/local, checkout or temp files."""
    host = make_host()
    assert host.sh("ls /opt /usr/local/bin /tmp /var/tmp /mnt; ls -A /root", user="root").stdout.split() == [
        *("/mnt:", "/opt:", "/tmp:", "/usr/local/bin:", "/var/tmp:")
    ]
    assert host.sh(f"ls {CHECKOUT}/setup.cfg").returncode != 0
    assert host.sh("echo $PATH").stdout.strip() == "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"


def test_hosts_see_only_their_own_processes_and_ports(ssh_hosts: list[Host]) -> None:
    """A listener on one host is in that host's list of processes and ports and in no other's."""
    first, second, _ = ssh_hosts
    script = "import socket,sys; s = socket.create_server(('', 7077)); print('up', flush=True); sys.stdin.read()"
    with ssh(first) as client:
        stdin, out, _ = client.exec_command(f'python3 -c "{script}"')
        assert out.readline() == "up\n"
        assert 7077 in first.listening_ports()
        assert 7077 not in second.listening_ports()
        assert any("create_server" in command for _, command in first.processes("sky"))
        assert not any("create_server" in command for _, command in first.processes("other"))
        stdin.channel.shutdown_write()
        assert out.channel.recv_exit_status() == 0


def test_orphans_are_reaped(ssh_hosts: list[Host]) -> None:
    """A process whose parent has died leaves no zombie."""
    host = ssh_hosts[0]
    host.sh("(sleep 0.05 &) ; (setsid true &)", check=True)
    assert eventually(lambda: not [p for p in host.processes("sky") if "sleep" in p[1] or "true" in p[1]])


def test_a_crash_keeps_the_home_and_the_disk(make_host: MakeHost) -> None:
    """After a crash and a boot the files are there; processes, /tmp and /dev/shm are not; PID 1 is a younger one."""
    host = make_host()
    host.sh("echo 1 > ~/kept; echo 2 > /var/tmp/kept; echo 3 > /tmp/lost; echo 4 > /dev/shm/lost", check=True)
    host.sh("setsid sleep 1000 > /dev/null 2>&1 &", check=True)
    before = host.sh("cut -d' ' -f22 /proc/1/stat").stdout
    host.crash()
    host.boot()
    assert host.sh("cat ~/kept /var/tmp/kept; ls /tmp /dev/shm | grep lost").stdout == "1\n2\n"
    assert host.processes("sky") == []
    assert int(host.sh("cut -d' ' -f22 /proc/1/stat").stdout) > int(before)


def test_a_crash_is_silent(make_host: MakeHost) -> None:
    """The client of a crashed host gets no FIN and no RST: its connection just never says anything again."""
    host = make_host()
    with socket.create_connection((host.ip, host.port), timeout=5) as sock:
        assert sock.recv(4) == b"SSH-"
        sock.recv(1000)
        host.crash()
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_a_crashed_host_has_its_address_back_after_boot(make_host: MakeHost) -> None:
    """SSH works again at once, with the same host key."""
    host = make_host()
    host.crash()
    with pytest.raises(TestbedError, match="is down"):
        host.sh("true")
    host.boot()
    with ssh(host) as client:
        assert ask(client, "hostname") == host.name


def test_a_cut_host_is_silent_until_restored(make_host: MakeHost) -> None:
    """While the cable is out nothing arrives and nothing fails; an open connection goes on when it is back."""
    host = make_host()
    with ssh(host) as client:
        stdin, out, _ = client.exec_command("head -n 1")
        host.cut()
        with pytest.raises(TimeoutError):
            socket.create_connection((host.ip, host.port), timeout=0.3)
        stdin.write("late\n")
        stdin.flush()
        host.restore()
        out.channel.settimeout(30)
        assert out.readline() == "late\n"


def test_a_full_home_gives_enospc(make_host: MakeHost) -> None:
    """fill_home leaves just the bytes asked for; unfill_home gives the space back, files intact."""
    host = make_host(home_size_mib=16)
    host.sh("echo kept > kept", check=True)
    host.fill_home(leave_bytes=8192)
    assert host.sh("head -c 8192 /dev/zero > a").returncode == 0
    assert "No space left on device" in host.sh("head -c 1 /dev/zero > b").stderr
    host.unfill_home()
    assert host.sh("head -c 8000000 /dev/zero > b && cat kept").stdout == "kept\n"


def test_the_home_has_the_size_asked_for(make_host: MakeHost) -> None:
    """A home of 16 MiB holds no 17 MiB."""
    host = make_host(home_size_mib=16)
    assert "No space left on device" in host.sh("head -c 17825792 /dev/zero > big").stderr


def test_a_host_without_python(make_host: MakeHost) -> None:
    """pythons=() leaves no Python to be found."""
    host = make_host(pythons=())
    assert host.sh("command -v python python3 python3.11 pypy3; ls /usr/bin | grep ^python").stdout == ""


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_a_host_with_another_python(make_host: MakeHost, version: str) -> None:
    """pythons=("3.13",) gives that Python and no other, able to import its compiled modules."""
    host = make_host(pythons=(version,))
    got = host.sh("python3 -c 'import ssl, sqlite3, ctypes, sys; print(*sys.version_info[:2], sep=\".\")'", check=True)
    assert got.stdout.strip() == version
    assert host.sh("command -v python3.11").stdout == ""
    assert "Read-only" in host.sh(f"touch /opt/python{version}/x", user="root").stderr


def test_a_regenerated_host_key_is_what_sshd_shows(make_host: MakeHost) -> None:
    """After regenerate_host_key a client that remembers the old key is stopped."""
    host = make_host()
    old, fingerprint = host.host_key, host.host_key_fingerprint
    host.regenerate_host_key()
    assert host.host_key != old
    assert host.host_key_fingerprint != fingerprint
    with ssh(host) as client:
        transport = client.get_transport()
        assert transport is not None
        assert transport.get_remote_server_key().fingerprint == host.host_key_fingerprint


def test_fake_gpus_answer_queries(make_host: MakeHost) -> None:
    """The fake nvidia-smi answers the fields asked, with and without header and units, and refuses unknown ones."""
    host = make_host()
    host.install_fake_nvidia_smi(["NVIDIA A100-SXM4-80GB, 81920", "Tesla V100-SXM2-16GB, 16384"])
    plain = "nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits"
    assert host.sh(plain).stdout == "0, NVIDIA A100-SXM4-80GB, 81920\n1, Tesla V100-SXM2-16GB, 16384\n"
    with_units = host.sh("nvidia-smi --query-gpu=index,memory.total --format=csv -i 1")
    assert with_units.stdout == "index, memory.total [MiB]\n1, 16384 MiB\n"
    assert host.sh("nvidia-smi --query-gpu=colour --format=csv").returncode == 2


def test_a_dead_nameserver_does_not_answer(make_host: MakeHost) -> None:
    """dead_dns names a server that is not there, so that a lookup hangs instead of failing at once."""
    host = make_host(dead_dns=True)
    with pytest.raises(subprocess.TimeoutExpired):
        host.sh("getent hosts example.com", timeout_s=0.5)


def test_a_home_is_copied_to_another_host(make_host: MakeHost) -> None:
    """copy_home brings files with mode and owner, and keeps what was there."""
    source, target = make_host(), make_host()
    source.sh("mkdir -p env/bin; echo x > env/bin/tool; chmod 750 env/bin/tool", check=True)
    target.sh("touch own", check=True)
    target.copy_home(source)
    assert target.sh("stat -c '%a %U' env/bin/tool; ls").stdout == "750 sky\nenv\nown\n"


def test_write_file_sets_mode_and_owner(ssh_hosts: list[Host]) -> None:
    """Bytes arrive as they are, in directories made for them."""
    host = ssh_hosts[0]
    host.write_file("/home/sky/a b/c'd", b"\x00\xff\n", mode=0o640, owner="sky")
    assert host.sh("stat -c '%a %U %G' 'a b' \"a b/c'd\"; od -An -tx1 \"a b/c'd\"; rm -r 'a b'").stdout == (
        "755 sky sky\n640 sky sky\n 00 ff 0a\n"
    )


def test_a_command_that_takes_too_long_is_ended(ssh_hosts: list[Host]) -> None:
    """`sh` raises on its timeout, and the command's processes are gone."""
    host = ssh_hosts[0]
    with pytest.raises(subprocess.TimeoutExpired):
        host.sh("sleep 7777", timeout_s=0.3)
    assert eventually(lambda: not any("sleep 7777" in command for _, command in host.processes()))


def test_pool_yaml_is_a_pool_of_the_hosts(ssh_hosts: list[Host]) -> None:
    """The text parses to SkyPilot's form of an SSH node pool."""
    pool = yaml.safe_load(pool_yaml(ssh_hosts, name="lab"))["lab"]
    assert pool["user"] == "sky"
    assert pool["identity_file"] == str(ssh_hosts[0].key_path)
    assert [host["ip"] for host in pool["hosts"]] == [host.ip for host in ssh_hosts]


def test_a_closed_host_leaves_nothing(testbed: Testbed) -> None:
    """No process, no link, no mount and no file of a host remains after close."""
    host = testbed.host()
    pid, disk = host.init_pid, host.disk
    host.sh("setsid sleep 1000 > /dev/null 2>&1 &", check=True)
    host.close()
    host.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not disk.exists()
    assert str(disk) not in Path("/proc/self/mountinfo").read_text()
    assert host.link not in testbed.links()


SCRIPT = """
import sys
from tests.testbed import Testbed
bed = Testbed()
host = bed.host()
print(bed.directory, bed.uplink, host.init_pid, bed.keeper_pid, flush=True)
sys.stdin.read()
"""


def test_nothing_leaks_when_the_owner_is_killed() -> None:
    """SIGKILL to the process that made a bed ends its keeper and hosts and removes its link and directory."""
    owner = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    directory, uplink, *pids = owner.stdout.readline().split()
    assert all(Path("/proc", pid).exists() for pid in pids)
    assert Path("/sys/class/net", uplink).exists()
    owner.kill()
    owner.communicate()
    left = [Path(directory), Path("/sys/class/net", uplink), *(Path("/proc", pid) for pid in pids)]
    assert eventually(lambda: not any(path.exists() for path in left)), [path for path in left if path.exists()]


def test_a_later_bed_sweeps_up_after_a_dead_keeper() -> None:
    """When the keeper's shell was killed with its owner, the next bed removes the directory that stayed."""
    owner = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    directory, _, init, _ = owner.stdout.readline().split()
    shell = int(Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()[0])
    os.kill(shell, signal.SIGKILL)
    owner.kill()
    owner.communicate()
    with Testbed():
        assert not Path(directory).exists()
        assert eventually(lambda: not Path("/proc", init).exists())


def test_two_beds_at_once_do_not_meet(testbed: Testbed) -> None:
    """A second bed has another subnet, and its hosts do not reach the first one's."""
    with Testbed() as second:
        host = second.host()
        assert second.network != testbed.network
        target = testbed.network[10]
        assert "unreachable" in host.sh(f"exec 3<>/dev/tcp/{target}/22").stderr
