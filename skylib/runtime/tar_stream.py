"""A few files as one uncompressed tar stream: ustar headers by hand, contents straight from the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

__all__ = ["Entry", "tar_stream"]

_BLOCK = 512
_END = bytes(_BLOCK * 20)  # two empty blocks end an archive; readers take records of twenty
_PIECE = 256 * 1024


@attrs.frozen(kw_only=True)
class Entry:
    """A regular file. name: relative, at most 255 bytes with "/". content: bytes, or the file that holds them."""

    name: str
    content: bytes | Path
    mode: int = 0o600


def tar_stream(entries: Sequence[Entry]) -> Iterator[bytes]:
    """The archive in pieces of up to 256 KiB. Folders are not listed: every tar makes those of a file's name.

    Raises OSError when a file cannot be read; a file that changes its size meanwhile raises ValueError.
    """
    for entry in entries:
        size = entry.content.stat().st_size if isinstance(entry.content, Path) else len(entry.content)
        yield _header(entry.name, size, entry.mode)
        sent = 0
        for piece in _pieces(entry.content):
            sent += len(piece)
            yield piece
        if sent != size:
            raise ValueError(f"{entry.name} changed while it was sent: {sent} bytes instead of {size}")
        if size % _BLOCK:
            yield bytes(_BLOCK - size % _BLOCK)
    yield _END


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece


def _header(name: str, size: int, mode: int) -> bytes:
    prefix, base = _split(name)
    fields = (
        (base, 100),
        (b"%07o\0" % mode, 8),
        (b"0000000\0", 8),
        (b"0000000\0", 8),
        (b"%011o\0" % size, 12),
        (b"00000000000\0", 12),
        (b" " * 8, 8),
        (b"0", 1),
        (b"", 100),
        (b"ustar\x0000", 8),
        (b"", 80),
        (prefix, 155),
        (b"", 12),
    )
    header = b"".join(value.ljust(width, b"\0") for value, width in fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _split(name: str) -> tuple[bytes, bytes]:
    """The name as ustar's prefix and name. Raises ValueError for one that does not fit or is not relative."""
    raw = name.encode()
    if not raw or raw.startswith(b"/") or b".." in raw.split(b"/"):
        raise ValueError(f"not a relative file name: {name!r}")
    if len(raw) <= 100:
        return b"", raw
    for cut in range(len(raw) - 1, 0, -1):
        if raw[cut : cut + 1] == b"/" and cut <= 155 and len(raw) - cut - 1 <= 100:
            return raw[:cut], raw[cut + 1 :]
    raise ValueError(f"file name too long for an archive: {name!r}")
