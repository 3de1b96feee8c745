"""Runs one rank: starts its shell, waits, writes down how it ended. Needs neither Ray nor the agent to stay alive.

Started with a specification on stdin (secrets never touch argv or a file); answers "started", or what went wrong, on
stdout. It stands between a submission and its first line, so it imports next to nothing. Files in its state directory:
`script`, `pids` (JSON), `exit` (JSON); each is complete as soon as it exists. `room` becomes `exit`: how a rank ended can be
written down although it has filled the disk.
"""

from __future__ import annotations

import _signal  # what `signal` wraps, at a cost
import importlib
import os
import sys
import time

from .cgroups import enter, kills_file, memory_kills, remove
from .identity import boot_id, stat_fields
from .strings import join, split

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes longer to import than all the rest here
    from typing import Dict, List, NoReturn, Sequence, Tuple

__all__ = ["ENDED", "STARTED", "Spec", "forget_oom_score", "main", "stand", "write_file"]

STARTED = b"started"
ENDED = "ended"  # beside `pids`, written by those who end the whole cluster: the rank did not end by itself
_PR_SET_CHILD_SUBREAPER = 36
_LOG_FD = 3
_ROOM = 160
_AGAIN_S = 0.5

# The first shell reads the account's start files as a terminal's login shell would (many of them return at once in a shell
# that is not interactive), in silence, and becomes the shell of the user's script. A start file that says `exit` does not
# keep the script from running. Variables of the task win over those of the start files. Functions that environment
# managers define reach the script.
_LOGIN = r"""
__sky_go() {
  trap - EXIT
  local n v
  for n in conda __conda_activate __conda_exe __conda_hashr __conda_reactivate mamba micromamba __mamba_exe \
           module ml _module_raw; do
    declare -F "$n" >/dev/null && export -f "$n"
  done
  unset OLDPWD
  __sky_script=$SKYLIB_SCRIPT
  cd -- "$SKYLIB_WORKDIR"
  export PYTHONUNBUFFERED=1
  for n in $SKYLIB_NAMES; do v="SKYLIB_E_$n"; export "$n=${!v}"; unset "$v"; done
  unset SKYLIB_NAMES SKYLIB_SCRIPT SKYLIB_WORKDIR OLDPWD
  unset -f __sky_go
  exec "${BASH:-bash}" "$__sky_script" >&3 2>&3 3>&-
}
trap __sky_go EXIT
__sky_done=
[ -r /etc/profile ] && . /etc/profile
for __sky_f in ~/.bash_profile ~/.bash_login ~/.profile; do
  if [ -r "$__sky_f" ]; then
    __sky_done=$(<"$__sky_f")
    . "$__sky_f"
    break
  fi
done
[[ $__sky_done == *bashrc* ]] || { [ -r ~/.bashrc ] && . ~/.bashrc; }
if ! declare -F conda >/dev/null; then
  for __sky_f in ~/miniforge3 ~/miniconda3 ~/anaconda3 /opt/conda; do
    [ -r "$__sky_f/etc/profile.d/conda.sh" ] && { . "$__sky_f/etc/profile.d/conda.sh"; break; }
  done
fi
unset __sky_f __sky_done
__sky_go
exit 127
"""


class Spec:
    """What a rank's supervisor is told. environ: the account's own; task: the task's variables, which win over start files.

    marker: a file to make when the shell has ended with 0, or "". cgroup: a group that the shell moves to, or "". limits:
    (number, soft, hard) of those to set. umask: -1 leaves it as it is. oom_score: oom_score_adj.
    """

    def __init__(
        self,
        *,
        state_dir: str,
        log: str,
        workdir: str,
        marker: str,
        script: str,
        environ: Dict[str, str],
        task: Dict[str, str],
        cgroup: str = "",
        limits: Sequence[Tuple[int, int, int]] = (),
        umask: int = -1,
        oom_score: int = 0,
    ) -> None:
        self.state_dir = state_dir
        self.log = log
        self.workdir = workdir
        self.marker = marker
        self.script = script
        self.environ = environ
        self.task = task
        self.cgroup = cgroup
        self.limits = [tuple(limit) for limit in limits]
        self.umask = umask
        self.oom_score = oom_score

    def to_bytes(self) -> bytes:
        limits = " ".join(f"{number}:{soft}:{hard}" for number, soft, hard in self.limits)
        words = [self.state_dir, self.log, self.workdir, self.marker, self.script, self.cgroup, limits, str(self.umask)]
        words += [str(self.oom_score), str(len(self.environ))]
        for variables in (self.environ, self.task):
            for name, value in variables.items():
                words += [name, value]
        return join(words)

    @classmethod
    def from_bytes(cls, data: bytes) -> Spec:
        """Raises ValueError when it is not whole."""
        words = split(data)
        pairs = list(zip(words[10::2], words[11::2]))
        count = int(words[9])
        limits = [limit.split(":") for limit in words[6].split()]
        return cls(
            state_dir=words[0],
            log=words[1],
            workdir=words[2],
            marker=words[3],
            script=words[4],
            environ=dict(pairs[:count]),
            task=dict(pairs[count:]),
            cgroup=words[5],
            limits=[(int(number), int(soft), int(hard)) for number, soft, hard in limits],
            umask=int(words[7]),
            oom_score=int(words[8]),
        )


def write_file(path: str, data: bytes) -> None:
    """Whoever sees the file sees all of it."""
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii()


def _environment(spec: Spec) -> Dict[str, str]:
    """Of the first shell. A variable that bash cannot name is passed as it is."""
    environment = dict(spec.environ)
    names: List[str] = []
    for name, value in spec.task.items():
        if _is_name(name):
            names.append(name)
            environment[f"SKYLIB_E_{name}"] = value
        if not _is_name(name) or name.startswith("SKYPILOT_"):
            environment[name] = value
    environment["SKYLIB_NAMES"] = " ".join(names)
    environment["SKYLIB_SCRIPT"] = os.path.join(spec.state_dir, "script")
    environment["SKYLIB_WORKDIR"] = spec.workdir
    return environment


def _become_shell(spec: Spec, log: int) -> NoReturn:
    """In the child: a session of its own, stdin empty, the log as fd 3 until the login shell has read its files."""
    try:
        os.setsid()
        _default_signals()
        _set_bounds(spec)
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        os.dup2(log, _LOG_FD)
        os.set_inheritable(_LOG_FD, True)
        os.closerange(_LOG_FD + 1, 256)
        os.chdir(spec.workdir)
        argv = ["bash", "--noprofile", "--norc", "-i", "-c", _LOGIN]
        os.execvpe("bash", argv, _environment(spec))
    except OSError as exc:
        os.write(_LOG_FD, f"the shell could not be started: {exc}\n".encode())
    finally:
        os._exit(127)


def _default_signals() -> None:
    """Python ignores some signals, and whoever started us may block others: none of that is the job's."""
    for number in range(1, _signal.NSIG):
        try:
            if _signal.getsignal(number) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def _set_bounds(spec: Spec) -> None:
    """A group of its own; limits and umask as other programs of the account have them. What may not be done is left."""
    if spec.cgroup:
        enter(spec.cgroup)
    if spec.umask >= 0:
        os.umask(spec.umask)
    if spec.limits:
        resource = importlib.import_module("resource")
        for number, soft, hard in spec.limits:
            try:
                resource.setrlimit(number, (soft, hard))
            except (OSError, ValueError):
                continue


def forget_oom_score(score: int = 0) -> None:
    """Ray marks its workers as the first to be killed when memory runs out; a job is as good as any other process."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        return


def _adopt_orphans() -> None:
    """Processes that detach themselves become our children while the shell lives, so that cancel finds them."""
    ctypes = importlib.import_module("ctypes")  # late: the shell runs by now
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait(shell: int) -> int:
    """Wait status of the shell; adopted orphans are reaped on the way."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == shell:
            return status


def _note_left(state_dir: str) -> None:
    """Writes down whom the shell has left behind, in `left`; no file when there is nobody.

    All of them are our children by now. Who has shed everything else could not be found any more once we are gone.
    """
    me = os.getpid()
    pairs: List[str] = []
    try:
        with open(f"/proc/self/task/{me}/children", "rb") as file:
            pids = [int(word) for word in file.read().split()]
        for pid in pids:
            fields = stat_fields(pid)
            if fields and fields[0] not in (b"Z", b"X"):
                pairs.append("[%d, %d]" % (pid, int(fields[19])))
        if not pairs:
            return
    except OSError:
        pass  # a kernel that does not tell: somebody may be left
    try:
        write_file(os.path.join(state_dir, "left"), ('{"pids": [%s]}' % ", ".join(pairs)).encode())
    except OSError:
        return  # a full disk: they are found by what they have not shed


def _keep_room(state_dir: str) -> None:
    """A file with blocks of its own. Raises OSError."""
    handle = os.open(os.path.join(state_dir, "room"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, b" " * _ROOM)
    finally:
        os.close(handle)


def _write_exit(state_dir: str, status: int, oom: bool = False) -> None:
    """Exit code as a shell says it. mono: seconds that no step of the clock changes, to tell which rank was first.

    Into the room that was kept for it; where a file system takes not even that, again until it does.
    """
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    text = '{"code": %d, "signal": %s, "oom": %s, "at": %f, "mono": %f}'
    values = (code, number or "null", "true" if oom else "false", time.time(), time.monotonic())
    room, path = os.path.join(state_dir, "room"), os.path.join(state_dir, "exit")
    while True:
        try:
            _write_over(room, (text % values).encode().ljust(_ROOM))
            os.replace(room, path)
            return
        except FileNotFoundError:
            if not os.path.isdir(state_dir):
                raise
            try:
                write_file(path, (text % values).encode())
                return
            except OSError:
                time.sleep(_AGAIN_S)
        except OSError:
            time.sleep(_AGAIN_S)


def _write_over(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(handle, data, 0)
    finally:
        os.close(handle)


def _mark_done(marker: str) -> None:
    try:
        os.makedirs(os.path.dirname(marker), exist_ok=True)
        write_file(marker, b"")
    except OSError:
        return  # a full disk: setup is done once more the next time


def _supervise(spec: Spec, answer: int) -> None:
    state_dir = spec.state_dir
    forget_oom_score(spec.oom_score)
    _keep_room(state_dir)
    write_file(os.path.join(state_dir, "script"), spec.script.encode("utf-8", "surrogateescape"))
    os.makedirs(spec.workdir, exist_ok=True)
    counter = kills_file()
    kills = memory_kills(counter) if counter else -1
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    shell = os.fork()
    if shell == 0:
        _become_shell(spec, log)
    os.close(log)
    me, it = stat_fields(os.getpid()), stat_fields(shell)
    text = '{"supervisor": [%d, %d], "shell": [%d, %d], "boot": "%s", "cgroup": "%s", "kills_file": "%s", "kills": %d}'
    pids = (os.getpid(), int(me[19]) if me else 0, shell, int(it[19]) if it else 0)
    try:
        record = text % (*pids, boot_id(), _plain(spec.cgroup), _plain(counter), kills)
        write_file(os.path.join(state_dir, "pids"), record.encode())
    except OSError:
        os.kill(shell, _signal.SIGKILL)
        raise
    os.write(answer, STARTED)
    os.close(answer)
    _adopt_orphans()
    status = _wait(shell)
    if status == 0 and spec.marker:
        _mark_done(spec.marker)
    _note_left(state_dir)
    if spec.cgroup:
        remove(spec.cgroup)  # stays while anything is left in it
    _write_exit(state_dir, status, oom=0 <= kills < memory_kills(counter))


def _plain(text: str) -> str:
    """As JSON has it between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def main() -> NoReturn:
    """Forks once more, so that the supervisor is nobody's child; the first process ends at once."""
    spec = Spec.from_bytes(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.close(null)
    stand(spec, answer)


def stand(spec: Spec, answer: int) -> NoReturn:
    """Sees one rank through, in a session of its own, as nobody's child. answer: a descriptor that is told and closed."""
    try:
        os.setsid()
        _supervise(spec, answer)
    except OSError as exc:
        os.write(answer, str(exc).encode())
    finally:
        os._exit(0)
