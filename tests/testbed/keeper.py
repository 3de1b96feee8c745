"""One test bed's namespaces: a keeper process that owns them, the network between hosts, and its directory on disk."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.testbed.machine import SYSTEM_PATH, TestbedError, process_start, run

__all__ = ["Keeper", "sweep"]

_HERE = Path(__file__).resolve().parent
_BASE = Path(os.environ.get("SKYLIB_TESTBED_DIR", "/var/tmp/skylib-testbed"))
_SETTLING_S = 600.0
_SUBNETS = [ipaddress.IPv4Network(f"10.77.{number}.0/24") for number in range(1, 255)]


@attrs.frozen(kw_only=True)
class _Owner:
    """Who a bed's directory belongs to; a pid alone may be another process's by now, its start time tells."""

    pid: int
    start: int | None

    @classmethod
    def of(cls, pid: int) -> _Owner:
        return cls(pid=pid, start=process_start(pid))

    @classmethod
    def load(cls, path: Path) -> _Owner:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(attrs.asdict(self)))
        new.rename(path)

    def alive(self) -> bool:
        return self.start is not None and process_start(self.pid) == self.start


def sweep(base: Path = _BASE) -> list[Path]:
    """Clears what dead test processes left under `base` and returns the directories removed.

    The kernel has already taken processes, mounts and interfaces (see keeper.sh) unless a keeper hangs; one that
    still lives without its owner is ended by its recorded pid and start time.
    """
    removed: list[Path] = []
    for directory in base.glob("bed-*") if base.is_dir() else ():
        used = True
        try:
            used = _Owner.load(directory / "owner").alive()
        except FileNotFoundError:  # being made or removed right now, unless it has been so for long
            with contextlib.suppress(FileNotFoundError):
                used = time.time() - directory.stat().st_mtime < _SETTLING_S
        if used:
            continue
        with contextlib.suppress(FileNotFoundError):
            keeper = _Owner.load(directory / "keeper")
            if keeper.alive():
                os.kill(keeper.pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
        removed.append(directory)
    return removed


class Keeper:
    """Owner of a bed's namespaces; everything in them ends with it, and it ends with the process that made it.

    directory: the bed's private directory; `path()` gives the same place as the keeper's own mounts show it.
    """

    def __init__(self) -> None:
        _BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _BASE.stat().st_uid != 0 or _BASE.is_symlink():
            raise TestbedError(f"{_BASE} is not root's own directory; remove it or set SKYLIB_TESTBED_DIR")
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix="bed-", dir=_BASE))
        _Owner.of(os.getpid()).save(self.directory / "owner")
        script = 'unshare --mount --net --pid --fork --kill-child /bin/sh "$1"; rm -rf --one-file-system "$2"'
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", script, "testbed-keeper", str(_HERE / "keeper.sh"), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": SYSTEM_PATH},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        self._process.stdout.close()
        if not line:
            raise TestbedError("the keeper of the namespaces did not start")
        self.pid = int(line)
        _Owner.of(self.pid).save(self.directory / "keeper")
        self._prepare_disk()
        self.network, self.uplink = self._make_uplink()

    def _prepare_disk(self) -> None:
        """A tmpfs where the disk cannot hold an overlay's upper layer (itself an overlay, as in a container)."""
        (self.directory / "hosts").mkdir()
        if run(["stat", "-f", "-c", "%T", str(self.directory)]).strip() == "overlayfs":
            self.run(["mount", "-t", "tmpfs", "testbed", str(self.directory / "hosts")], "--mount")

    def _make_uplink(self) -> tuple[ipaddress.IPv4Network, str]:
        """A veth from this machine into the bed's bridge, on a subnet nobody uses; its name is the claim on it."""
        taken = [
            ipaddress.IPv4Network(route["dst"], strict=False)
            for route in json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
            if route["dst"] != "default"
        ]
        first = os.getpid() % len(_SUBNETS)
        for network in _SUBNETS[first:] + _SUBNETS[:first]:
            if any(network.overlaps(other) for other in taken):
                continue
            name = f"skytb{network.network_address.packed[2]}"
            with contextlib.suppress(TestbedError):  # the name exists: another bed was quicker
                run(["ip", "link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", str(self.pid)])
                run(["ip", "addr", "add", f"{network[1]}/{network.prefixlen}", "dev", name])
                run(["ip", "link", "set", name, "up"])
                self.run(["ip", "link", "set", "uplink", "master", "br0", "up"], "--net")
                return network, name
        raise TestbedError("no free subnet in 10.77.0.0/16")

    def path(self, path: Path) -> Path:
        """A path as seen in the keeper's mounts, usable from this process; beware of absolute symlinks in it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def run(
        self, argv: Sequence[str], *namespaces: str, stdin: str | None = None, timeout_s: float = 30.0
    ) -> str:
        """Stdout of a command inside the named namespaces of the keeper ("--mount", "--net")."""
        root = ["--root"] if "--mount" in namespaces else []  # not the namespace's root, where this process is chrooted
        return run(["nsenter", "--target", str(self.pid), *namespaces, *root, *argv], stdin=stdin, timeout_s=timeout_s)

    def close(self) -> None:
        """Ends the keeper and with it all that is in the bed, then waits until its directory is gone."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(TestbedError):
            run(["ip", "link", "del", self.uplink])
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        shutil.rmtree(self.directory, ignore_errors=True)
