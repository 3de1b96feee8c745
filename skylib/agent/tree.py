"""A job's processes on one node: found whatever they did to hide, and ended.

Known by what they inherited from their rank: its control group where it has one, its session, the supervisor above them (it
adopts orphans), the job's environment variable, and the rank's log as their output. Each of these can be shed; whoever is
there when the supervisor ends is written down by it.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from . import cgroups
from .phases import stream_of
from .processes import Ended, Process, carrying, end, everyone, is_alive, of_this_account, with_descendants

__all__ = ["JobTree", "Record", "left_behind", "read_json", "state_dirs", "still_there"]

CLOSED = "closed"  # beside the ranks' directories of a job: nothing of it is to be started any more


class Record(NamedTuple):
    """What is known of one rank: its directory, and what its supervisor wrote down, {} until then."""

    path: str
    pids: Mapping[str, Any]

    def matches(self, phase: str, ranks: Optional[Set[int]]) -> bool:
        its_phase, _, rank = os.path.basename(self.path).rpartition("-")
        return (not phase or its_phase == phase) and (ranks is None or int(rank) in ranks)


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """A JSON object; None when there is no whole one."""
    try:
        with open(path, "rb") as file:
            loaded = json.loads(file.read().decode())
            return loaded if isinstance(loaded, dict) else None
    except (OSError, ValueError):
        return None


def state_dirs(base: str) -> List[str]:
    """<phase>-<rank> directories of a job."""
    try:
        names = os.listdir(base)
    except OSError:
        return []
    return [os.path.join(base, name) for name in sorted(names) if name.rpartition("-")[2].isdigit()]


class JobTree:
    """state: the node's directory of jobs. boot: now; pids of another boot mean nothing."""

    def __init__(self, state: str, boot: str, task_id: str) -> None:
        self._base = os.path.join(state, task_id) if task_id else ""
        self._boot = boot
        self._task_id = task_id

    def records(self) -> List[Record]:
        """Of every rank that was begun here, of this boot or none yet."""
        found = []
        for path in state_dirs(self._base) if self._base else []:
            pids = read_json(os.path.join(path, "pids")) or {}
            found.append(Record(path, pids if pids.get("boot") == self._boot else {}))
        return found

    def close(self) -> None:
        """No rank of the job is started here from now on. Raises OSError."""
        os.makedirs(self._base, mode=0o700, exist_ok=True)
        os.close(os.open(os.path.join(self._base, CLOSED), os.O_WRONLY | os.O_CREAT, 0o600))

    @property
    def closed(self) -> bool:
        return os.path.exists(os.path.join(self._base, CLOSED))

    def find(self, phase: str, ranks: Optional[Set[int]]) -> List[Process]:
        """Live processes of the job; of one phase if one is named, of some ranks if there are any. Supervisors are none."""
        records = self.records()
        everybody = everyone()
        mine = of_this_account(everybody)
        chosen = [record for record in records if record.matches(phase, ranks)]
        pids: Set[int] = set()
        for rank in [None] if ranks is None else sorted(ranks):
            pids |= carrying(mine.values(), self._variables(phase, rank))
        pids |= _writing_to(chosen, mine.values())
        if len(chosen) < len(records):  # attempts of one rank carry the same variables and write to the same log
            pids -= _inherited([record for record in records if record not in chosen], everybody)
        pids = with_descendants(everybody, pids | _inherited(chosen, everybody))
        pids -= {os.getpid(), *(_supervisor(record) for record in records)}
        return [everybody[pid] for pid in sorted(pids)]

    def _variables(self, phase: str, rank: Optional[int] = None) -> Dict[str, str]:
        variables = {"SKYPILOT_TASK_ID": self._task_id}
        if rank is not None:
            variables["SKYPILOT_SETUP_NODE_RANK" if stream_of(phase) == "setup" else "SKYPILOT_NODE_RANK"] = str(rank)
        return variables

    def kill(
        self,
        phase: str,
        ranks: Optional[Sequence[int]],
        grace_s: float,
        *,
        final: bool,
        begun: Callable[[], object] = lambda: None,
    ) -> Dict[str, List[int]]:
        """Ends the whole job on this node, or some ranks of a phase; answers {"ended", "survivors"} when that is done.

        final: no rank of the job is started here afterwards, not even one whose start is on its way. begun: waits for
        starts that did not see it.
        """
        if final:
            try:
                self.close()
            except OSError:
                pass  # a full disk keeps no job from its end
            begun()
        wanted = None if ranks is None else set(ranks)
        result = self.end("" if wanted is None else phase, wanted, grace_s)
        return {"ended": result.ended, "survivors": result.survivors}

    def end(self, phase: str, ranks: Optional[Set[int]], grace_s: float) -> Ended:
        """TERM, grace, KILL; verified. A rank with a control group of its own is killed in one stroke at the end."""
        groups = [str(record.pids["cgroup"]) for record in self.records() if self._has_group(record, phase, ranks)]

        def kill() -> None:
            for group in groups:
                cgroups.kill(group)

        result = end(lambda: self.find(phase, ranks), grace_s=grace_s, at_kill=kill)
        for group in groups:
            cgroups.remove(group)
        return result

    @staticmethod
    def _has_group(record: Record, phase: str, ranks: Optional[Set[int]]) -> bool:
        return bool(record.pids.get("cgroup")) and record.matches(phase, ranks)

    def tidy(self) -> None:
        """The job is over: scripts and empty control groups of its ranks go."""
        for record in self.records():
            try:
                os.unlink(os.path.join(record.path, "script"))
            except OSError:
                pass
            if record.pids.get("cgroup"):
                cgroups.remove(str(record.pids["cgroup"]))

    def remove(self) -> bool:
        """The job has ended for good: what was kept of its ranks goes, but not while anything of it runs (then False).

        The mark stays that it is closed, and with it the job's name: a start that comes late is refused. So does a rank
        of which no beginning is written down: it may be on its way.
        """
        try:
            self.close()
            known = {path: read_json(os.path.join(path, "pids")) for path in state_dirs(self._base)}
            mine = {path: pids for path, pids in known.items() if pids is not None and pids.get("boot") == self._boot}
            marks = [pids.get(who) or (0, 0) for pids in mine.values() for who in ("supervisor", "shell")]
            if any(pid and is_alive(pid, start) for pid, start in marks):
                return False
            if any(map(_may_have_left, mine)) and self.find("", None):
                return False
            for path in [path for path, pids in known.items() if pids is not None]:
                shutil.rmtree(path)
        except OSError:
            return False
        return True


def left_behind(path: str) -> Set[Tuple[int, int]]:
    """(pid, start) of those that were there when the rank's supervisor ended. path: the rank's directory, of this boot."""
    pairs = (read_json(os.path.join(path, "left")) or {}).get("pids") or []
    return {(int(pid), int(start)) for pid, start in pairs}


def still_there(everybody: Mapping[int, Process], marks: Iterable[Tuple[int, int]]) -> Set[int]:
    """Pids of those of them that are alive; a pid that is used again is somebody else's."""
    return {pid for pid, start in marks if pid in everybody and everybody[pid].start == start}


def _may_have_left(path: str) -> bool:
    """Whether a rank whose supervisor is gone may have left somebody behind: a supervisor that was killed says nothing."""
    return os.path.exists(os.path.join(path, "left")) or not os.path.exists(os.path.join(path, "exit"))


def _supervisor(record: Record) -> int:
    pid, start = record.pids.get("supervisor") or (0, 0)
    return pid if pid and is_alive(pid, start) else 0


def _inherited(records: Sequence[Record], everybody: Mapping[int, Process]) -> Set[int]:
    """What stands in the ranks' sessions and groups, or below their supervisors."""
    found: Set[int] = set()
    sessions: Set[int] = set()
    for record in records:
        supervisor = _supervisor(record)
        found |= with_descendants(everybody, [supervisor]) - {supervisor} if supervisor else set()
        if record.pids:
            found |= with_descendants(everybody, still_there(everybody, left_behind(record.path)))
        pid, start = record.pids.get("shell") or (0, 0)
        if pid and (pid not in everybody or everybody[pid].start == start):
            sessions.add(pid)
        if record.pids.get("cgroup"):
            found |= cgroups.pids_in(str(record.pids["cgroup"])) & set(everybody)
    return found | {process.pid for process in everybody.values() if process.session in sessions}


def _writing_to(records: Sequence[Record], processes: Iterable[Process]) -> Set[int]:
    """Those whose output is the log of one of these ranks."""
    found: Set[int] = set()
    logs = {os.path.realpath(os.path.join(record.path, "log")) for record in records}
    for process in processes if logs else ():
        for number in (1, 2):
            try:
                if os.readlink(f"/proc/{process.pid}/fd/{number}") in logs:
                    found.add(process.pid)
            except OSError:
                continue
    return found
