"""Files on the way: one temporary file beside the target and one rename, on both sides."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from skylib.errors import InvalidSpecError, StagingError
from skylib.transport.command import Command
from skylib.transport.feed import file_pieces, pieces

__all__ = ["Upload", "absolute", "beside", "save"]

# $1 folder, $2 target, $3 temporary file, $4 size in bytes or "any", $5 mode, $6 "rename" or "keep".
# The size is compared because a connection that breaks looks like the end of the stream to `cat`.
_RECEIVE = """\
umask 077
trap "" PIPE
if [ -d "$2" ]; then echo "it is a directory" >&2; exit 1; fi
if mkdir -p -- "$1" && cat > "$3"; then
  n=$(wc -c < "$3")
  if [ "$4" != any ] && [ "$n" -ne "$4" ]; then rm -f -- "$3"; echo "$n bytes came instead of $4" >&2
  elif [ "$6" = keep ]; then exit 0
  elif chmod "$5" "$3" && mv -f -- "$3" "$2"; then exit 0
  fi
fi
rm -f -- "$3"
exit 1
"""
_RENAME = 'chmod "$3" "$1" && mv -f -- "$1" "$2" && exit 0; rm -f -- "$1"; exit 1'


def absolute(path: str) -> str:
    """`path`, when it names a file absolutely. Raises InvalidSpecError."""
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidSpecError(f"not an absolute path of a file: {path!r}", field="target")
    return path


def beside(path: str) -> str:
    """A name in the same folder that nobody else uses, short whatever the target's name is."""
    return f"{path.rpartition('/')[0]}/.skylib-{secrets.token_hex(8)}.tmp"


@attrs.frozen(kw_only=True)
class Upload:
    """A file to be received by a node's shell. size: in bytes, None when it is known only at the end of `source`."""

    source: Iterable[bytes]
    size: int | None
    target: str
    mode: int
    temporary: str

    @classmethod
    def of(cls, source: Path | bytes | Iterable[bytes], target: str, mode: int) -> Upload:
        """Raises StagingError when a local source cannot be read."""
        target = absolute(target)
        size: int | None = None
        if isinstance(source, Path):
            try:
                size = source.stat().st_size
                source.open("rb").close()
            except OSError as exc:
                raise StagingError(f"could not read {source}: {exc.strerror}", path=str(source)) from exc
            source = _content(source)
        elif isinstance(source, bytes):
            size = len(source)
            source = pieces(source)
        return cls(source=source, size=size, target=target, mode=mode, temporary=beside(target))

    def receive(self) -> Command:
        """Takes the file on stdin; when its size is known, it is renamed into place by the same command."""
        known = self.size is not None
        folder = self.target.rpartition("/")[0] or "/"
        size, last = (str(self.size), "rename") if known else ("any", "keep")
        return Command.sh(_RECEIVE, folder, self.target, self.temporary, size, f"{self.mode:o}", last)

    def rename(self) -> Command | None:
        """The second step when the size was not known: only now is it sure that all has come."""
        if self.size is not None:
            return None
        return Command.sh(_RENAME, self.temporary, self.target, f"{self.mode:o}")

    def forget(self) -> Command:
        return Command.of("rm", "-f", "--", self.temporary)


def _content(path: Path) -> Iterator[bytes]:
    try:
        yield from file_pieces(path)
    except OSError as exc:
        raise StagingError(f"could not read {path}: {exc.strerror}", path=str(path)) from exc


def save(target: Path, chunks: Iterable[bytes], *, host: str, mode: int = 0o600, size: int | None = None) -> int:
    """Write `chunks` to a file of this machine, beside and renamed; parents are made. Returns its bytes.

    size: what must have come, when that is known. Raises StagingError when the disk refuses or the size differs; what
    `chunks` raises passes through. Nothing is left behind then.
    """
    temporary = Path(beside(str(target.absolute())))
    total = 0
    try:
        with _refusals(target, host):
            temporary.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        with file:
            for chunk in chunks:
                with _refusals(target, host):
                    file.write(chunk)
                total += len(chunk)
            with _refusals(target, host):
                file.flush()
                os.fchmod(file.fileno(), mode)
        if size is not None and total != size:
            message = f"could not write {target}: {total} bytes came instead of {size}"
            raise StagingError(message, path=str(target), host=host)
        with _refusals(target, host):
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return total


@contextmanager
def _refusals(target: Path, host: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StagingError(f"could not write {target}: {exc.strerror}", path=str(target), host=host) from exc
