"""Packing files that do not hold still."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.staging.manifest import Manifest, scan
from skylib.staging.pack import BLOCK_BYTES, Member, pack
from skylib.staging.select import select


def manifest_of(root: Path) -> Manifest:
    return scan(root, select(root))


def members(manifest: Manifest) -> list[Member]:
    return [
        Member(name=entry.path, entry=entry, source=manifest.source_of(entry)) for entry in manifest.entries if entry.path
    ]


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Contents of files by name; of two with one name the last, as tar does."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                found[member.name] = file.read()
    return found


def disturbed(blocks: Iterator[bytes], disturb: Iterator[None]) -> bytes:
    """The archive; between its pieces something happens to the files."""
    out = []
    for block in blocks:
        out.append(block)
        next(disturb, None)
    return b"".join(out)


def test_a_file_that_grows_is_sent_again(tmp_path: Path) -> None:
    """The last copy in the archive is the whole file."""
    path = tmp_path / "log"
    path.write_bytes(b"a" * BLOCK_BYTES * 3)

    def grow() -> Iterator[None]:
        with path.open("ab") as file:
            file.write(b"b" * 700)
        yield

    archive = disturbed(pack(members(manifest_of(tmp_path))), grow())
    assert unpacked(archive)["log"] == path.read_bytes()


def test_a_file_that_shrinks_is_sent_again(tmp_path: Path) -> None:
    """What is missing of the announced size is filled up, and the file follows once more."""
    path = tmp_path / "log"
    path.write_bytes(b"a" * BLOCK_BYTES * 3)

    def shrink() -> Iterator[None]:
        os.truncate(path, 100)
        yield

    assert unpacked(disturbed(pack(members(manifest_of(tmp_path))), shrink()))["log"] == b"a" * 100


def test_a_file_that_never_rests_is_an_error(tmp_path: Path) -> None:
    """After three attempts the error names it."""
    path = tmp_path / "log"
    path.write_bytes(b"a" * BLOCK_BYTES * 2)

    def churn() -> Iterator[None]:
        while True:
            with path.open("ab") as file:
                file.write(b"more")
            yield

    with pytest.raises(StagingError, match="kept changing") as caught:
        disturbed(pack(members(manifest_of(tmp_path))), churn())
    assert caught.value.path == str(path)


def test_a_file_that_is_gone_by_now_is_left_out(tmp_path: Path) -> None:
    """An editor's temporary file that vanished after the scan does not stop a launch."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    found = manifest_of(tmp_path)
    (tmp_path / "a").unlink()
    assert unpacked(b"".join(pack(members(found)))) == {"b": b"2"}


def test_a_file_that_became_a_link_is_refused(tmp_path: Path) -> None:
    """What was put in its place after the scan is not followed."""
    (tmp_path / "a").write_text("1")
    found = manifest_of(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(StagingError):
        b"".join(pack(members(found)))


def test_pieces_are_bounded(tmp_path: Path) -> None:
    """No piece is much larger than a block, however large or many the files are."""
    (tmp_path / "big").write_bytes(bytes(BLOCK_BYTES * 4 + 17))
    for number in range(300):
        (tmp_path / f"s{number}").write_bytes(b"x" * 3000)
    sizes = [len(piece) for piece in pack(members(manifest_of(tmp_path)))]
    assert max(sizes) < 2 * BLOCK_BYTES
    assert sum(sizes) % 10240 == 0


def test_a_fresh_file_keeps_its_nanoseconds(tmp_path: Path) -> None:
    """An edit within the same second can be told from the file that was sent."""
    path = tmp_path / "a"
    path.write_text("1")
    fresh_ns = time.time_ns() // 1_000_000_000 * 1_000_000_000 + 123_456_789
    os.utime(path, ns=(fresh_ns, fresh_ns))
    archive = b"".join(pack(members(manifest_of(tmp_path))))
    assert b"mtime=%d.123456789\n" % (fresh_ns // 1_000_000_000) in archive
    os.utime(path, ns=(fresh_ns - 60_000_000_000,) * 2)
    assert b"mtime=" not in b"".join(pack(members(manifest_of(tmp_path))))


def test_a_size_beyond_the_octal_field_can_be_said(tmp_path: Path) -> None:
    """A sparse file of 9 GiB has a header that tar reads."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(9 * 2**30)
    first = next(iter(pack(members(manifest_of(tmp_path)))))
    with tarfile.open(fileobj=io.BytesIO(first), mode="r|") as tar:
        header = tar.next()
    assert header is not None
    assert header.size == 9 * 2**30
