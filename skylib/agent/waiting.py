"""What the jobs in the queue wait for, in words. Pure."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Protocol, Sequence, Tuple

from .config import NodeConfig
from .scheduler import Cluster, Demand

__all__ = ["AHEAD", "Queued", "Reasons", "Situation", "what_first_waits_for"]

AHEAD = "\0"  # stands for the number of jobs ahead where many jobs share a text


class Queued(Protocol):
    """A job of the queue."""

    @property
    def job_id(self) -> int: ...

    @property
    def num_nodes(self) -> int: ...

    @property
    def demand(self) -> Demand: ...


class Situation(NamedTuple):
    """What decides whether jobs start now. now: what is free on the nodes that are there; whole: if all were there.

    missing: nodes that are not there. problem: what no job at all would start before, "" for nothing.
    """

    now: Cluster
    whole: Cluster
    missing: Sequence[NodeConfig]
    problem: str


def what_first_waits_for(first: Queued, situation: Situation) -> str:
    """Of the job that is first in the queue; what is said of a moment in which it could start is short."""
    if situation.problem:
        return situation.problem
    wants = situation.now.wants(first.num_nodes, first.demand)
    if not wants:
        return "its turn"
    if not situation.missing:
        return wants
    if not situation.whole.wants(first.num_nodes, first.demand):
        return _to_come_back(situation.missing)
    return f"{wants}; {_are_away(situation.missing)}"


def _names(nodes: Sequence[NodeConfig]) -> str:
    return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(node.host for node in nodes)


def _to_come_back(nodes: Sequence[NodeConfig]) -> str:
    return f"{_names(nodes)} to come back"


def _are_away(nodes: Sequence[NodeConfig]) -> str:
    return f"{_names(nodes)} {'is' if len(nodes) == 1 else 'are'} away"


class Reasons:
    """Of all jobs of one queue at one moment: each kind of demand is looked at once, however many jobs there are."""

    def __init__(self, first: Queued, situation: Situation) -> None:
        self._first = first
        self._situation = situation
        self._of_first = what_first_waits_for(first, situation)
        self._known: Dict[Tuple[int, Demand], str] = {}

    def text(self, job: Queued, ahead: Optional[int]) -> str:
        """ahead: how many jobs are before it in the queue; None: AHEAD stands for a number above one."""
        if job.job_id == self._first.job_id:
            return self._of_first
        known = (job.num_nodes, job.demand)
        if known not in self._known:
            self._known[known] = self._itself(job)
        if ahead == 1:
            return f"1 job ahead: job {self._first.job_id}, which waits for {self._of_first}{self._known[known]}"
        number = AHEAD if ahead is None else str(ahead)
        rest = f"jobs ahead; the first, job {self._first.job_id}, waits for {self._of_first}"
        return f"{number} {rest}{self._known[known]}"

    def _itself(self, job: Queued) -> str:
        """What the job lacks besides its turn; nothing when that is what the first one lacks, too."""
        if self._situation.problem or (job.num_nodes, job.demand) == (self._first.num_nodes, self._first.demand):
            return ""
        wants = self._situation.now.wants(job.num_nodes, job.demand)
        return f"; it lacks {wants} itself" if wants else "; it would fit now"
