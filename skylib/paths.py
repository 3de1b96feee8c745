"""Where things are under a home (`~/.sky`): paths as values; nothing is created here but by `ensure`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import attrs

__all__ = ["SkyHome", "default_home", "ensure_private_dir", "write_private"]


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


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, beside and renamed into place, so that a reader sees old or new, never half."""
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
