"""The agent of a scripted node: answers requests of the protocol from a small model of jobs, Ray and idleness."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from skylib.agent.protocol import PROTOCOL, TERMINAL
from skylib.errors import ConnectError
from skylib.transport.base import ByteChannel

if TYPE_CHECKING:
    from tests.scripted_node import ScriptedHost

__all__ = ["Refused", "ScriptedAgent"]

_READING = frozenset({"info", "queue", "job", "wait", "logs", "log_files"})
_LINE = "hello\n"
_PACE = 20.0  # time goes so much faster here: nothing takes long, so nothing is waited for long


class Refused(Exception):
    """The agent's error reply."""

    def __init__(self, kind: str, message: str, **facts: object) -> None:
        super().__init__(message)
        self.reply = {"kind": kind, "message": message, **facts}


class ScriptedAgent:
    """One run of a node's agent; what it must remember is in the host's files. A job whose script is "sleep" runs on."""

    def __init__(self, host: ScriptedHost, config: Mapping[str, Any], *, asleep: bool) -> None:
        self._host = host
        self._lab = host.lab
        self.config = config
        self.cluster_id: str = config["cluster_id"]
        self.asleep = asleep
        self._stopped = f"{host.layout.sky}/stopped.json"
        if config["role"] == "head" and not asleep:
            self._wake()

    def _wake(self) -> None:
        self._host.files.pop(self._stopped, None)
        kept = self._kept()
        for job in kept["jobs"]:
            if job["status"] not in TERMINAL:
                job["status"] = "FAILED_DRIVER"
        if kept.get("cluster_id") != self.cluster_id:
            kept.update(cluster_id=self.cluster_id, autostop=self.config["autostop"], lease_s=self.config["lease_s"])
        self._keep(kept)

    # What is asked.

    def serve(self, channel: ByteChannel) -> None:
        """Talk on one channel until its other side is gone."""
        rest = b""
        while data := channel.receive():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "hello" in message:
                    self._say(channel, self._hello())
                elif message.get("verb") in ("ready", "wait"):
                    work = threading.Thread(target=self._reply, args=(channel, message), daemon=True)
                    work.start()
                elif "verb" in message:
                    self._reply(channel, message)

    def _hello(self) -> dict[str, object]:
        hello = {"protocol": PROTOCOL, **{name: self.config[name] for name in ("bundle", "cluster", "cluster_id", "role")}}
        return {"hello": {**hello, **({"asleep": True} if self.asleep else {})}}

    def _reply(self, channel: ByteChannel, message: Mapping[str, Any]) -> None:
        number, verb = message["id"], message["verb"]
        try:
            with self._lab.changed:
                if self.asleep and verb not in _READING:
                    raise Refused("asleep", "the cluster is stopped; its agent only reads")
                if self._host.agent is not self:
                    return
                act = getattr(self, f"_{verb}")
                answer = act(message["args"], lambda item: self._say(channel, {"id": number, "item": item}))
            self._say(channel, {"id": number, "ok": answer})
        except Refused as refused:
            self._say(channel, {"id": number, "error": refused.reply})

    def _say(self, channel: ByteChannel, message: Mapping[str, object]) -> None:
        try:
            channel.send(json.dumps(message).encode() + b"\n")
        except ConnectError:
            pass  # who asked is gone

    # Verbs; called with the lab's condition held.

    def _ready(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        until = time.monotonic() + float(args["timeout_s"]) / _PACE
        while missing := [node["rank"] for node in self.config["nodes"] if node["rank"] not in self._alive()]:
            left = until - time.monotonic()
            if left <= 0 or self._host.agent is not self:
                raise Refused("not_ready", "not all nodes are ready", missing_ranks=missing, detail="Ray answers")
            self._lab.changed.wait(left)
        nodes = [{"rank": each["rank"], "node_id": f"n{each['rank']}", "ip": each["ip"]} for each in self.config["nodes"]]
        return {"nodes": nodes, "ray_version": "2.9.3", "gcs_address": "", "seconds": 0.0}

    def _info(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        alive = self._alive()
        who = {name: self.config[name] for name in ("cluster", "cluster_id", "role", "bundle")}
        return {
            **who,
            "pid": 1,
            "started_at": 0.0,
            "now": time.time(),
            "asleep": self.asleep,
            "ray_ok": self.config["rank"] in alive,
            "alive_ranks": alive,
            "autostop": self._kept().get("autostop"),
            "lease_s": self._kept().get("lease_s"),
            "idle_s": 0.0,
            "stopping": False,
            "active_jobs": len([job for job in self._kept()["jobs"] if job["status"] not in TERMINAL]),
            **({"ray": dict(self._host.ray_said)} if self._host.ray_said is not None else {}),
        }

    def _submit(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        spec, kept = args["job"], self._kept()
        for job in kept["jobs"]:
            if job["key"] == spec["key"]:
                return {"job_id": job["job_id"], "adopted": True, "task_id": job["task_id"]}
        number = len(kept["jobs"]) + 1
        job = {
            "job_id": number,
            "name": spec["name"],
            "status": "RUNNING" if spec["run"] == "sleep" else "SUCCEEDED",
            "num_nodes": spec["num_nodes"],
            "submitted_at": time.time(),
            "key": spec["key"],
            "task_id": f"t{number}",
            "log_dir": f"{self._host.layout.job_logs}/{number}",
            "signals": [],
            "first_cause": None,
            "attempt": 0,
        }
        self._host.files[f"{job['log_dir']}/run.log"] = _LINE.encode()
        self._keep({**kept, "jobs": [*kept["jobs"], job]})
        return {"job_id": number, "adopted": False, "task_id": job["task_id"]}

    def _submit_many(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        return {"jobs": [self._submit({"job": spec}, send) for spec in args["jobs"]]}

    def _queue(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        jobs = self._kept()["jobs"]
        return {"jobs": [job for job in jobs if args.get("all", True) or job["status"] not in TERMINAL]}

    def _job(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        for job in reversed(self._kept()["jobs"]):
            if args["job_id"] in (None, job["job_id"]):
                return {"job": job}
        raise Refused("not_found", "there is no such job")

    def _wait(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        return self._job(args, send)

    def _cancel(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        kept = self._kept()
        chosen = [job for job in kept["jobs"] if job["status"] not in TERMINAL]
        if not args["all"]:
            chosen = [job for job in chosen if job["job_id"] in args["job_ids"]]
        for job in chosen:
            job["status"] = "CANCELLED"
        self._keep(kept)
        nothing: dict[str, list[object]] = {"ended": [], "survivors": [], "nodes_unreached": []}
        return {"cancelled": [{"job_id": job["job_id"], **nothing} for job in chosen]}

    def _logs(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        job = self._job(args, send)["job"]
        end = len(_LINE)
        if args["offset"] < end:
            line = {"rank": 0, "node": self._host.name, "stream": "run", "text": _LINE.strip(), "time": 0.0}
            send({**line, "offset": 0, "next_offset": end})
        return {"job": job, "offset": end}

    def _autostop(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        idle = args["idle_minutes"]
        setting = {"idle_minutes": idle, "down": args["down"]} if idle >= 0 else None
        self._keep({**self._kept(), "autostop": setting})
        return {}

    def _lease(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        self._keep({**self._kept(), "lease_s": args["lease_s"]})
        return {"lease_s": args["lease_s"], "lease_left_s": args["lease_s"]}

    def _ping(self, args: Mapping[str, Any], send: Callable[[object], None]) -> dict[str, object]:
        return {}

    # What it does by itself.

    def idle(self) -> None:
        """Time has passed without a job: the timer, if there is one, stops the cluster on all nodes that are reached."""
        with self._lab.changed:
            kept = self._kept()
            setting = kept.get("autostop")
            busy = any(job["status"] not in TERMINAL for job in kept["jobs"])
            if setting is None or busy or self.asleep or self.config["role"] != "head":
                return
            record = {"at": time.time(), "reason": "autostop", "down": setting["down"], "cluster_id": self.cluster_id}
            self._host.files[self._stopped] = json.dumps({**record, "stopping": False}).encode()
            for node in self.config["nodes"]:
                host = self._lab.by_ip(node["ip"])
                if host.up:
                    host.kill([each for each in host.processes.values() if each.cluster_id == self.cluster_id])

    # Its memory.

    def _alive(self) -> list[int]:
        """Ranks whose Ray the head's Ray sees."""
        if "ray" not in self._host.kinds(self.cluster_id):
            return []
        found = []
        for node in self.config["nodes"]:
            host = self._lab.by_ip(node["ip"])
            if (host is self._host or host.up) and "ray" in host.kinds(self.cluster_id):
                found.append(node["rank"])
        return found

    def _kept(self) -> dict[str, Any]:
        content = self._host.files.get(f"{self._host.layout.sky}/jobs.db")
        return json.loads(content) if content else {"jobs": []}

    def _keep(self, kept: Mapping[str, Any]) -> None:
        self._host.files[f"{self._host.layout.sky}/jobs.db"] = json.dumps(kept).encode()
