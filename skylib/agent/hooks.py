"""A hook: what the user wants done on the head before a cluster is stopped or given back. It runs once and is bounded.

It runs below a supervisor, as a job's rank does, so that it goes on while the agent is begun anew; a directory that can be
made only once is the claim that it was begun.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from typing import Any, Dict, List, Mapping, Optional

from .account import user_environment
from .config import AgentConfig
from .lease import boot_time, identity
from .processes import Process, end, is_alive, own, with_descendants
from .protocol import TOKEN_VARIABLE
from .supervisor import STARTED, Spec, write_file

__all__ = ["log_of", "run_hook"]

_log = logging.getLogger(__name__)
_SUPERVISE = "import sys; sys.path.insert(0, sys.argv[1]); from skylib_agent.supervisor import main; main()"
_ANSWER_S = 30.0
_STARTING_S = 60.0
_GRACE_S = 3.0
_POLL_S = 0.05
_TIMED_OUT = 124


def log_of(config: AgentConfig, event: str) -> str:
    """What the hook prints, as SkyPilot has it."""
    return os.path.join(config.sky, "hooks", f"{event}.log")


async def run_hook(
    config: AgentConfig, event: str, script: str, timeout_s: float, *, answer_s: float = _ANSWER_S
) -> Dict[str, Any]:
    """Runs it, or waits for one that was begun before; {"event", "code", "seconds"}, code 124 when its time was over.

    It never raises: what goes wrong is "error" in the answer, and the cluster ends all the same. Cancelled, it goes on by
    itself. answer_s: for its supervisor to say that it stands.
    """
    began = boot_time()
    try:
        state_dir = os.path.join(config.sky, "hooks", f".{event}-{_digest(config)}")
        await asyncio.get_event_loop().run_in_executor(None, _begin, config, event, script, state_dir, answer_s)
        began = float(_read(os.path.join(state_dir, "began")) or began)
        code = await _wait(state_dir, began + timeout_s)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        _log.warning("the %s hook could not be run: %s", event, exc)
        return {"event": event, "code": None, "error": str(exc) or type(exc).__name__}
    if code != 0:
        why = f"did not end within {timeout_s:g} s" if code == _TIMED_OUT else f"ended with exit code {code}"
        _log.warning("the %s hook %s; see %s", event, why, log_of(config, event))
    return {"event": event, "code": code, "seconds": round(boot_time() - began, 1)}


def _digest(config: AgentConfig) -> str:
    return hashlib.sha256(identity(config).encode()).hexdigest()[:16]


def _begin(config: AgentConfig, event: str, script: str, state_dir: str, answer_s: float) -> None:
    """Once. Raises OSError with what went wrong."""
    if _claim(config, state_dir):
        _start(config, event, script, state_dir, answer_s)


def _claim(config: AgentConfig, state_dir: str) -> bool:
    """Whether it is ours to begin."""
    folder = os.path.dirname(state_dir)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for older in glob.glob(os.path.join(glob.escape(folder), ".*-*")):
        if not older.endswith(_digest(config)):
            _forget(older)
    try:
        os.mkdir(state_dir, 0o700)
    except FileExistsError:
        return False
    write_file(os.path.join(state_dir, "began"), repr(boot_time()).encode())
    return True


def _forget(state_dir: str) -> None:
    """What is left of a hook of an earlier beginning."""
    try:
        for name in os.listdir(state_dir):
            os.unlink(os.path.join(state_dir, name))
        os.rmdir(state_dir)
    except OSError as exc:
        _log.debug("%s: %s", state_dir, exc)


def _start(config: AgentConfig, event: str, script: str, state_dir: str, answer_s: float) -> None:
    """Raises OSError with what went wrong."""
    log = log_of(config, event)
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    environ = user_environment(os.environ, config.env)
    spec = Spec(
        state_dir=state_dir,
        log=log,
        workdir=config.root,
        marker="",
        script=script,
        environ=environ,
        task={"SKYPILOT_HOOK_EVENT": event, TOKEN_VARIABLE: config.cluster_id},
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _SUPERVISE, config.bundle_of(config.me)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environ, TOKEN_VARIABLE: config.cluster_id},
        cwd=config.root,
        start_new_session=True,
    ) as process:  # which reaps it
        try:
            answer, _ = process.communicate(spec.to_bytes(), timeout=answer_s)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise OSError(f"its supervisor did not answer within {answer_s:g} s") from exc
    if answer != STARTED:
        raise OSError(answer.decode("utf-8", "replace") or "its supervisor did not start")


async def _wait(state_dir: str, until: float) -> int:
    """Its exit code; 124 when its time was over, after which nothing of it runs. Raises OSError when nobody knows."""
    while True:
        done = _ended(state_dir)
        if done is not None:
            return done
        if boot_time() >= until:
            await asyncio.get_event_loop().run_in_executor(None, _end, state_dir)
            return _TIMED_OUT
        await asyncio.sleep(_POLL_S)


def _end(state_dir: str) -> None:
    end(lambda: _processes(state_dir), grace_s=_GRACE_S)


def _ended(state_dir: str) -> Optional[int]:
    """None while it runs."""
    for _ in (1, 2):  # its end may be written down between two looks
        text = _read(os.path.join(state_dir, "exit"))
        if text:
            return int(json.loads(text)["code"])
        pids = _pids(state_dir)
        if pids and is_alive(*pids["supervisor"]):
            return None
    if pids:
        raise OSError("its supervisor was ended from outside")
    if time.time() - os.stat(state_dir).st_mtime > _STARTING_S:
        raise OSError("it did not start")
    return None


def _processes(state_dir: str) -> List[Process]:
    """Its supervisor and all below."""
    pids = _pids(state_dir)
    if not pids:
        return []
    processes = own()
    pid, start = pids["supervisor"]
    if pid not in processes or processes[pid].start != start:
        return []
    return [processes[each] for each in sorted(with_descendants(processes, [pid]))]


def _pids(state_dir: str) -> Mapping[str, Any]:
    text = _read(os.path.join(state_dir, "pids"))
    found: Mapping[str, Any] = json.loads(text) if text else {}
    return found


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode()
    except FileNotFoundError:
        return ""
