"""What machines say, merged into clusters: table and properties. No machine is asked."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.facts.marks import FoundMark, Look, Root
from skylib.models.cluster import ClusterStatus
from skylib.models.discovered import ClusterHealth, Discovered, MemberState
from skylib.models.mark import ClusterMark, JobIds, MarkMember, read_mark
from skylib.models.node import HostAddress
from skylib.ops.marks import Answer, Merged, Place, adopted_status, merge, record_of

A, B = "aaaa", "bbbb"


def place(number: int, infra: str = "ssh/lab", **fields: Any) -> Place:
    address = {"kind": "ssh", "host": f"10.0.0.{number}", "user": "ann", **fields}
    return Place(infra=infra, host=str(address["host"]), address=HostAddress(**address))


def mark(rank: int = 0, size: int = 2, cluster_id: str = A, **fields: Any) -> ClusterMark:
    members = tuple(
        MarkMember(
            rank=each,
            host=f"10.0.0.{each}",
            ip=f"192.168.0.{each}",
            root="/home/ann",
            temp_dir="/tmp/ray_skypilot",
            env="/home/ann/skypilot-runtime",
            python="/home/ann/skypilot-runtime/bin/python",
            address=HostAddress(kind="ssh", host=f"10.0.0.{each}", user="ann"),
            cpus=4 + each,
            memory_gib=8.0,
        )
        for each in range(size)
    )
    values: dict[str, Any] = {
        "name": "train",
        "cluster_id": cluster_id,
        "infra": "ssh/lab",
        "owner": "ab",
        "home": "/h/.sky",
        "rank": rank,
        "launched_at": 50.0,
        "members": members,
        "ray_port": 6380,
        "versions": {"ray": "2.9.3"},
    }
    return ClusterMark(**{**values, **fields})


def look(number: int, *marks: ClusterMark, jobs: bool = False, **fields: Any) -> Look:
    found = [FoundMark(path="/home/ann/.sky/cluster.json", mark=each) for each in marks]
    roots = {"/home/ann": Root(path="/home/ann", mark=found[0] if found else None, jobs=jobs)}
    return Look(**{"uid": 7, "home": "/home/ann", "machine": f"m{number}", "roots": roots, **fields})


def answer(number: int, *marks: ClusterMark, infra: str = "ssh/lab", error: str = "", **fields: Any) -> Answer:
    seen = None if error else look(number, *marks, **fields)
    return Answer(names=(place(number, infra),), look=seen, error=error)


def merged(*answers: Answer, places: tuple[Place, ...] = (), known: tuple[str, ...] = ()) -> Merged:
    return merge(answers, places or tuple(name for each in answers for name in each.names), known=known)


def only(*answers: Answer, **options: Any) -> Discovered:
    (found,) = merged(*answers, **options).clusters
    return found


def states(found: Discovered) -> list[MemberState]:
    return [each.state for each in found.members]


RUNS = {"running": {A: 9}}
ANSWERED, SILENT, OTHER = MemberState.ANSWERED, MemberState.SILENT, MemberState.OTHER
UNMARKED, NOT_ASKED = MemberState.UNMARKED, MemberState.NOT_ASKED


def test_a_whole_cluster_has_no_problems() -> None:
    """Marks of all members make one cluster, each member reached as this home reaches it."""
    found = only(answer(0, mark(0), jobs=True, **RUNS), answer(1, mark(1), **RUNS), known=(A,))
    assert (found.name, found.cluster_id, found.known, dict(found.problems)) == ("train", A, True, {})
    assert states(found) == [ANSWERED, ANSWERED]
    assert [each.node.address for each in found.members] == [place(0).address, place(1).address]
    assert (found.health, found.stopped, found.half_made) == (ClusterHealth.CANNOT_TELL, False, False)
    assert "2/2 members" in repr(found)
    assert "\n" not in repr(found)


@pytest.mark.parametrize(
    ("second", "state", "word"),
    [
        (answer(1, error="connection refused"), SILENT, "refused"),
        (answer(1), UNMARKED, "no cluster.json"),
        (answer(1, mark(0, 1, B, name="other")), OTHER, "'other'"),
        (None, NOT_ASKED, None),
    ],
)
def test_a_member_that_does_not_say_so(second: Answer | None, state: MemberState, word: str | None) -> None:
    """Silent, unmarked, another's, not asked: each is told, and the member's record comes from the other's mark."""
    answers = [answer(0, mark(0), jobs=True), *([second] if second else [])]
    clusters = merge(answers, (place(0), place(1))).clusters
    found = next(each for each in clusters if each.cluster_id == A)
    assert states(found) == [ANSWERED, state]
    assert found.members[1].node.cpus == 5
    assert found.members[1].node.address == place(1).address
    assert (found.missing, found.answered) == (("10.0.0.1",), ("10.0.0.0",))
    assert word is None or word in found.problems["10.0.0.1"]


@pytest.mark.parametrize("text", ["", "{", '{"schema": 9}', "[]", json.dumps({"schema": 2, "members": [1]})])
def test_rubbish_is_that_hosts_problem(text: str) -> None:
    """A mark that cannot be read leaves the others as they are."""
    with pytest.raises(ValueError, match=r"\w") as problem:
        read_mark(text)
    found = FoundMark(path="/home/ann/.sky/cluster.json", problem=str(problem.value))
    broken = answer(1, roots={"/home/ann": Root(path="/home/ann", mark=found)})
    cluster = only(answer(0, mark(0)), broken)
    assert states(cluster) == [ANSWERED, OTHER]
    assert str(problem.value) in cluster.problems["10.0.0.1"]
    alone = merged(broken)
    assert (alone.clusters, list(alone.problems)) == ((), ["10.0.0.1"])


def test_two_that_say_they_are_the_same_rank() -> None:
    """The first one is taken, the other is a problem; nothing is counted twice."""
    found = only(answer(0, mark(0)), answer(1, mark(0)))
    assert states(found)[0] is ANSWERED
    assert "rank 0" in found.problems["10.0.0.1"]
    assert len(found.members) == 2


def test_marks_that_differ() -> None:
    """The head's counts for the cluster; who differs is told."""
    changed = attrs.evolve(mark(1), name="renamed")
    found = only(answer(0, mark(0)), answer(1, changed))
    assert found.name == "train"
    assert "differs" in found.problems["10.0.0.1"]


def test_what_differs_in_a_members_own_is_the_members() -> None:
    """Where a member's files are is believed of itself alone."""
    own = mark(1)
    evil = attrs.evolve(own, members=(attrs.evolve(own.members[0], python="/evil"), attrs.evolve(own.members[1], cpus=64)))
    found = only(answer(0, mark(0)), answer(1, evil))
    assert [each.node.python for each in found.members] == ["/home/ann/skypilot-runtime/bin/python"] * 2
    assert [each.node.cpus for each in found.members] == [4, 64]


def test_two_clusters_of_one_name_stay_two() -> None:
    """Lives are told apart by id."""
    found = merged(answer(0, mark(0, 1, A)), answer(1, mark(0, 1, B))).clusters
    assert [(each.name, each.cluster_id) for each in found] == [("train", A), ("train", B)]


def test_a_machine_with_two_names_is_one() -> None:
    """Two pools with the same machine: it answers once, by the name that it has in the cluster's infra."""
    twice = [answer(0, mark(0, 1), infra="ssh/all"), answer(0, mark(0, 1), infra="ssh/lab")]
    found = only(*twice)
    assert (found.infra, found.answered, dict(found.problems)) == ("ssh/lab", ("10.0.0.0",), {})


def test_a_pool_may_have_another_name_here() -> None:
    """The cluster's infra is what this home calls the hosts that answered."""
    found = only(answer(0, mark(0), infra="ssh/mine"), answer(1, mark(1), infra="ssh/mine"))
    assert found.infra == "ssh/mine"


def test_a_member_in_no_pool_is_reached_as_the_mark_says() -> None:
    """Its address is the one that the cluster's maker had."""
    found = only(answer(0, mark(0)))
    assert found.members[1].node.address == HostAddress(kind="ssh", host="10.0.0.1", user="ann")
    assert states(found) == [ANSWERED, NOT_ASKED]


def test_a_mark_of_schema_1_finds_its_member_by_the_host() -> None:
    """It does not say which it is of; its usual places are meant, and the temp dir that has the same mark."""
    members = tuple(MarkMember(rank=m.rank, host=m.host, ip=m.ip, root=m.root) for m in mark().members)
    old = attrs.evolve(mark(0), schema=1, rank=None, members=members)
    temp = (FoundMark(path="/tmp/ray_skypilot_7/cluster.json", mark=old),)
    found = only(answer(0, old, temp_marks=temp), answer(1, old))
    assert states(found) == [ANSWERED, ANSWERED]
    assert found.members[0].node.temp_dir == "/tmp/ray_skypilot_7"
    assert found.members[1].node.python == "/home/ann/skypilot-runtime/bin/python"
    strange = only(answer(9, old))
    assert "which member" in strange.problems["10.0.0.9"]


def local_mark(*roots: str) -> ClusterMark:
    members = tuple(
        attrs.evolve(member, root=root, address=HostAddress(kind="local"))
        for member, root in zip(mark(size=len(roots)).members, roots, strict=True)
    )
    return attrs.evolve(mark(size=len(roots)), infra="local", members=members)


def test_a_local_clusters_nodes_are_told_apart_by_their_roots() -> None:
    """One machine is all members; a root that is gone is unmarked."""
    here = Place(infra="local", host="localhost", address=HostAddress(kind="local"))
    text = local_mark("/h/rank0", "/h/rank1")
    roots = {"/h/rank0": Root(path="/h/rank0", mark=FoundMark(path="x", mark=text), jobs=True)}
    found = only(Answer(names=(here,), look=Look(uid=7, home="/home/ann", machine="m", roots=roots)), places=(here,))
    assert (found.infra, states(found)) == ("local", [ANSWERED, UNMARKED])
    assert [each.node.root for each in found.members] == ["/h/rank0", "/h/rank1"]
    assert {each.host for each in found.members} == {"localhost"}


def test_a_local_cluster_is_none_of_an_ssh_hosts() -> None:
    """An account may have both; each is found by its own way."""
    assert merged(answer(0, local_mark("/home/ann"))).clusters == ()


def test_a_cluster_that_lost_its_files_is_known_by_the_temp_dir() -> None:
    """Its mark there, and what runs of it, are all there is: members are lost, and it is not stopped."""
    temp = (FoundMark(path="/tmp/ray_skypilot/cluster.json", mark=mark(1)),)
    wiped = Answer(names=(place(1),), look=look(1, temp_marks=temp, roots={}, running={A: 5}))
    found = only(answer(0, mark(0), jobs=True), wiped)
    assert states(found) == [ANSWERED, MemberState.LOST]
    assert "5 of its processes" in found.problems["10.0.0.1"]
    alone = only(wiped, places=(place(0), place(1)))
    assert states(alone) == [NOT_ASKED, MemberState.LOST]
    other = FoundMark(path="/home/ann/.sky/cluster.json", mark=mark(0, 1, B))
    assert only(answer(1, temp_marks=temp, roots={"/home/ann": Root(path="/home/ann", mark=other)})).cluster_id == B


def test_a_local_cluster_whose_home_is_gone_is_lost_on_all_roots() -> None:
    """Every member is known by the temp dir's mark; nobody can ask its agent."""
    here = Place(infra="local", host="localhost", address=HostAddress(kind="local"))
    temp = (FoundMark(path="/tmp/ray_skypilot/cluster.json", mark=local_mark("/gone/rank0", "/gone/rank1")),)
    seen = Look(uid=7, home="/home/ann", machine="m", temp_marks=temp, running={A: 30})
    found = only(Answer(names=(here,), look=seen), places=(here,))
    assert states(found) == [MemberState.LOST] * 2
    assert (adopted_status(found), found.stopped) == (ClusterStatus.INIT, False)


def test_job_ids_are_those_of_all_members() -> None:
    """What a worker saw counts when the head does not answer."""
    found = only(answer(0, mark(0, job_ids=JobIds.parse("1-3"))), answer(1, mark(1, job_ids=JobIds.parse("3,7"))))
    assert list(found.job_ids) == [1, 2, 3, 7]


def seen(**fields: Any) -> Discovered:
    """A whole cluster whose head answered, changed."""
    return attrs.evolve(only(answer(0, mark(0), jobs=True), answer(1, mark(1))), **fields)


def lacking(state: MemberState) -> dict[str, Any]:
    first, second = seen().members
    return {"members": (first, attrs.evolve(second, state=state))}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (seen(health=ClusterHealth.UP, stopped=False), ClusterStatus.UP),
        (seen(health=ClusterHealth.UP, stopped=False, **lacking(SILENT)), ClusterStatus.UNREACHABLE),
        (seen(health=ClusterHealth.UP, stopped=False, **lacking(NOT_ASKED)), ClusterStatus.UNREACHABLE),
        (seen(stopped=True, half_made=False), ClusterStatus.STOPPED),
        (seen(stopped=True, half_made=True), ClusterStatus.INIT),
        (seen(stopped=True, **lacking(SILENT)), ClusterStatus.UNREACHABLE),
        (seen(stopped=True, **lacking(UNMARKED)), ClusterStatus.STOPPED),
        (seen(health=ClusterHealth.NOT_WHOLE, stopped=False), ClusterStatus.INIT),
        (seen(health=ClusterHealth.NOT_WHOLE, stopped=False, **lacking(OTHER)), ClusterStatus.INIT),
        (seen(health=ClusterHealth.CANNOT_TELL, stopped=False), ClusterStatus.INIT),
        (seen(health=ClusterHealth.NOT_WHOLE, stopped=False, stopping=True), ClusterStatus.AUTOSTOPPING),
    ],
)
def test_what_a_cluster_is_taken_up_as(found: Discovered, status: ClusterStatus) -> None:
    """In doubt about any member nobody knows; else what its head and agent say."""
    assert adopted_status(found) is status


def test_the_record_keeps_the_time_of_the_launch() -> None:
    """Status and owner are of now and here, all else is the cluster's."""
    record = record_of(seen(health=ClusterHealth.UP, stopped=False), at=99.0, owner="me")
    assert (record.launched_at, record.status_since, record.owner, record.num_nodes) == (50.0, 99.0, "me", 2)
    assert (record.ray_port, record.ray_version, record.head.cpus) == (6380, "2.9.3", 4)


@st.composite
def worlds(draw: st.DrawFn) -> list[Answer]:
    """Up to five machines with marks of two clusters, their own or somebody's, rubbish, nothing, or silence."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["mark", "mark", "mark", "silent", "none", "rubbish"]))
        if kind == "mark":
            cluster_id, size = draw(st.sampled_from([(A, 2), (A, 3), (B, 1), (B, 4)]))
            rank = draw(st.sampled_from([None, *range(size)]))
            text = mark(rank or 0, size, cluster_id, name=draw(st.sampled_from(["train", "other"])))
            text = attrs.evolve(text, rank=rank, schema=1 if rank is None else 2)
            runs = {"running": {cluster_id: 1}} if draw(st.booleans()) else {}
            found.append(answer(number, text, jobs=draw(st.booleans()), **runs))
        elif kind == "silent":
            found.append(answer(number, error="no route"))
        elif kind == "none":
            found.append(answer(number, roots={}))
        else:
            broken = FoundMark(path="/home/ann/.sky/cluster.json", problem="it is no JSON")
            found.append(answer(number, roots={"/home/ann": Root(path="/home/ann", mark=broken)}))
    return found


@given(worlds(), st.randoms())
def test_any_world_is_merged(answers: list[Answer], order: Any) -> None:
    """Each id is one cluster, each with all ranks of one of its marks; no machine is two members; no order matters to
    which clusters there are; a record can be made of each.
    """
    places = tuple(place(number) for number in range(5))
    found = merge(answers, places).clusters
    told = {r.mark.mark.cluster_id for a in answers if a.look for r in a.look.roots.values() if r.mark and r.mark.mark}
    assert [each.cluster_id for each in sorted(found, key=lambda each: each.cluster_id)] == sorted(told)
    for each in found:
        assert [member.rank for member in each.members] == list(range(len(each.members)))
        hosts = [member.host for member in each.members if member.state is ANSWERED]
        assert len(set(hosts)) == len(hosts)
        assert all(each.problems.values())
        record = record_of(each, at=1.0, owner="me")
        assert type(record).from_json(json.loads(json.dumps(record.to_json()))).nodes == record.nodes
    shuffled = list(answers)
    order.shuffle(shuffled)
    assert {each.cluster_id for each in merge(shuffled, places).clusters} == told
