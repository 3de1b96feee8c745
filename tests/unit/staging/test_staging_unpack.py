"""Reading a tar stream by hand: what real tars write, in pieces of any size; what is no archive is refused."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import StagingError
from skylib.staging.unpack import members

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=120).filter(
    lambda name: name not in (".", "..")
)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[place : place + size] for place in range(0, len(data), size)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@given(files=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=5), piece=st.sampled_from([1, 37, 512, 10000]))
def test_what_another_writer_wrote_is_read(form: int, files: dict[str, bytes], piece: int) -> None:
    """Names, sizes, times and content of every file come through, in each of tar's forms, however the bytes are cut."""
    if form == tarfile.USTAR_FORMAT:
        files = {name: content for name, content in files.items() if len(os.fsencode(name)) <= 100}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            archive.addfile(info, io.BytesIO(content))
    found = {
        os.fsdecode(header.name): (b"".join(pieces), header.mtime_s)
        for header, pieces in members(cut(buffer.getvalue(), piece))
    }
    assert found == {name: (content, 1_700_000_000) for name, content in files.items()}


def test_what_the_reader_leaves_is_skipped(tmp_path: Path) -> None:
    """Content that nobody takes does not disturb the next member; a second name of a file says which."""
    (tmp_path / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").write_bytes(b"c")
    data = subprocess.run(["tar", "-cf", "-", "a", "b", "c"], cwd=tmp_path, check=True, capture_output=True).stdout
    found = [(header.name, header.kind, header.size, header.link) for header, _pieces in members([data])]
    assert found == [(b"a", b"0", 1000, b""), (b"b", b"1", 0, b"a"), (b"c", b"0", 1, b"")]


@given(data=st.binary(max_size=3000))
def test_noise_is_no_archive(data: bytes) -> None:
    """Whatever comes is an archive or a typed error."""
    with contextlib.suppress(StagingError):
        for _header, pieces in members([data]):
            list(pieces)


def test_an_archive_that_breaks_off_is_told(tmp_path: Path) -> None:
    """Every beginning of an archive is known to be none."""
    (tmp_path / "a").write_bytes(b"x" * 700)
    data = subprocess.run(["tar", "-cf", "-", "a"], cwd=tmp_path, check=True, capture_output=True).stdout
    for size in (0, 100, 512, 1000, 1536):
        with pytest.raises(StagingError, match="no end"):
            [list(pieces) for _header, pieces in members([data[:size]])]
