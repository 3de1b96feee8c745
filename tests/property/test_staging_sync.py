"""Trees synced, changed and synced again, through the real shell and tar."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings

from skylib.errors import StagingError
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, SyncOutcome, sync
from skylib.transport.local import LocalTransport
from tests.property.test_staging_pack import TREES, build
from tests.unit.staging.trees import snapshot


def deliver(source: Path, root: Path) -> SyncOutcome:
    """One sync of a workdir to a directory of this machine."""
    (outcome,) = sync([SyncNode(transport=LocalTransport(), root=str(root))], plan_sync(str(source), git=None))
    return outcome


@settings(max_examples=40)
@given(before=TREES, after=TREES)
def test_the_node_follows_the_tree(before: object, after: object) -> None:
    """After each sync the node has all of the tree and what it had besides; another sync finds nothing to do.

    The one exception is a file where the node has a directory: an error, and nothing of the directory is lost.
    """
    with tempfile.TemporaryDirectory() as directory:
        source, root = Path(directory, "source"), Path(directory, "node")
        build(os.fsencode(source), before, 1_500_000_000)
        deliver(source, root)
        old = snapshot(root / "sky_workdir")
        assert old == snapshot(source)
        shutil.rmtree(source)
        build(os.fsencode(source), after, 1_600_000_000)
        wanted = snapshot(source)
        clash = any(path in old and old[path][0] == "dir" and wanted[path][0] != "dir" for path in wanted)
        try:
            deliver(source, root)
        except StagingError:
            assert clash
            now = snapshot(root / "sky_workdir")
            assert all(path in now for path, node in old.items() if node[0] == "dir")
            return
        assert not clash
        now = snapshot(root / "sky_workdir")
        assert {path: now.get(path) for path in wanted} == wanted
        replaced = {path for path in wanted if wanted[path][0] == "dir" and old.get(path, ("dir",))[0] != "dir"}
        kept = {path: node for path, node in old.items() if path not in wanted and path.rpartition(b"/")[0] not in replaced}
        assert {path: now.get(path) for path in kept} == kept
        assert deliver(source, root).skipped
