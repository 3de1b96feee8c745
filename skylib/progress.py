"""Sinks that show what is going on: `Client(events=TerminalSink())`, in a notebook `Client(events=NotebookSink())`.

skylib itself never prints. A sink writes only where it was told to, and of an event only names, steps, seconds, counts, and
the first line of an error or a warning, in which secrets are masked already.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import attrs

from skylib.events import Event, Phase
from skylib.forks import watch
from skylib.reprs import short_bytes, short_time, table_html

__all__ = ["NotebookSink", "TerminalSink"]

_DRAW_S = 0.1
_PLAIN_S = 10.0
_SIZE = os.terminal_size((100, 24))
_LONGEST = 300
_WORDS = ("warning", "problem", "reason", "error")
_COLUMNS = ("where", "step", "time", "how far")


class TerminalSink:
    """Shows what a client does, on a terminal or in a file.

    On a terminal: a line for the verb and one for each node, rewritten where they stand; when the verb ends they go, and
    one line says how long it took. Elsewhere (a file, a pipe): a line for each step when it ends, and one every ten seconds
    for each node that is sent much. file: what to write to; None: sys.stderr as it is when an event comes.
    From any thread, and after a fork; a file that cannot be written to fails no verb.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._renew()
        watch(self, in_child=TerminalSink._renew)

    def _renew(self) -> None:
        """After a fork what runs and what is drawn is the parent's."""
        self._mutex = threading.RLock()
        self._board = _Board()
        self._drawn = 0
        self._next_s = 0.0

    def __call__(self, event: Event) -> None:
        with self._mutex:
            lines = self._board.take(event)
            file = sys.stderr if self._file is None else self._file
            if file is None:  # a program without a console
                return
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
                if _rewrites(file):
                    self._draw(file, [line.text for line in lines if line.lasts], event.phase)
                elif lines:
                    _write(file, "".join(f"{line.text}\n" for line in lines))

    def _draw(self, file: TextIO, lasting: Sequence[str], phase: Phase) -> None:
        now = time.monotonic()
        if phase is Phase.NOTE and not lasting and now < self._next_s:
            return
        width, height = _size_of(file)
        rows = [_cut(str(row), width - 1) for row in self._board.rows()] if self._board.busy else []
        if len(rows) > height - 2:
            rows = [*rows[: height - 3], f"and {len(rows) - height + 3} more"]
        if not (lasting or rows or self._drawn):
            return
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._drawn = len(rows)
        self._next_s = now + _DRAW_S
        _write(file, up + "".join(f"{line}\n" for line in [*lasting, *rows]))


class NotebookSink:
    """Shows what a client does in a notebook: under the cell, a table for each verb, updated where it stands.

    A verb that takes no steps shows nothing. Outside of a notebook it is a TerminalSink. IPython is imported with the first
    event. From any thread.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._board = _Board()
        self._text: TerminalSink | None = None
        self._looked = False
        self._update: Callable[[_Shown], object] | None = None
        self._next_s = 0.0

    def __call__(self, event: Event) -> None:
        with self._mutex:
            if not self._looked:
                self._looked = True
                self._text = None if _in_notebook() else TerminalSink()
            if self._text is not None:
                self._text(event)
                return
            if not self._board.busy:
                self._update = None
            self._board.take(event)
            now = time.monotonic()
            if not self._board.stepped or (event.phase is Phase.NOTE and now < self._next_s):
                return
            self._next_s = now + _DRAW_S
            shown = _Shown(self._board.rows())
            with contextlib.suppress(Exception):  # whatever a notebook's machinery raises, the verb goes on
                if self._update is None:
                    self._update = _new_display(shown)
                else:
                    self._update(shown)


@attrs.frozen
class _Shown:
    """A board as a notebook shows it."""

    rows: tuple[_Row, ...]

    def __repr__(self) -> str:
        return "\n".join(str(row) for row in self.rows)

    def _repr_html_(self) -> str:
        return table_html(_COLUMNS, [(row.name, row.what, row.took, row.figures) for row in self.rows])


def _in_notebook() -> bool:
    try:
        shell = importlib.import_module("IPython").get_ipython()
    except ImportError:
        return False
    return getattr(shell, "kernel", None) is not None


def _new_display(shown: _Shown) -> Callable[[_Shown], object] | None:
    """Shows it under the running cell; what shows another one in its place."""
    handle = importlib.import_module("IPython.display").DisplayHandle()
    handle.display(shown)
    update: Callable[[_Shown], object] = handle.update
    return update


@attrs.frozen
class _Line:
    """lasts: worth a line of its own on a terminal, too."""

    text: str
    lasts: bool = False


@attrs.define(kw_only=True)
class _Row:
    """What one node, or one verb ("launch train"), is at. running: steps and when they began. since: the step shown did."""

    name: str
    is_verb: bool = False
    since: float
    at: float
    running: list[tuple[str, float]] = attrs.field(factory=list)
    figures: str = ""
    told: float = 0.0
    ended: str = ""

    @property
    def what(self) -> str:
        return self.running[-1][0] if self.running else self.ended

    @property
    def took(self) -> str:
        since = self.running[-1][1] if self.running and not self.is_verb else self.since
        return short_time(max(0.0, self.at - since))

    def __str__(self) -> str:
        return "  ".join(part for part in (self.name, self.what, self.took, self.figures) if part)


class _Board:
    """What runs now: verbs and nodes, each with its steps. Pure but for its own state; not for several threads at once."""

    def __init__(self) -> None:
        self._verbs: list[_Row] = []
        self._nodes: dict[str, _Row] = {}
        self._last: tuple[_Row, ...] = ()
        self.stepped = False

    @property
    def busy(self) -> bool:
        """A verb runs."""
        return bool(self._verbs)

    def rows(self) -> tuple[_Row, ...]:
        """Verbs, then nodes in the order of their coming; of the last verb when none runs."""
        rows = (*self._verbs, *self._nodes.values()) if self._verbs else self._last
        return tuple(attrs.evolve(row, running=list(row.running)) for row in rows)

    def take(self, event: Event) -> tuple[_Line, ...]:
        """Note what happened; the lines that tell it."""
        if "." not in event.step:
            return self._verb(event)
        return self._step(event)

    def _verb(self, event: Event) -> tuple[_Line, ...]:
        name = " ".join(filter(None, [_clean(event.step), _clean(event.facts.get("cluster", ""))]))
        if event.phase is Phase.STARTED:
            if not self._verbs:
                self._nodes.clear()
                self.stepped = False
            self._verbs.append(_Row(name=name, is_verb=True, since=event.at, at=event.at))
            return ()
        if event.phase is Phase.NOTE:
            return _told(name, event)
        row = next((row for row in reversed(self._verbs) if row.name == name), None)
        if row is None:
            return ()
        row.at, row.running, row.figures = event.at, [], _figures(event.facts)
        row.ended = "done" if event.phase is Phase.FINISHED else _failure(event)
        last = self.rows()
        self._verbs.remove(row)
        if not self._verbs:
            self._last = last
            self._nodes.clear()
        return (_Line(_ending(name, event), lasts=True),)

    def _step(self, event: Event) -> tuple[_Line, ...]:
        host = event.facts.get("host") or event.facts.get("node")
        row = self._row(_clean(host) if isinstance(host, str) else "", event)
        step = _clean(event.step)
        for each in (row, *self._verbs):
            each.at = max(each.at, event.at)
        self.stepped = True
        if event.phase is Phase.STARTED:
            row.running.append((step, event.at))
            row.figures, row.told = "", event.at
            return ()
        if event.phase is Phase.NOTE:
            figures = _figures(event.facts)
            row.figures = figures or row.figures
            if not figures or event.at - row.told < _PLAIN_S:
                return _told(f"{row.name} {step}".strip(), event)
            row.told = event.at
            return (_Line("  ".join(filter(None, [row.name, step, figures]))),)
        for index in reversed(range(len(row.running))):
            if row.running[index][0] == step:
                _, since = row.running.pop(index)
                row.since = row.since if row.is_verb else since
                break
        row.figures = _figures(event.facts)
        row.ended = f"{step} {'done' if event.phase is Phase.FINISHED else 'failed'}"
        return (_Line(_ending(f"{row.name}  {step}".strip(), event)),)

    def _row(self, host: str, event: Event) -> _Row:
        if not host:
            return self._verbs[-1] if self._verbs else _Row(name="", since=event.at, at=event.at)
        if host not in self._nodes:
            row = _Row(name=host, since=event.at, at=event.at, told=event.at)
            if not self._verbs:  # nobody's, so it is not kept
                return row
            self._nodes[host] = row
        return self._nodes[host]


def _ending(name: str, event: Event) -> str:
    took = short_time(event.seconds)
    if event.phase is Phase.FAILED:
        return f"{name}  failed after {took}: {_failure(event)}"
    return "  ".join(part for part in (name, took, _figures(event.facts)) if part)


def _failure(event: Event) -> str:
    return _clean(event.facts.get("error", "")) or "failed"


def _told(name: str, event: Event) -> tuple[_Line, ...]:
    """A note in words; most have none."""
    said = [_clean(event.facts[word]) for word in _WORDS if event.facts.get(word)]
    return tuple(_Line(f"{name}: {words}", lasts=True) for words in said[:1])


def _figures(facts: Mapping[str, object]) -> str:
    """ "12 of 400 files, 34 MiB of 1.2 GiB, 98 MiB/s": what the facts have of it."""
    parts = []
    for name, shown in (("files", "{:,}".format), ("bytes", short_bytes)):
        count, total = _count(facts.get(name)), _count(facts.get(f"total_{name}"))
        if count is not None:
            unit = " files" if name == "files" else ""
            parts.append(f"{shown(count)} of {shown(total)}{unit}" if total is not None else f"{shown(count)}{unit}")
    rate = _count(facts.get("rate_bytes_s"))
    if rate is not None:
        parts.append(f"{short_bytes(rate)}/s")
    return ", ".join(parts)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < 1e18 else None


def _clean(value: object) -> str:
    """The first line of a text, without anything that a terminal would obey."""
    text = value if isinstance(value, str) else ""
    first = text.strip().partition("\n")[0][:_LONGEST]
    return "".join(" " if char == "\t" else "?" if unicodedata.category(char)[0] == "C" else char for char in first).strip()


def _cut(text: str, width: int) -> str:
    """As much of it as fits into so many cells."""
    used, kept = 0, []
    for char in text:
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 0 if unicodedata.combining(char) else 1
        if used > width:
            break
        kept.append(char)
    return "".join(kept)


def _rewrites(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM") != "dumb"


def _size_of(file: TextIO) -> os.terminal_size:
    try:
        size = os.get_terminal_size(file.fileno())
    except (OSError, ValueError):
        return _SIZE
    return size if size.columns > 10 and size.lines > 5 else _SIZE


def _write(file: TextIO, text: str) -> None:
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()
