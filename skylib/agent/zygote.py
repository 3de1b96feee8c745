"""Starts the supervisors of ranks: by a fork of a process that has all of it loaded, or, without one, as a program.

A new Python that loads the supervisor takes 20 to 40 ms of a processor; a fork takes 1. The warm process is single-threaded,
nobody's child, and ends when the service that began it is gone. It knows nothing of any job: each request is one end of a
socket pair, passed to it, on which the fork reads its specification and gives its answer.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import socket
import subprocess
import sys
import threading
from typing import Callable, Dict, NoReturn, Optional, Tuple

from .supervisor import STARTED, Spec, stand

__all__ = ["Zygote", "serve"]

_IMPORT = "import sys; sys.path.insert(0, sys.argv[1]); "
_WARM = _IMPORT + "from skylib_agent.zygote import serve; serve()"
_COLD = _IMPORT + "from skylib_agent.supervisor import main; main()"
_ANSWER_S = 30.0
_RIGHTS_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)


class Zygote:
    """Of one service; safe from many threads. environ: what supervisors begin with, asked for at each start of a program."""

    def __init__(self, bundle: str, cwd: str, environ: Callable[[], Dict[str, str]]) -> None:
        self._bundle = bundle
        self._cwd = cwd
        self._environ = environ
        self._lock = threading.Lock()
        self._control: Optional[socket.socket] = None

    def warm(self) -> None:
        """Has the warm process begun, unless there is one. Without one everything works, only slower."""
        with self._lock:
            if self._control is not None:
                return
            try:
                ours, theirs = socket.socketpair()
                with theirs:
                    process = self._program(_WARM, stdin=theirs.fileno(), output=subprocess.DEVNULL)
            except OSError:
                return
            self._control = ours
        threading.Thread(target=process.wait, daemon=True).start()  # it forks away from us at once

    def start(self, spec: Spec) -> None:
        """Starts a supervisor; returns when its shell runs. Raises OSError with what went wrong."""
        data = spec.to_bytes()
        answer = self._ask(data)
        errors = b""
        if not answer and not os.path.exists(os.path.join(spec.state_dir, "script")):  # nobody has begun with it
            answer, errors = self._start_cold(data)
        if not answer:
            raise OSError(f"the rank's supervisor did not start: {errors.decode('utf-8', 'replace')[-2000:]}")
        if answer != STARTED:
            raise OSError(answer.decode("utf-8", "replace"))

    def close(self) -> None:
        """Ends the warm process, if there is one; what it has started goes on."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._control = None

    def _ask(self, data: bytes) -> bytes:
        """What a fork of the warm process answered; nothing when there is no such process, or it could not fork."""
        self.warm()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                if not self._pass_on(theirs.fileno()):
                    return b""
            ours.settimeout(_ANSWER_S)
            parts = []
            try:
                ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)
                while True:
                    part = ours.recv(1 << 16)
                    if not part:
                        break
                    parts.append(part)
            except socket.timeout as exc:
                raise OSError(f"the rank's supervisor did not answer within {_ANSWER_S:.0f} s") from exc
            except (BrokenPipeError, ConnectionResetError):
                pass  # the warm process ended: what is there is the answer
            return b"".join(parts)

    def _pass_on(self, handle: int) -> bool:
        rights = array.array("i", [handle]).tobytes()
        with self._lock:
            if self._control is None:
                return False
            try:
                self._control.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                return True
            except OSError:  # it is gone: the next start begins another
                self._control.close()
                self._control = None
                return False

    def _start_cold(self, data: bytes) -> Tuple[bytes, bytes]:
        process = self._program(_COLD, stdin=subprocess.PIPE, output=subprocess.PIPE)
        try:
            answer, errors = process.communicate(data, timeout=_ANSWER_S)
        except subprocess.TimeoutExpired as exc:
            raise OSError(f"the rank's supervisor did not answer within {_ANSWER_S:.0f} s") from exc
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        return answer, errors

    def _program(self, code: str, *, stdin: int, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", code, self._bundle],
            stdin=stdin,
            stdout=output,
            stderr=output,
            env=self._environ(),
            cwd=self._cwd,
            start_new_session=True,
        )


def serve() -> NoReturn:
    """The warm process: a socket on stdin; a fork for each socket that comes over it; until that is closed."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with socket.socket(fileno=os.dup(0)) as control:
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        os.close(null)
        importlib.import_module("ctypes")  # the supervisor's own later need
        gc.collect()
        gc.freeze()
        while True:
            data, rights, _, _ = control.recvmsg(1, _RIGHTS_BYTES)
            if not data:
                os._exit(0)
            for _, _, handles in rights:
                _fork(int.from_bytes(handles[:4], sys.byteorder), control)


def _fork(request: int, control: socket.socket) -> None:
    """The fork's fork is nobody's child. When there can be none, closing the socket says so."""
    try:
        child = os.fork()
    except OSError:
        os.close(request)
        return
    if child:
        os.close(request)
        os.waitpid(child, 0)
        return
    try:
        control.close()
        if os.fork() == 0:
            _become_supervisor(request)
    finally:
        os._exit(0)


def _become_supervisor(request: int) -> NoReturn:
    parts = []
    while True:
        part = os.read(request, 1 << 16)
        if not part:
            break
        parts.append(part)
    stand(Spec.from_bytes(b"".join(parts)), request)
