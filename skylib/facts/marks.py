"""What clusters a machine's account serves: one short look, and the pure reading of its answer.

It changes nothing there, but that what a cluster which gave itself up left behind goes when its time is over (expiry.py).

The answer is lines of "key<TAB>value" between "skylib-look 1" and "end"; a line that begins with "|" is one of the file
that was named last. What a login shell prints around it is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from skylib.errors import FactError
from skylib.facts.expiry import EXPIRE
from skylib.models.frozen_map import FrozenMap
from skylib.models.mark import MAX_MARK_BYTES, ClusterMark, read_mark
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["FoundMark", "Look", "Root", "look_at", "parse_look"]

# $1: "local": marks are in Ray's temp dir and name the roots of nodes; else the account's home is the root. $2: Ray's
# temp dir. $3: bytes that are read of a mark at most. Ours are counted by the variable that they carry.
_SCRIPT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
mark() { [ -f "$1" ] && [ -r "$1" ] && { say mark "$1"; head -c "$limit" "$1" | sed 's/^/|/'; echo; }; }
root() {
    mark "$1/.sky/cluster.json"
    [ -s "$1/.sky/jobs.db" ] && say jobs "$1"
}
account() {
    uid=$(id -u)
    home=$(getent passwd "$uid" 2>/dev/null) || home=$(grep "^[^:]*:[^:]*:$uid:" /etc/passwd 2>/dev/null)
    home=${home%:*} home=${home##*:}
    [ -d "$home" ] || home=$HOME
    id= start=
    { read -r id </proc/sys/kernel/random/boot_id; read -r stat </proc/1/stat; } 2>/dev/null
    set -- ${stat##*) }
    [ $# -ge 20 ] && { shift 19; start=$1; }
    say uid "$uid"; say home "$home"; say machine "$(uname -n) $id:$start"
}
temps() {
    for temp in "$1" "${1}_$uid"; do
        [ -d "$temp" ] && [ ! -L "$temp" ] || continue
        set -- "$1" $(ls -ldn "$temp")
        [ "$4" = "$uid" ] || continue
        mark "$temp/cluster.json"
        [ "$kind" = local ] && [ -r "$temp/cluster.json" ] || continue
        sed -n 's/.*"root": *"\([^"\\]*\)".*/\1/p' "$temp/cluster.json" | while IFS= read -r one; do root "$one"; done
    done
}
running() {
    set --
    for process in /proc/[0-9]*; do [ -O "$process" ] && set -- "$@" "$process/environ"; done
    cat "$@" /dev/null | tr '\000' '\n' | sed -n 's/^SKYLIB_CLUSTER_ID=//p' | sort | uniq -c |
        while read -r count id; do say running "$count $id"; done
}
main() {
    LC_ALL=C PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    export LC_ALL PATH
    kind=$1 limit=$3
    echo 'skylib-look 1'
    account; [ "$kind" = local ] || expire "$home" "$2"; [ "$kind" = local ] || root "$home"
    temps "$2"; running
    echo end
}
main "$@" </dev/null 2>/dev/null
"""
_KEYS = frozenset({"uid", "home", "machine", "mark", "jobs", "running"})


@attrs.frozen(kw_only=True)
class FoundMark:
    """One cluster.json. mark: None when it cannot be read; problem then says why."""

    path: str
    mark: ClusterMark | None = None
    problem: str = ""


@attrs.frozen(kw_only=True)
class Root:
    """The directory that holds a node's files. mark: its own cluster.json, None when there is none.

    jobs: it has had jobs (a head).
    """

    path: str
    mark: FoundMark | None = None
    jobs: bool = False


@attrs.frozen(kw_only=True)
class Look:
    """What one machine's account says. machine: the same for two names of one running machine.

    roots: by path, the account's home or those of `local` nodes. temp_marks: of Ray's temp dirs. running: processes of
    each cluster, by its id.
    """

    uid: int
    home: str
    machine: str
    roots: Mapping[str, Root] = attrs.field(factory=FrozenMap)
    temp_marks: tuple[FoundMark, ...] = ()
    running: Mapping[str, int] = attrs.field(factory=FrozenMap)


def look_at(transport: Transport, *, local: bool, temp_dir: str, timeout_s: float = 30.0) -> Look:
    """Ask one machine. Raises FactError when the answer is no such, and what Transport.run raises."""
    command = Command.of("/bin/sh", "-s", "--", "local" if local else "ssh", temp_dir, str(MAX_MARK_BYTES + 1))
    done = transport.run(command, stdin=f"{EXPIRE}{_SCRIPT}".encode(), timeout_s=timeout_s)
    try:
        return parse_look(done.stdout)
    except FactError as error:
        done.check()
        error.host = transport.host
        raise


def parse_look(output: bytes) -> Look:
    """Pure. Files that are rubbish are told as such; raises FactError unless the answer itself is whole."""
    one: dict[str, str] = {}
    marks: dict[str, FoundMark] = {}
    jobs: set[str] = set()
    running: dict[str, int] = {}
    for key, value, text in _entries(output.decode(errors="replace")):
        if key == "mark":
            marks[value] = _found(value, text)
        elif key == "jobs":
            jobs.add(value)
        elif key == "running":
            count, _, cluster_id = value.partition(" ")
            running[cluster_id] = int(count) if count.isdecimal() else 1
        else:
            one[key] = value
    if not one.get("uid", "").isdecimal() or not one.get("home"):
        raise _wrong("the node did not say whose account it is", output)
    own = {path.removesuffix(_MARK): mark for path, mark in marks.items() if path.endswith(_MARK)}
    paths = {*own, *jobs}
    return Look(
        uid=int(one["uid"]),
        home=one["home"],
        machine=one.get("machine", ""),
        roots=FrozenMap({path: Root(path=path, mark=own.get(path), jobs=path in jobs) for path in sorted(paths)}),
        temp_marks=tuple(mark for path, mark in marks.items() if not path.endswith(_MARK)),
        running=FrozenMap(running),
    )


_MARK = "/.sky/cluster.json"


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """(key, value, content of the file that it names) of each line of the answer. Raises FactError."""
    lines = text.split("\n")
    starts = [index for index, line in enumerate(lines) if line.rstrip("\r") == "skylib-look 1"]
    if not starts:
        raise _wrong("the node did not answer the look at its clusters", text)
    found: list[tuple[str, str, list[str]]] = []
    for line in lines[starts[0] + 1 :]:
        if line.startswith("|"):
            if found:
                found[-1][2].append(line[1:])
        elif line.rstrip("\r") == "end":
            return ((key, value, "\n".join(content)) for key, value, content in found)
        elif line.strip():
            key, tab, value = line.rstrip("\r").partition("\t")
            if not tab or key not in _KEYS:
                raise _wrong(f"the answer has a line of unknown form: {line[:80]!r}", text)
            found.append((key, value, []))
    raise _wrong("the answer is cut off", text)


def _found(path: str, text: str) -> FoundMark:
    try:
        return FoundMark(path=path, mark=read_mark(text))
    except ValueError as error:
        return FoundMark(path=path, problem=str(error))


def _wrong(message: str, evidence: str | bytes) -> FactError:
    text = evidence if isinstance(evidence, str) else evidence.decode(errors="replace")
    return FactError(message, fact="clusters", evidence=text[-2000:])
