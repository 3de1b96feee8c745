"""Which job starts where: strict FIFO of gangs, as pure decisions. One rank a node; jobs share a node when they fit."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .config import NodeConfig

__all__ = ["Cluster", "Demand", "Placement", "Rank", "Waiting", "impossible", "parse_demand", "schedule"]

_DEFAULT_CPUS = 0.5
_EPSILON = 1e-6
_ANY_GPU = ""
_MOST_LISTED = 8


class Demand(NamedTuple):
    """What each rank needs. gpus: count by model in lower case, "" for any model; below 1 is a share of one device."""

    cpus: float
    memory_gib: float
    gpus: Tuple[Tuple[str, float], ...]
    custom: Tuple[Tuple[str, float], ...]

    @property
    def gpus_per_node(self) -> int:
        return sum(math.ceil(count - _EPSILON) for _, count in self.gpus)


class Rank(NamedTuple):
    """Where one rank of a job runs. node: the node's rank in the cluster. devices: (index, share of it)."""

    node: int
    devices: Tuple[Tuple[int, float], ...]


Placement = Tuple[Rank, ...]


class Waiting(NamedTuple):
    """A job in the queue."""

    job_id: int
    num_nodes: int
    demand: Demand


def parse_demand(data: Mapping[str, Any]) -> Demand:
    """From JobSpec's `demand`. Accelerators by name take the place of a bare GPU count. Raises ValueError."""
    accelerators: Dict[str, float] = {str(name).lower(): float(n) for name, n in (data.get("accelerators") or {}).items()}
    bare = float(data.get("GPU") or 0)
    if bare and not accelerators:
        accelerators[_ANY_GPU] = bare
    custom = {str(name): float(count) for name, count in (data.get("custom") or {}).items()}
    cpu = data.get("CPU")
    cpus = _DEFAULT_CPUS if cpu is None else float(cpu)
    memory = float(data.get("memory_gib") or 0)
    for name, amount in [("CPU", cpus), ("memory_gib", memory), *accelerators.items(), *custom.items()]:
        if not 0 <= amount < math.inf:
            raise ValueError(f"demand of {name or 'GPU'} is {amount}")
    gpus = tuple(sorted((name, n if n < 1 else float(math.ceil(n - _EPSILON))) for name, n in accelerators.items() if n))
    return Demand(cpus, memory, gpus, tuple(sorted((name, count) for name, count in custom.items() if count)))


class Lack(NamedTuple):
    """What a node does not have enough of: how much of it is wanted, in words, and how much there is."""

    what: str
    have: float


class Free:
    """What is free on one node."""

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        self.cpus = node.cpus
        self.memory_gib = node.memory_gib
        self.devices: List[float] = [1.0] * len(node.gpus)
        self.custom = dict(node.custom)

    def lacks(self, demand: Demand) -> Optional[Lack]:
        """The first thing that is not there; None when it fits."""
        if self.cpus + _EPSILON < demand.cpus:
            return Lack(_count(demand.cpus, "CPU"), self.cpus)
        if self.memory_gib + _EPSILON < demand.memory_gib:
            return Lack(f"{_number(demand.memory_gib)} GiB of memory", self.memory_gib)
        for name, count in demand.custom:
            if self.custom.get(name, 0.0) + _EPSILON < count:
                return Lack(f"{_number(count)} x {name}", self.custom.get(name, 0.0))
        left = list(self.devices)
        for name, count in _named_first(demand.gpus):
            devices = self._pick(left, name, count)
            if devices is None:
                have = sum(share for index, share in enumerate(left) if self._is_model(index, name))
                return Lack(f"{_number(count)} x {name.upper() or 'GPU'}", have)
            for index, share in devices:
                left[index] -= share
        return None

    def take(self, demand: Demand) -> Rank:
        """Only after `lacks` said that it fits."""
        taken: List[Tuple[int, float]] = []
        for name, count in _named_first(demand.gpus):
            for index, share in self._pick(self.devices, name, count) or ():
                self.devices[index] -= share
                taken.append((index, share))
        self._add(demand, -1.0)
        return Rank(self.node.rank, tuple(sorted(taken)))

    def occupy(self, demand: Demand, rank: Rank) -> None:
        for index, share in rank.devices:
            if index < len(self.devices):
                self.devices[index] -= share
        self._add(demand, -1.0)

    def _add(self, demand: Demand, sign: float) -> None:
        self.cpus += sign * demand.cpus
        self.memory_gib += sign * demand.memory_gib
        for name, count in demand.custom:
            self.custom[name] = self.custom.get(name, 0.0) + sign * count

    def _is_model(self, index: int, name: str) -> bool:
        return name == _ANY_GPU or self.node.gpus[index].lower() == name

    def _pick(self, left: Sequence[float], name: str, count: float) -> Optional[List[Tuple[int, float]]]:
        """Devices for this count; a share goes to the device that is fullest and still has room for it."""
        models = [index for index in range(len(left)) if self._is_model(index, name)]
        if count < 1:
            fitting = [index for index in models if left[index] + _EPSILON >= count]
            return [(min(fitting, key=lambda index: (left[index], index)), count)] if fitting else None
        whole = [index for index in models if left[index] > 1 - _EPSILON]
        return [(index, 1.0) for index in whole[: int(count)]] if len(whole) >= count else None


def _named_first(gpus: Iterable[Tuple[str, float]]) -> List[Tuple[str, float]]:
    """Any-model demands last, so that they do not take what a named one needs."""
    return sorted(gpus, key=lambda item: (item[0] == _ANY_GPU, item[0]))


def _number(value: float) -> str:
    """Whole below a million as it is, else three digits; never a little more than there is."""
    value = max(value, 0.0)
    whole = round(value)
    if abs(value - whole) < _EPSILON and whole < 1_000_000:
        return str(whole)
    return f"{math.floor(value * 100) / 100:g}" if value < 1000 else f"{value:.3g}"


def _count(value: float, what: str) -> str:
    return f"{_number(value)} {what}" if value == 1 else f"{_number(value)} {what}s"


class Cluster:
    """What is free on each node that is alive, given the jobs that run."""

    def __init__(
        self, nodes: Sequence[NodeConfig], alive: Iterable[int], running: Iterable[Tuple[Demand, Placement]]
    ) -> None:
        here = set(alive)
        self._free = {node.rank: Free(node) for node in nodes if node.rank in here}
        for demand, placement in running:
            for rank in placement:
                if rank.node in self._free:
                    self._free[rank.node].occupy(demand, rank)

    def place(self, num_nodes: int, demand: Demand) -> Optional[Placement]:
        """Takes what the job needs, on the nodes with most CPUs free; None, and takes nothing, when it does not fit now.

        Ranks go by the nodes' order in the cluster, so the head is rank 0 of every job that it takes part in.
        """
        fitting = [free for free in self._free.values() if not free.lacks(demand)]
        if len(fitting) < num_nodes:
            return None
        best = sorted(fitting, key=lambda free: (-free.cpus / max(free.node.cpus, 1.0), free.node.rank))[:num_nodes]
        return tuple(free.take(demand) for free in sorted(best, key=lambda free: free.node.rank))

    def wants(self, num_nodes: int, demand: Demand, *, word: str = "free") -> str:
        """What the job waits for, in words; "" when it fits now. word: what is said of the amounts that there are."""
        lacking: Dict[str, List[str]] = {}
        short = 0
        for free in self._free.values():
            lack = free.lacks(demand)
            if lack is not None:
                short += 1
                lacking.setdefault(lack.what, []).append(f"{free.node.label} ({_number(lack.have)} {word})")
        fitting = len(self._free) - short
        if fitting >= num_nodes:
            return ""
        what = "; ".join(f"{each} on {_listed(nodes)}" for each, nodes in lacking.items())
        if num_nodes == 1:
            return what or "a node"
        nodes = f"{num_nodes} nodes at once, {fitting} of {len(self._free)} can take it"
        return f"{nodes}: it lacks {what}" if what else nodes


def _listed(nodes: Sequence[str]) -> str:
    more = len(nodes) - _MOST_LISTED
    return ", ".join(nodes[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def schedule(cluster: Cluster, queue: Iterable[Waiting]) -> List[Tuple[int, Placement]]:
    """(job id, placement) of the jobs that start now, in order: nobody overtakes the first one that does not fit.

    No more of the queue is looked at than those and the first that stays.
    """
    starts: List[Tuple[int, Placement]] = []
    for waiting in queue:
        placement = cluster.place(waiting.num_nodes, waiting.demand)
        if placement is None:
            break
        starts.append((waiting.job_id, placement))
    return starts


def impossible(nodes: Sequence[NodeConfig], num_nodes: int, demand: Demand) -> str:
    """Why the whole cluster, empty, could not run the job; "" when it could."""
    if num_nodes < 1:
        return f"a job needs at least one node, not {num_nodes}"
    if num_nodes > len(nodes):
        return f"the job asks for {num_nodes} nodes, the cluster has {len(nodes)}"
    cluster = Cluster(nodes, [node.rank for node in nodes], [])
    if cluster.place(num_nodes, demand) is not None:
        return ""
    return f"the cluster can never give it: {cluster.wants(num_nodes, demand, word='there')}"
