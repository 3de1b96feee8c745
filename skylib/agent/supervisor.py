"""Runs one rank: starts its shell, waits, writes down how it ended. Needs neither Ray nor the agent to stay alive.

Started with a specification as JSON on stdin (secrets never touch argv or a file); answers one JSON line on stdout.
Files in its state directory: `script`, `pids` (JSON), `exit` (JSON), each complete as soon as it exists.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any, Dict, List, Mapping, NoReturn, Optional

from .processes import boot_id, read

__all__ = ["main", "write_file"]

_PR_SET_CHILD_SUBREAPER = 36
_LOG_FD = 3

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


def write_file(path: str, data: bytes) -> None:
    """Whoever sees the file sees all of it."""
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def _write_json(path: str, value: object) -> None:
    write_file(path, json.dumps(value).encode())


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii()


def _environment(spec: Mapping[str, Any]) -> Dict[str, str]:
    """Of the first shell. A variable that bash cannot name is passed as it is."""
    environment = {str(name): str(value) for name, value in spec["env"].items()}
    names: List[str] = []
    for name, value in spec["task_env"].items():
        if _is_name(name):
            names.append(name)
            environment[f"SKYLIB_E_{name}"] = str(value)
            if name.startswith("SKYPILOT_"):
                environment[name] = str(value)
        else:
            environment[name] = str(value)
    environment["SKYLIB_NAMES"] = " ".join(names)
    environment["SKYLIB_SCRIPT"] = os.path.join(str(spec["state_dir"]), "script")
    environment["SKYLIB_WORKDIR"] = str(spec["workdir"])
    return environment


def _become_shell(spec: Mapping[str, Any], log: int) -> NoReturn:
    """In the child: a session of its own, stdin empty, the log as fd 3 until the login shell has read its files."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        os.dup2(log, _LOG_FD)
        os.set_inheritable(_LOG_FD, True)
        os.closerange(_LOG_FD + 1, 256)
        os.chdir(str(spec["workdir"]))
        argv = ["bash", "--noprofile", "--norc", "-i", "-c", _LOGIN]
        os.execvpe("bash", argv, _environment(spec))
    except OSError as exc:
        os.write(_LOG_FD, f"the shell could not be started: {exc}\n".encode())
    finally:
        os._exit(127)


def _adopt_orphans() -> None:
    """Processes that detach themselves become our children while the shell lives, so that cancel finds them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait(shell: int) -> int:
    """Wait status of the shell; adopted orphans are reaped on the way."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == shell:
            return status


def _exit_record(status: int) -> Dict[str, Any]:
    number: Optional[int] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = 128 + number if number is not None else os.WEXITSTATUS(status)
    return {"code": code, "signal": number, "at": time.time()}


def _supervise(spec: Mapping[str, Any], answer: int) -> None:
    state_dir = str(spec["state_dir"])
    write_file(os.path.join(state_dir, "script"), str(spec["script"]).encode("utf-8", "surrogateescape"))
    os.makedirs(str(spec["workdir"]), exist_ok=True)
    log = os.open(str(spec["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    shell = os.fork()
    if shell == 0:
        _become_shell(spec, log)
    os.close(log)
    me, it = read(os.getpid()), read(shell)
    pids = {"supervisor": [os.getpid(), me.start if me else 0], "shell": [shell, it.start if it else 0], "boot": boot_id()}
    _write_json(os.path.join(state_dir, "pids"), pids)
    os.write(answer, json.dumps(pids).encode() + b"\n")
    os.close(answer)
    _adopt_orphans()
    record = _exit_record(_wait(shell))
    if record["code"] == 0 and spec.get("done_marker"):
        os.makedirs(os.path.dirname(str(spec["done_marker"])), exist_ok=True)
        write_file(str(spec["done_marker"]), b"")
    _write_json(os.path.join(state_dir, "exit"), record)


def main() -> int:
    """Forks once more, so that nobody's child is the supervisor, and returns at once in the first process."""
    spec = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"))
    if os.fork():
        os._exit(0)
    os.setsid()
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.close(null)
    try:
        _supervise(spec, answer)
    except OSError as exc:
        record = {"code": 127, "signal": None, "at": time.time(), "error": str(exc)}
        _write_json(os.path.join(str(spec["state_dir"]), "exit"), record)
        os.write(answer, json.dumps({"error": str(exc)}).encode() + b"\n")
    return 0
