"""Where things are under a home (`~/.sky`): paths as values; nothing is created here but by `ensure` and `write`.

A home is private: `secure_home` makes it so, or refuses it. A directory that others may enter is narrowed only when it
is empty or a home by what is in it: any other is somebody's for another purpose. What is looked at: the home itself and
what skylib keeps directly in it, no deeper. Everything belongs to this account, or is refused. Modes that let others in
are narrowed. A link is refused in place of the home, the store, the locks, known_hosts and user_hash; folders for much
data, and the two files that people write, may be links of this account to what belongs to it, whose mode is the
person's affair.
"""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import stat
import tempfile
from pathlib import Path

import attrs

from skylib.errors import ConfigError, InvalidSpecError, StateError

__all__ = ["SkyHome", "default_home", "ensure_private_dir", "read_small", "secure_home", "write_private"]

_STORE = ("state.db", "state.db-wal", "state.db-shm", "state.db-journal")
_NEVER_LINKS = frozenset({*_STORE, "locks", "known_hosts", "user_hash"})
_MAY_BE_LINKS = frozenset(
    {"config.yaml", "ssh_node_pools.yaml", "logs", "runtime", "catalogs", "job_logs", "api_server", "local"}
)
_FILES = frozenset({*_STORE, "config.yaml", "ssh_node_pools.yaml", "user_hash", "known_hosts"})
_MARKS = frozenset({"state.db", "user_hash", "ssh_node_pools.yaml"})  # names that nothing else has beside its own files
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OWN = "use a directory of its own: SKY_HOME=<directory>"
_LARGEST = 1 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def default_home() -> Path:
    """`$SKY_HOME`, else `~/.sky`. Raises InvalidSpecError when the account's directory is not known."""
    return _absolute(os.environ.get("SKY_HOME") or "~/.sky")


def _absolute(root: Path | str) -> Path:
    text = os.fspath(root) if isinstance(root, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        what = f"not {root!r}" if isinstance(text, str) else f"not {type(root).__name__}"
        raise InvalidSpecError(f"home is the path of a directory, {what}", field="home", hint="None means ~/.sky")
    try:
        if text.split("/")[0] == "~" and os.environ.get("HOME") == "":  # expanduser would take it for the root
            text = pwd.getpwuid(os.getuid()).pw_dir + text[1:]
        return Path(text).expanduser().absolute()
    except (RuntimeError, KeyError, OSError) as error:  # no such account; the current directory is gone
        raise InvalidSpecError(
            f"home {text!r} leads nowhere: {error}", field="home", hint="give an absolute path, or set SKY_HOME to one"
        ) from error


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
        raise StateError(f"{root} is not a directory", hint=_move(root) if stat.S_ISREG(seen.st_mode) else _OWN)
    if seen.st_mode & stat.S_ISVTX or os.path.samestat(seen, os.lstat("/")):
        raise StateError(f"{root} is a directory for everybody, no home", hint=_OWN)
    try:
        names = os.listdir(root)
    except OSError as error:
        _check_owner(root, seen, hint=_OWN)
        raise StateError(f"cannot read {root}: {error.strerror}", hint=f"chmod u+rwx {_quoted(root)}") from error
    ours = _is_home(root, names)
    _check_owner(root, seen, hint=_chown(root, seen) if ours else _OWN)
    if names and not ours and stat.S_IMODE(seen.st_mode) & _OTHERS:
        raise StateError(
            f"{root} holds other things, and others may enter it: it is not made a home, which nobody else enters",
            hint=_OWN,
        )
    _narrow(root, seen)
    for name in names:
        if name in _NEVER_LINKS or name in _MAY_BE_LINKS:
            try:
                _secure_entry(root / name)
            except OSError as error:
                raise StateError(f"cannot use {root / name}: {error.strerror}", hint=_OWN) from error


def _is_home(root: Path, names: list[str]) -> bool:
    """Whether a directory is a home already, or one that a person prepares: nothing in it is foreign."""
    if root.name == ".sky" or not _MARKS.isdisjoint(names):
        return True
    return bool(names) and all(name in _NEVER_LINKS or name in _MAY_BE_LINKS for name in names)


def _secure_entry(path: Path) -> None:
    try:
        seen = os.lstat(path)
    except FileNotFoundError:  # SQLite's files come and go
        return
    _check_owner(path, seen, hint=_chown(path, seen))
    if not stat.S_ISLNK(seen.st_mode):
        _check_kind(path, seen)
        _narrow(path, seen)
        return
    real, there = Path(os.path.realpath(path)), _quoted(path)
    try:
        target = os.stat(path)
    except OSError as error:  # nothing there, or a link to itself
        raise StateError(f"{path} is a link to nothing: {real}", hint=f"rm {there}") from error
    if path.name in _NEVER_LINKS:
        instead = f"mv {_quoted(real)} {there}" if stat.S_ISREG(target.st_mode) else f"mkdir -m 700 {there}"
        alone = path.name != "locks" and not stat.S_ISREG(target.st_mode)
        raise StateError(
            f"{path} is a link to {real}: it has to be in the home itself",
            hint=f"rm {there}" if alone else f"rm {there} && {instead}",
        )
    _check_owner(real, target, hint=_chown(real, target))
    _check_kind(path, target)


def _check_kind(path: Path, seen: os.stat_result) -> None:
    """Raises StateError, with the command that makes room, for a file or folder that is something else."""
    if path.name in _FILES and not stat.S_ISREG(seen.st_mode):
        raise StateError(f"{path} is no regular file", hint=_move(path))
    if path.name == "locks" and not stat.S_ISDIR(seen.st_mode):
        raise StateError(f"{path} is not a directory", hint=_move(path))
    if path.name in _FILES and not seen.st_mode & stat.S_IRUSR and os.geteuid() != 0:
        raise StateError(f"{path} cannot be read: its mode does not let its owner", hint=f"chmod u+rw {_quoted(path)}")


def _check_owner(path: Path, seen: os.stat_result, *, hint: str) -> None:
    me = os.geteuid()
    if seen.st_uid != me:
        raise StateError(f"{path} belongs to {_account(seen.st_uid)}, not to {_account(me)}", hint=hint)


def _chown(path: Path, seen: os.stat_result) -> str:
    """What gives a home, or what is in one, to this account."""
    me = os.geteuid()
    command = ("sudo " if me else "") + ("chown -hR" if stat.S_ISDIR(seen.st_mode) else "chown -h")
    return f"{command} {me} {_quoted(path)}, or use a home of your own: SKY_HOME=<directory>"


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
            hint=f"chmod {wanted:o} {_quoted(path)}, or use a home on another file system: SKY_HOME=<directory>",
        )


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"account {uid}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _move(path: Path) -> str:
    return f"mv {_quoted(path)} {_quoted(path)}.old"


def read_small(path: Path) -> bytes | None:
    """What a person's file holds; None when there is none. Raises ConfigError for what is no regular file, or over 1 MiB.

    Nothing that would wait, such as a FIFO, is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"cannot read {path}: it is no regular file", file=str(path))
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(_LARGEST + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", file=str(path)) from error
    if len(content) > _LARGEST:
        raise ConfigError(f"{path} is larger than 1 MiB", file=str(path), hint="is it the file that was meant?")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, beside and renamed into place, so that a reader sees old or new, never half.

    A link stays one: what it leads to is replaced. Raises StateError when it cannot be written; the old one stays then.
    """
    path = Path(os.path.realpath(path))
    try:
        ensure_private_dir(path.parent)
        _replace(path, content)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StateError(
                f"no room to write {path}: {error.strerror}", hint=f"make room: df {_quoted(path.parent)}"
            ) from error
        raise StateError(
            f"cannot write {path}: {error.strerror or error}", hint=f"see that it can be: ls -ld {_quoted(path.parent)}"
        ) from error


def _replace(path: Path, content: bytes) -> None:
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
