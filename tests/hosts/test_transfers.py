"""Files from and to the nodes of a standing cluster, on real hosts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skylib.errors import InvalidSpecError, StagingError
from tests.hosts.test_staging import here, on_host
from tests.lab import Lab
from tests.unit.staging.trees import snapshot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with odd names, modes and links."""
    root = tmp_path / "tree"
    (root / "sub/empty").mkdir(parents=True)
    for name in ("a", "new\nline", "'quoted' \"x\" $x", "-rf", "*", "n" * 255):
        (root / name).write_text(name)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("bytes")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub/big").write_bytes(os.urandom(3_000_000))
    (root / "sub/up").symlink_to("../a")
    return root


def test_what_is_put_can_be_got(shared: Lab, tree: Path, tmp_path: Path) -> None:
    """A tree goes to two nodes of three and comes back the same; both ways the second time moves nothing."""
    cluster = shared.client.cluster("shared")
    sent = cluster.put(tree, "data/tree", ranks=[0, 2])
    assert [outcome.skipped for outcome in sent] == [False, False]
    hosts = shared.by_rank("shared")
    assert [host.sh("ls sky_workdir/data 2>/dev/null").stdout.split() for host in hosts] == [["tree"], [], ["tree"]]
    assert on_host(hosts[2], "sky_workdir/data/tree") == here(tree)
    back = cluster.get("data/tree", tmp_path / "back", rank=2)
    assert snapshot(tmp_path / "back") == snapshot(tree)
    assert back.files == 10
    assert all(outcome.skipped for outcome in cluster.put(tree, "data/tree", ranks=[0, 2]))
    again = cluster.get("data/tree", tmp_path / "back", rank=2)
    assert (again.files, again.bytes, again.unchanged) == (0, 0, 10)


def test_a_file_or_a_pattern_is_got(shared: Lab, tmp_path: Path) -> None:
    """One file takes the name that is given, or lies in the directory; a pattern fills a directory; `~` is the home."""
    cluster = shared.client.cluster("shared")
    head = shared.by_rank("shared")[0]
    head.sh("mkdir -p ~/runs/1 ~/runs/2 && echo one > ~/runs/1/loss && echo two > ~/runs/2/loss", check=True)
    cluster.get("~/runs/1/loss", tmp_path / "named")
    cluster.get("~/runs/2/loss", f"{tmp_path}/folder/")
    cluster.get("~/runs/*/loss", tmp_path / "all")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"named": "one\n", "folder/loss": "two\n", "all/1/loss": "one\n", "all/2/loss": "two\n"}


def test_what_cannot_be_got_is_named(shared: Lab, tmp_path: Path) -> None:
    """Nothing there, nothing to be read, no such rank: an error with host and path; what can be read comes all the same."""
    cluster = shared.client.cluster("shared")
    host = shared.by_rank("shared")[1]
    with pytest.raises(StagingError, match="not there") as caught:
        cluster.get("no/such*", tmp_path / "x", rank=1)
    assert (caught.value.host, caught.value.path) == (cluster.nodes()[1].host, f"{host.home}/sky_workdir/no/such*")
    host.sh("mkdir -p ~/mixed && echo yes > ~/mixed/open && echo no > ~/mixed/shut && chmod 0 ~/mixed/shut", check=True)
    with pytest.raises(StagingError, match="permission denied") as caught:
        cluster.get("~/mixed", tmp_path / "mixed", rank=1)
    assert (caught.value.host, caught.value.path) == (host.ip, f"{host.home}/mixed/shut")
    assert (tmp_path / "mixed/open").read_text() == "yes\n"
    with pytest.raises(InvalidSpecError, match="no rank 3"):
        cluster.get("x", tmp_path, rank=3)
