"""One test host: booted, crashed, cut off, filled up and looked into from outside."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Literal

import attrs

from tests.testbed.image import ACCOUNTS, HostSpec, binds, write_home, write_image
from tests.testbed.keeper import Keeper
from tests.testbed.machine import SYSTEM_PATH, TestbedError, run
from tests.testbed.nvidia import nvidia_smi_script

__all__ = ["Host", "User"]

_HERE = Path(__file__).resolve().parent
_LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
User = Literal["root", "sky", "other"]


@attrs.define(kw_only=True)
class _Init:
    """A booted host's PID 1, as this machine sees it, and the nsenter that waits for it."""

    pid: int
    pidfd: int
    launcher: subprocess.Popen[bytes]


class Host:
    """An SSH host with a kernel namespace for everything that a machine has of its own.

    name, ip, port (22): where it is. user: the ordinary account ("sky"; "other" exists too, with the same key).
    home: sky's home as seen on the host. key_path: the private key that opens both accounts.
    Methods that need a running host raise TestbedError when it is down.
    """

    __test__ = False
    port = 22
    user = "sky"
    home = ACCOUNTS["sky"].home

    def __init__(
        self, keeper: Keeper, spec: HostSpec, ip: ipaddress.IPv4Address, *, key_path: Path, authorized_keys: str
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.ip = str(ip)
        self.key_path = key_path
        self._keeper = keeper
        self._binds = binds(spec)
        number = ip.packed[3]
        self._veth = f"h{number}"
        self._mac = f"02:53:4b:59:{ip.packed[2]:02x}:{number:02x}"
        self._prefix = keeper.network.prefixlen
        self._disk = keeper.directory / "hosts" / f"{number}-{spec.name}"
        self._root = self._disk / "root"
        self._homes = self._disk / "homes"
        self._init: _Init | None = None
        self._closed = False
        self._make_disk(authorized_keys)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "up" if self._init else "down"
        return f"Host({self.name!r}, {self.ip}, {state})"

    def _make_disk(self, authorized_keys: str) -> None:
        disk = self._keeper.path(self._disk)
        for name in ("upper", "work", "root", "homes/sky", "homes/other"):
            (disk / name).mkdir(parents=True)
        write_image(disk / "upper", self.spec, dead_address=str(self._keeper.network[254]))
        overlay = f"lowerdir=/,upperdir={self._disk}/upper,workdir={self._disk}/work"
        size = f"size={self.spec.home_size_mib}m,mode=755"
        self._keeper.run(
            [
                "/bin/sh",
                "-ec",
                'mount -t overlay -o "$1" testbed "$2"; mount -t tmpfs -o "nosuid,nodev,$3" home "$4"',
                "mount",
                overlay,
                str(self._root),
                size,
                str(self._homes / "sky"),
            ],
            "--mount",
        )
        self._make_host_key()
        for name in ("sky", "other"):
            write_home(disk / "homes" / name, ACCOUNTS[name], authorized_keys)

    def _make_host_key(self) -> None:
        path = self._keeper.path(self._root / "etc/ssh/ssh_host_ed25519_key")
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{self.name}", "-f", str(path)])
        self._public_key = path.with_suffix(".pub").read_text().split()[1]

    @property
    def host_key(self) -> str:
        """The public host key as a known_hosts line has it, without the host: "ssh-ed25519 AAAA..."."""
        return f"ssh-ed25519 {self._public_key}"

    @property
    def host_key_fingerprint(self) -> str:
        """SHA256 fingerprint of the host key as OpenSSH prints it."""
        digest = hashlib.sha256(base64.b64decode(self._public_key)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def init_pid(self) -> int:
        """PID 1 of the host as this machine numbers it."""
        if self._init is None:
            raise TestbedError(f"{self.name} is down")
        return self._init.pid

    @property
    def disk(self) -> Path:
        """The host's files on this machine, as the bed's keeper sees them."""
        return self._keeper.path(self._disk)

    @property
    def link(self) -> str:
        """The host's end of the cable on the bed's bridge."""
        return self._veth

    @property
    def is_up(self) -> bool:
        return self._init is not None

    @property
    def is_closed(self) -> bool:
        return self._closed

    # --- power and network

    def boot(self, *, timeout_s: float = 20.0) -> None:
        """Starts the host, on the disk and home that it has, and returns when its sshd answers; nothing if it is up."""
        if self._closed:
            raise TestbedError(f"{self.name} is closed")
        if self._init is not None:
            return
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        mounts = [f"{source}:{target}" for source, target in self._binds]
        with (self._keeper.directory / f"{self._disk.name}.boot.log").open("wb") as log:
            launcher = subprocess.Popen(
                ["nsenter", "--target", str(self._keeper.pid), "--mount", "--root", "--pid"]
                + ["unshare", *namespaces, "--fork", "--kill-child"]
                + ["/bin/sh", str(_HERE / "boot.sh"), str(self._root), str(self._homes), self.name, *mounts],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"PATH": SYSTEM_PATH},
                start_new_session=True,
            )
        assert launcher.stdout is not None
        with launcher.stdout:
            line = launcher.stdout.readline()
        if not line.strip():
            launcher.wait()
            raise TestbedError(f"{self.name} did not boot: {Path(log.name).read_text()}")
        pid = int(line)
        self._init = _Init(pid=pid, pidfd=os.pidfd_open(pid), launcher=launcher)
        self._plug_in(pid)
        self.wait_ssh(timeout_s)

    def _plug_in(self, pid: int) -> None:
        outside = (
            f"link add {self._veth} type veth peer name eth0 address {self._mac} netns {pid}\n"
            f"link set {self._veth} master br0 up\n"
        )
        inside = f"link set lo up\naddr add {self.ip}/{self._prefix} dev eth0\nlink set eth0 up\n"
        self._keeper.run(["ip", "-batch", "-"], "--net", stdin=outside)
        run(["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"], stdin=inside)

    def crash(self) -> None:
        """Power loss: the network is silent first (no FIN, no RST), then every process dies. Disk and home stay."""
        if self._init is None:
            return
        init, self._init = self._init, None
        with contextlib.suppress(TestbedError):
            self._keeper.run(["ip", "link", "del", self._veth], "--net")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(init.pidfd, signal.SIGKILL)
        os.close(init.pidfd)
        init.launcher.wait(timeout=30)

    def cut(self) -> None:
        """Pulls the cable: packets vanish both ways, and this machine is not told (no "no route to host")."""
        neighbour = ["ip", "neigh", "replace", self.ip, "lladdr", self._mac, "nud", "permanent"]
        run([*neighbour, "dev", self._keeper.uplink])
        self._keeper.run(["ip", "link", "set", self._veth, "down"], "--net")

    def restore(self) -> None:
        """Puts the cable back; connections that waited go on."""
        self._keeper.run(["ip", "link", "set", self._veth, "up"], "--net")
        with contextlib.suppress(TestbedError):
            run(["ip", "neigh", "del", self.ip, "dev", self._keeper.uplink])

    def wait_ssh(self, timeout_s: float = 20.0) -> None:
        """Returns when sshd greets on port 22; TestbedError with its log after timeout_s."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.ip, self.port), timeout=0.5) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.name}: sshd did not answer within {timeout_s:g} s\n{self.diagnosis()}")
            time.sleep(0.005)

    def diagnosis(self) -> str:
        """What booting and sshd wrote, for a failed test's report."""
        parts = []
        for path in (
            self._keeper.directory / f"{self._disk.name}.boot.log",
            self._keeper.path(self._disk / "upper/var/log/sshd.log"),
        ):
            with contextlib.suppress(OSError):
                parts.append(f"{path.name}:\n{path.read_text(errors='replace')[-4000:]}")
        return "\n".join(parts)

    def close(self) -> None:
        """Ends the host and removes its disk and home; a second close does nothing."""
        if self._closed:
            return
        self.crash()
        self._closed = True
        self._keeper.run(["umount", str(self._homes / "sky"), str(self._root)], "--mount")
        shutil.rmtree(self._keeper.path(self._disk))

    # --- inside

    def sh(
        self,
        command: str,
        user: User = "sky",
        timeout_s: float = 30.0,
        *,
        stdin: bytes | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a bash login shell in the account's home, not through SSH; its processes die on timeout.

        check: raise TestbedError with stderr when it exits other than 0.
        """
        account = ACCOUNTS[user]
        path = SYSTEM_PATH if account.uid == 0 else _LOGIN_PATH
        argv = ["nsenter", "--target", str(self.init_pid), "--mount", "--root", "--uts", "--ipc", "--net", "--pid"]
        argv += ["setpriv", f"--reuid={account.uid}", f"--regid={account.uid}", "--init-groups"]
        argv += ["bash", "-lc", f"cd\n{command}"]
        env = {"HOME": account.home, "USER": user, "LOGNAME": user, "SHELL": "/bin/bash"}
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**env, "PATH": path, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        done = subprocess.CompletedProcess(
            command, process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and done.returncode != 0:
            raise TestbedError(f"{self.name}: {command!r} exited {done.returncode}: {done.stderr[-2000:]}")
        return done

    def processes(self, user: User | None = None) -> list[tuple[int, str]]:
        """(pid on the host, command line) of each process there, of one account or of all; kernel threads have none."""
        proc = Path(f"/proc/{self.init_pid}/root/proc")
        found: list[tuple[int, str]] = []
        for entry in proc.iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                if user is not None and int(status["Uid"].split()[0]) != ACCOUNTS[user].uid:
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((int(entry.name), command or f"[{status['Name'].strip()}]"))
        return sorted(found)

    def listening_ports(self) -> set[int]:
        """TCP ports that something on the host listens on, on any address."""
        ports: set[int] = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.init_pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports

    def write_file(self, path: str, content: bytes, mode: int = 0o644, owner: User = "sky") -> None:
        """Writes a file on the host, its directory made (as owner) when missing."""
        quoted = shlex.quote(path)
        directory = shlex.quote(os.path.dirname(path))
        self.sh(f"mkdir -p {directory}", user=owner, check=True)
        command = f"cat > {quoted} && chmod {mode:o} {quoted} && chown {owner}:{owner} {quoted}"
        self.sh(command, user="root", stdin=content, check=True)

    def copy_home(self, source: Host) -> None:
        """Adds all that is in the other host's home, whoever is up: 0.4 s for a runtime environment of 250 MB."""
        self._keeper.run(
            ["cp", "-a", "--", f"{source._homes / 'sky'}/.", f"{self._homes / 'sky'}/"], "--mount", timeout_s=120
        )

    # --- trouble

    def fill_home(self, leave_bytes: int = 0) -> None:
        """Makes sky's home a full disk: writes beyond leave_bytes (rounded up to pages) fail with ENOSPC at once."""
        place = os.statvfs(self._keeper.path(self._homes / "sky"))
        used = (place.f_blocks - place.f_bfree) * place.f_frsize
        pages = -(-leave_bytes // place.f_frsize)
        self._resize_home(max(used, place.f_frsize) + pages * place.f_frsize)

    def unfill_home(self) -> None:
        """Gives sky's home the size again that it was made with."""
        self._resize_home(self.spec.home_size_mib * 1024 * 1024)

    def _resize_home(self, size_bytes: int) -> None:
        self._keeper.run(["mount", "-o", f"remount,size={size_bytes}", str(self._homes / "sky")], "--mount")

    def regenerate_host_key(self) -> None:
        """Gives the host another key, as a reinstalled machine has, and returns when sshd shows it."""
        self._make_host_key()
        if self._init is None:
            return
        self.sh("kill -HUP $(cat /run/sshd.pid)", user="root", check=True)
        deadline = time.monotonic() + 20
        scan = ["ssh-keyscan", "-T", "2", "-t", "ed25519", self.ip]
        while time.monotonic() < deadline:
            with contextlib.suppress(TestbedError):  # refused for the moment that sshd takes to start over
                if self._public_key in run(scan):
                    return
        raise TestbedError(f"{self.name}: sshd does not show its new key\n{self.diagnosis()}")

    def install_fake_nvidia_smi(self, gpus: list[str]) -> None:
        """Puts an `nvidia-smi` on PATH that reports these devices, each "NVIDIA A100-SXM4-80GB, 81920" (name, MiB)."""
        self.write_file("/usr/local/bin/nvidia-smi", nvidia_smi_script(gpus).encode(), mode=0o755, owner="root")
