"""Becoming the agent's process: detached from whoever started it, the only one of its node, until it is told to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys

from .config import AgentConfig, load_config
from .daemon import Daemon
from .guardian import LEFT, NEVER_READY, guard
from .hold import take_over, wait_for_ends, write_holder
from .link import Ranks, RayLink
from .protocol import TOKEN_VARIABLE

__all__ = ["main"]

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_AGAIN_S = 30.0


def _detach(config: AgentConfig, report: int) -> None:
    """A session of its own, nobody's child, stdio to the log; `report` stays open."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(config.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _serve(config: AgentConfig, report: int, *, asleep: bool, guardian: int = 0) -> int:
    """The exit code: LEFT, NEVER_READY, or 1 when it has failed later. guardian: its pid, 0 for none."""
    listening = False
    try:
        lock = take_over(config, asleep=asleep)
        if lock < 0:
            os.write(report, b"already")
            return LEFT
        write_holder(lock, config, listens=False, asleep=asleep, guardian=guardian)

        def ready() -> None:
            nonlocal listening
            write_holder(lock, config, listens=True, asleep=asleep, guardian=guardian)
            os.write(report, b"ready")
            os.close(report)
            listening = True

        async def run() -> None:
            daemon = Daemon(config, Ranks() if asleep else RayLink(config), asleep=asleep)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_event_loop().add_signal_handler(number, daemon.leave)
            watch = asyncio.ensure_future(_miss_guardian(guardian)) if guardian else None
            await daemon.run(ready)
            if watch is not None:
                watch.cancel()

        asyncio.run(run())
        return LEFT
    except BaseException as exc:
        _log.exception("the agent failed")
        if listening:  # nobody waits for a report, whose number may be another file's by now
            return 1
        try:
            os.write(report, f"failed: {exc!r}".encode())
        except OSError:
            pass
        return NEVER_READY


async def _miss_guardian(guardian: int) -> None:
    """When the guardian has ended before us, another agent is started, with a guardian of its own, that takes our place."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if os.getppid() == guardian:
            continue
        _log.error("the guardian has died: another agent, with one of its own, takes over")
        argv = [sys.executable, *sys.argv]
        null = subprocess.DEVNULL
        subprocess.Popen(argv, stdin=null, stdout=null, start_new_session=True)  # has us leave, and outlives us
        await asyncio.sleep(_AGAIN_S)


def _watch_over(config: AgentConfig, report: int) -> int:
    def wanted() -> bool:
        """This node's configuration still is the one that this agent serves; another one has an agent of its own."""
        try:
            now = load_config(config.path)
        except (OSError, ValueError, KeyError):
            return False
        return (now.cluster_id, now.bundle) == (config.cluster_id, config.bundle)

    me = os.getpid()
    return guard(lambda handle: _serve(load_config(config.path), handle, asleep=False, guardian=me), report, wanted)


def _wait_for_ends(config_path: str, parent: int) -> bool:
    """Without the mark, by which they would find us. False when who began us is gone: an end that came since then has
    not seen us."""
    wait_for_ends(config_path, wanted=lambda: os.getppid() == parent)
    return os.getppid() == parent


def main(config_path: str, *, asleep: bool = False) -> int:
    """Returns 0 as soon as the agent's socket accepts, 1 with the reason on stderr otherwise.

    Prints "ready", or "already" when an agent that will do ran before.

    asleep: one that only reads; see protocol.py.
    """
    parent = os.getppid()
    config = load_config(config_path)
    if os.environ.get(TOKEN_VARIABLE) != config.cluster_id:
        if asleep and not _wait_for_ends(config_path, parent):
            sys.stderr.write("who asked for the agent is gone\n")
            return 1
        environ = {**os.environ, TOKEN_VARIABLE: config.cluster_id}
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
    os.makedirs(config.sky, mode=0o700, exist_ok=True)
    answer, report = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(answer)
        _detach(config, report)
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        os._exit(_serve(config, report, asleep=True) if asleep else _watch_over(config, report))
    os.close(report)
    os.waitpid(first, 0)
    said = b""
    while True:
        data = os.read(answer, 4096)
        said += data
        if not data or said in (b"ready", b"already"):
            break
    if said in (b"ready", b"already"):
        sys.stdout.write(f"{said.decode()}\n")
        return 0
    sys.stderr.write(f"the agent did not start ({said.decode() or 'it said nothing'}); see {config.log_file}\n")
    return 1
