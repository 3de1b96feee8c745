"""The least that anyone could do by hand: a shell script that starts Ray on hosts by OpenSSH and runs a command on each."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.testbed import Host

__all__ = ["Floor"]

_MARK = "SKYLIB_BENCH_FLOOR"
_SCRIPT = """\
set -eu
head=$1; shift
ray=skypilot-runtime/bin/ray
on() { host=$1; shift; ssh $OPTIONS "sky@$host" "$@"; }
all() { failed=0; for pid in "$@"; do wait "$pid" || failed=1; done; [ $failed = 0 ]; }

flags="--head --port 6380 --dashboard-port 8266 --temp-dir /tmp/ray_skypilot --disable-usage-stats"
on "$head" "$MARK=1 $ray start $flags" >&2
pids=
for worker in "$@"; do
    on "$worker" "$MARK=1 $ray start --address $head:6380 --disable-usage-stats" >&2 &
    pids="$pids $!"
done
all $pids
pids=
for host in "$head" "$@"; do
    on "$host" "$COMMAND" &
    pids="$pids $!"
done
all $pids
"""


class Floor:
    """The script, on hosts that have the private environment. options: of `ssh`, so that it asks nobody anything."""

    def __init__(self, hosts: Sequence[Host], directory: Path) -> None:
        self._hosts = tuple(hosts)
        self._script = directory / "floor.sh"
        self._script.write_text(_SCRIPT)
        known = directory / "floor_known_hosts"
        known.write_text("".join(f"{host.ip} {host.host_key}\n" for host in hosts))
        self.options = (
            "-F",
            "/dev/null",
            "-o",
            f"UserKnownHostsFile={known}",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
            "-i",
            str(hosts[0].key_path),
        )

    def first_line(self, command: str) -> float:
        """Seconds from nothing to the first line that `command` printed on any host. The cluster stands then."""
        env = {
            "PATH": "/usr/bin:/bin",
            "OPTIONS": " ".join(map(shlex.quote, self.options)),
            "MARK": _MARK,
            "COMMAND": command,
        }
        argv = ["/bin/sh", str(self._script), *(host.ip for host in self._hosts)]
        log = self._script.with_suffix(".log")
        with log.open("wb") as errors:
            started = time.perf_counter()
            with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env) as done:
                assert done.stdout is not None
                line = done.stdout.readline()
                seconds = time.perf_counter() - started
                done.stdout.read()
        if done.returncode != 0 or not line:
            raise AssertionError(f"the floor's script exited {done.returncode}: {log.read_text(errors='replace')[-2000:]}")
        return seconds

    def ssh(self, host: Host, command: str) -> list[str]:
        """An argv that runs a command on the host by OpenSSH."""
        return ["ssh", *self.options, f"sky@{host.ip}", command]

    def end(self) -> None:
        """End every process that `first_line` started on the hosts, by pid, and remove their session."""
        deadline = time.monotonic() + 20
        for host in self._hosts:
            while pids := _marked(host):
                if time.monotonic() > deadline:
                    raise AssertionError(f"{host.name}: still there: {pids}")
                host.sh(f"kill -9 {' '.join(map(str, pids))} 2>/dev/null; true", user="root")
        for host in self._hosts:
            host.sh("rm -rf /tmp/ray_skypilot /tmp/ray /dev/shm/plasma*", user="root", check=True)


def _marked(host: Host) -> list[int]:
    proc = Path(f"/proc/{host.init_pid}/root/proc")
    found = []
    for pid, _ in host.processes("sky"):
        try:
            if f"{_MARK}=1".encode() in (proc / str(pid) / "environ").read_bytes().split(b"\0"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
