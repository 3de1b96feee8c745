"""Where things are under a home (`~/.sky`): paths as values; nothing is created here but by `ensure` and `write`.

A home is private: `secure_home` makes it so, or refuses it. What is looked at: the home itself and what skylib keeps
directly in it, no deeper. Everything belongs to this account, or is refused. Modes that let others in are narrowed. A
link is refused in place of the home, the store, the locks, known_hosts and user_hash; folders for much data, and the
two files that people write, may be links of this account to what belongs to it, whose mode is the person's affair.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
import tempfile
from pathlib import Path

import attrs

from skylib.errors import StateError

__all__ = ["SkyHome", "default_home", "ensure_private_dir", "secure_home", "write_private"]

_STORE = ("state.db", "state.db-wal", "state.db-shm", "state.db-journal")
_NEVER_LINKS = frozenset({*_STORE, "locks", "known_hosts", "user_hash"})
_MAY_BE_LINKS = frozenset(
    {"config.yaml", "ssh_node_pools.yaml", "logs", "runtime", "catalogs", "job_logs", "api_server", "local"}
)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def default_home() -> Path:
    """`$SKY_HOME`, else `~/.sky`."""
    configured = os.environ.get("SKY_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".sky"


def _absolute(root: Path | str) -> Path:
    return Path(root).expanduser().absolute()


@attrs.frozen
class SkyHome:
    """The layout of one home. Several may live side by side."""

    root: Path = attrs.field(converter=_absolute)

    @property
    def state_db(self) -> Path:
        return self.root / "state.db"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def ssh_node_pools(self) -> Path:
        return self.root / "ssh_node_pools.yaml"

    @property
    def user_hash(self) -> Path:
        return self.root / "user_hash"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def runtime(self) -> Path:
        """Agent bundle, wheelhouse, and the Ray environments of `local` nodes."""
        return self.root / "runtime"

    @property
    def catalogs(self) -> Path:
        return self.root / "catalogs" / "v8"

    @property
    def job_logs(self) -> Path:
        """Logs of jobs, brought home: job_logs/<cluster>/<job id>/."""
        return self.root / "job_logs"

    def staged_mounts(self, client_hash: str) -> Path:
        return self.root / "api_server" / "clients" / client_hash / "file_mounts"

    def local_node(self, cluster: str) -> Path:
        """Root of the `local` provider's nodes of one cluster (what `$HOME` is on an SSH host)."""
        return self.root / "local" / cluster


def ensure_private_dir(path: Path) -> Path:
    """Make `path` (and parents that are missing) with mode 0700; an existing one is left as it is."""
    if not path.is_dir():
        missing = [path, *[parent for parent in path.parents if not parent.exists()]]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


def secure_home(home: SkyHome) -> None:
    """See to it that nobody else has a way into the home; one that is not there yet is private when it is made.

    Raises StateError with the command that mends it as its hint. A few microseconds for each name in the home.
    """
    root = home.root
    try:
        seen = os.lstat(root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"cannot use {root}: {error.strerror}", hint=f"make {root} a directory of your own") from error
    if stat.S_ISLNK(seen.st_mode):
        real = shlex.quote(os.path.realpath(root))
        raise StateError(f"{root} is a link, not a directory", hint=f"use the directory by its own name: SKY_HOME={real}")
    if not stat.S_ISDIR(seen.st_mode):
        raise StateError(f"{root} is not a directory", hint=_move(root))
    _check_owner(root, seen, recursive=True)
    _narrow(root, seen)
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name in _NEVER_LINKS or entry.name in _MAY_BE_LINKS:
                    _secure_entry(root / entry.name)
    except OSError as error:
        raise StateError(f"cannot read {root}: {error.strerror}", hint=f"chmod u+rwx {shlex.quote(str(root))}") from error


def _secure_entry(path: Path) -> None:
    try:
        seen = os.lstat(path)
    except FileNotFoundError:  # SQLite's files come and go
        return
    _check_owner(path, seen, recursive=stat.S_ISDIR(seen.st_mode))
    if not stat.S_ISLNK(seen.st_mode):
        _narrow(path, seen)
        return
    real = Path(os.path.realpath(path))
    if path.name in _NEVER_LINKS:
        raise StateError(
            f"{path} is a link to {real}: it has to be in the home itself",
            hint=f"rm {shlex.quote(str(path))} && mv {shlex.quote(str(real))} {shlex.quote(str(path))}",
        )
    try:
        _check_owner(real, os.stat(real), recursive=real.is_dir())
    except FileNotFoundError as error:
        raise StateError(f"{path} is a link to nothing: {real}", hint=f"rm {shlex.quote(str(path))}") from error


def _check_owner(path: Path, seen: os.stat_result, *, recursive: bool) -> None:
    me = os.geteuid()
    if seen.st_uid == me:
        return
    chown = ("sudo " if me else "") + ("chown -hR" if recursive else "chown -h")
    raise StateError(
        f"{path} belongs to {_account(seen.st_uid)}, not to {_account(me)}",
        hint=f"{chown} {me} {shlex.quote(str(path))}, or use a home of your own: SKY_HOME=<directory>",
    )


def _narrow(path: Path, seen: os.stat_result) -> None:
    mode = stat.S_IMODE(seen.st_mode)
    wanted = mode & ~_OTHERS
    if mode == wanted:
        return
    problem = ""
    try:
        os.chmod(path, wanted)
        if stat.S_IMODE(os.lstat(path).st_mode) & _OTHERS:
            problem = "its file system keeps no modes"
    except FileNotFoundError:
        return
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise StateError(
            f"{path} is open to other accounts (mode {mode:04o}), and that cannot be changed: {problem}",
            hint=f"chmod {wanted:o} {shlex.quote(str(path))}, or use a home on another file system: SKY_HOME=<directory>",
        )


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"account {uid}"


def _move(path: Path) -> str:
    there = shlex.quote(str(path))
    return f"mv {there} {there}.old"


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, beside and renamed into place, so that a reader sees old or new, never half.

    A link stays one: what it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    ensure_private_dir(path.parent)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
