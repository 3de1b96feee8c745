"""Agents for tests: nodes are folders, the agent is in this process or the real daemon, the client is plain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from skylib.agent.cgroups import remove
from skylib.agent.config import AgentConfig, load_config
from skylib.agent.daemon import Daemon
from skylib.agent.link import RankError, Ranks
from skylib.agent.node import NodeService
from skylib.agent.processes import Process, carrying, end, own
from skylib.agent.tree import read_json
from skylib.runtime.agent_bundle import Bundle, build_bundle

__all__ = [
    "AgentSaid",
    "Client",
    "InProcessAgent",
    "NodeFolders",
    "command_lines",
    "connect",
    "end_everything",
    "run_daemon",
    "until",
]


@lru_cache
def the_bundle() -> Bundle:
    return build_bundle()


def until(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """What the condition gave once it was true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        time.sleep(0.005)


def command_lines() -> dict[int, bytes]:
    """Of this account's processes: words with a NUL after each, by pid."""
    found = {}
    for pid in own():
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


@dataclass
class NodeFolders:
    """Configurations of a cluster whose nodes are folders. gpus: models by rank."""

    base: Path
    count: int = 2
    gpus: Mapping[int, list[str]] = field(default_factory=dict)
    custom: Mapping[int, dict[str, float]] = field(default_factory=dict)
    cpus: float = 4
    ip: str = "127.0.0.1"
    ray_port: int = 1
    env: str = ""
    temp_dir: str = "/nonexistent"
    cluster_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    autostop: Mapping[str, Any] | None = None

    def write(self) -> list[AgentConfig]:
        nodes = [self._node(rank) for rank in range(self.count)]
        configs = []
        for node in nodes:
            root = Path(node["root"])
            bundle = the_bundle()
            (root / ".sky" / "agent").mkdir(parents=True, exist_ok=True)
            (root / ".sky" / "agent" / f"{bundle.sha256}.pyz").write_bytes(bundle.data)
            config = {
                "protocol": 1,
                "cluster": "train",
                "cluster_id": self.cluster_id,
                "rank": node["rank"],
                "role": "worker" if node["rank"] else "head",
                "root": str(root),
                "temp_dir": self.temp_dir,
                "env": self.env,
                "socket": str(root / ".sky" / "agent.sock"),
                "ray_port": self.ray_port,
                "head_ip": self.ip,
                "node_ip": self.ip,
                "infra": "ssh/lab",
                "user": "alice",
                "bundle": bundle.sha256,
                "nodes": nodes,
                "autostop": self.autostop,
            }
            path = root / ".sky" / "agent.json"
            path.write_text(json.dumps(config))
            configs.append(load_config(str(path)))
        return configs

    def _node(self, rank: int) -> dict[str, Any]:
        models = self.gpus.get(rank, [])
        return {
            "rank": rank,
            "host": f"host{rank}",
            "ip": self.ip,
            "root": str(self.base / f"n{rank}"),
            "cpus": self.cpus,
            "memory_gib": 8.0,
            "gpus": [{"index": index, "name": name, "memory_gib": 80.0, "uuid": ""} for index, name in enumerate(models)],
            "custom": self.custom.get(rank, {}),
        }


class DirectRanks(Ranks):
    """The nodes without Ray: their services are in this process. `cut` takes a node away; `reset` gives it a new service."""

    def __init__(self, configs: list[AgentConfig]) -> None:
        super().__init__()
        self._configs = configs
        self._made: list[NodeService] = []
        self._services = {config.rank: self._service(config) for config in configs}
        self.reserved: dict[str, list[dict[str, float]]] = {}
        self.refusing = ""

    def _service(self, config: AgentConfig) -> NodeService:
        service = NodeService(config.path, config.bundle_of(config.me))
        self._made.append(service)
        return service

    def close(self) -> None:
        """After the last call: what the services hold of this process is given back."""
        for service in self._made:
            service.close()

    def reset(self, rank: int) -> None:
        self._services[rank] = self._service(self._configs[rank])

    def cut(self, rank: int) -> None:
        self.nodes[rank]["alive"] = False
        del self._services[rank]

    def bring_back(self, rank: int) -> None:
        self.reset(rank)
        self.nodes[rank]["alive"] = True
        self.on_change()

    async def run(self) -> None:
        self.version, self.up = "none", True
        for config in self._configs:
            resources = {"CPU": 4.0, f"skylib_rank_{config.rank}": 1.0}
            node = {"rank": config.rank, "node_id": f"id{config.rank}", "ip": config.node_ip, "alive": True}
            self.nodes[config.rank] = {**node, "resources": resources}
            self.standing[config.rank] = self._services[config.rank].hello()
        self.on_change()
        await asyncio.Event().wait()

    async def call(self, rank: int, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if rank not in self._services:
            raise RankError("node", "the node is gone")
        service = self._services[rank]
        if method == "poll":
            args = (*args[:2], min(args[2], 0.5))  # so that no thread is left waiting at the end
        work = asyncio.get_running_loop().run_in_executor(None, lambda: getattr(service, method)(*args))
        try:
            return await asyncio.wait_for(work, timeout_s)
        except OSError as exc:
            raise RankError(type(exc).__name__, str(exc)) from exc

    async def reserve(self, name: str, bundles: list[dict[str, float]]) -> bool:
        if self.refusing:
            raise RankError("RpcError", self.refusing)
        self.reserved[name] = bundles
        return True

    async def release(self, name: str) -> None:
        self.reserved.pop(name, None)

    async def keep(self, names: list[str]) -> None:
        for name in set(self.reserved) - set(names):
            del self.reserved[name]


class InProcessAgent:
    """The head's agent in a thread, on nodes without Ray. May be stopped and begun anew on the same folders.

    options: of Daemon, for its next beginnings.
    """

    def __init__(self, folders: NodeFolders) -> None:
        self.folders = folders
        self.configs = folders.write()
        self.head = self.configs[0]
        self.options: dict[str, Any] = {}
        self.ranks: DirectRanks
        self._daemon: Daemon
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        listening = threading.Event()

        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self.ranks = DirectRanks(self.configs)
            self._daemon = Daemon(self.head, self.ranks, **self.options)
            await self._daemon.run(listening.set)

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()
        assert listening.wait(10)

    def stop(self) -> None:
        """Lets go, as a daemon that is told to leave: jobs go on."""
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._daemon.leave)
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None
            self.ranks.close()

    def cut(self, rank: int) -> None:
        self._loop.call_soon_threadsafe(self.ranks.cut, rank)

    def bring_back(self, rank: int) -> None:
        self._loop.call_soon_threadsafe(self.ranks.bring_back, rank)

    def lose(self, rank: int, why: str) -> None:
        self._loop.call_soon_threadsafe(self._daemon.engine.collector.lose, rank, why)

    def close(self) -> None:
        self.stop()
        end_everything(self.configs)


def end_everything(configs: list[AgentConfig]) -> None:
    """Ends what a test's jobs left behind: processes that carry a task id or the token of that cluster, never this one."""
    tasks = {name for config in configs if os.path.isdir(config.jobs_state) for name in os.listdir(config.jobs_state)}

    def find() -> list[Process]:
        processes = own()
        pids = carrying(processes.values(), {"SKYLIB_CLUSTER_ID": configs[0].cluster_id})
        for task in tasks:
            pids |= carrying(processes.values(), {"SKYPILOT_TASK_ID": task})
        return [processes[pid] for pid in pids - {os.getpid()}]

    end(find, grace_s=0.0)
    for config in configs:
        for path in Path(config.jobs_state).glob("*/*/pids"):
            group = (read_json(str(path)) or {}).get("cgroup")
            if group:
                remove(str(group))


class Client:
    """Speaks the protocol over the socket itself, one request at a time, unless `send` and `answer` are used."""

    def __init__(self, path: str, *, protocol: int = 1) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        self._number = 0
        self.raw({"hello": {"protocol": protocol, "client": "test"}})
        self.hello = self.line()

    def raw(self, message: object) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def line(self) -> dict[str, Any]:
        text = self._file.readline()
        if not text:
            raise EOFError
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    def send(self, verb: str, **args: Any) -> int:
        self._number += 1
        self.raw({"id": self._number, "verb": verb, "args": args})
        return self._number

    def stream(self, verb: str, **args: Any) -> Iterator[dict[str, Any]]:
        """Items; ends at "ok". Raises AgentSaid for an error."""
        number = self.send(verb, **args)
        while True:
            message = self.line()
            if "ask" in message:
                self.raw({"id": 0, "verb": "ping", "args": {}})
                continue
            if message["id"] == 0:
                continue
            assert message["id"] == number
            if "item" in message:
                yield message["item"]
            elif "error" in message:
                raise AgentSaid(message["error"])
            else:
                self.ok = message["ok"]
                return

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        for _ in self.stream(verb, **args):
            pass
        ok: dict[str, Any] = self.ok
        return ok

    def submit(self, run: str = "", **spec: Any) -> int:
        return int(self.call("submit", job={"name": "job", "run": run, **spec})["job_id"])

    def done(self, job_id: int, *, timeout_s: float = 40) -> dict[str, Any]:
        """The job once it has ended."""
        job: dict[str, Any] = self.call("wait", job_id=job_id, timeout_s=timeout_s)["job"]
        return job

    def job(self, job_id: int) -> dict[str, Any]:
        job: dict[str, Any] = self.call("job", job_id=job_id)["job"]
        return job

    def when(self, job_id: int, status: str) -> dict[str, Any]:
        return dict(until(lambda: (job := self.job(job_id))["status"] == status and job))

    def log(self, job_id: int, *, offset: int = 0, follow: bool = True) -> list[dict[str, Any]]:
        return list(self.stream("logs", job_id=job_id, offset=offset, follow=follow))

    def text(self, job_id: int) -> str:
        """What the job printed, without prefixes; pieces of a line are joined."""
        return "".join(item["text"] + ("" if item["partial"] else "\n") for item in self.log(job_id))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def connect(agent: InProcessAgent) -> Client:
    """A client of an agent whose nodes are ready."""
    client = Client(agent.head.socket)
    client.call("ready", timeout_s=10)
    return client


class AgentSaid(Exception):
    """The agent's error, as it said it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['kind']}: {error['message']}: {error}")
        self.error = error
        self.kind = error["kind"]


def run_daemon(python: str, config: AgentConfig, *flags: str, environ: Mapping[str, str] | None = None) -> None:
    """Starts the real daemon; returns when its socket accepts."""
    argv = [python, config.bundle_of(config.me), "daemon", "--config", config.path, *flags]
    done = subprocess.run(argv, capture_output=True, timeout=60, env={**os.environ, **(environ or {})}, check=False)
    assert done.returncode == 0, done.stderr.decode() + Path(config.log_file).read_text()
