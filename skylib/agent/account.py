"""What the account's own processes begin with on this node: variables, limits, umask. Nothing that Ray or we added to it.

The model is the node's agent, which is started as any program of the account is; Ray raises limits, sets variables and more.
"""

from __future__ import annotations

import os
import resource
from typing import Dict, List, Mapping, NamedTuple, Tuple

from .processes import read_environ

__all__ = ["Beginning", "beginning_of", "parse_limits", "parse_umask", "user_environment"]

_OURS = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES", "NEURON_RT_VISIBLE_CORES"),
        *("TPU_VISIBLE_CHIPS", "OMP_NUM_THREADS", "PYTHONBREAKPOINT", "SPT_NOENV", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "SHLVL", "_", "OLDPWD", "PWD"),
        *("SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "SSH_AUTH_SOCK", "TERM", "XDG_SESSION_ID"),  # of one connection
    }
)
_PREFIXES = ("RAY_", "SKYLIB_", "SKYPILOT_", "CONDA_")
_LIMITS = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max nice priority": "NICE",
    "Max realtime priority": "RTPRIO",
}


def user_environment(environ: Mapping[str, str], env: str) -> Dict[str, str]:
    """What the account's own processes would have: nothing that Ray, we, or one connection put there.

    env: the directory of our own environment, which leaves PATH.
    """
    kept = {name: value for name, value in environ.items() if name not in _OURS and not name.startswith(_PREFIXES)}
    ours = {os.path.join(env, "bin")} if env else set()
    if environ.get("VIRTUAL_ENV"):
        ours.add(os.path.join(environ["VIRTUAL_ENV"], "bin"))
    path = [entry for entry in kept.get("PATH", "").split(":") if entry and entry not in ours]
    kept["PATH"] = ":".join(path) or "/usr/local/bin:/usr/bin:/bin"
    return kept


def parse_limits(text: str) -> Dict[int, Tuple[int, int]]:
    """(soft, hard) by the number that setrlimit wants, of a /proc/<pid>/limits; rows not understood are left out."""
    found: Dict[int, Tuple[int, int]] = {}
    for line in text.splitlines():
        name = line[:26].strip()
        number = getattr(resource, f"RLIMIT_{_LIMITS.get(name, '')}", None)
        values = line[26:].split()[:2]
        if number is None or len(values) < 2 or not all(value == "unlimited" or value.isdigit() for value in values):
            continue
        soft, hard = (resource.RLIM_INFINITY if value == "unlimited" else int(value) for value in values)
        found[number] = (soft, hard)
    return found


def parse_umask(text: str) -> int:
    """Of a /proc/<pid>/status; -1 when it does not say (Linux before 4.7)."""
    for line in text.splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return -1


class Beginning(NamedTuple):
    """limits: (number, soft, hard) of those that are to be set. umask: -1 leaves it. oom_score: oom_score_adj."""

    environ: Dict[str, str]
    limits: List[Tuple[int, int, int]]
    umask: int
    oom_score: int


def _text(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}") as file:
            return file.read()
    except OSError:
        return ""


def beginning_of(pid: int, env: str) -> Beginning:
    """Of the process `pid`; of this one when that one is gone."""
    environ: Mapping[str, str] = {} if pid == os.getpid() else read_environ(pid)
    environ = environ or os.environ
    limits = sorted((number, *both) for number, both in parse_limits(_text(pid, "limits")).items())
    different = [entry for entry in limits if resource.getrlimit(entry[0]) != entry[1:]]
    score = _text(pid, "oom_score_adj").strip() if pid != os.getpid() else "0"  # this one may be Ray's worker
    umask = parse_umask(_text(pid, "status"))
    return Beginning(user_environment(environ, env), different, umask, int(score or 0))
