"""Archives made by hand, unpacked by the system's tar."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from skylib.staging.manifest import scan
from skylib.staging.pack import Member, pack, wire_mtime_ns
from skylib.staging.select import select
from tests.unit.staging.trees import snapshot

NAME_BYTES = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\0", b"_").replace(b"/", b"'"))
LONG = st.integers(80, 255).map(lambda length: b"n" * length)
NAMES = st.one_of(
    NAME_BYTES, LONG, st.sampled_from([b"new\nline", b"\"'`$x", b"\xff\xfe", "ü".encode(), b"-rf", b" "])
).filter(lambda name: name not in (b".", b"..", b".git", b".gitignore", b".skyignore"))
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=1500), st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o400])),
    st.tuples(st.just("link"), st.one_of(NAMES, st.just(b"x/" * 70)), st.just(0)),
)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=5), max_leaves=15).filter(
    lambda tree: isinstance(tree, dict)
)
MTIMES = st.integers(0, 8**11 - 1)


def build(folder: bytes, tree: object, mtime_s: int) -> None:
    """Make a tree; every file and link gets the time."""
    os.mkdir(folder)
    assert isinstance(tree, dict)
    for name, node in tree.items():
        path = folder + b"/" + name
        if isinstance(node, dict):
            build(path, node, mtime_s)
            continue
        kind, content, mode = node
        if kind == "link":
            os.symlink(content, path)
        else:
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
        os.utime(path, (mtime_s, mtime_s), follow_symlinks=False)


@given(tree=TREES, mtime_s=MTIMES)
def test_a_tree_survives_packing(tree: object, mtime_s: int) -> None:
    """What tar unpacks is the tree: names of any bytes, contents, modes, times, links, empty directories."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        build(os.fsencode(source), tree, mtime_s)
        target.mkdir()
        manifest = scan(source, select(source, git=None))
        members = [
            Member(name=entry.path or ".", entry=entry, source=manifest.source_of(entry)) for entry in manifest.entries
        ]
        archive = b"".join(pack(members))
        subprocess.run(
            ["tar", "-xpof", "-", "-C", target], input=archive, check=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}
        )
        assert snapshot(target) == snapshot(source)
        assert len(archive) % 10240 == 0


@given(mtime_ns=st.integers(-(2**62), 2**62))
def test_wire_time_is_a_whole_second_that_a_header_can_say(mtime_ns: int) -> None:
    """The time on the wire is stable: sending it again changes nothing."""
    once = wire_mtime_ns(mtime_ns)
    assert once % 1_000_000_000 == 0
    assert 0 <= once < 8**11 * 1_000_000_000
    assert wire_mtime_ns(once) == once
