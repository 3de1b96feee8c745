"""cluster.json as data: what is written is read, schema 1 is read, and rubbish is one short problem."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.models.cluster import AutostopRecord
from skylib.models.mark import MAX_MARK_BYTES, ClusterMark, JobIds, MarkMember, read_mark
from skylib.models.node import Gpu, HostAddress

MEMBER = {
    "rank": 0,
    "host": "gpu1",
    "ip": "10.0.0.1",
    "root": "/home/ann",
    "temp_dir": "/tmp/ray_skypilot",
    "env": "/home/ann/skypilot-runtime",
    "python": "/home/ann/skypilot-runtime/bin/python",
    "address": {"kind": "ssh", "host": "gpu1", "user": "ann", "port": 2222, "proxy_jump": "a@b:2"},
    "cpus": 8,
    "memory_gib": 31.5,
    "gpus": [{"index": 0, "name": "A100", "memory_gib": 40.0, "uuid": "GPU-1"}],
    "price_per_hour": 1.5,
    "custom": {"license": 2.0},
    "runtime_digest": "ab",
}
MARK: dict[str, Any] = {
    "schema": 2,
    "name": "train",
    "cluster": "train",
    "cluster_id": "11111111-2222-3333-4444-555555555555",
    "infra": "ssh/lab",
    "owner": "ab12cd34",
    "home": "/home/me/.sky",
    "rank": 0,
    "launched_at": 1700000000.25,
    "resources": {"cpus": "4+", "any_of": [{"infra": "ssh/lab"}]},
    "autostop": {"idle_minutes": 5.0, "down": True, "wait_for": "jobs", "hook": "echo\nbye", "hook_timeout_s": 60.0},
    "lease_s": 7200.0,
    "members": [MEMBER],
    "ports": {"ray": 6380, "dashboard": 8266},
    "versions": {"skylib": "0.1.0", "protocol": "1", "ray": "2.9.3"},
    "job_ids": "1-5,9",
}
SCHEMA_1 = {
    "schema": 1,
    "cluster": "train",
    "cluster_id": "11111111-2222-3333-4444-555555555555",
    "infra": "ssh/lab",
    "owner": "ab",
    "home": "/h/.sky",
    "ray_port": 6381,
    "members": [{"rank": 0, "host": "gpu1", "ip": "10.0.0.1", "root": "/home/ann"}],
}


def changed(**fields: Any) -> str:
    return json.dumps({**MARK, **fields})


def member(**fields: Any) -> str:
    return changed(members=[{**MEMBER, **fields}])


def test_a_mark_is_read_whole() -> None:
    """Every field arrives, and is written again as it was."""
    mark = read_mark(json.dumps(MARK))
    assert json.loads(json.dumps(mark.to_json())) == MARK
    assert mark.members[0].address == HostAddress(
        kind="ssh", host="gpu1", user="ann", port=2222, proxy_jump="a@b:2"
    )
    assert mark.members[0].gpus == (Gpu(index=0, name="A100", memory_gib=40.0, uuid="GPU-1"),)
    assert mark.autostop == AutostopRecord(
        idle_minutes=5.0, down=True, wait_for="jobs", hook="echo\nbye", hook_timeout_s=60.0
    )
    assert mark.lease_s == 7200.0
    assert (mark.ray_port, mark.dashboard_port, list(mark.job_ids)) == (6380, 8266, [1, 2, 3, 4, 5, 9])


def test_schema_1_is_read() -> None:
    """A mark of before has a name, an id, members and a port; it does not say which member it is of."""
    mark = read_mark(json.dumps(SCHEMA_1))
    assert (mark.name, mark.rank, mark.ray_port, mark.schema) == ("train", None, 6381, 1)
    assert mark.members == (MarkMember(rank=0, host="gpu1", ip="10.0.0.1", root="/home/ann"),)


def test_a_member_holds_no_key() -> None:
    """What is written of how a member is reached may name a key's file, and nothing else of it."""
    address = HostAddress(kind="ssh", host="h", user="u", identity_file="~/.ssh/id")
    member = MarkMember(rank=0, host="h", ip="i", root="/r", address=address)
    mark = ClusterMark(name="c", cluster_id="c1", infra="ssh/lab", members=(member,))
    written = mark.to_json()["members"][0]["address"]  # type: ignore[index]
    assert written == {"kind": "ssh", "host": "h", "user": "u", "identity_file": "~/.ssh/id"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON"),
        ('{"schema": 2, "na', "no JSON"),
        ("[1, 2]", "no JSON object"),
        ("null", "no JSON object"),
        ("[" * 100_000, "no JSON"),
        ("1" * 5000, "no JSON"),
        (" " * (MAX_MARK_BYTES + 1), "larger than"),
        (changed(schema=3), "schema is 3"),
        (changed(schema=True), "schema is True"),
        (changed(name="-"), "not a cluster name"),
        (changed(name=None), "its name"),
        (changed(cluster_id=""), "its cluster_id"),
        (changed(cluster_id="a b"), "no cluster id"),
        (changed(cluster_id=7), "its cluster_id"),
        (changed(home="a\nb"), "its home"),
        (changed(members=[]), "0 members"),
        (changed(members={}), "its members"),
        (changed(members=[3]), "no JSON object"),
        (changed(members=[MEMBER, MEMBER]), "ranks of its members"),
        (member(rank=1), "ranks of its members"),
        (member(rank="0"), "its rank"),
        (changed(rank=4), "none of its members"),
        (changed(rank=None), "none of its members"),
        (member(root="home"), "no absolute path"),
        (member(root="/a\nb"), "its root"),
        (member(python="python3"), "no absolute path"),
        (member(address={"kind": "local", "host": "localhost"}), "cannot be reached by local"),
        (member(address={"kind": "ssh", "host": "-oProxyCommand=x"}), "no host"),
        (member(address={"kind": "ssh", "host": "a b"}), "no host"),
        (member(address={"kind": "ssh", "host": "a", "port": 0}), "no port"),
        (member(address={"kind": "ssh", "host": "a", "port": 70000}), "no port"),
        (member(cpus=-1), "its cpus"),
        (member(cpus=True), "its cpus"),
        (member(memory_gib="1"), "its memory_gib"),
        (member(gpus=[1]), "a GPU"),
        (changed(launched_at=10**400), "its launched_at"),
        (changed(launched_at=float("nan")), "its launched_at"),
        (changed(launched_at=float("inf")), "its launched_at"),
        (changed(job_ids="5-1"), "job ids"),
        (changed(job_ids="0"), "job ids"),
        (changed(job_ids="1," * 3), "job ids"),
        (changed(job_ids=[1]), "its job_ids"),
        (changed(job_ids="1-99999999999999"), "job ids"),
        (changed(resources=json.loads("[" * 40 + "]" * 40)), "its resources"),
        (changed(resources={"a": json.loads("[" * 40 + "]" * 40)}), "nested too deep"),
        (changed(autostop=5), "its autostop"),
        (changed(ports=5), "its ports"),
    ],
)
def test_what_is_no_mark_is_told_in_few_words(text: str, problem: str) -> None:
    """Whatever stands in the file is a ValueError that fits on a line."""
    with pytest.raises(ValueError, match=problem) as found:
        read_mark(text)
    assert len(str(found.value)) < 300
    assert str(found.value).isprintable()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(MARK)), _json)
def test_any_value_of_any_field_is_read_or_refused(field: str, value: object) -> None:
    """No field, whatever is in it, raises anything but ValueError; what is read can be written again."""
    try:
        mark = read_mark(changed(**{field: value}))
    except ValueError:
        return
    assert read_mark(json.dumps(mark.to_json())) == mark


@given(st.sampled_from(sorted(MEMBER)), _json)
def test_any_value_of_any_field_of_a_member_is_read_or_refused(field: str, value: object) -> None:
    """The same of members."""
    try:
        mark = read_mark(member(**{field: value}))
    except ValueError:
        return
    assert read_mark(json.dumps(mark.to_json())) == mark


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but ValueError."""
    with pytest.raises(ValueError, match="^it"):
        read_mark(text)


_ids = st.sets(st.integers(1, 60)).map(lambda ids: JobIds.parse(",".join(map(str, sorted(ids)))))


@given(_ids, _ids)
def test_job_ids_are_a_set(one: JobIds, other: JobIds) -> None:
    """Union, length, order and membership are those of a set; the text gives the same back."""
    both = one | other
    assert list(both) == sorted({*one, *other})
    assert len(both) == len(set(both))
    assert all((number in both) == (number in set(one) | set(other)) for number in range(70))
    assert JobIds.parse(str(both)) == both


def test_many_job_ids_cost_nothing() -> None:
    """A billion of them are two numbers."""
    ids = JobIds.parse("1-1000000000")
    assert (len(ids), 500 in ids, str(ids)) == (10**9, True, "1-1000000000")
