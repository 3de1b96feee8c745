"""What one node does for the head's agent: starts ranks, reports their output and their ends, ends their processes.

Lives in the standing actor of the node (or in the agent itself). All that matters is in files, so that a new one goes on
where the last one was. Ranks are named by a key, (task id, phase, rank), where phase is "setup" or "run".
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from .config import AgentConfig, NodeConfig, load_config
from .identity import boot_id
from .processes import Process, carrying, end, is_alive, own, read_environ, with_descendants
from .supervisor import ENDED, STARTED, Spec
from .tail import Piece, Tail

__all__ = ["Key", "NodeService", "to_key", "user_environment"]

Key = Tuple[str, str, int]

_OURS = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES", "NEURON_RT_VISIBLE_CORES"),
        *("TPU_VISIBLE_CHIPS", "OMP_NUM_THREADS", "PYTHONBREAKPOINT", "SPT_NOENV", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT"),
        *("PYTHONPATH", "PYTHONHOME", "SHLVL", "_", "OLDPWD"),
    }
)
_PREFIXES = ("RAY_", "SKYLIB_", "SKYPILOT_")
_SUPERVISE = "import sys; sys.path.insert(0, sys.argv[1]); from skylib_agent.supervisor import main; main()"
_MAX_BATCH = 4 << 20
_FIRST_PAUSE_S = 0.004
_LAST_PAUSE_S = 0.04
_ANSWER_S = 30.0
_STARTING_S = 60.0


def to_key(value: Sequence[Any]) -> Key:
    """Keys travel as lists."""
    return (str(value[0]), str(value[1]), int(value[2]))


def user_environment(environ: Mapping[str, str], env: str) -> Dict[str, str]:
    """What the account's own processes would have: nothing that Ray or we put there."""
    kept = {name: value for name, value in environ.items() if name not in _OURS and not name.startswith(_PREFIXES)}
    ours = os.path.join(env, "bin") if env else ""
    path = [entry for entry in kept.get("PATH", "").split(":") if entry and entry != ours]
    kept["PATH"] = ":".join(path) or "/usr/local/bin:/usr/bin:/bin"
    return kept


class _Watched:
    """A rank that is looked after: its log, and its end once that is known."""

    def __init__(self, state_dir: str, log: str, offset: int) -> None:
        self.state_dir = state_dir
        self.tail = Tail(log, offset)
        self.pids: Optional[Dict[str, Any]] = None

    def ended(self, boot: str) -> Optional[Dict[str, Any]]:
        """None while it runs. {"code", "signal", "at"}, or {"lost": why} when nobody wrote down how it ended."""
        for name in (ENDED, "exit"):  # a rank that was ended with the cluster may say anything of how it ended
            record = _read_json(os.path.join(self.state_dir, name))
            if record is not None:
                return record
        if self.pids is None:
            self.pids = _read_json(os.path.join(self.state_dir, "pids"))
        if self.pids is None:
            return self._unstarted()
        if self.pids["boot"] != boot:
            return {"lost": "the node was started anew"}
        if is_alive(*self.pids["supervisor"]):
            return None
        record = _read_json(os.path.join(self.state_dir, "exit"))  # written between the two looks
        return record if record is not None else {"lost": "its supervisor was ended from outside"}

    def _unstarted(self) -> Optional[Dict[str, Any]]:
        """Neither pids nor an end are written down: it is being started, unless that takes too long."""
        try:
            age = time.time() - os.stat(self.state_dir).st_mtime
        except FileNotFoundError:
            return {"lost": "it was never started, or its files are gone"}
        return {"lost": "it did not start"} if age > _STARTING_S else None


class PollReply(NamedTuple):
    """unknown: ranks that the caller follows and this service does not know (it is a new one): to be watched anew."""

    pieces: List[Tuple[Key, Piece]]
    ends: List[Tuple[Key, Dict[str, Any]]]
    unknown: List[Key]


class NodeService:
    """Safe from many threads: calls come as the head sends them, with one `poll` waiting at a time."""

    def __init__(self, config_path: str, bundle: str) -> None:
        self.config: AgentConfig = load_config(config_path)
        self._bundle = bundle
        self._boot = boot_id()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._watched: Dict[Key, _Watched] = {}

    def hello(self) -> Dict[str, Any]:
        return {"rank": self.config.rank, "pid": os.getpid(), "boot": self._boot}

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
        marker = str(spec.get("marker") or "")
        self._spawn(
            Spec(
                state_dir=state_dir,
                log=log,
                workdir=str(spec.get("workdir") or os.path.join(self.config.root, "sky_workdir")),
                marker=self._marker(marker) if marker else "",
                script=str(spec["script"]),
                environ=self._environment(),
                task={str(name): str(value) for name, value in spec["task_env"].items()},
            )
        )
        return "started"

    def _environment(self) -> Dict[str, str]:
        """The account's own: that which the node's agent was started with; Ray's is a bare one."""
        environ: Mapping[str, str] = os.environ
        holder = _read_json(os.path.join(self.config.sky, "agent.lock"))
        if holder is not None and is_alive(int(holder["pid"]), int(holder["start"])):
            environ = read_environ(int(holder["pid"])) or environ
        return user_environment(environ, self.config.env)

    def _spawn(self, spec: Spec) -> None:
        """Raises OSError with what went wrong."""
        environ = self._environment()
        environ["SKYLIB_CLUSTER_ID"] = self.config.cluster_id
        environ["SKYLIB_RANK"] = str(self.config.rank)
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _SUPERVISE, self._bundle],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            cwd=self.config.root,
            start_new_session=True,
        )
        try:
            answer, errors = process.communicate(spec.to_bytes(), timeout=_ANSWER_S)
        except subprocess.TimeoutExpired as exc:
            raise OSError(f"the rank's supervisor did not answer within {_ANSWER_S:.0f} s") from exc
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        if not answer:
            raise OSError(f"the rank's supervisor did not start: {errors.decode('utf-8', 'replace')[-2000:]}")
        if answer != STARTED:
            raise OSError(answer.decode("utf-8", "replace"))

    def watch(self, key: Sequence[Any], log_dir: str, offset: int) -> None:
        """From now on `poll` reports this rank, its log from `offset` on."""
        key = to_key(key)
        state_dir, log = self._places(key, log_dir)
        with self._lock:
            self._watched[key] = _Watched(state_dir, log, offset)
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
        if unknown:
            return PollReply([], [], unknown)
        until = time.monotonic() + timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            self._changed.clear()
            reply = self._look()
            now = time.monotonic()
            if reply.pieces or reply.ends or now >= until:
                return reply
            with self._lock:
                idle = not self._watched
            self._changed.wait(until - now if idle else min(pause, until - now))
            pause = min(pause * 1.5, _LAST_PAUSE_S)

    def _look(self) -> PollReply:
        with self._lock:
            watched = list(self._watched.items())
        reply = PollReply([], [], [])
        room = _MAX_BATCH
        for key, rank in watched:
            if room <= 0:
                break
            ended = rank.ended(self._boot)  # before its log is read: what it wrote is there now
            offset = rank.tail.offset
            while room > 0:
                piece = rank.tail.read(time.monotonic(), last=ended is not None)
                if piece is None:
                    if ended is not None:
                        reply.ends.append((key, ended))
                    break
                reply.pieces.append((key, piece))
                room -= len(piece.data)
                rank.tail.taken(piece)
                if ended is None and len(piece.data) < 1024:
                    break
            rank.tail.offset = offset  # moves on when the head has said so
        return reply

    def kill(self, task_id: str, phase: str, ranks: Optional[Sequence[int]], grace_s: float) -> Dict[str, List[int]]:
        """Ends the whole process tree of a job on this node, or of some ranks of a phase; answers when that is done."""
        variable = "SKYPILOT_SETUP_NODE_RANK" if phase == "setup" else "SKYPILOT_NODE_RANK"
        wanted = None if ranks is None else set(ranks)
        phase = "" if wanted is None else phase
        shells = self._shells(task_id, phase, wanted)

        def find() -> List[Process]:
            processes = own()
            values = processes.values()
            if wanted is None:
                pids = carrying(values, {"SKYPILOT_TASK_ID": task_id})
            else:
                pids = set()
                for rank in wanted:
                    pids |= carrying(values, {"SKYPILOT_TASK_ID": task_id, variable: str(rank)})
            sessions = {pid for pid, start in shells if pid not in processes or processes[pid].start == start}
            pids |= {process.pid for process in values if process.session in sessions}
            pids = with_descendants(processes, pids) | self._adopted(processes, task_id, phase, wanted)
            pids.discard(os.getpid())
            return [processes[pid] for pid in pids]

        result = end(find, grace_s=grace_s)
        return {"ended": result.ended, "survivors": result.survivors}

    def _state_dirs(self, task_id: str, phase: str, ranks: Optional[Set[int]]) -> List[str]:
        """Of a job on this node; of one phase, if one is named, and of some ranks, if there are any."""
        base = os.path.join(self.config.jobs_state, task_id)
        found = []
        for name in os.listdir(base) if task_id and os.path.isdir(base) else []:
            its_phase, _, rank = name.partition("-")
            if (not phase or its_phase == phase) and (ranks is None or int(rank) in ranks):
                found.append(os.path.join(base, name))
        return found

    def _pids(self, task_id: str, phase: str, ranks: Optional[Set[int]]) -> List[Dict[str, Any]]:
        """Recorded pids of this boot."""
        records = [_read_json(os.path.join(path, "pids")) for path in self._state_dirs(task_id, phase, ranks)]
        return [record for record in records if record is not None and record["boot"] == self._boot]

    def _shells(self, task_id: str, phase: str, ranks: Optional[Set[int]]) -> List[Tuple[int, int]]:
        return [(record["shell"][0], record["shell"][1]) for record in self._pids(task_id, phase, ranks)]

    def _adopted(self, processes: Mapping[int, Process], task_id: str, phase: str, ranks: Optional[Set[int]]) -> Set[int]:
        """Everything below the ranks' supervisors, whatever it has done to its session and environment."""
        found: Set[int] = set()
        for record in self._pids(task_id, phase, ranks):
            pid, start = record["supervisor"]
            if pid in processes and processes[pid].start == start:
                found |= with_descendants(processes, [pid]) - {pid}
        return found

    def forget(self, task_id: str) -> None:
        """The job has ended: what was kept to look after it is removed."""
        with self._lock:
            for key in [key for key in self._watched if key[0] == task_id]:
                del self._watched[key]
        for path in self._state_dirs(task_id, "", None):
            _remove(os.path.join(path, "script"))

    def setup_done(self, marker: str, task_id: str) -> bool:
        """Whether a job other than this one has set this node up so."""
        return os.path.exists(self._marker(marker)) and not self._state_dirs(task_id, "setup", None)

    def _marker(self, marker: str) -> str:
        return os.path.join(self.config.sky, "setup_done", os.path.basename(marker))

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

    def _places(self, key: Key, log_dir: str) -> Tuple[str, str]:
        """(state directory, log file) of a rank on this node."""
        task_id, phase, rank = key
        me: NodeConfig = self.config.me
        name = f"{rank}-{me.label}.log" if phase == "run" else f"setup-{rank}-{me.label}.log"
        state_dir = os.path.join(self.config.jobs_state, task_id, f"{phase}-{rank}")
        return state_dir, os.path.join(self.config.logs, os.path.basename(log_dir), "tasks", name)


def _read_json(path: str) -> Optional[Dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            loaded: Dict[str, Any] = json.loads(file.read().decode())
            return loaded
    except (OSError, ValueError):
        return None


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
