"""An archive that breaks off on its way: what had arrived is used, and nothing half is ever in place."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from skylib.errors import ConnectError
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, sync
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from tests.unit.staging.trees import snapshot

FILES, FILE_BYTES = 40, 50_000
WHOLE_BYTES = FILES * FILE_BYTES


class Cut(LocalTransport):
    """This machine, behind a connection that breaks after so many bytes of an archive, once for each number given."""

    def __init__(self, *after: int) -> None:
        super().__init__()
        self.after = list(after)
        self.sent = 0

    def run(self, command: Command, *, stdin: bytes | Iterable[bytes] = b"", timeout_s: float | None = None) -> Completed:
        if isinstance(stdin, bytes):
            return super().run(command, stdin=stdin, timeout_s=timeout_s)
        limit = self.after.pop(0) if self.after else None
        done = super().run(command, stdin=self._counted(stdin, limit), timeout_s=timeout_s)
        if limit is not None:
            raise ConnectError("the connection broke", host=self.host)
        return done

    def _counted(self, blocks: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
        for block in blocks:
            piece = block if limit is None else block[:limit]
            limit = limit if limit is None else limit - len(piece)
            self.sent += len(piece)
            yield piece
            if limit == 0:
                return


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workdir of 2 MB in files of 50 kB, one in four in a directory of its own."""
    for number in range(FILES):
        file = tmp_path / (f"work/{number}/file" if number % 4 == 0 else f"work/{number}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(FILE_BYTES))
    return tmp_path / "work"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's root."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def incoming(root: Path) -> list[str]:
    return os.listdir(root / ".sky/incoming")


@pytest.mark.parametrize("seed", range(8))
def test_what_arrived_is_not_sent_again(work: Path, root: Path, seed: int) -> None:
    """Cut twice at random points: one call brings the tree, with little more than its bytes sent in all."""
    cuts = sorted(random.Random(seed).randrange(1, WHOLE_BYTES) for _cut in range(2))
    transport = Cut(cuts[0], cuts[1] - cuts[0] + 1)
    sync([SyncNode(transport=transport, root=str(root))], plan_sync(str(work), git=None))
    assert snapshot(root / "sky_workdir") == snapshot(work)
    assert not transport.after
    assert transport.sent < 1.2 * WHOLE_BYTES
    assert incoming(root) == []


def test_a_third_break_is_told(work: Path, root: Path) -> None:
    """The error is the connection's; nothing is in place, and the next sync goes on."""
    transport = Cut(WHOLE_BYTES // 2, 100_000, 100_000)
    node = SyncNode(transport=transport, root=str(root))
    with pytest.raises(ConnectError, match="broke"):
        sync([node], plan_sync(str(work), git=None))
    assert not (root / "sky_workdir").exists()
    sync([node], plan_sync(str(work), git=None))
    assert snapshot(root / "sky_workdir") == snapshot(work)
    assert transport.sent < 1.3 * WHOLE_BYTES


def broken_off(root: Path, work: Path) -> None:
    """Half of the tree has arrived, and is kept."""
    transport = Cut(WHOLE_BYTES // 2, 1, 1)
    with pytest.raises(ConnectError):
        sync([SyncNode(transport=transport, root=str(root))], plan_sync(str(work), git=None))
    assert [name[:5] for name in incoming(root)] == ["rest-"]


def test_what_changed_meanwhile_is_sent(work: Path, root: Path) -> None:
    """After the break files are edited, removed and made directories: the node gets the tree as it is now."""
    broken_off(root, work)
    (work / "0/file").write_text("edited")
    (work / "1").unlink()
    (work / "2").unlink()
    (work / "2").mkdir()
    (work / "4/file").unlink()
    (work / "4").rmdir()
    sync([SyncNode(transport=LocalTransport(), root=str(root))], plan_sync(str(work), git=None))
    assert snapshot(root / "sky_workdir") == snapshot(work)
    assert incoming(root) == []


def test_a_rest_that_another_client_took_is_sent_anew(work: Path, root: Path) -> None:
    """Between question and answer it is gone: everything is sent."""
    broken_off(root, work)

    class Late(Cut):
        def run(
            self, command: Command, *, stdin: bytes | Iterable[bytes] = b"", timeout_s: float | None = None
        ) -> Completed:
            done = super().run(command, stdin=stdin, timeout_s=timeout_s)
            if done.stdout.startswith(b"d ") and incoming(root):
                os.rename(next((root / ".sky/incoming").iterdir()), root / "taken by another")
            return done

    sync([SyncNode(transport=Late(), root=str(root))], plan_sync(str(work), git=None))
    assert snapshot(root / "sky_workdir") == snapshot(work)
