"""What was fetched from nodes, and what a job's outputs are."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from skylib.models.frozen_map import FrozenMap

__all__ = ["Fetched", "JobOutputs", "OutputsReceipt"]


@attrs.frozen(kw_only=True)
class Fetched:
    """What one fetch did. files: fetched now, links included; bytes: their content; unchanged: were here already.

    missing: patterns that nothing matched. left_out: (path on the node, why) of what is neither file, directory nor link,
    of links that lead out of what was fetched, and of two files with one place here. unsettled: paths on the nodes of
    files that kept changing while they were read: here is what they were at the last reading.
    """

    files: int = 0
    bytes: int = 0
    unchanged: int = 0
    missing: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    unsettled: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class OutputsReceipt(Fetched):
    """What became of a job's outputs at their last fetch, over all its nodes.

    at: when, unix seconds by this machine's clock. final: the job had ended by then. error: why not all of it is here,
    in words, "" when it is; the next contact tries again.
    """

    cluster_name: str
    job_id: int
    at: float
    final: bool = False
    error: str = ""

    @property
    def done(self) -> bool:
        """All is here, and no more will come."""
        return self.final and not self.error

    def to_json(self) -> dict[str, object]:
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> OutputsReceipt:
        known = {field.name for field in attrs.fields(OutputsReceipt)}
        fields = {name: value for name, value in data.items() if name in known}
        for name in ("missing", "unsettled"):
            fields[name] = tuple(fields.get(name) or ())  # type: ignore[arg-type]
        fields["left_out"] = tuple(tuple(each) for each in fields.get("left_out") or ())  # type: ignore[attr-defined]
        return cls(**fields)  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class JobOutputs:
    """The files that a job's task wants home, as its cluster keeps it.

    wanted: pattern on the nodes -> absolute directory on the client's machine. client: whose machine that is (eight hex
    digits, Session.user_hash). nodes: the cluster's rank of the node of each rank of the job; empty before it has begun.
    """

    wanted: FrozenMap[str, str]
    client: str = ""
    nodes: tuple[int, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {"wanted": dict(self.wanted), "client": self.client, "nodes": list(self.nodes)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> JobOutputs | None:
        """None for what says nothing of the kind."""
        wanted, nodes = data.get("wanted"), data.get("nodes")
        if not isinstance(wanted, Mapping):
            return None
        return cls(
            wanted=FrozenMap({str(pattern): str(local) for pattern, local in wanted.items()}),
            client=str(data.get("client") or ""),
            nodes=tuple(int(node) for node in nodes) if isinstance(nodes, (list, tuple)) else (),
        )
