"""What each node lacks of a plan: asked in one round trip, told apart from what it has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

from skylib.errors import StagingError
from skylib.staging.diff import Delta, delta
from skylib.staging.manifest import Kind
from skylib.staging.plan import SyncPlan, SyncTree
from skylib.staging.remote import LinkState, parse_probe, probe
from skylib.transport.command import Command

__all__ = ["Need", "NeedReader"]


@attrs.frozen(kw_only=True)
class Need:
    """What one node lacks: for each tree of the plan a delta, and a link to be made ("" for none)."""

    deltas: tuple[Delta, ...]
    links: tuple[str, ...]

    def __bool__(self) -> bool:
        return any(self.deltas) or any(self.links)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two nodes that lack the same."""
        return tuple(change.key for change in self.deltas), self.links


class NeedReader:
    """Questions to nodes about one plan, and their answers. Used from one thread.

    Nodes in the same state with the same root give the same answer: it is made and read once for all of them.
    """

    def __init__(self, plan: SyncPlan) -> None:
        self._plan = plan
        self._questions: dict[str, bytes] = {}
        self._read: dict[tuple[str, bytes], tuple[tuple[LinkState, ...], tuple[Delta, ...]]] = {}

    def command(self, root: str) -> Command:
        return probe((tree.mount.link, tree.mount.on(root)) for tree in self._plan.trees if tree.mount.link)

    def question(self, root: str) -> bytes:
        """What the command reads: every path of the plan, ended by NUL."""
        if root not in self._questions:
            paths = (where for tree in self._plan.trees for _path, where in _places(tree, root))
            self._questions[root] = b"".join(os.fsencode(where) + b"\0" for where in paths)
        return self._questions[root]

    def need(self, root: str, stdout: bytes, host: str) -> Need:
        """What the node lacks by its answer. Raises StagingError (host, path) for a target or link that cannot be."""
        if (root, stdout) not in self._read:
            self._read[root, stdout] = self._parse(root, stdout, host)
        states, deltas = self._read[root, stdout]
        pending = iter(states)
        links = (_link(tree.mount.link, next(pending), host) if tree.mount.link else "" for tree in self._plan.trees)
        return Need(deltas=deltas, links=tuple(links))

    def _parse(self, root: str, stdout: bytes, host: str) -> tuple[tuple[LinkState, ...], tuple[Delta, ...]]:
        linked = sum(bool(tree.mount.link) for tree in self._plan.trees)
        states, seen = parse_probe(stdout, linked)
        deltas = []
        for tree in self._plan.trees:
            known = {path: seen[where] for path, where in _places(tree, root) if where in seen}
            if tree.manifest.is_file and "" in known and known[""].kind == Kind.DIR.value:
                target = tree.mount.on(root)
                raise StagingError(f"{target} is a directory on {host}", host=host, path=target, step="staging.probe")
            deltas.append(delta(tree.manifest, known))
        return states, tuple(deltas)


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
