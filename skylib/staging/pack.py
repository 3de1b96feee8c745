"""A tar stream by hand: 512-byte ustar headers, GNU long names, and a pax time where seconds are too coarse.

Python's tarfile costs several times what the whole transfer does. GNU tar, bsdtar and busybox read this form. Names are
bytes and travel as they are (a pax name would have to be UTF-8): over 100 bytes in a GNU "L" or "K" record.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator

import attrs

from skylib.errors import StagingError
from skylib.staging.manifest import Entry, Kind, entry_of

__all__ = ["BLOCK_BYTES", "Member", "pack", "wire_mtime_ns"]

BLOCK_BYTES = 256 * 1024
"""Size of the pieces that a stream is handed on in."""
_RECORD_BYTES = 20 * 512
_SECOND_NS = 1_000_000_000
_SETTLED_NS = 2 * _SECOND_NS
_MAX_MTIME_NS = 0o77777777777 * _SECOND_NS
_MAX_OCTAL_SIZE = 0o77777777777
_ATTEMPTS = 3
_TYPES = {Kind.FILE: b"0", Kind.LINK: b"2", Kind.DIR: b"5"}


@attrs.frozen(kw_only=True, slots=True)
class Member:
    """One thing to be packed. name: in the archive, relative. source: where its content is; or `content` itself.

    kept: it is in a snapshot, where nothing goes missing by itself.
    """

    name: str
    entry: Entry
    source: str = ""
    content: bytes | None = None
    kept: bool = False

    @classmethod
    def literal(cls, name: str, content: bytes) -> Member:
        """A small file that exists only in the archive."""
        entry = Entry(path=name, kind=Kind.FILE, mode=0o600, size=len(content), mtime_ns=0)
        return cls(name=name, entry=entry, content=content)


def wire_mtime_ns(mtime_ns: int) -> int:
    """The time that a settled file has on a node: whole seconds, in the range that a header can say."""
    return min(max(mtime_ns, 0), _MAX_MTIME_NS) // _SECOND_NS * _SECOND_NS


def pack(members: Iterable[Member]) -> Iterator[bytes]:
    """The archive in pieces of about BLOCK_BYTES.

    Files are read as they are now: a file that is gone is left out; one that changes while it is read is sent again, up
    to three times, the last one wins. A file or link that was touched within the last two seconds carries its time to
    the nanosecond, so that an edit within the same second is seen by the next comparison; all others carry seconds.
    Raises StagingError with the path of a file that cannot be read or does not come to rest; the archive is then
    not complete.
    """
    buffer = bytearray()
    total = 0
    for member in members:
        for piece in _member(member):
            total += len(piece)
            if len(piece) >= BLOCK_BYTES:
                if buffer:
                    yield bytes(buffer)
                    buffer.clear()
                yield piece
                continue
            buffer += piece
            if len(buffer) >= BLOCK_BYTES:
                yield bytes(buffer)
                buffer.clear()
    total += 1024
    buffer += bytes(1024 + -total % _RECORD_BYTES)
    yield bytes(buffer)


def _member(member: Member) -> Iterator[bytes]:
    name = os.fsencode(member.name)
    if member.content is not None:
        yield _header(name, member.entry)
        yield member.content + bytes(-len(member.content) % 512)
    elif member.entry.kind is Kind.FILE:
        yield from _file(name, member)
    else:
        yield _header(name, member.entry, exact=member.entry.exact)


def _file(name: bytes, member: Member) -> Iterator[bytes]:
    """A file's header and content. Its size is what it has when it is opened, and that many bytes follow."""
    source = member.source
    for _attempt in range(_ATTEMPTS):
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            if not member.kept:
                return
            hint = "what skylib keeps there is for skylib alone: remove the snapshot's folder, and try again"
            raise StagingError(f"{source} was taken out of its snapshot", path=source, hint=hint) from exc
        except OSError as exc:
            why = "it was replaced by a link" if exc.errno == errno.ELOOP else exc.strerror
            raise StagingError(f"cannot read {source}: {why}", path=source) from exc
        try:
            before = os.fstat(descriptor)
            entry = entry_of(member.entry.path, before, source)
            if entry is None or entry.kind is not Kind.FILE:
                raise StagingError(f"{source} was replaced by something else while it was sent", path=source)
            yield _header(name, entry, exact=member.entry.exact)
            yield from _content(descriptor, entry.size)
            after = os.fstat(descriptor)
        except OSError as exc:
            if isinstance(exc, StagingError):
                raise
            raise StagingError(f"cannot read {source}: {exc.strerror}", path=source) from exc
        finally:
            os.close(descriptor)
        if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            return
    raise StagingError(
        f"{source} kept changing while it was sent",
        path=source,
        hint="stop what writes to it, or list it in .skyignore or .gitignore",
        retryable=True,
    )


def _content(descriptor: int, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, whatever the file does meanwhile, and the padding."""
    left = size
    while left > 0:
        piece = os.read(descriptor, min(left, BLOCK_BYTES))
        if not piece:
            break
        left -= len(piece)
        yield piece
    while left > 0:
        filler = bytes(min(left, BLOCK_BYTES))
        left -= len(filler)
        yield filler
    if size % 512:
        yield bytes(-size % 512)


def _header(name: bytes, entry: Entry, *, exact: bool = False) -> bytes:
    link = os.fsencode(entry.target)
    size = entry.size if entry.kind is Kind.FILE else 0
    mtime_s = wire_mtime_ns(entry.mtime_ns) // _SECOND_NS
    extra = b""
    if entry.kind is not Kind.DIR and _fresh(entry.mtime_ns, exact=exact):
        extra = _pax_time(entry.mtime_ns)
    if len(name) > 100:
        extra += _long(b"L", name)
    if len(link) > 100:
        extra += _long(b"K", link)
    return extra + _block(name[:100], entry.mode, size, mtime_s, _TYPES[entry.kind], link[:100])


def _fresh(mtime_ns: int, *, exact: bool) -> bool:
    """Whether a later edit can fall into the same second; exact: it can have done so before now."""
    return 0 < mtime_ns < _MAX_MTIME_NS and mtime_ns % _SECOND_NS > 0 and (exact or mtime_ns > time.time_ns() - _SETTLED_NS)


def _pax_time(mtime_ns: int) -> bytes:
    body = b" mtime=%d.%09d\n" % divmod(mtime_ns, _SECOND_NS)
    length = len(body) + 2
    record = b"%d%s" % (length, body)
    return _block(b"pax", 0o600, len(record), 0, b"x", b"") + record + bytes(-len(record) % 512)


def _long(kind: bytes, value: bytes) -> bytes:
    size = len(value) + 1
    return _block(b"././@LongLink", 0, size, 0, kind, b"") + value + bytes(1 + -size % 512)


def _block(name: bytes, mode: int, size: int, mtime_s: int, kind: bytes, link: bytes) -> bytes:
    sized = b"%011o\0" % size if size <= _MAX_OCTAL_SIZE else b"\x80" + size.to_bytes(11, "big")
    head = b"%s%07o\x000000000\x000000000\0%s%011o\0" % (name.ljust(100, b"\0"), mode, sized, mtime_s)
    tail = b"%s%sustar\x0000" % (kind, link.ljust(100, b"\0"))
    checksum = sum(head) + 256 + sum(tail)
    return b"%s%06o\0 %s" % (head, checksum, tail.ljust(356, b"\0"))
