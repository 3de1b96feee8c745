"""A tar stream read by hand, member by member, while it comes: what GNU tar and bsdtar write.

The counterpart of pack.py. Nothing is trusted: a header that does not add up ends the reading with StagingError, and a
name is what the archive says, for the caller to look up among those that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from skylib.errors import StagingError

__all__ = ["Header", "members"]

_BLOCK = 512
_MAX_TEXT_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")


@attrs.frozen(kw_only=True, slots=True)
class Header:
    """One member. kind: the type flag ("0" a file, "1" another name of an earlier one). mtime_s: whole seconds."""

    name: bytes
    kind: bytes
    size: int
    mtime_s: int
    link: bytes = b""

    @property
    def is_file(self) -> bool:
        return self.kind in _REGULAR


def members(chunks: Iterable[bytes]) -> Iterator[tuple[Header, Iterator[bytes]]]:
    """Each member with its content in pieces; what the caller leaves of that is skipped.

    Raises StagingError for what is no archive, or one without its end.
    """
    stream = _Stream(chunks)
    told: dict[str, bytes] = {}
    while True:
        block = stream.exactly(_BLOCK)
        if not any(block):
            stream.drain()
            return
        header = _header(block, told)
        if header.kind in (b"L", b"K", b"x", b"g"):
            text = stream.text(header.size)
            if header.kind == b"x":
                told.update(_pax(text))
            elif header.kind != b"g":
                told["path" if header.kind == b"L" else "linkpath"] = text.rstrip(b"\0")
            continue
        told = {}
        content = stream.pieces(header.size)
        yield header, content
        for _piece in content:
            pass
        stream.exactly(-header.size % _BLOCK)


class _Stream:
    """Bytes by count from chunks of any size."""

    __slots__ = ("_chunks", "_left")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def exactly(self, count: int) -> bytes:
        if len(self._left) >= count:
            found, self._left = self._left[:count], self._left[count:]
            return bytes(found)
        return b"".join(self.pieces(count))

    def text(self, count: int) -> bytes:
        if count > _MAX_TEXT_BYTES:
            raise _broken(f"a name of {count} bytes")
        text = self.exactly(count)
        self.exactly(-count % _BLOCK)
        return text

    def pieces(self, count: int) -> Iterator[bytes]:
        while count > 0:
            if not self._left:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise _broken("it has no end")
                self._left = memoryview(chunk)
                continue
            piece, self._left = self._left[:count], self._left[count:]
            count -= len(piece)
            yield bytes(piece)

    def drain(self) -> None:
        self._left = memoryview(b"")
        for _chunk in self._chunks:
            pass


def _header(block: bytes, told: dict[str, bytes]) -> Header:
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise _broken("a header's checksum is wrong")
    name, link = _text(block[:100]), _text(block[157:257])
    if block[257:263] == b"ustar\0" and block[345] and "path" not in told:
        name = _text(block[345:500]) + b"/" + name
    kind = block[156:157]
    size = int(told["size"]) if told.get("size", b"").isdigit() else _number(block[124:136])
    if size < 0:
        raise _broken("a negative size")
    if kind in (b"L", b"K", b"x", b"g"):
        return Header(name=name, kind=kind, size=_number(block[124:136]), mtime_s=0)
    mtime_s = _number(block[136:148])
    if "mtime" in told:
        mtime_s = _whole_seconds(told["mtime"])
    return Header(
        name=told.get("path", name),
        kind=kind,
        size=0 if kind == b"1" else size,
        mtime_s=mtime_s,
        link=told.get("linkpath", link),
    )


def _number(field: bytes) -> int:
    """Octal digits, or (GNU) a number in base 256 when the first bit is set."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value - (1 << 8 * (len(field) - 1)) if field[0] == 0xFF else value
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise _broken("a number cannot be read") from error


def _whole_seconds(text: bytes) -> int:
    seconds, _, fraction = text.partition(b".")
    try:
        whole = int(seconds or b"0")
    except ValueError as error:
        raise _broken("a time cannot be read") from error
    return whole - 1 if seconds.startswith(b"-") and fraction.strip(b"0") else whole


def _pax(text: bytes) -> dict[str, bytes]:
    """Records of "<length> <key>=<value>\\n"; those that say what a header cannot."""
    found: dict[str, bytes] = {}
    while text:
        length, _, _rest = text.partition(b" ")
        count = int(length) if length.isdigit() and len(length) < 10 else 0
        record = text[len(length) + 1 : count - 1]
        key, mark, value = record.partition(b"=")
        if not mark or text[count - 1 : count] != b"\n":
            raise _broken("a record of a header cannot be read")
        if key in (b"path", b"linkpath", b"size", b"mtime"):
            found[key.decode()] = value
        text = text[count:]
    return found


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _broken(why: str) -> StagingError:
    return StagingError(f"the archive that came cannot be read: {why}", step="staging.fetch", retryable=True)
