"""Log files of ranks come home piece by piece; the node is a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import StagingError
from skylib.jobs.rank_files import bring_file, list_files
from skylib.transport.local import LocalTransport


@pytest.fixture(scope="module")
def node() -> Iterator[LocalTransport]:
    transport = LocalTransport()
    yield transport
    transport.close()


def test_a_file_that_grows_comes_by_its_new_bytes(tmp_path: Path, node: LocalTransport) -> None:
    """The second call brings what was added, the third nothing; half a copy is gone on with."""
    there, here = tmp_path / "rank-0.log", tmp_path / "home/node0/rank-0.log"
    there.write_bytes(b"one\n" * 1000)
    assert bring_file(node, str(there), here) == 4000
    with there.open("ab") as file:
        file.write(b"two\n")
    assert [bring_file(node, str(there), here) for _ in range(2)] == [4, 0]
    os.truncate(here, 1234)
    assert bring_file(node, str(there), here) == 4004 - 1234
    assert here.read_bytes() == there.read_bytes()
    assert list(here.parent.iterdir()) == [here]


@given(before=st.binary(max_size=50), after=st.binary(max_size=50))
def test_whatever_was_here_it_is_the_nodes_file_then(
    tmp_path_factory: pytest.TempPathFactory, node: LocalTransport, before: bytes, after: bytes
) -> None:
    """A file that begins otherwise than the copy, or is shorter, is fetched whole."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "there").write_bytes(after)
    (folder / "here").write_bytes(before)
    came = bring_file(node, str(folder / "there"), folder / "here")
    assert (folder / "here").read_bytes() == after
    assert came == (len(after) - len(before) if after.startswith(before) else len(after))


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path, node: LocalTransport) -> None:
    """A file that is gone, and a place here that is none: typed, with host and path."""
    with pytest.raises(StagingError) as caught:
        bring_file(node, str(tmp_path / "gone"), tmp_path / "here")
    assert (caught.value.host, caught.value.path) == ("localhost", str(tmp_path / "gone"))
    (tmp_path / "there").write_text("x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(StagingError) as caught:
        bring_file(node, str(tmp_path / "there"), tmp_path / "dir")
    assert (caught.value.host, caught.value.path) == ("localhost", str(tmp_path / "dir"))


def test_no_folder_has_no_files(tmp_path: Path, node: LocalTransport) -> None:
    """A node without a part in the job has none of its files."""
    assert list_files(node, str(tmp_path / "none")) == []


def test_notes_about_a_log_stay_on_the_node(tmp_path: Path, node: LocalTransport) -> None:
    """Where a truncated log begins is the agent's own concern; the log itself is listed."""
    for name in ("0-head.log", "0-head.log.begins"):
        (tmp_path / name).touch()
    assert list_files(node, str(tmp_path)) == ["0-head.log"]
