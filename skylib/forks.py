"""What open things do when the process forks: one place for all of them, and nothing is kept alive for it.

Whatever has a connection, a lock file or a lock of threads says here, once, what is to be done before a fork, after it in
the parent and in the child. Before, the last that came is asked first; after, the first. What one raises keeps nobody else
from his part: Python reports it, and forks anyway.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import attrs

__all__ = ["keep_for_ever", "watch"]

_T = TypeVar("_T")


@attrs.frozen
class _Watched:
    """One thing, for as long as somebody else has it."""

    owner: weakref.ref[Any]
    before: Callable[[Any], object] | None
    in_parent: Callable[[Any], object] | None
    in_child: Callable[[Any], object] | None


class _Forks:
    """All that is watched. No lock: a child could find it taken. Each step that matters is one of the interpreter's."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._watched: dict[int, _Watched] = {}
        self._forking: dict[int, list[tuple[Any, _Watched]]] = {}  # by thread: what was asked before its fork

    def add(self, owner: object, *hooks: Callable[[Any], object] | None) -> None:
        number = next(self._numbers)
        gone = weakref.ref(owner, lambda _: self._watched.pop(number, None))
        self._watched[number] = _Watched(gone, *hooks)

    def before(self) -> None:
        there = self._there()
        self._forking[threading.get_ident()] = there
        _each((each, watched.before) for each, watched in there)

    def in_parent(self) -> None:
        """For those that were asked before, and no others: what came meanwhile has nothing to undo."""
        there = self._forking.pop(threading.get_ident(), [])
        _each((each, watched.in_parent) for each, watched in reversed(there))

    def in_child(self) -> None:
        """For all, those that came during the fork included. Nothing goes before its part is done."""
        try:
            _each((each, watched.in_child) for each, watched in reversed(self._there()))
        finally:
            self._forking.clear()

    def _there(self) -> list[tuple[Any, _Watched]]:
        found = ((watched.owner(), watched) for _, watched in sorted(self._watched.copy().items()))
        return [(owner, watched) for owner, watched in found if owner is not None]


def _each(calls: Iterable[tuple[Any, Callable[[Any], object] | None]]) -> None:
    """All of them, the last first, whatever one raises."""
    with ExitStack() as stack:
        for owner, do in calls:
            if do is not None:
                stack.callback(do, owner)


# One for the process, as its forks are. Told to Python here and not by who watches first: another thread could fork first.
_FORKS = _Forks()
os.register_at_fork(before=_FORKS.before, after_in_parent=_FORKS.in_parent, after_in_child=_FORKS.in_child)


def watch(
    owner: _T,
    *,
    before: Callable[[_T], object] | None = None,
    in_parent: Callable[[_T], object] | None = None,
    in_child: Callable[[_T], object] | None = None,
) -> None:
    """Call these with `owner` at each fork, until nobody else has it. They must not refer to it themselves."""
    _FORKS.add(owner, before, in_parent, in_child)


def keep_for_ever(thing: object) -> None:
    """Never free it, not even at exit: to finalise what a fork left here would do harm to the parent."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
