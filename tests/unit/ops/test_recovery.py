"""What becomes of an operation whose process died is a pure function of its intent, the record and what the nodes say."""

from __future__ import annotations

from itertools import product

import attrs
import pytest

from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.ops.look import Seen
from skylib.ops.recovery import Act, decide
from skylib.state.base import IntentRecord
from tests.records import cluster_record, node_record

FINISH, UNDO, KEEP, NOTE = Act.FINISH, Act.UNDO, Act.KEEP, Act.NOTE

SEEN = {
    "nobody": None,
    "unreached": Seen(reached=False),
    "worker cut": Seen(reached=False, agent=True, ray_ok=True, alive=2),
    "whole": Seen(reached=True, agent=True, ray_ok=True, alive=2),
    "part": Seen(reached=True, agent=True, ray_ok=True, alive=1),
    "no ray": Seen(reached=True, agent=True),
    "no agent": Seen(reached=True),
    "stopping": Seen(reached=True, agent=True, ray_ok=True, alive=2, stopping=True),
    "stopped": Seen(reached=True, stopped=True),
}
IN_DOUBT = ("unreached", "worker cut")

# Each operation on a record of its own cluster: what it comes to, in the order of SEEN.
TABLE = {
    "launch, half": (UNDO, KEEP, KEEP, FINISH, UNDO, UNDO, UNDO, UNDO, UNDO),
    "launch, made": (KEEP, KEEP, NOTE, NOTE, NOTE, NOTE, KEEP, NOTE, NOTE),
    "launch, old": (KEEP, KEEP, NOTE, NOTE, NOTE, NOTE, KEEP, NOTE, NOTE),
    "start, agents": (NOTE, NOTE, NOTE, FINISH, NOTE, NOTE, NOTE, NOTE, NOTE),
    "start, anew": (UNDO, KEEP, KEEP, FINISH, UNDO, UNDO, UNDO, UNDO, UNDO),
    "stop": (FINISH, KEEP, KEEP, *[FINISH] * 6),
    "down": (FINISH, KEEP, KEEP, *[FINISH] * 6),
    "down, purge": (FINISH,) * 9,
    "release": (FINISH, KEEP, KEEP, *[FINISH] * 6),
    "autostop": (KEEP, KEEP, KEEP, FINISH, FINISH, FINISH, KEEP, NOTE, NOTE),
    "lease": (KEEP, KEEP, KEEP, FINISH, FINISH, FINISH, KEEP, NOTE, NOTE),
    "exec": (KEEP, KEEP, NOTE, NOTE, NOTE, NOTE, KEEP, NOTE, NOTE),
    "cancel": (KEEP, KEEP, NOTE, NOTE, NOTE, NOTE, KEEP, NOTE, NOTE),
    "clean": (FINISH,) * 9,
    "adopt, half": (UNDO,) * 9,
    "adopt, made": (NOTE,) * 9,
    "of another skylib": (KEEP,) * 9,
}
DETAILS: dict[str, dict[str, object]] = {
    "launch, half": {"new": True},
    "launch, made": {"new": True},
    "launch, old": {"new": False},
    "start, agents": {"anew": False},
    "start, anew": {"anew": True},
    "down, purge": {"purge": True},
}
# When the cluster is stopped already, whatever its nodes say.
STOPPED = {"stop": NOTE, "adopt, half": NOTE, "autostop": NOTE, "lease": NOTE, "exec": NOTE, "cancel": NOTE}
STOPPED.update({"launch, old": NOTE, "launch, made": NOTE})
# When the cluster is gone, or the name is another one's.
GONE = {"launch, half": UNDO, "launch, made": UNDO, "clean": FINISH}


def intent(case: str) -> IntentRecord:
    operation = case.partition(",")[0]
    details = {"cluster_id": "a-1", "key": "k", **DETAILS.get(case, {})}
    return IntentRecord(intent_id=1, operation=operation, cluster="a", details=details, begun_at=1.0, pid=2, host="here")


def record(case: str, status: ClusterStatus = ClusterStatus.UP, **changes: object) -> ClusterRecord:
    nodes = (node_record(0), node_record(1))
    known = ClusterStatus.INIT if case == "adopt, half" and status is ClusterStatus.UP else status
    made = cluster_record("a", "a-1", status=known, num_nodes=2, nodes=nodes, ray_port=0 if "half" in case else 6380)
    return attrs.evolve(made, **changes)


@pytest.mark.parametrize("case", TABLE)
def test_each_operation_is_settled_by_what_its_nodes_say(case: str):
    """Standing is finished, in doubt is kept, and a half-made cluster is undone."""
    decided = {name: decide(intent(case), record(case), seen).act for name, seen in SEEN.items()}
    assert decided == dict(zip(SEEN, TABLE[case], strict=True))


@pytest.mark.parametrize("case", TABLE)
def test_a_cluster_that_is_gone_needs_nothing_more(case: str):
    """Without a record, or with another cluster's, there is nothing to end; what a purge left is looked for again."""
    for other in (None, record(case, cluster_id="a-2")):
        for seen in SEEN.values():
            expected = GONE.get(case, NOTE)
            assert decide(intent(case), other, seen).act is expected


@pytest.mark.parametrize("case", TABLE)
def test_a_cluster_that_is_stopped_already(case: str):
    """What wanted it stopped is done; jobs are asked for when it is started; all else is decided as ever."""
    for name, seen in SEEN.items():
        expected = STOPPED.get(case, dict(zip(SEEN, TABLE[case], strict=True))[name])
        assert decide(intent(case), record(case, ClusterStatus.STOPPED), seen).act is expected


def test_a_launch_that_had_touched_no_host_is_undone_whatever_is_seen():
    """Hosts are claimed, nodes are not written down: nothing can be there."""
    for seen in SEEN.values():
        assert decide(intent("launch, half"), record("launch, half", nodes=()), seen).act is UNDO


@pytest.mark.parametrize("case", TABLE)
def test_nothing_is_ended_or_forgotten_in_doubt(case: str):
    """With a host that is not reached nothing is done on any, unless the user had said that it does not matter."""
    for status, name in product(ClusterStatus, IN_DOUBT):
        decision = decide(intent(case), record(case, status), SEEN[name])
        touches_no_node = case.startswith("adopt")
        assert decision.act in (KEEP, NOTE) or touches_no_node or case in ("down, purge", "clean")


@pytest.mark.parametrize("case", TABLE)
def test_what_is_kept_of_a_cluster_half_made_or_half_ended_holds_up_verbs(case: str):
    """A launch, start, stop or down that is not settled blocks the cluster; a job or a timer never does."""
    whole_cluster = case in ("launch, half", "start, anew", "stop", "down", "release")
    for status, seen in product(ClusterStatus, SEEN.values()):
        decision = decide(intent(case), record(case, status), seen)
        assert decision.why
        if decision.act is KEEP:
            assert decision.blocks is whole_cluster
