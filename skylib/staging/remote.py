"""What is run on a node, in POSIX sh with tar, find and xargs; no Python. Answers are parsed, errors are named here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import attrs

from skylib.errors import StagingError
from skylib.staging.diff import Seen
from skylib.staging.removal import Put, parse_record
from skylib.transport.base import Completed
from skylib.transport.command import Command

__all__ = [
    "Answer",
    "LinkState",
    "RecordState",
    "Step",
    "failure",
    "holding",
    "install",
    "parse_holding",
    "parse_probe",
    "probe",
    "take",
]

# Arguments: where the rest of an archive would be; how many links; pairs of link and what it is to point to; pairs of
# record and the first line of the plan's own (removal.py). Standard input: absolute paths, each ended by NUL. Answer,
# each part ended by NUL: one word per link, an empty one, "rest" or "-", for each record a word, what it has when it
# is another, and ".", then two per path that exists.
# A directory's size and time are not told, so that nodes with the same files give the same answer.
# A `find` without -printf (busybox) says nothing, and everything is sent.
_PROBE = r"""
LC_ALL=C; export LC_ALL
rest=$1 links=$2; shift 2
while [ "$links" -gt 0 ]; do
  if [ -L "$1" ]; then
    to=$(readlink "$1")
    ours=no; case $to in */.sky/file_mounts"$1") ours=yes;; esac
    if [ "$to" = "$2" ]; then printf 'linked\0'
    elif [ $ours = yes ] && [ ! -e "$1" ]; then printf 'stale\0'
    else printf 'foreign %s\0' "$to"
    fi
  elif [ -e "$1" ]; then printf 'occupied\0'
  else
    up=${1%/*}
    while [ -n "$up" ] && [ ! -e "$up" ]; do up=${up%/*}; done
    up=${up:-/}
    if [ -d "$up" ] && [ -w "$up" ]; then printf 'free\0'; else printf 'forbidden %s\0' "$up"; fi
  fi
  shift 2; links=$((links - 1))
done
printf '\0'
if [ -n "$rest" ] && [ -d "$rest" ]; then printf 'rest\0'; else printf '%s\0' -; fi
while [ $# -gt 0 ]; do
  first=
  [ ! -f "$1" ] || read -r first < "$1"
  if [ -z "$first" ]; then printf 'none\0'
  elif [ "$first" = "$2" ]; then printf 'same\0'
  else printf 'other\0'; tail -n +2 "$1"
  fi
  printf '\0.\0'
  shift 2
done
xargs -0 sh -c '
  exec find "$@" -maxdepth 0 \( -type d -printf "d %m 0 0 %p\0\0" -o -printf "%y %m %s %T@ %p\0%l\0" \)
' sh 2>/dev/null
exit 0
"""

# $1: directory to unpack in, on the file system of the targets. $2: where it is kept when the archive breaks off, ""
# for nowhere. Then five words per target: its number (its tree is in the archive as <number>/<name>), its absolute
# path, "dir" or "file", the link to make and the record ("" for none).
# Nothing is touched before the whole archive has come: its last member is `complete`. Then a tree whose target does not
# exist is moved there by one rename; else each file is renamed over what is there. So no file is ever half new, and
# what else is in the target stays.
# First goes what is listed as gone, unless it was changed since this began; then comes the record, so that all that is
# put is in it, however this ends. A directory takes the place of a file or link; a file never that of a directory.
_INSTALL = r"""
LC_ALL=C; export LC_ALL
login_umask=$(umask); umask 077
in=$1 rest=$2; shift 2
die() { code=$1; shift; echo "$*" >&2; exit "$code"; }
merge() {
  for e in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    [ -d "$e" ] && [ ! -L "$e" ] || continue
    b=${e##*/}
    if [ -L "$2/$b" ] || [ ! -d "$2/$b" ]; then
      if [ -L "$2/$b" ] || [ -f "$2/$b" ]; then rm -f "$2/$b" || exit 76; fi
      mv "$e" "$2/" 2>/dev/null && continue
      if [ ! -d "$2/$b" ]; then mv "$e" "$2/" || exit 76; continue; fi
    fi
    merge "$e" "$2/$b"
  done
  from=$1 to=$2; set --
  for e in "$from"/* "$from"/.[!.]* "$from"/..?*; do
    if [ -L "$e" ] || { [ -e "$e" ] && [ ! -d "$e" ]; }; then set -- "$@" "$e"; fi
    if [ $# -ge 200 ]; then mv -f "$@" "$to/" || exit 76; set --; fi
  done
  [ $# -eq 0 ] || mv -f "$@" "$to/" || exit 76
}
case $in in */.sky/incoming/*)
  mkdir -p "${in%/*}" || exit 73
  find "${in%/*}/." ! -name . -prune -mtime +1 -exec rm -rf {} +
esac
{ [ -d "$in" ] || mkdir "$in"; } && : > "$in/began" || exit 73
trap 'rm -rf "$in"' EXIT
trap 'exit 71' HUP INT TERM PIPE
said=$(tar -xpof - -C "$in" 2>&1)
code=$?
if [ $code -eq 0 ]; then cat > /dev/null; fi
if [ ! -f "$in/complete" ]; then
  case $said in
    *annot*|*'Wrote only'*|*'not found'*) ;;
    *) [ -z "$rest" ] || { rm -rf "$rest"; mv "$in" "$rest"; } ;;
  esac
fi
[ -z "$said" ] || printf '%s\n' "$said" >&2
[ $code -eq 0 ] || exit 74
[ -f "$in/complete" ] || die 75 'the archive did not come to its end'
umask "$login_umask"
while [ $# -gt 0 ]; do
  n=$1 target=$2 kind=$3 link=$4 record=$5; shift 5
  parent=${target%/*}
  if [ -f "$in/gone/$n.files" ]; then
    (cd "$target" && xargs -0 sh -c '
      find "$@" -maxdepth 0 ! -type d ! -cnewer "$0" -print0 2>/dev/null | xargs -0 rm -f --
    ' "$in/began" < "$in/gone/$n.files") || exit 78
  fi
  [ ! -f "$in/gone/$n.dirs" ] || (cd "$target" && xargs -0 rmdir -- < "$in/gone/$n.dirs" 2>/dev/null)
  if [ -n "$record" ]; then
    part=$record.${in##*[-/]}
    mkdir -p "${record%/*}" || exit 76
    if [ -f "$in/record/$n" ]; then cat "$in/record/$n"; else cat "$record" "$in/more/$n"; fi > "$part" || exit 76
    mv -f "$part" "$record" || exit 76
  fi
  if [ -d "$in/$n" ]; then
    mkdir -p "$parent" || exit 76
    if [ -L "$target" ] && [ ! -e "$target" ] && [ "$kind" = dir ]; then die 76 "$target: is a link to nowhere"; fi
    if [ -d "$target" ] && [ "$kind" = file ]; then die 76 "$target: is a directory"; fi
    if [ -e "$target" ] && [ ! -d "$target" ] && [ "$kind" = dir ]; then die 76 "$target: is not a directory"; fi
    if [ -d "$target" ]; then merge "$in/$n/${target##*/}" "$target"; else merge "$in/$n" "$parent"; fi
  fi
  for f in "$in/modes/$n".*; do
    [ ! -f "$f" ] || (cd "$target" && xargs -0 chmod "${f##*.}" < "$f") || exit 76
  done
  if [ -n "$link" ]; then
    [ -z "${link%/*}" ] || mkdir -p "${link%/*}" || exit 77
    [ ! -L "$link" ] || [ -e "$link" ] || rm -f "$link"
    [ "$(readlink "$link")" = "$target" ] || ln -s "$target" "$link" || exit 77
  fi
done
"""

# $1: the rest of an archive. Answer as that of _PROBE for paths.
_HOLDING = r"""
LC_ALL=C; export LC_ALL
cd "$1" 2>/dev/null || exit 0
exec find . -mindepth 1 -printf '%y %m %s %T@ %P\0%l\0'
"""

# $1: the rest. $2: what it is called from now on, for an archive to be unpacked in. Standard input: what is removed of it.
# The rename decides which of two clients has it.
_TAKE = r"""
mv -T "$1" "$2" && cd "$2" && xargs -0 rm -rf -- && rm -f complete
"""

_STEPS = {
    71: "unpacking was interrupted",
    73: "could not make a directory to unpack in",
    74: "could not unpack",
    75: "the files did not all arrive",
    76: "could not put the files in place",
    77: "could not make the link to the files",
    78: "could not remove what is no longer in the tree",
}
_CAUSES = (
    ("No space left on device", "no space left on the node"),
    ("Wrote only ", "no space left on the node"),
    ("Disk quota exceeded", "the account's disk quota is used up"),
    ("Read-only file system", "the file system is read-only"),
    ("Permission denied", "permission denied"),
    ("Operation not permitted", "operation not permitted"),
    ("File name too long", "a file name is too long for the node"),
    ("tar: not found", "the node has no tar"),
)
_TAR_PATH = re.compile(r"^tar: (?P<path>.+?): (?:Cannot|Wrote|Directory)", re.MULTILINE)
_MOVE_PATH = re.compile(r"^(?:mv|mkdir|rm|chmod|ln): .*?'(?P<path>/[^']*)'", re.MULTILINE)


@attrs.frozen(kw_only=True)
class LinkState:
    """What stands where a link is to be. word: linked, stale, free, foreign, occupied, forbidden. about: a path."""

    word: str
    about: str = ""


@attrs.frozen(kw_only=True)
class Step:
    """One target of an installation. number: of its tree in the archive. link, record: to be made, "" for none."""

    number: int
    target: str
    is_file: bool
    link: str = ""
    record: str = ""

    def words(self) -> tuple[str, str, str, str, str]:
        return str(self.number), self.target, "file" if self.is_file else "dir", self.link, self.record


@attrs.frozen(kw_only=True)
class RecordState:
    """What a node says of one record. word: none, same, other. put: what it has, when it is another."""

    word: str
    put: tuple[Put, ...] = ()


@attrs.frozen(kw_only=True)
class Answer:
    """What a node said: of links, of records, what exists of the paths, by path, and whether there is a rest."""

    links: tuple[LinkState, ...]
    records: tuple[RecordState, ...]
    seen: Mapping[str, Seen]
    rest: bool = False


def probe(
    links: Sequence[tuple[str, str]] = (), records: Sequence[tuple[str, str]] = (), *, rest: str = ""
) -> Command:
    """Ask a node about links (link, what it is to point to), records (path, identity) and the paths on standard input."""
    return Command.sh(_PROBE, rest, str(len(links)), *(word for pair in (*links, *records) for word in pair))


def holding(rest: str) -> Command:
    """Ask a node what is in the rest of an archive."""
    return Command.sh(_HOLDING, rest)


def parse_holding(stdout: bytes) -> dict[str, Seen]:
    """By name in the archive."""
    return _seen(stdout.split(b"\0"))


def take(rest: str, incoming: str) -> Command:
    """Make a rest the directory to unpack in, less the names on standard input."""
    return Command.sh(_TAKE, rest, incoming)


def parse_probe(stdout: bytes, links: int = 0, records: int = 0) -> Answer:
    """What a node says of so many links and records, and of the paths. Raises StagingError on another answer."""
    parts = stdout.split(b"\0")
    if len(parts) <= links or parts[links]:
        raise StagingError("the node's answer about its files cannot be read", evidence=stdout[:500])
    at = links + 2
    known = []
    for _record in range(records):
        try:
            end = parts.index(b".", at)
        except ValueError:
            raise StagingError("the node's answer about its files cannot be read", evidence=stdout[-500:]) from None
        put = parse_record(filter(None, parts[at + 1 : end]))
        known.append(RecordState(word=parts[at].decode(errors="replace"), put=put))
        at = end + 1
    states = []
    for part in parts[:links]:
        word, _, about = os.fsdecode(part).partition(" ")
        states.append(LinkState(word=word, about=about))
    has_rest = parts[links + 1 : links + 2] == [b"rest"]
    return Answer(links=tuple(states), records=tuple(known), seen=_seen(parts[at:]), rest=has_rest)


def _seen(found: Sequence[bytes]) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}
    for head, target in zip(found[0::2], found[1::2], strict=False):
        kind, mode, size, when, path = head.split(b" ", 4)
        seconds, _, fraction = when.partition(b".")
        mtime_ns = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
        permissions = int(mode, 8) & 0o777
        seen[os.fsdecode(path)] = Seen(kind.decode(), permissions, int(size), mtime_ns, os.fsdecode(target))
    return seen


def install(incoming: str, steps: Sequence[Step], *, rest: str = "") -> Command:
    """Unpack the archive on standard input in `incoming` and put its trees in place; kept as `rest` if it breaks off."""
    return Command.sh(_INSTALL, incoming, rest, *(word for step in steps for word in step.words()))


def failure(done: Completed, host: str, incoming: str, steps: Sequence[Step]) -> StagingError:
    """The error for an installation that failed: what, where, on which path as far as the node said."""
    text = done.stderr.decode(errors="replace")
    what = _STEPS.get(done.returncode or 0, "could not deliver the files")
    path = _path_of(text, incoming, steps)
    cause = next((meaning for needle, meaning in _CAUSES if needle in text), "")
    message = f"{what} on {host}" + (f": {cause}" if cause else "") + (f" ({path})" if path else "")
    return StagingError(
        message, host=host, path=path, cause=cause or None, step="staging.sync", evidence=text[-2000:] or None
    )


def _path_of(stderr: str, incoming: str, steps: Sequence[Step]) -> str:
    """The path on the node that an error is about; the first target when it does not say."""
    fallback = steps[0].target if steps else incoming
    match = _TAR_PATH.search(stderr)
    if match:
        number, _, below = match["path"].removeprefix("./").partition("/")
        for step in steps:
            if str(step.number) == number:
                rest = below.partition("/")[2]
                return f"{step.target}/{rest}" if rest else step.target
        return fallback
    match = _MOVE_PATH.search(stderr)
    if match and not match["path"].startswith(incoming):
        return match["path"]
    return fallback
