"""What of a cluster is on a node: asked of this machine in folders of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from skylib.models.node import HostAddress
from skylib.runtime.traces import Trace, trace_of
from skylib.transport.local import LocalTransport
from tests.records import node_record


def trace(root: Path, kind: str = "ssh") -> Trace:
    node = node_record(root=str(root), address=HostAddress(kind=kind))
    return trace_of(LocalTransport(), node, cluster="traced", cluster_id="traced-1", timeout_s=30)


def test_a_home_in_use_without_a_mark_has_nothing_of_the_cluster(tmp_path: Path) -> None:
    """One file of the user's, hidden or not, shows that the home is there."""
    for name in (".profile", "notes"):
        root = tmp_path / f"home of {name}"
        root.mkdir()
        root.joinpath(name).touch()
        assert trace(root) is Trace.NONE


def test_a_home_that_is_empty_or_missing_says_nothing(tmp_path: Path) -> None:
    """So it looks where a home is not mounted: what the cluster left there may come back with it."""
    assert trace(tmp_path) is Trace.UNKNOWN
    assert trace(tmp_path / "missing") is Trace.UNKNOWN


def test_the_folder_of_a_local_node_may_be_empty_or_missing(tmp_path: Path) -> None:
    """It is made for the node, and nobody mounts it."""
    assert trace(tmp_path, "local") is Trace.NONE
    assert trace(tmp_path / "missing", "local") is Trace.NONE


@pytest.mark.parametrize(
    ("mark", "expected"),
    [('{"cluster_id": "traced-1"}', Trace.OURS), ('{"cluster_id": "b"}', Trace.NONE), ("{", Trace.UNKNOWN)],
)
def test_the_mark_decides(tmp_path: Path, mark: str, expected: Trace) -> None:
    """Ours, another cluster's, or one that cannot be read."""
    tmp_path.joinpath(".sky").mkdir()
    tmp_path.joinpath(".sky", "cluster.json").write_text(mark)
    assert trace(tmp_path) is expected
