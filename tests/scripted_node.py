"""Host accounts that exist in memory: marks, files, processes and an agent in a small model.

Each answers what skylib asks a node, as a real one does: the probe, the claim with its small files, `ray start`, the agent's
daemon and bridge, the end and the removal. Hosts of one lab see each other, and can be cut off, come back, and reboot.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from skylib.agent.protocol import TOKEN_VARIABLE
from skylib.errors import ConnectError, InvalidSpecError
from skylib.facts.hardware import PROBE_INPUT
from skylib.runtime.environment import runtime_digest
from skylib.runtime.layout import NodeLayout
from skylib.runtime.lock import RAY_LOCK, load_lock, marker_values
from skylib.transport.base import ByteChannel, Completed
from skylib.transport.command import Command
from skylib.transport.scripted import Call, Rule, ScriptedTransport
from tests.scripted_agent import ScriptedAgent

__all__ = ["Running", "ScriptedHost", "ScriptedLab", "kind_of"]

PYTHON = (3, 11, 2)
REFUSED = 83
_HOME = "/home/sky"


def _digest() -> str:
    lock = load_lock(RAY_LOCK).select(marker_values(PYTHON, os="Linux", arch="x86_64"))
    return runtime_digest(lock, PYTHON, "x86_64")


def kind_of(command: Command, stdin: bytes = b"") -> str:
    """What a command is for, in one word."""
    script, words = command.script or "", command.words()
    if stdin == PROBE_INPUT:
        return "probe"
    if stdin.startswith(b"{") and b'"marks"' in stdin:
        return "claim"
    if "start" in command.argv and ("--head" in words or any(word.startswith("--address=") for word in words)):
        return "ray"
    if 'end --config "$3"' in script:
        return "end"
    if '"$mounts"' in script:
        return "release"
    if "mark none" in script:
        return "trace"
    if "daemon" in words:
        return "wake" if "--asleep" in words else "daemon"
    if "certs" in words:
        return "take" if "--take" in words else "certs"
    return "bridge" if "bridge" in words else words[0].rpartition("/")[2]


@attrs.define
class Running:
    """A process. kind: "ray", "agent" or "asleep" (an agent that only reads)."""

    pid: int
    kind: str
    cluster_id: str


class ScriptedLab:
    """Hosts h1, h2, ... that reach each other. wrong: what no host of ours should ever have seen, in words.

    changed: held for whatever looks at or changes any host; notified when something changed.
    """

    def __init__(self, count: int) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.pids = itertools.count(100)
        self.digest = _digest()
        self.wrong: list[str] = []
        self.hosts = {f"h{number}": ScriptedHost(self, f"h{number}", f"10.0.0.{number}") for number in range(1, count + 1)}

    def by_ip(self, ip: str) -> ScriptedHost:
        return next(host for host in self.hosts.values() if host.ip == ip)

    def pool_yaml(self) -> str:
        return "lab:\n  user: sky\n  hosts:\n" + "".join(f"    - {name}\n" for name in self.hosts)


class ScriptedHost:
    """One account. files: path -> content. processes: by pid. up: it is reached by anybody, and reaches others.

    ray_said: what its agent says of this node's Ray; None: nothing, as one that does not keep Ray.
    """

    def __init__(self, lab: ScriptedLab, name: str, ip: str) -> None:
        self.lab = lab
        self.name = name
        self.ip = ip
        self.up = True
        self.layout = NodeLayout(root=_HOME)
        rules = [Rule(lambda command: kind_of(command) == "bridge", talk=self._bridge), Rule("", self._answer)]
        self.transport = ScriptedTransport(name, rules)
        self.files = self.transport.files
        self.processes: dict[int, Running] = {}
        self.agent: ScriptedAgent | None = None
        self.ray_said: Mapping[str, object] | None = None
        self._channels: list[ByteChannel] = []
        self._answers: dict[str, Callable[[Call], bytes | Completed]] = {
            "probe": lambda call: self._probe(),
            "claim": self._claim,
            "ray": self._ray,
            "daemon": lambda call: self._daemon(asleep=False),
            "wake": lambda call: self._daemon(asleep=True),
            "certs": lambda call: json.dumps({str(rank): {} for rank in range(1, len(self.lab.hosts))}).encode(),
            "take": lambda call: b"",
            "end": self._end,
            "release": self._release,
            "trace": self._trace,
            "cat": self._cat,
            "test": self._test,
            "ln": lambda call: b"",
            "true": lambda call: b"",
        }

    def teach(self, kind: str, answer: Callable[[Call], bytes | Completed]) -> None:
        """What it answers to commands of a kind (kind_of) that it does not know by itself."""
        self._answers[kind] = answer

    # What happens to it.

    def cut(self) -> None:
        """Nobody reaches it any more, and who was connected is not."""
        with self.lab.changed:
            self.up = False
            self._hang_up()
            self.lab.changed.notify_all()

    def mend(self) -> None:
        with self.lab.changed:
            self.up = True
            self.lab.changed.notify_all()

    def reboot(self) -> None:
        """All processes are gone; files stay."""
        with self.lab.changed:
            self.kill(self.processes.values())

    def kill(self, processes: Iterable[Running]) -> list[int]:
        """End them, as SIGKILL does."""
        pids = [process.pid for process in processes]
        for pid in pids:
            if self.processes.pop(pid).kind != "ray":
                self.agent = None
                self._hang_up()
        self.lab.changed.notify_all()
        return pids

    # What others see.

    def serves(self) -> set[str]:
        """Ids of the clusters that have a process here."""
        with self.lab.changed:
            return {process.cluster_id for process in self.processes.values()}

    def mark(self) -> Mapping[str, Any] | None:
        """cluster.json."""
        with self.lab.changed:
            return self._mark_at(self.layout.cluster_json)

    def kinds(self, cluster_id: str) -> list[str]:
        """Kinds of that cluster's processes, sorted."""
        with self.lab.changed:
            return sorted(process.kind for process in self.processes.values() if process.cluster_id == cluster_id)

    def left(self) -> list[str]:
        """Files that a cluster put here, and its processes; none when the account is free."""
        with self.lab.changed:
            return [*sorted(self.files), *(f"{each.kind} of {each.cluster_id}" for each in self.processes.values())]

    def begin(self, kind: str, cluster_id: str) -> Running:
        process = Running(next(self.lab.pids), kind, cluster_id)
        self.processes[process.pid] = process
        if len(self.serves()) > 1:
            self.lab.wrong.append(f"{self.name} serves {sorted(self.serves())} at once")
        self.lab.changed.notify_all()
        return process

    # Its answers.

    def _answer(self, call: Call) -> bytes | Completed:
        kind = kind_of(call.command, call.stdin)
        answer = self._answers.get(kind)
        if answer is None:
            self.lab.wrong.append(f"{self.name} knows no answer to {call.command.shown()[:300]}")
            raise InvalidSpecError(f"no answer to {kind}", host=self.name)
        with self.lab.changed:
            return answer(call)

    def _probe(self) -> bytes:
        lines = ["skylib-probe 1", "os\tLinux", f"hostname\t{self.name}", "arch\tx86_64", "user\tsky", "uid\t1000"]
        lines += [f"home\t{_HOME}", "libc\tglibc 2.36", "cpus\t8", "memory_kib\t32768000", "disk_free_kib\t104857600"]
        lines += ["home_file_system\text4", "python\tpath\tPython 3.11.2\t/usr/bin/python3.11", f"ssh_ip\t{self.ip}"]
        lines += [f"ip\teth0 {self.ip}", "listen\t0016 0", "boot\tone:25", f"clock\t{time.time()}"]
        lines += [f"runtime_digest\t{self.lab.digest}"]
        lines += [f"cluster\t{line}" for line in self._text(self.layout.cluster_json)]
        temp = f"{self.layout.temp_dir}/cluster.json"
        if any(path.startswith(f"{self.layout.temp_dir}/") for path in self.files):
            lines.append("temp_dir_owner\t1000")
        if temp in self.files and self._stands(self._mark_at(temp) or {}):
            lines += [f"temp_cluster\t{line}" for line in self._text(temp)]
        if any(process.kind == "ray" for process in self.processes.values()):
            lines.append("listen\t18EC 1000")  # 6380
        return ("\n".join([*lines, "end"]) + "\n").encode()

    def _claim(self, call: Call) -> Completed:
        given = json.loads(call.stdin)
        made: list[str] = []
        for path, in_temp in zip(given["marks"], (False, True), strict=True):
            there = self._mark_at(path)
            other = (there or {}).get("cluster_id")
            if other not in (None, given["id"]) and (not in_temp or self._stands(there or {})):
                for each in made:
                    del self.files[each]
                said = {"path": path, "cluster": (there or {}).get("cluster"), "home": (there or {}).get("home")}
                return _done(json.dumps(said), code=REFUSED)
            if there is None:
                made.append(path)
            self.files[path] = given["mark"].encode()
        for path, text in given["files"].items():
            self.files[path] = text.encode()
        self.files[self.layout.agent_bundle] = b"link"
        return _done("have" if given["bundle"] in self.files else "need")

    def _ray(self, call: Call) -> Completed:
        token = next(word for word in call.command.words() if word.startswith(f"{TOKEN_VARIABLE}="))
        cluster_id = token.partition("=")[2]
        if "ray" not in self.kinds(cluster_id):
            self.begin("ray", cluster_id)
        self.files[f"{self.layout.sky}/ray_start.log"] = b"started\n"
        self.files[f"{self.layout.temp_dir}/session_latest"] = b"link"
        return _done("")

    def _daemon(self, *, asleep: bool) -> Completed:
        config = self._mark_at(self.layout.agent_json)
        if config is None or self.layout.agent_bundle not in self.files:
            return _done("", code=1, stderr="no configuration, or no bundle")
        standing = self.agent
        if standing is not None:
            same = standing.cluster_id == config["cluster_id"]
            if same and (asleep or not standing.asleep):
                return _done("already")
            if asleep:
                return _done("", code=1, stderr="an agent of another cluster runs")
            self.kill([each for each in self.processes.values() if each.kind != "ray"])
        self.begin("asleep" if asleep else "agent", config["cluster_id"])
        self.agent = ScriptedAgent(self, config, asleep=asleep)
        for name in ("agent.lock", "agent.log", "agent.sock"):
            self.files[f"{self.layout.sky}/{name}"] = b"here"
        return _done("")

    def _end(self, call: Call) -> Completed:
        python, bundle, config_path, cluster_id = call.command.argv
        config = self._mark_at(config_path)
        if bundle not in self.files or config is None or config["cluster_id"] != cluster_id:
            return _done("{}")
        ended = self.kill([each for each in self.processes.values() if each.cluster_id == cluster_id])
        return _done(json.dumps({"ended": ended, "survivors": [], "ports_closed": []}))

    def _release(self, call: Call) -> Completed:
        cluster_id, mark, _, _, beside, *paths = call.command.argv
        if self._foreign(mark, cluster_id):
            if f'"{cluster_id}"' not in "".join(self._text(f"{mark.rpartition('/')[0]}/agent.json")):
                return _done("")
            if self._foreign(beside, cluster_id):
                return _done(f"left {mark}: held by another cluster\n")
        gone = []
        for path in paths:
            if self._foreign(f"{path}/cluster.json", cluster_id):
                continue
            for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
                del self.files[name]
                gone.append(path)
        return _done("".join(f"removed {path}\n" for path in dict.fromkeys(gone)))

    def _trace(self, call: Call) -> Completed:
        cluster_id, _, _, mark = call.command.argv
        there = self.files.get(mark, b"none").decode()
        return _done(f"root yes\nprocesses {len(self.kinds(cluster_id))}\nmark {there}")

    def _cat(self, call: Call) -> Completed:
        content = [self.files.get(path) for path in call.command.argv[1:]]
        found = b"".join(each for each in content if each is not None)
        return attrs.evolve(_done("", code=1 if None in content else 0), stdout=found)

    def _test(self, call: Call) -> Completed:
        return _done("", code=0 if self.files.get(call.command.argv[-1]) else 1)

    # Files.

    def _text(self, path: str) -> list[str]:
        return self.files.get(path, b"").decode().splitlines()

    def _mark_at(self, path: str) -> Mapping[str, Any] | None:
        content = self.files.get(path)
        return None if content is None else json.loads(content)

    def _foreign(self, path: str, cluster_id: str) -> bool:
        return path in self.files and f'"{cluster_id}"' not in self.files[path].decode()

    def _stands(self, mark: Mapping[str, Any]) -> bool:
        for member in mark.get("members") or ():
            there = self._mark_at(f"{member['root']}/.sky/cluster.json")
            if there and there.get("cluster_id") == mark.get("cluster_id"):
                return True
        return False

    # The agent's channel.

    def _bridge(self, channel: ByteChannel) -> int:
        with self.lab.changed:
            agent = self.agent
            if agent is None:
                return 3
            self._channels.append(channel)
        try:
            agent.serve(channel)
        finally:
            with self.lab.changed:
                if channel in self._channels:
                    self._channels.remove(channel)
        return 0

    def _hang_up(self) -> None:
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def check_up(self) -> None:
        """Raises ConnectError when it is cut off."""
        if not self.up:
            raise ConnectError(f"no route to {self.name}", host=self.name, step="connect")


def _done(stdout: str, *, code: int = 0, stderr: str = "") -> Completed:
    return Completed(returncode=code, stdout=stdout.encode() + (b"\n" if stdout else b""), stderr=stderr.encode())

