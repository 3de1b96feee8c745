"""A rank's own log files brought home: only what is not here yet, when what is here is how the file on the node begins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from skylib.errors import CommandError, SkyError, StagingError
from skylib.paths import ensure_private_dir
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["bring_file", "list_files"]

_LONGEST_LINE = 32
_NOTE = ".log.begins"  # of a log that its job truncated
# $1 file, $2 bytes that are here, $3 their SHA-256. First line of the answer: from where on the bytes after it are.
_FROM = r"""
n=$2
[ -r "$1" ] || { echo "$1: cannot be read" >&2; exit 1; }
if [ "$n" -gt 0 ]; then
  sum=$(head -c "$n" "$1" | sha256sum) || n=0
  [ "${sum%% *}" = "$3" ] || n=0
fi
echo "$n"
exec tail -c "+$((n + 1))" "$1"
"""


def list_files(transport: Transport, folder: str) -> list[str]:
    """Names in a folder on a node, less the agent's own notes about a log; none when there is no such folder.

    Raises StagingError for what can be no name.
    """
    listed = transport.run(Command.sh('cd "$1" 2>/dev/null && ls -A || true', folder)).check()
    names = listed.stdout.decode("utf-8", "surrogateescape").splitlines()
    for name in names:
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise StagingError(f"{transport.host} names a log file {name!r}", host=transport.host, path=folder)
    return [name for name in names if not name.endswith(_NOTE)]


def bring_file(transport: Transport, source: str, target: Path) -> int:
    """Bring `target` up to what `source` is on the node; the bytes that came.

    What is here already is not fetched again: the file grows in place, so that a call which broke off is gone on with.
    Where the node's file begins otherwise, it is fetched whole, beside, and renamed. Raises StagingError (host, path).
    """
    size, digest = _here(target)
    stream = transport.stream(Command.sh(_FROM, source, str(size), digest))
    pieces = (chunk.data for chunk in stream if chunk.stream == "stdout")
    try:
        begins, rest = _first_line(pieces, transport.host, source)
        if begins not in (0, size):
            raise StagingError(f"{transport.host} answers for another place of {source}", host=transport.host, path=source)
        return _save(target, rest, pieces, append=begins > 0)
    except CommandError as error:
        raise StagingError(
            f"could not read {source} on {transport.host}", host=transport.host, path=source, evidence=error.evidence
        ) from error
    except OSError as error:
        if isinstance(error, SkyError):
            raise
        raise StagingError(
            f"could not write {target}: {error.strerror or error}", host=transport.host, path=str(target)
        ) from error


def _here(target: Path) -> tuple[int, str]:
    """Bytes of the file here, and their SHA-256; a link is none of ours."""
    sums, size = hashlib.sha256(), 0
    try:
        with open(os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            while piece := file.read(1 << 20):
                sums.update(piece)
                size += len(piece)
    except OSError:
        return 0, ""
    return size, sums.hexdigest()


def _first_line(pieces: Iterator[bytes], host: str, source: str) -> tuple[int, bytes]:
    head = b""
    for piece in pieces:
        head += piece
        line, mark, rest = head.partition(b"\n")
        if mark and line.isdigit():
            return int(line), rest
        if mark or len(head) > _LONGEST_LINE:
            break
    raise StagingError(f"the answer of {host} about {source} cannot be read", host=host, path=source, evidence=head[:200])


def _save(target: Path, first: bytes, pieces: Iterator[bytes], *, append: bool) -> int:
    ensure_private_dir(target.parent)
    count = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    beside = target if append else target.with_name(f".{target.name[:200]}.part")
    with open(os.open(beside, flags | (os.O_APPEND if append else os.O_TRUNC), 0o600), "ab") as file:
        for piece in chain((first,), pieces):
            file.write(piece)
            count += len(piece)
    if not append:
        os.replace(beside, target)
    return count
