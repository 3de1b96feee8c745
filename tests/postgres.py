"""A real PostgreSQL for tests: one server for a session, one database for a test. Debian's packages; nobody else's cluster.

The server runs under a temporary directory as an unprivileged account (`postgres` when we are root), listens on
127.0.0.1 at a free port, asks for passwords (scram-sha-256) and syncs to disk. It is ended by its recorded pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

__all__ = [
    "PASSWORD",
    "Server",
    "close_shared_server",
    "missing_postgres",
    "running_server",
    "shared_server",
    "tests_skipped",
]

PASSWORD = "s3cr%t/p@ss:w?rd&#+é"
_ACCOUNT = "postgres"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "16MB",
    "log_min_messages": "warning",
}


def _programs() -> Path | None:
    """Debian keeps them out of PATH: /usr/lib/postgresql/<version>/bin; the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def missing_postgres() -> str | None:
    """Why there can be no server here; None when there can be one."""
    if _programs() is None:
        return "no initdb: install Debian's package postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_ACCOUNT)
        except KeyError:
            return f"root cannot run PostgreSQL, and there is no account {_ACCOUNT}"
    return None


class Server:
    """One server and its data. `url` is a database of it; `start` and `kill` are for tests of its absence."""

    def __init__(self) -> None:
        """Skips the test, loudly, where there can be none."""
        missing = missing_postgres()
        programs = _programs()
        if missing is not None or programs is None:
            _shared.skipped.append(f"no PostgreSQL: {missing}")
            pytest.skip(_shared.skipped[-1])
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="skylib-pg-", dir="/tmp"))
        self._data = self.folder / "data"
        self._account = pwd.getpwnam(_ACCOUNT) if os.geteuid() == 0 else None
        self._numbers = itertools.count(1)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def url(
        self, database: str = "postgres", *, user: str = "sky", password: str = PASSWORD, port: int | None = None
    ) -> str:
        """With the password, percent-encoded."""
        encoded = "".join(char if char.isalnum() and char.isascii() else _encoded(char) for char in password)
        return f"postgresql://{user}:{encoded}@127.0.0.1:{port or self.port}/{database}"

    def new_database(self) -> str:
        """An empty one; its URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def run(self, statement: str | sql.Composable, *parameters: object, database: str = "postgres") -> list[tuple]:  # type: ignore[type-arg]
        """One statement by the administrator."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """And wait until it takes connections."""
        log = (self.folder / "log").open("ab")
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self._become, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Immediate shutdown: no checkpoint, no good-byes; as after a crash, the next start recovers from the log."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD + "\n", encoding="utf-8")
        if self._account is not None:
            for path in (self.folder, password_file):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", "sky", "-A", "scram-sha-256", "-N"]
        command += [f"--pwfile={password_file}", "-E", "UTF8", "--locale=C.UTF-8"]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=self._become, cwd="/", check=False)
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr[-2000:]}")

    def _become(self) -> None:
        """In the child: the unprivileged account, and nothing of root's."""
        if self._account is not None:
            os.setgroups([])
            os.setgid(self._account.pw_gid)
            os.setuid(self._account.pw_uid)
        os.chdir("/")
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT))  # no server outlives its tests


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A server of one's own, for tests that stop it."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


class _Shared:
    """The session's server, made when it is first asked for."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.pid = 0
        self.skipped: list[str] = []

    def get(self) -> Server:
        if self.server is None or self.pid != os.getpid():
            self.server, self.pid = Server(), os.getpid()
        return self.server

    def close(self) -> None:
        if self.server is not None and self.pid == os.getpid():
            self.server.close()
        self.server = None


_shared = _Shared()


def shared_server() -> Server:
    """The session's server; conftest.py ends it."""
    return _shared.get()


def close_shared_server() -> None:
    """At the end of the session."""
    _shared.close()


def tests_skipped() -> list[str]:
    """A reason for each test that there was no server for."""
    return list(_shared.skipped)


def _encoded(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
