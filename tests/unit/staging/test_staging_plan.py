"""What a task's files amount to, before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.staging.plan import plan_sync


def test_a_missing_source_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    """The error carries the path that was looked for."""
    with pytest.raises(StagingError, match="nowhere") as caught:
        plan_sync(None, {"~/x": "nowhere"}, base=tmp_path)
    assert caught.value.path == str(tmp_path / "nowhere")


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """So is a mount's source with a slash at its end that is no directory."""
    (tmp_path / "f").write_text("x")
    with pytest.raises(StagingError, match="not a directory"):
        plan_sync("f", base=tmp_path)
    with pytest.raises(StagingError, match="not a directory"):
        plan_sync(None, {"~/x": "f/"}, base=tmp_path)


def test_sources_may_be_relative_absolute_in_the_home_or_links(tmp_path: Path, isolated_home: Path) -> None:
    """A link that is named as source is followed; a slash at a directory's end changes nothing."""
    (isolated_home / "h").write_text("h")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("x")
    (tmp_path / "to_d").symlink_to("d")
    plan = plan_sync("d/", {"~/a": "~/h", "~/b": str(tmp_path / "d"), "~/c": "to_d"}, base=tmp_path)
    assert [[entry.path for entry in tree.manifest.entries] for tree in plan.trees] == [
        ["", "x"],
        [""],
        ["", "x"],
        ["", "x"],
    ]
    assert (plan.files, plan.bytes) == (4, 4)


def test_a_mount_in_the_workdir_hides_what_it_replaces(tmp_path: Path) -> None:
    """Where the workdir and a mount in it have the same path, only the mount's is sent."""
    for name in ("w/data/x", "w/data/y", "w/z", "m/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    workdir, mount = plan_sync("w", {"data": "m"}, base=tmp_path).trees
    assert [entry.path for entry in workdir.manifest.entries] == ["", "data/y", "z"]
    assert [entry.path for entry in mount.manifest.entries] == ["", "x"]


def test_a_file_cannot_replace_a_directory_of_the_workdir(tmp_path: Path) -> None:
    """The clash is an error here, not a failure on the nodes."""
    (tmp_path / "w/data").mkdir(parents=True)
    (tmp_path / "w/data/x").write_text("x")
    with pytest.raises(StagingError, match="directory"):
        plan_sync("w", {"data": "w/data/x"}, base=tmp_path)


def test_nothing_to_send_is_an_empty_plan(tmp_path: Path) -> None:
    """No workdir and no mounts: false."""
    assert not plan_sync(None, {}, base=tmp_path)
