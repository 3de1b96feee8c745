"""What a node has of what is wanted: one `find` over all patterns, and its answer, which is not trusted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import attrs

from skylib.errors import StagingError
from skylib.staging.manifest import Entry, Kind
from skylib.staging.wanted import Wanted, matches
from skylib.transport.base import Completed
from skylib.transport.command import Command

__all__ = ["Listed", "Offered", "list_command", "read_listing"]

# Arguments: three words per pattern: the directory it starts from, the part that the shell expands, "plain" or "pattern".
# Answer: "= <number>" and two NULs before what the pattern with that number matched, then two words a path, each ended by
# NUL; at the end "= end". A plain path that is a link is followed, nothing else. An empty IFS keeps a pattern one word.
_LIST = r"""
LC_ALL=C; export LC_ALL
IFS=
list() {
  cd "$1" 2>/dev/null || return 0
  if [ "$3" = plain ]; then
    p=$2; case $p in .|/*) ;; *) p=./$p;; esac
    if [ -L "$p" ]; then p=$(readlink -f "$p"; echo x); p=${p%?x}; fi
    set -- "$p"
  else
    p=$2; [ "$p" = . ] || p=./$p
    set -- $p
  fi
  for p; do
    case ${p#.} in */.|*/..) continue;; esac
    if [ -e "$p" ] || [ -L "$p" ]; then printf '%s\0' "$p"; fi
  done | xargs -0 sh -c '[ $# -eq 0 ] || exec find "$@" -printf "%y %m %s %T@ %b %p\0%l\0"' sh
}
n=0 code=0
while [ $# -ge 3 ]; do
  printf '= %s\0\0' "$n"
  (list "$1" "$2" "$3") || code=1
  n=$((n+1)); shift 3
done
printf '= end\0\0'
exit $code
"""
_KINDS = {kind.value: kind for kind in Kind}
_TIME = re.compile(rb"(-?)(\d{1,11})(?:\.(\d{1,9})\d*)?")
_NUMBERS = re.compile(rb"[0-7]{1,5} \d{1,18} \d{1,18}")
_FOUND_BY_FIND = re.compile(r"^find: .(?P<path>.*).: (?P<why>[^:]+)$", re.MULTILINE)


@attrs.frozen(kw_only=True, slots=True)
class Offered:
    """One path as a node has it. entry.path: relative to the place here ("" is the place itself). remote: absolute there.

    sparse: it takes less room there than its size.
    """

    entry: Entry
    remote: str
    sparse: bool = False


@attrs.frozen(kw_only=True)
class Listed:
    """What one pattern matched. place: absolute directory here, or the file itself when `single`; parents come first."""

    wanted: Wanted
    place: str
    single: bool = False
    offered: tuple[Offered, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def list_command(wanted: Sequence[Wanted]) -> Command:
    """Ask a node what it has of all that is wanted."""
    words = [word for each in wanted for word in (each.base, each.shell, "plain" if each.is_plain else "pattern")]
    return Command.sh(_LIST, *words)


def read_listing(wanted: Sequence[Wanted], done: Completed, host: str) -> tuple[tuple[Listed, ...], list[StagingError]]:
    """What each pattern matched, and what could not be looked at. Raises StagingError for an answer that cannot be.

    A node that names what lies elsewhere than where it was asked is not believed.
    """
    problems = _problems(done, host)
    found: list[list[tuple[bytes, bytes]]] = []
    parts = done.stdout.split(b"\0")
    ended = False
    for head, target in zip(parts[0::2], parts[1::2], strict=False):
        if head == b"= end":
            ended = True
        elif head == b"= %d" % len(found) and not ended:
            found.append([])
        elif found and not ended:
            found[-1].append((head, target))
        else:
            raise _unreadable(host, head)
    if not ended or len(found) != len(wanted):
        raise problems[0] if problems else _unreadable(host, done.stderr[-500:] or done.stdout[-500:])
    listed = tuple(_listed(each, rows, host) for each, rows in zip(wanted, found, strict=True))
    return listed, problems


def _problems(done: Completed, host: str) -> list[StagingError]:
    """What the node's `find` said that it could not look at; what went away meanwhile is none."""
    if done.ok:
        return []
    text = done.stderr.decode(errors="surrogateescape")
    said = [match for match in _FOUND_BY_FIND.finditer(text) if match["why"] != "No such file or directory"]
    if not said and _FOUND_BY_FIND.search(text):
        return []
    if not said:
        why = text.strip().splitlines()[-1:] or ["it did not say why"]
        message = f"could not look for the files on {host}: {why[0]}"
        hint = "GNU find is needed there"
        return [StagingError(message, host=host, step="staging.fetch", evidence=text[-2000:], hint=hint)]
    return [
        StagingError(
            f"could not look into {match['path']} on {host}: {match['why'].lower()}",
            host=host,
            path=match["path"],
            step="staging.fetch",
        )
        for match in said
    ]


def _listed(wanted: Wanted, rows: Sequence[tuple[bytes, bytes]], host: str) -> Listed:
    if not rows:
        return Listed(wanted=wanted, place=str(wanted.local))
    top = os.fsdecode(_path_of(rows[0][0], host)) if wanted.is_plain else ""
    single = bool(top) and not rows[0][0].startswith(b"d")
    place, left_out = str(wanted.local), []
    if single and wanted.into:
        place = f"{place}/{wanted.path.rpartition('/')[2]}"
    seen: dict[str, Offered] = {}
    for head, target in rows:
        path = os.fsdecode(_path_of(head, host))
        here = _here(wanted, path, top)
        if here is None or not _is_below(here) or here in seen:
            raise _not_asked(host, path)
        if wanted.is_deep and not matches(path.removeprefix("./"), wanted.path):
            continue
        offered = _offered(here, head, target, _there(wanted, path), host)
        if offered is None:
            left_out.append((_there(wanted, path), "neither a file, a directory nor a link"))
        elif single and offered.entry.kind is Kind.LINK:
            left_out.append((_there(wanted, path), "a link to nothing"))
        else:
            seen[here] = offered
    offered_ = tuple(_checked(seen, left_out, host))
    return Listed(wanted=wanted, place=place, single=single, offered=offered_, left_out=tuple(left_out))


def _checked(seen: dict[str, Offered], left_out: list[tuple[str, str]], host: str) -> Iterator[Offered]:
    """In order of path; nothing lies in what is no directory, and no link leads out."""
    for path, each in sorted(seen.items()):
        for parent in _parents(path):
            above = seen.get(parent)
            if above is not None and above.entry.kind is not Kind.DIR:
                raise _not_asked(host, each.remote)
        if each.entry.kind is Kind.LINK and not _stays_within(path, each.entry.target):
            left_out.append((each.remote, f"a link that leads out of what is fetched: {each.entry.target}"))
        else:
            yield each


def _parents(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path


def _stays_within(path: str, target: str) -> bool:
    """Whether a link leads to a place below the root of its tree, whatever other links of the tree lead to.

    It may climb at its beginning, through directories that are there; after a name it may not: that name may be a link.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
    return not target.startswith("/") and ".." not in parts[climbs:] and climbs <= path.count("/")


def _here(wanted: Wanted, path: str, top: str) -> str | None:
    """The path relative to the place here; None when it lies elsewhere than where it was looked for."""
    if top:
        return "" if path == top else _below(path, top)
    return _below(path, f"./{wanted.fixed}" if wanted.fixed else ".")


def _below(path: str, folder: str) -> str | None:
    prefix = f"{folder.rstrip('/')}/"
    if path == folder:
        return ""
    return path[len(prefix) :] if path.startswith(prefix) else None


def _is_below(path: str) -> bool:
    return not path or all(part not in ("", ".", "..") for part in path.split("/"))


def _there(wanted: Wanted, path: str) -> str:
    if path.startswith("/"):
        return path
    base = wanted.base.rstrip("/")
    return f"{base}/{path[2:]}" if path != "." else base or "/"


def _path_of(head: bytes, host: str) -> bytes:
    parts = head.split(b" ", 5)
    if len(parts) != 6:
        raise _unreadable(host, head)
    return parts[5]


def _offered(path: str, head: bytes, target: bytes, remote: str, host: str) -> Offered | None:
    letter, mode, size, when, blocks, _path = head.split(b" ", 5)
    kind = _KINDS.get(letter.decode(errors="replace"))
    time = _TIME.fullmatch(when)
    if not _NUMBERS.fullmatch(b" ".join((mode, size, blocks))) or time is None or (kind is Kind.LINK and not target):
        raise _unreadable(host, head)
    if kind is None:
        return None
    sign, seconds, fraction = time.groups()
    mtime_ns = int(seconds) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0"))
    permissions = int(mode, 8) & 0o777
    entry = Entry(
        path=path,
        kind=kind,
        mode=permissions | 0o700 if kind is Kind.DIR else 0o777 if kind is Kind.LINK else permissions,
        size=0 if kind is Kind.DIR else int(size),
        mtime_ns=-mtime_ns if sign else mtime_ns,
        target=os.fsdecode(target),
    )
    return Offered(entry=entry, remote=remote, sparse=int(blocks) * 512 < int(size))


def _not_asked(host: str, path: str) -> StagingError:
    return StagingError(
        f"{host} names a file that was not asked for: {path!r}; nothing more is taken from it",
        host=host,
        path=path,
        step="staging.fetch",
    )


def _unreadable(host: str, seen: bytes) -> StagingError:
    return StagingError(
        f"the answer of {host} about its files cannot be read", host=host, step="staging.fetch", evidence=seen[:500]
    )
