"""Trees synced, changed and synced again, through the real shell and tar."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings

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
    """After each sync the node has the tree and nothing else that was ever put; another sync finds nothing to do.

    What a job made beside it stays.
    """
    with tempfile.TemporaryDirectory() as directory:
        source, root = Path(directory, "source"), Path(directory, "node")
        build(os.fsencode(source), before, 1_500_000_000)
        deliver(source, root)
        assert snapshot(root / "sky_workdir") == snapshot(source)
        (root / "sky_workdir/made by a job, with a name that no tree has").write_text("result")
        shutil.rmtree(source)
        build(os.fsencode(source), after, 1_600_000_000)
        deliver(source, root)
        assert (root / "sky_workdir/made by a job, with a name that no tree has").read_text() == "result"
        (root / "sky_workdir/made by a job, with a name that no tree has").unlink()
        assert snapshot(root / "sky_workdir") == snapshot(source)
        assert deliver(source, root).skipped
