"""Files of one node brought here: one look at what it has, the comparison with what is here, one archive of the rest.

The counterpart of sync.py, with the same comparison: kind, mode, size and time. What is here unchanged is not fetched
again; what the node no longer has stays here. A file is in place as soon as all of it has come, by one rename, so that a
fetch that broke off goes on where it was.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import attrs

from skylib.errors import CommandError, StagingError
from skylib.events import Event, EventSink, Phase, discard, span
from skylib.models.transfers import Fetched
from skylib.staging.diff import Delta, delta
from skylib.staging.landing import Landing, seen_here
from skylib.staging.listing import Listed, Offered, list_command, read_listing
from skylib.staging.manifest import Kind, Manifest
from skylib.staging.unpack import Header, members
from skylib.staging.wanted import Wanted
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["fetch"]

_ROUNDS = 3
_NOTE_S = 0.2
# Standard input: paths relative to /, each ended by NUL. Whatever tar thinks of single files is told on stderr.
_PACK = r"""
LC_ALL=C; export LC_ALL
literal=--quoting-style=literal
tar "$literal" --version > /dev/null 2>&1 || literal=--no-recursion
cd / && tar -cf - --no-recursion "$literal" --null -T -
printf 'tar ended %s\n' $? >&2
"""
_SAID = re.compile(
    r"^tar: (?:\./)?(?P<path>(?:.|\n)+?): (?:Cannot \w+: (?P<why>.+)|file changed as we read it"
    r"|[Ff]ile removed before we read it|.*padding with zeros.*|.*shrank.*)$",
    re.MULTILINE,
)
_GONE = "No such file or directory"


@attrs.frozen(kw_only=True)
class _Coming:
    """A file that is asked for, and where it goes."""

    offered: Offered
    landing: Landing


@attrs.frozen(kw_only=True)
class _Round:
    """What one look and one archive brought."""

    fetched: Fetched
    problems: tuple[StagingError, ...] = ()


def fetch(transport: Transport, wanted: Sequence[Wanted], *, events: EventSink = discard) -> Fetched:
    """Bring what `wanted` matches on one node to its places here.

    A file that changes while it is read is read again, up to three times in all; what it was at the last reading is here
    then. Raises StagingError (facts: host, path) when not all could be looked at, read or written, after all the rest has
    been put in place; the transport's own errors when it breaks. No pattern that matches is no error: see `missing`.
    """
    with span(events, "files.fetch", host=transport.host, patterns=len(wanted)) as step:
        total = Fetched()
        for number in range(_ROUNDS):
            found = _round(transport, wanted, events)
            total = _sum(total, found.fetched, first=number == 0)
            if found.problems:
                step.note(files=total.files, bytes=total.bytes)
                raise _first(found.problems)
            if not total.unsettled:
                break
        step.note(files=total.files, bytes=total.bytes, unchanged=total.unchanged)
        return total


def _sum(before: Fetched, now: Fetched, *, first: bool) -> Fetched:
    """A later round fetches anew what changed: its content counts as bytes, not as another file."""
    if first:
        return now
    return attrs.evolve(now, files=max(before.files, now.files), bytes=before.bytes + now.bytes, unchanged=before.unchanged)


def _first(problems: Sequence[StagingError]) -> StagingError:
    """The first problem, with the others as its fact `problems`."""
    problems[0].__dict__["problems"] = tuple(each.message for each in problems)
    return problems[0]


def _round(transport: Transport, wanted: Sequence[Wanted], events: EventSink) -> _Round:
    host = transport.host
    found, problems = read_listing(wanted, transport.run(list_command(wanted)), host)
    listed, doubled = _without_doubles(found)
    coming: dict[bytes, _Coming] = {}
    files = unchanged = 0
    with ExitStack() as stack:
        landings = []
        for each in listed:
            manifest = Manifest(source=each.place, entries=tuple(offered.entry for offered in each.offered))
            change = delta(manifest, seen_here(each.place, manifest.entries))
            landing = stack.enter_context(Landing(each.place, host, each.single))
            landings.append(landing)
            problems += _stand(each, change, landing, coming)
            sent = sum(entry.kind is not Kind.DIR for entry in change.send)
            files, unchanged = files + sent, unchanged + manifest.files - sent
        unpacking = _Unpacking(host=host, coming=coming, events=events)
        if coming:
            problems += unpacking.take(transport)
        for landing in landings:
            landing.finish()
    return _Round(
        fetched=Fetched(
            files=files - len(unpacking.gone),
            bytes=unpacking.size,
            unchanged=unchanged,
            missing=tuple(each.wanted.pattern for each in listed if not each.offered and not each.left_out),
            left_out=(*(pair for each in listed for pair in each.left_out), *doubled),
            unsettled=tuple(sorted(unpacking.unsettled)),
        ),
        problems=tuple(problems),
    )


def _without_doubles(listed: Sequence[Listed]) -> tuple[list[Listed], list[tuple[str, str]]]:
    """One place here has one file: of two that would go there the first pattern's does."""
    taken: dict[str, Offered] = {}
    found, doubled = [], []
    for each in listed:
        kept = []
        for offered in each.offered:
            path = f"{each.place}/{offered.entry.path}" if offered.entry.path else each.place
            first = taken.setdefault(path, offered)
            if first is offered:
                kept.append(offered)
            elif first.remote != offered.remote and not first.entry.kind is offered.entry.kind is Kind.DIR:
                doubled.append((offered.remote, f"{path} is the place of {first.remote}"))
        found.append(attrs.evolve(each, offered=tuple(kept)))
    return found, doubled


def _stand(listed: Listed, change: Delta, landing: Landing, coming: dict[bytes, _Coming]) -> Iterator[StagingError]:
    """Directories and links are put in place; files are noted as coming. What cannot be is given, and the rest goes on."""
    offers = {offered.entry.path: offered for offered in listed.offered}
    for entry in change.send:
        try:
            if entry.kind is Kind.DIR:
                landing.directory(entry)
            elif entry.kind is Kind.LINK:
                landing.link(entry)
            else:
                offered = offers[entry.path]
                coming[os.fsencode(offered.remote.lstrip("/"))] = _Coming(offered=offered, landing=landing)
        except StagingError as error:
            yield error
    for entry in change.remode:
        if entry.path:  # the place itself is the user's own
            landing.mode(entry)


@attrs.define(kw_only=True, slots=True)
class _Unpacking:
    """The archive of the files that are coming, as it arrives. gone: names of those that were no longer there."""

    host: str
    coming: dict[bytes, _Coming]
    events: EventSink
    size: int = 0
    gone: set[bytes] = attrs.field(factory=set)
    unsettled: set[str] = attrs.field(factory=set)
    _came: dict[bytes, str] = attrs.field(factory=dict)
    _problems: list[StagingError] = attrs.field(factory=list)
    _said: bytearray = attrs.field(factory=bytearray)

    def take(self, transport: Transport) -> list[StagingError]:
        """Fetch and place; what went wrong with single files. Raises the transport's errors, StagingError."""
        names = b"".join(b"./" + name + b"\0" for name in self.coming)
        expected = sum(each.offered.entry.size for each in self.coming.values())
        tell = _meter(self.events, self.host, len(self.coming), expected)
        try:
            for header, pieces in members(self._stdout(transport, names)):
                self._place(header, pieces)
                tell(len(self._came), self.size)
        except StagingError as error:
            if error.host is None:
                error.__dict__["host"] = self.host
            error.__dict__["evidence"] = bytes(self._said[-2000:]).decode(errors="replace") or None
            raise
        self._settle()
        return self._problems

    def _stdout(self, transport: Transport, names: bytes) -> Iterator[bytes]:
        try:
            for chunk in transport.stream(Command.sh(_PACK), stdin=names):
                if chunk.stream == "stdout":
                    yield chunk.data
                elif len(self._said) < 1 << 20:
                    self._said += chunk.data
        except CommandError as error:
            raise StagingError(
                f"could not pack the files on {self.host}", host=self.host, step="staging.fetch", evidence=error.evidence
            ) from error

    def _place(self, header: Header, pieces: Iterator[bytes]) -> None:
        name = header.name.removeprefix(b"./").lstrip(b"/")
        each = self.coming.get(name)
        if each is None or name in self._came:
            raise StagingError(
                f"{self.host} sends a file that was not asked for: {os.fsdecode(name)!r}; nothing more is taken from it",
                host=self.host,
                path=os.fsdecode(name),
            )
        entry = each.offered.entry
        settled = header.mtime_s == entry.mtime_ns // 1_000_000_000
        mtime_ns = entry.mtime_ns if settled else header.mtime_s * 1_000_000_000
        try:
            if header.kind == b"1":
                source = self._came.get(header.link.removeprefix(b"./").lstrip(b"/"), "")
                size = each.landing.copy(entry, source, mtime_ns=mtime_ns) if source else -1
            elif header.kind in (b"0", b"\0", b"7"):
                size = each.landing.file(entry, pieces, mtime_ns=mtime_ns, sparse=each.offered.sparse)
            else:
                size = -1  # it is no file any more
        except StagingError as error:
            if error.path != each.landing.path_of(entry) or _is_full(error):
                raise
            self._problems.append(error)
            self._came[name] = ""
            return
        self._came[name] = each.landing.path_of(entry)
        self.size += max(size, 0)
        if not settled or size != entry.size:
            self.unsettled.add(each.offered.remote)

    def _settle(self) -> None:
        """What tar said of files that did not come, or did not come to rest."""
        text = bytes(self._said).decode(errors="surrogateescape")
        if not text.rstrip().rpartition("\n")[2].startswith("tar ended"):
            raise StagingError(f"the files of {self.host} did not all come", host=self.host, retryable=True)
        why = {}
        for match in _SAID.finditer(text):
            why[os.fsencode(match["path"])] = match["why"] or ""
        for name, each in self.coming.items():
            said = why.get(name)
            if name in self._came:
                if said is not None:
                    self.unsettled.add(each.offered.remote)
                continue
            self.gone.add(name)
            if said not in (_GONE, ""):
                reason = said.lower() if said else "the node did not send it"
                self._problems.append(
                    StagingError(
                        f"could not read {each.offered.remote} on {self.host}: {reason}",
                        host=self.host,
                        path=each.offered.remote,
                        step="staging.fetch",
                        evidence=text[-2000:],
                    )
                )


def _is_full(error: StagingError) -> bool:
    """The disk here takes no more: what else comes would fail, too."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _meter(events: EventSink, host: str, total_files: int, total_bytes: int) -> Callable[[int, int], None]:
    """Tells how far it is, as notes of the running step, at most five a second."""
    started = told = time.monotonic()

    def tell(files: int, count: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < _NOTE_S:
            return
        told = now
        facts = {
            "host": host,
            "files": files,
            "bytes": count,
            "total_files": total_files,
            "total_bytes": total_bytes,
            "rate_bytes_s": round(count / (now - started)),
        }
        events(Event(step="files.fetch", phase=Phase.NOTE, at=time.time(), facts=facts))

    return tell
