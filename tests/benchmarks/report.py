"""One table for all benchmarks: min / median / max of several runs, and ratios within one run."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from skylib.events import Event, Phase

__all__ = ["Report", "Step", "Timeline", "percentile", "seconds_of", "table"]


def seconds_of(work: Callable[[], object]) -> float:
    """What the call took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def percentile(values: Iterable[float], share: float) -> float:
    """The least value that this share of all values (0 to 1) is not above."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of one table, columns padded, the first to the left and the others to the right."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [f"== {title}"]
    for row in cells:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


class Report:
    """Measurements of one benchmark by name. unit: "s" or "ms", of what is printed; `add` takes seconds."""

    def __init__(self, title: str, *, unit: str = "s") -> None:
        self.title = title
        self._unit = unit
        self._factor = {"s": 1.0, "ms": 1000.0}[unit]
        self._seconds: dict[str, list[float]] = {}
        self._bounds: dict[str, float] = {}
        self._floors: dict[str, str] = {}
        self._notes: list[str] = []

    def add(self, name: str, seconds: float) -> None:
        self._seconds.setdefault(name, []).append(seconds)

    def bound(self, name: str, seconds: float) -> None:
        """What the median of `name` is to stay under; shown beside it."""
        self._bounds[name] = seconds

    def against(self, name: str, floor: str) -> None:
        """Show the ratio of two medians beside `name`."""
        self._floors[name] = floor

    def note(self, text: str) -> None:
        """A line under the table."""
        self._notes.append(text)

    def median(self, name: str) -> float:
        return statistics.median(self._seconds[name])

    def best(self, name: str) -> float:
        """The quickest: what it takes on a machine that is otherwise idle, nearly."""
        return min(self._seconds[name])

    def ratio(self, name: str, floor: str) -> float:
        """Of the two medians, which were measured in turns."""
        return self.median(name) / self.median(floor)

    def text(self) -> str:
        rows = [self._row(name, values) for name, values in self._seconds.items()]
        body = table(f"{self.title} [{self._unit}]", ("what", "min", "median", "max", "n", "ratio", "bound"), rows)
        return "\n".join([body, *(f"  {note}" for note in self._notes)])

    def print(self) -> None:
        print("\n" + self.text(), flush=True)

    def _row(self, name: str, values: Sequence[float]) -> list[str]:
        shown = [self._show(value) for value in (min(values), statistics.median(values), max(values))]
        floor = self._floors.get(name)
        ratio = "" if floor is None else f"{self.ratio(name, floor):.2f} x {floor}"
        bound = "" if name not in self._bounds else f"<= {self._show(self._bounds[name])}"
        return [name, *shown, str(len(values)), ratio, bound]

    def _show(self, seconds: float) -> str:
        return f"{seconds * self._factor:.{3 if self._unit == 's' else 1}f}"


@attrs.frozen(kw_only=True)
class Step:
    """One step of one operation. begun: seconds after the clock's start. facts: of its closing event."""

    name: str
    node: str
    begun: float
    seconds: float
    facts: Mapping[str, object]


class Timeline:
    """An event sink that keeps, for each run, when each step began and how long it took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun_at = 0.0
        self._runs: list[list[Step]] = []

    def begin(self, at: float) -> None:
        """A run begins: `at` in unix seconds."""
        with self._lock:
            self._begun_at = at
            self._runs.append([])

    def __call__(self, event: Event) -> None:
        if event.phase not in (Phase.FINISHED, Phase.FAILED) or event.seconds is None:
            return
        with self._lock:
            if self._runs:
                begun = event.at - event.seconds - self._begun_at
                node = str(event.facts.get("node", ""))
                self._runs[-1].append(
                    Step(name=event.step, node=node, begun=begun, seconds=event.seconds, facts=dict(event.facts))
                )

    @property
    def runs(self) -> list[list[Step]]:
        with self._lock:
            return [list(run) for run in self._runs]

    def last(self, name: str) -> list[Step]:
        """Steps of this name in the latest run."""
        return [step for step in self.runs[-1] if step.name == name]

    def facts(self, name: str, fact: str) -> list[object]:
        """What steps of this name in the latest run said of one thing, where they did."""
        return [step.facts[fact] for step in self.last(name) if fact in step.facts]

    def text(self, title: str) -> str:
        """Each step: begun and ended (median of runs, the latest node of each run), in order of beginning."""
        spans: dict[str, list[tuple[float, float, int]]] = {}
        for run in self.runs:
            for name in {step.name for step in run}:
                steps = [step for step in run if step.name == name]
                begun = min(step.begun for step in steps)
                spans.setdefault(name, []).append((begun, max(step.begun + step.seconds for step in steps), len(steps)))
        rows = []
        for name, found in spans.items():
            begun, ended = (statistics.median(each[i] for each in found) for i in (0, 1))
            rows.append((begun, [name, str(found[-1][2]), f"{begun:.3f}", f"{ended:.3f}", f"{ended - begun:.3f}"]))
        rows.sort(key=lambda row: row[0])
        return table(title, ("step", "times", "begins", "ends", "seconds"), [row for _, row in rows])

    def print(self, title: str) -> None:
        print("\n" + self.text(title), flush=True)
