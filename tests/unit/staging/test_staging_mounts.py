"""Targets of workdir and file_mounts."""

from __future__ import annotations

import pytest

from skylib.errors import InvalidSpecError
from skylib.staging.mounts import map_mounts


@pytest.mark.parametrize(
    ("dst", "place", "link"),
    [
        ("data", "/home/me/sky_workdir/data", ""),
        ("./data//x", "/home/me/sky_workdir/data/x", ""),
        ("~/data", "/home/me/data", ""),
        ("~/.config/app", "/home/me/.config/app", ""),
        ("/tmp/data", "/tmp/data", ""),
        ("//tmp//data", "/tmp/data", ""),
        ("/data/set", "/home/me/.sky/file_mounts/data/set", "/data/set"),
        ("/tmpx", "/home/me/.sky/file_mounts/tmpx", "/tmpx"),
    ],
)
def test_targets_are_skypilots(dst: str, place: str, link: str) -> None:
    """Each form of target has its place below the node's root, or its own."""
    (mount,) = map_mounts(None, {dst: "src"})
    assert (mount.on("/home/me"), mount.link) == (place, link)


def test_the_workdir_comes_first() -> None:
    """The workdir goes to sky_workdir, before mounts that may lie in it."""
    mounts = map_mounts(".", {"a/b": "x", "~/y": "z"})
    assert [mount.on("/r") for mount in mounts] == ["/r/sky_workdir", "/r/sky_workdir/a/b", "/r/y"]


@pytest.mark.parametrize(
    "dst",
    ["", "/", "~", "~/", ".", "..", "../x", "~/../x", "a/../../x", "/tmp", "/tmp/..", "/a/../tmp", "~other/x", "x/", "~/x/",
     "~/.sky", "~/.sky/jobs.db", "~/sky_logs/1", "~/skypilot-runtime", "/tmp/ray_skypilot/x", "a\0b"],
)  # fmt: skip
def test_harmful_targets_are_refused(dst: str) -> None:
    """What escapes, is a root of its own, belongs to the cluster, or says nothing clear is no target."""
    with pytest.raises(InvalidSpecError) as caught:
        map_mounts(None, {dst: "src"})
    assert vars(caught.value)["field"] == f"file_mounts.{dst}"


@pytest.mark.parametrize(
    "mounts",
    [
        {"~/sky_workdir": "a"},
        {"~/x": "a", "~/./x": "b"},
        {"~/x": "a", "~/x/y": "b"},
        {"/d/e/f": "a", "/d": "b"},
        {"~/sky_workdir/x": "a", "x": "b"},
    ],
)
def test_overlapping_targets_are_refused(mounts: dict[str, str]) -> None:
    """Two sources for one place would depend on their order."""
    with pytest.raises(InvalidSpecError):
        map_mounts("work", mounts)


@pytest.mark.parametrize("source", ["s3://b/x", "gs://b", "https://h/x", "", {"name": "b"}, {"url": "u"}, None, 3, "a\0"])
def test_sources_that_are_no_local_path_are_refused_by_name(source: object) -> None:
    """Buckets, URLs and storage maps are named in the error, never ignored."""
    with pytest.raises(InvalidSpecError, match="file_mounts.~/x"):
        map_mounts(None, {"~/x": source})


def test_a_workdir_from_git_is_refused_by_name() -> None:
    """A map as workdir is said to be impossible, not skipped."""
    with pytest.raises(InvalidSpecError, match="workdir"):
        map_mounts({"url": "https://h/r.git"}, {})
