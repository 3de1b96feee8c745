"""The user's own Ray on a test host: environments of the account's own, and what their owner does with them.

"2.9.3" is a copy of the private environment without anything of ours in it; "newer" is the newest Ray that skylib's lists
name, in an environment that is made once per machine and copied to hosts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import attrs

from skylib.locks import Locks
from skylib.runtime.lock import NEWER_LOCK, load_lock
from skylib.runtime.wheelhouse import client_uv
from tests.lab import eventually
from tests.runtime_fixture import shared_wheelhouse_home
from tests.testbed import Host

__all__ = ["CONNECT", "USERS_PORT", "VERSIONS", "UserRay", "said"]

VERSIONS = ("2.9.3", "newer")
USERS_PORT = 6379
_START = "ray start --head --port 6379"
_LAUNCHER = "#!{env}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n"
# Connects as its first argument says ("" gives none), runs a task there, and tells in one line how it went.
_CONNECT = """\
import json, sys, time
import ray

began = time.monotonic()
try:
    ray.init(sys.argv[1] or None, log_to_driver=False, configure_logging=False)

    @ray.remote
    def square(number):
        return number * number

    answer = ray.get([square.remote(number) for number in range(3)], timeout=60)
    told = {"joined": ray.get_runtime_context().gcs_address, "answer": answer, "nodes": len(ray.nodes())}
    ray.shutdown()
except ConnectionError as error:
    told = {"refused": str(error)}
print("SAID", json.dumps({**told, "seconds": time.monotonic() - began}), flush=True)
"""
# Runs a task of 0.1 s after the other, and counts them in a file.
_TASKS = """\
import ray, sys

ray.init("127.0.0.1:6379", log_to_driver=False, configure_logging=False)

@ray.remote(max_retries=0)
def tick(number):
    import time
    time.sleep(0.1)
    return number + 1

number = 0
while True:
    number = ray.get(tick.remote(number), timeout=60)
    with open(sys.argv[1], "a") as file:
        file.write(f"{number}\\n")
"""
CONNECT = "connect.py"
_SCRIPTS = {CONNECT: _CONNECT, "tasks.py": _TASKS}


def said(text: str) -> list[dict[str, Any]]:
    """What CONNECT told, one for each time that it ran, among whatever else was printed."""
    return [json.loads(line.partition("SAID ")[2]) for line in text.splitlines() if "SAID " in line]


@attrs.frozen(kw_only=True)
class UserRay:
    """One environment with Ray on one host. env: absolute, there."""

    host: Host
    env: str

    @classmethod
    def install(cls, host: Host, version: str) -> UserRay:
        """Gives the account an environment with this Ray. The host has the private environment already."""
        ray = cls(host=host, env=f"{host.home}/own-{version}")
        if version == "newer":
            _copy(_newer_environment(), host, ray.env)
        else:
            host.sh(f"cp -al ~/skypilot-runtime {ray.env} && rm {ray.env}/bin/ray", check=True)
            host.sh(f"find {ray.env} -name '*skylib*' -prune -exec rm -rf {{}} +", check=True)
        host.write_file(f"{ray.env}/bin/ray", _LAUNCHER.format(env=ray.env).encode(), mode=0o755)
        for name, text in _SCRIPTS.items():
            host.write_file(f"{ray.env}/{name}", text.encode())
        return ray

    def end_all(self) -> None:
        """Ends whatever runs from the environment, by pid."""
        for pid in self.pids():
            self.host.sh(f"kill -9 {pid} 2>/dev/null; true")
        eventually(lambda: not self.pids(), what="the end of the user's Ray")
        self.host.sh("rm -rf /tmp/ray", timeout_s=60)

    def remove(self) -> None:
        """Ends what is left of it, and removes its files."""
        self.end_all()
        self.host.sh(f"rm -rf {self.env} /tmp/ray ~/.ray ~/ticks-*", timeout_s=60)

    def connect(self, address: str = "") -> str:
        """A shell line that runs CONNECT."""
        return f"{self.env}/bin/python {self.env}/{CONNECT} '{address}' 2>&1"

    def ray(self, arguments: str, *, timeout_s: float = 90) -> str:
        """What `ray ...` printed; whatever its exit code."""
        done = self.host.sh(f"{self.env}/bin/ray {arguments} 2>&1", timeout_s=timeout_s)
        return done.stdout

    def start(self) -> None:
        """`ray start --head --port 6379`, in the foreground of a shell that nobody looks at.

        ~/.ray: where `ray.init()` of Ray 2.60 leaves a token, with which its own `ray job submit` is refused.
        """
        line = f"{self.env}/bin/{_START} --num-cpus 1 --disable-usage-stats --block >/tmp/users-ray.log 2>&1 </dev/null"
        self.host.sh(f"rm -rf ~/.ray; setsid nohup {line} &")
        eventually(self.answers, within_s=90, what=f"the user's Ray on {self.host.name}")

    def answers(self) -> bool:
        """Whether the dashboard, which a head has last, is there."""
        return {USERS_PORT, 8265} <= self.host.listening_ports()

    def end(self) -> None:
        """As README says that one's own is ended."""
        self.host.sh(f'pkill -f "{_START}"; true')  # bash runs it in place of itself: it does not find its own shell
        eventually(lambda: not self.pids(), within_s=60, what=f"the end of the user's Ray on {self.host.name}")
        self.host.sh("rm -rf /tmp/ray")

    def run_tasks(self, name: str) -> None:
        """From now on its tasks run one after the other, and are counted (see `ticks`)."""
        before = self.ticks(name)
        line = f"{self.env}/bin/python {self.env}/tasks.py ~/ticks-{name}"
        self.host.sh(f"setsid nohup {line} >/tmp/tasks.log 2>&1 </dev/null &")
        eventually(lambda: self.ticks(name) > before, within_s=60, what="the first task of the user's Ray")

    def runs_tasks(self) -> bool:
        """Whether it is there, and its tasks are under way."""
        return self.answers() and any("tasks.py" in line for _, line in self.host.processes("sky"))

    def ticks(self, name: str) -> int:
        """How many of its tasks have ended."""
        return int(self.host.sh(f"wc -l <~/ticks-{name} 2>/dev/null || echo 0").stdout)

    def pids(self) -> list[int]:
        """Processes that run from the environment, Ray's workers among them."""
        return [pid for pid, _ in self.host.processes("sky") if self._is_own(pid)]

    def _is_own(self, pid: int) -> bool:
        """By its command line, or by what it has loaded: Ray's processes write over theirs, and over their variables."""
        proc = Path(f"/proc/{self.host.init_pid}/root/proc/{pid}")
        try:
            return any(f"{self.env}/".encode() in (proc / name).read_bytes() for name in ("cmdline", "maps"))
        except OSError:
            return False


def _newer_environment() -> Path:
    """A virtual environment of this machine's /usr/bin/python3 with the newest Ray of skylib's lists."""
    home = shared_wheelhouse_home()
    version = load_lock(NEWER_LOCK).version("ray")
    env = home.runtime / f"users-ray-{version}"
    with Locks(home).hold("tests:users-ray", operation="tests", timeout_s=1800):
        if not (env / "made").exists():
            shutil.rmtree(env, ignore_errors=True)
            uv = str(client_uv())
            subprocess.run([uv, "venv", "-q", "--python", "/usr/bin/python3", str(env)], check=True)
            install = [uv, "pip", "install", "-q", "--python", str(env / "bin" / "python"), f"ray[default]=={version}"]
            subprocess.run(install, check=True)
            (env / "made").touch()
    return env


def _copy(source: Path, host: Host, target: str) -> None:
    place = host.disk / "homes" / "sky" / Path(target).name
    subprocess.run(["cp", "-a", "--no-preserve=ownership", "--", str(source), str(place)], check=True)
    host.sh(f"chown -R sky:sky {target}", user="root", check=True)
