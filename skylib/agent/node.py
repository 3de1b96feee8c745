"""What one node does for the head's agent: starts ranks, reports their output and their ends, ends their processes.

Lives in the standing actor of the node (or in the agent itself). All that matters is in files, so that a new one goes on
where the last one was. Ranks are named by a key, (task id, phase, rank); phase is "setup", or "run" ("run@2": 2nd retry).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import doors
from .account import Beginning, beginning_of, user_environment
from .cgroups import make, may_make_in, memory_kills
from .config import AgentConfig, NodeConfig, load_config
from .evidence import disk_is_full, end_record, is_failure, last_lines
from .identity import boot_id
from .lease import Lease
from .phases import stream_of
from .processes import carrying, is_alive, own, with_descendants
from .starts import Starts
from .supervisor import ENDED, Spec, forget_oom_score, write_file
from .tail import MAX_PIECE, Piece, Tail
from .tree import JobTree, read_json, state_dirs
from .waking import Wakeup
from .zygote import Zygote

__all__ = ["Key", "NodeService", "to_key"]

Key = Tuple[str, str, int]

_MAX_BATCH = 2 << 20
_LEAST_PIECE = 1 << 14
_FIRST_PAUSE_S = 0.004
_LAST_PAUSE_S = 0.04
_TOLD_PAUSE_S = 0.5  # where files tell that they have changed; a supervisor that was killed tells nothing
_PACE_S = 0.02  # between answers with a few lines each, while more of them come
_FLOOD_PACE_S = 0.05  # and with many: 40 MB/s of a node are more than a client reads
_FEW_BYTES = 1 << 16
_STARTING_S = 60.0
_UNWRITTEN_S = 5.0
_MOST_OVER = 4


def to_key(value: Sequence[Any]) -> Key:
    """Keys travel as lists."""
    return (str(value[0]), str(value[1]), int(value[2]))


class _Watched:
    """A rank that is looked after: its log, and its end once that is known. places: directories that it writes to."""

    def __init__(self, state_dir: str, log: str, offset: int, places: Sequence[str]) -> None:
        self.state_dir = state_dir
        self.log_dir = os.path.dirname(log)
        self.tail = Tail(log, offset)
        self._log = log
        self._places = [self.log_dir, *places]
        self._pids: Optional[Dict[str, Any]] = None
        self._end: Optional[Dict[str, Any]] = None
        self._alone_since: Optional[float] = None

    def ended(self, boot: str) -> Optional[Dict[str, Any]]:
        """None while it runs; else the record of its end, see protocol.py, with its age now."""
        if self._end is None:
            found = self._find_end(boot)
            if found is None:
                return None
            self._end = found if "lost" in found else end_record(found, self._log, self._places)
        mono, at = self._end.get("mono"), self._end.get("at")
        now = time.monotonic()
        age = now - mono if mono is not None and mono <= now else time.time() - at if at is not None else 0.0
        return {**self._end, "age_s": max(age, 0.0)}

    def _find_end(self, boot: str) -> Optional[Dict[str, Any]]:
        for name in (ENDED, "exit"):  # a rank that was ended with the cluster may say anything of how it ended
            record = read_json(os.path.join(self.state_dir, name))
            if record is not None:
                return record
        if self._pids is None:
            self._pids = read_json(os.path.join(self.state_dir, "pids"))
        if self._pids is None:
            return self._unstarted()
        if self._pids["boot"] != boot:
            return {"lost": "the node was started anew"}
        if is_alive(*self._pids["supervisor"]):
            return self._unwritten()
        record = read_json(os.path.join(self.state_dir, "exit"))  # written between the two looks
        return record if record is not None else self._orphaned()

    def _orphaned(self) -> Dict[str, Any]:
        """Nobody saw how it ended, or it has not."""
        pids = self._pids or {}
        before, file = pids.get("kills", -1), str(pids.get("kills_file") or "")
        if file and 0 <= before < memory_kills(file):
            return {"code": 137, "signal": 9, "oom": True}
        return {"lost": "its supervisor was ended from outside", "last_lines": last_lines(self._log)}

    def _unwritten(self) -> Optional[Dict[str, Any]]:
        """Its supervisor lives. When its shell does not and its end is not written down, there is no room for it."""
        if is_alive(*(self._pids or {})["shell"]):
            return None
        now = time.monotonic()
        self._alone_since = self._alone_since or now
        if now - self._alone_since < _UNWRITTEN_S:
            return None
        full = disk_is_full([self.state_dir])
        return {"lost": "the disk is full: how it ended could not be written down", "reason": "disk_full"} if full else None

    def _unstarted(self) -> Optional[Dict[str, Any]]:
        """Neither pids nor an end are written down: it is being started, unless that takes too long."""
        try:
            age = time.time() - os.stat(self.state_dir).st_mtime
        except FileNotFoundError:
            return {"lost": "it was never started, or its files are gone"}
        return {"lost": "it did not start"} if age > _STARTING_S else None


class PollReply(NamedTuple):
    """unknown: ranks that the caller follows and this service does not know (it is a new one): to be watched anew.

    failing: ranks that failed while more of their logs is still to be told; their ends come when it is.
    """

    pieces: List[Tuple[Key, Piece]]
    ends: List[Tuple[Key, Dict[str, Any]]]
    unknown: List[Key]
    failing: List[Tuple[Key, Dict[str, Any]]]


class NodeService:
    """Safe from many threads: calls come as the head sends them, with one `poll` waiting at a time."""

    def __init__(self, config_path: str, bundle: str) -> None:
        self.config: AgentConfig = load_config(config_path)
        self._bundle = bundle
        self._boot = boot_id()
        self._lock = threading.Lock()
        self._changed = Wakeup()
        self._polls = 0
        self._answered_at = 0.0
        self._watched: Dict[Key, _Watched] = {}
        self._over: List[str] = []  # jobs that have ended and of which something still ran, the latest of them
        self._model: Optional[Beginning] = None
        self._starts = Starts()
        self._zygote = Zygote(bundle, self.config.root, self._supervisors_environment)

    def hello(self) -> Dict[str, Any]:
        forget_oom_score()  # else this is the first to be killed when a job takes all memory
        self._zygote.warm()
        return {"rank": self.config.rank, "pid": os.getpid(), "boot": self._boot}

    def close(self) -> None:
        """When no call is under way and none will come: for a service that does not end with its process."""
        self._changed.close()
        self._zygote.close()

    def start(self, spec: Mapping[str, Any]) -> str:
        """Starts a rank, once: "started", or "exists" when it was started before. Raises OSError with what went wrong.

        spec: task_id, phase, rank, log_dir (name below the node's log directory), script, task_env, workdir, marker.
        """
        key: Key = (str(spec["task_id"]), str(spec["phase"]), int(spec["rank"]))
        state_dir, log = self._places(key, str(spec["log_dir"]))
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        os.makedirs(os.path.dirname(state_dir), mode=0o700, exist_ok=True)
        try:
            os.mkdir(state_dir, 0o700)
        except FileExistsError:
            return "exists"
        with self._starts.one(key[0]):
            if self._tree(key[0]).closed:
                raise OSError("the job was ended before this rank was started")
            os.symlink(log, os.path.join(state_dir, "log"))
            marker = str(spec.get("marker") or "")
            account = self._account()
            self._zygote.start(
                Spec(
                    state_dir=state_dir,
                    log=log,
                    workdir=str(spec.get("workdir") or self._workdir),
                    marker=self._marker(marker) if marker else "",
                    script=str(spec["script"]),
                    environ=account.environ,
                    task={str(name): str(value) for name, value in spec["task_env"].items()},
                    cgroup=self._own_group(key),
                    limits=account.limits,
                    umask=account.umask,
                    oom_score=account.oom_score,
                )
            )
        return "started"

    @property
    def _workdir(self) -> str:
        return os.path.join(self.config.root, "sky_workdir")

    def _own_group(self, key: Key) -> str:
        """A control group for the rank alone, where the account may make one; else ""."""
        place = may_make_in()
        path = os.path.join(place, "skylib-" + "-".join(map(str, key)).replace("/", "_"))
        return path if place and make(path) else ""

    def _account(self) -> Beginning:
        """As the node's agent was started, which is as the account starts its programs; remembered while it is away."""
        holder = read_json(os.path.join(self.config.sky, "agent.lock"))
        if holder is not None and is_alive(int(holder["pid"]), int(holder["start"])):
            self._model = beginning_of(int(holder["pid"]), self.config.env)
        return self._model or beginning_of(os.getpid(), self.config.env)

    def _supervisors_environment(self) -> Dict[str, str]:
        environ = dict(self._account().environ)
        environ["SKYLIB_CLUSTER_ID"] = self.config.cluster_id
        environ["SKYLIB_RANK"] = str(self.config.rank)
        return environ

    def watch(self, key: Sequence[Any], log_dir: str, offset: int) -> None:
        """From now on `poll` reports this rank, its log from `offset` on."""
        key = to_key(key)
        state_dir, log = self._places(key, log_dir)
        with self._lock:
            self._watched[key] = _Watched(state_dir, log, offset, [self.config.root, self._workdir])
        self._changed.set()

    def poll(self, taken: Sequence[Tuple[Sequence[Any], int]], done: Sequence[Sequence[Any]], timeout_s: float) -> PollReply:
        """What is new, as soon as something is; empty at the timeout.

        taken: by rank, the offset that the head has got to; done: ranks whose end it has got. What was not confirmed in
        this way comes again.
        """
        with self._lock:
            for key in map(to_key, done):
                self._watched.pop(key, None)
            offsets = {to_key(key): offset for key, offset in taken}
            for key, offset in offsets.items():
                if key in self._watched:
                    self._watched[key].tail.offset = offset
            unknown = [key for key in offsets if key not in self._watched]
            self._polls = number = self._polls + 1
        if unknown:
            return PollReply([], [], unknown, [])
        self._changed.set()  # one that waits for a head that is gone ends
        until = time.monotonic() + timeout_s
        pause = _FIRST_PAUSE_S
        woken = True
        while True:
            self._changed.clear()
            if number != self._polls:
                self._changed.set()  # what it was woken by is for the other
                return PollReply([], [], [], [])
            told = self._watch_files()
            reply = self._look()
            now = time.monotonic()
            early = self._early(reply, now)
            if not early and (reply.pieces or reply.ends or now >= until):
                if told and not woken and any(not piece.open for _, piece in reply.pieces):
                    self._changed.missed()
                self._answered_at = now
                return reply
            with self._lock:
                idle = not self._watched
                held = any(rank.tail.held for rank in self._watched.values())
            if early:
                time.sleep(early)
                continue
            if held:
                time.sleep(_FIRST_PAUSE_S)  # it may grow by single bytes
            longest = until - now if idle else _TOLD_PAUSE_S if told and not held else pause
            woken = self._changed.wait(min(longest, until - now)) or held
            pause = min(pause * 1.5, _LAST_PAUSE_S)

    def _watch_files(self) -> bool:
        """Whether all that is looked after tells when it changes."""
        with self._lock:
            folders = {path for rank in self._watched.values() for path in (rank.state_dir, rank.log_dir)}
        return self._changed.watch(sorted(folders))

    def _early(self, reply: PollReply, now: float) -> float:
        """Seconds to wait for more, when something was told just now. A flood is told in few answers: it is the job that
        the processors are for.
        """
        if not reply.pieces or reply.ends:
            return 0.0
        flood = sum(len(piece.data) for _, piece in reply.pieces) >= _FEW_BYTES
        return max(self._answered_at + (_FLOOD_PACE_S if flood else _PACE_S) - now, 0.0)

    def _look(self) -> PollReply:
        """In turns, so that one rank that writes without end keeps no other's lines waiting."""
        with self._lock:
            watched = list(self._watched.items())
        reply = PollReply([], [], [], [])
        room = _MAX_BATCH
        most = min(MAX_PIECE, max(_MAX_BATCH // max(len(watched), 1), _LEAST_PIECE))
        offsets = [(rank, rank.tail.offset) for _, rank in watched]
        left = [(key, rank, rank.ended(self._boot)) for key, rank in watched]  # before its log is read: all is there then
        while left and room > 0:
            turn, left = left, []
            for key, rank, ended in turn:
                try:
                    piece = rank.tail.read(time.monotonic(), last=ended is not None, most=most)
                except OSError:  # it is read another time, its end told then; the other ranks do not wait for it
                    continue
                if piece is None:
                    if ended is not None:
                        reply.ends.append((key, ended))
                    continue
                reply.pieces.append((key, piece))
                room -= len(piece.data)
                rank.tail.taken(piece)
                if ended is not None or len(piece.data) >= 1024:
                    left.append((key, rank, ended))
        reply.failing.extend((key, ended) for key, _, ended in left if ended is not None and is_failure(ended))
        for rank, offset in offsets:
            rank.tail.offset = offset  # moves on when the head has said so
        return reply

    def kill(
        self, task_id: str, phase: str, ranks: Optional[Sequence[int]], grace_s: float, final: bool = False
    ) -> Dict[str, List[int]]:
        """Ends the whole process tree of a job on this node, or of some ranks of a phase; answers when that is done.

        final: no rank of the job is started here afterwards, not even one whose start is on its way.
        """
        begun = partial(self._starts.wait, task_id, _STARTING_S)
        return self._tree(task_id).kill(phase, ranks, grace_s, final=final, begun=begun)

    def _tree(self, task_id: str) -> JobTree:
        return JobTree(self.config.jobs_state, self._boot, task_id)

    def lease(self, lease_s: Optional[float], left_s: float) -> None:
        """What the head says of the cluster's lease, for this node's agent. Raises OSError."""
        Lease(self.config).told(lease_s, left_s)

    def forget(self, task_id: str, ended: bool = False) -> None:
        """The job is looked after no more: its scripts go. ended: for good, as is written down: so does all but its name."""
        with self._lock:
            for key in [key for key in self._watched if key[0] == task_id]:
                del self._watched[key]
        self._tree(task_id).tidy()
        with self._lock:
            over, self._over = [*self._over, *([task_id] if ended else [])], []
        left = [name for name in over if not self._tree(name).remove()]
        with self._lock:
            self._over = [*self._over, *left][-_MOST_OVER:]

    def running(self) -> List[str]:
        """Task ids of jobs whose ranks were started here in this boot and still have a supervisor or a shell."""
        found = []
        for task_id in os.listdir(self.config.jobs_state) if os.path.isdir(self.config.jobs_state) else []:
            records = JobTree(self.config.jobs_state, self._boot, task_id).records()
            pids = [record.pids.get(who) or (0, 0) for record in records for who in ("supervisor", "shell")]
            if any(pid and is_alive(pid, start) for pid, start in pids):
                found.append(task_id)
        return sorted(found)

    def setup_done(self, marker: str, task_id: str) -> bool:
        """Whether a job other than this one has set this node up so."""
        mine = state_dirs(os.path.join(self.config.jobs_state, task_id)) if task_id else []
        return os.path.exists(self._marker(marker)) and not any(os.path.basename(path).startswith("setup-") for path in mine)

    def _marker(self, marker: str) -> str:
        return os.path.join(self.config.sky, "setup_done", os.path.basename(marker))

    def note_end(self, record: Mapping[str, Any]) -> None:
        """The cluster gives itself up: written down here as the head does for itself. Raises OSError."""
        write_file(os.path.join(self.config.sky, "stopped.json"), json.dumps(record).encode())

    def end_node(self, delay_s: float, grace_s: float) -> List[int]:
        """Has everything of this cluster on this node ended after a moment, this process included; says what there is."""
        processes = own()
        pids = with_descendants(processes, carrying(processes.values(), {"SKYLIB_CLUSTER_ID": self.config.cluster_id}))
        environ = user_environment(os.environ, self.config.env)
        argv = [sys.executable, "-S", "-E", self._bundle, "end", "--config", self.config.path]
        argv += ["--cluster-id", self.config.cluster_id]
        argv += ["--grace-s", str(grace_s), "--after-s", str(delay_s), "--detach"]
        subprocess.run(argv, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return sorted(pids)

    def listening(self) -> List[int]:
        """See doors.py."""
        return doors.listening(self.config)

    def try_doors(self, ips: Sequence[str], ports: Sequence[int], source: str) -> List[Tuple[int, str]]:
        """See doors.py."""
        return doors.try_doors(ips, ports, source)

    def _places(self, key: Key, log_dir: str) -> Tuple[str, str]:
        """(state directory, log file) of a rank on this node."""
        task_id, phase, rank = key
        me: NodeConfig = self.config.me
        name = f"{rank}-{me.label}.log" if stream_of(phase) == "run" else f"setup-{rank}-{me.label}.log"
        state_dir = os.path.join(self.config.jobs_state, task_id, f"{phase}-{rank}")
        return state_dir, os.path.join(self.config.logs, os.path.basename(log_dir), "tasks", name)
