"""What each node lacks of a plan, and what of an earlier one is left there: asked in one round trip, or in two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import attrs

from skylib.errors import StagingError
from skylib.staging.diff import Delta, Seen, delta
from skylib.staging.manifest import Entry, Kind
from skylib.staging.plan import SyncPlan, SyncTree
from skylib.staging.remote import Answer, LinkState, parse_holding, parse_probe, probe
from skylib.staging.removal import Put, Removal, identity, left_over, parents, record_path, removal
from skylib.staging.rest import Rest, rest_path, usable
from skylib.transport.command import Command

__all__ = ["Need", "NeedReader"]


@attrs.frozen(kw_only=True)
class Need:
    """What one node lacks, for each tree of the plan.

    links, records: to be made, "" for none. whole: of a record, it is made anew, and not added to. left: what was put
    there and is no longer in the tree; it is asked about before it goes (`NeedReader.settled`).
    rest: what is used of what an earlier archive left, when it left something (`NeedReader.resumed`).
    """

    deltas: tuple[Delta, ...]
    links: tuple[str, ...]
    records: tuple[str, ...]
    whole: tuple[bool, ...]
    left: tuple[tuple[Put, ...], ...]
    removals: tuple[Removal, ...]
    has_rest: bool = False
    rest: Rest | None = None

    def sends(self, number: int) -> tuple[Entry, ...]:
        """What goes of a tree, less what the rest has."""
        send = self.deltas[number].send
        kept = self.rest.kept[number] if self.rest is not None else ()
        return tuple(entry for entry in send if entry.path not in kept) if kept else send

    def lacks(self, number: int) -> bool:
        """Something has to be done to this tree."""
        return bool(self.deltas[number] or self.links[number] or self.records[number])

    def __bool__(self) -> bool:
        return any(map(self.lacks, range(len(self.deltas))))

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two nodes that lack the same."""
        return tuple(change.key for change in self.deltas), self.links, self.records, self.whole, self.removals, self.rest


class NeedReader:
    """Questions to nodes about one plan, and their answers. Used from one thread.

    Nodes in the same state with the same root give the same answer: it is made and read once for all of them.
    """

    def __init__(self, plan: SyncPlan) -> None:
        self._plan = plan
        self._questions: dict[str, bytes] = {}
        self._read: dict[tuple[str, bytes], tuple[Answer, tuple[Delta, ...]]] = {}
        self._identities = [identity(tree.manifest) if tree.has_record else "" for tree in plan.trees]

    def command(self, root: str) -> Command:
        trees = self._plan.trees
        links = [(tree.mount.link, tree.mount.on(root)) for tree in trees if tree.mount.link]
        named = zip(trees, self._identities, strict=True)
        records = [(record_path(root, tree.mount), name) for tree, name in named if name]
        return probe(links, records, rest=rest_path(root, self._plan))

    def question(self, root: str) -> bytes:
        """What the command reads: every path of the plan, ended by NUL."""
        if root not in self._questions:
            paths = (where for tree in self._plan.trees for _path, where in _places(tree, root))
            self._questions[root] = _question(paths)
        return self._questions[root]

    def need(self, root: str, stdout: bytes, host: str) -> Need:
        """What the node lacks by its answer. Raises StagingError (host, path) for a target or link that cannot be."""
        if (root, stdout) not in self._read:
            self._read[root, stdout] = self._parse(root, stdout, host)
        answer, deltas = self._read[root, stdout]
        states, known = iter(answer.links), iter(answer.records)
        trees = self._plan.trees
        links = tuple(_link(tree.mount.link, next(states), host) if tree.mount.link else "" for tree in trees)
        told = [next(known) if tree.has_record else None for tree in trees]
        records, whole, left = [], [], []
        for tree, change, state in zip(trees, deltas, told, strict=True):
            anew = state is not None and state.word != "same"
            records.append(record_path(root, tree.mount) if state is not None and (anew or change) else "")
            whole.append(anew)
            put = state.put if state is not None else ()
            left.append(left_over(put, tree.manifest, self._taken(tree, root)) if put else ())
        nothing = tuple(Removal() for _tree in trees)
        return Need(
            deltas=deltas,
            links=links,
            records=tuple(records),
            whole=tuple(whole),
            left=tuple(left),
            removals=nothing,
            has_rest=answer.rest and any(deltas),
        )

    def doubt(self, root: str, need: Need) -> bytes:
        """The paths that the node is asked about once more (`probe`), each ended by NUL; none when nothing is left."""
        trees = zip(self._plan.trees, need.left, strict=True)
        return _question(f"{tree.mount.on(root)}/{path}" for tree, left in trees for path in _asked(left))

    def settled(self, root: str, need: Need, stdout: bytes) -> Need:
        """The need with what goes, by the answer to `doubt`. Raises StagingError for one that cannot be read."""
        seen = parse_probe(stdout).seen
        removals = []
        for tree, left in zip(self._plan.trees, need.left, strict=True):
            top = tree.mount.on(root)
            known = {path: seen[f"{top}/{path}"] for path in _asked(left) if f"{top}/{path}" in seen}
            removals.append(removal(left, known))
        return attrs.evolve(need, removals=tuple(removals), left=tuple(() for _tree in need.left))

    def resumed(self, need: Need, stdout: bytes) -> Need:
        """The need with what is used of the rest, by what is in it (`holding`)."""
        return attrs.evolve(need, rest=usable(self._plan, need.deltas, parse_holding(stdout)), has_rest=False)

    def _taken(self, tree: SyncTree, root: str) -> frozenset[str]:
        """Paths in a tree that other trees of the plan put there."""
        top = f"{tree.mount.on(root)}/"
        others = (each for each in self._plan.trees if each is not tree and each.mount.on(root).startswith(top))
        places = (where.removesuffix("/.") for other in others for _path, where in _places(other, root))
        return frozenset(where[len(top) :] for where in places)

    def _parse(self, root: str, stdout: bytes, host: str) -> tuple[Answer, tuple[Delta, ...]]:
        trees = self._plan.trees
        answer = parse_probe(stdout, sum(bool(tree.mount.link) for tree in trees), sum(tree.has_record for tree in trees))
        known = iter(answer.records)
        deltas = []
        for tree in trees:
            here = {path: answer.seen[where] for path, where in _places(tree, root) if where in answer.seen}
            target = tree.mount.on(root)
            if tree.manifest.is_file and "" in here and here[""].kind == Kind.DIR.value:
                raise StagingError(f"{target} is a directory on {host}", host=host, path=target, step="staging.probe")
            change = delta(tree.manifest, here)
            if tree.has_record and next(known).word == "none" and not tree.mount.is_workdir:
                _refuse_foreign(change, here, target, host)
            deltas.append(change)
        return answer, tuple(deltas)


def _refuse_foreign(change: Delta, here: Mapping[str, Seen], target: str, host: str) -> None:
    """Where nothing was ever put, a file that is there is somebody's, and is not overwritten."""
    theirs = [entry.path for entry in change.send if entry.path in here and here[entry.path].kind != Kind.DIR.value]
    if theirs:
        path = f"{target}/{theirs[0]}"
        raise StagingError(
            f"{target} on {host} holds files that skylib did not put there, and that this would overwrite: {theirs[0]}"
            + (f", and {len(theirs) - 1} more" if len(theirs) > 1 else ""),
            host=host,
            path=path,
            step="staging.probe",
            hint="choose another target, or move them away; Cluster.put overwrites",
        )


def _question(paths: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


def _asked(left: tuple[Put, ...]) -> Iterator[str]:
    yield from sorted(parents(left).union(one.path for one in left))


def _places(tree: SyncTree, root: str) -> Iterator[tuple[str, str]]:
    """Each path of a tree and where it is on the node; a top directory may be reached through a link."""
    target = tree.mount.on(root)
    top = target if tree.manifest.is_file else f"{target}/."
    for entry in tree.manifest.entries:
        yield entry.path, f"{target}/{entry.path}" if entry.path else top


def _link(link: str, state: LinkState, host: str) -> str:
    """The link, when it is to be made; "" when it is there already."""
    if state.word == "linked":
        return ""
    if state.word in ("free", "stale"):
        return link
    reason = {
        "foreign": f"it is a link to {state.about} there, which is not ours",
        "occupied": "something that is no link is there already",
        "forbidden": f"this account may not write in {state.about}",
    }.get(state.word, state.word)
    raise StagingError(
        f"cannot make {link} on {host}: {reason}",
        host=host,
        path=link,
        step="staging.probe",
        hint="choose a target below ~/ or /tmp, or let the host's owner make room",
    )
