"""What every StateStore does, whatever it is kept in."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from skylib.errors import ClusterBusy, ClusterNotFound, NoCapacityError, StateError
from skylib.models.cluster import AutostopRecord, ClusterStatus
from skylib.models.job import JobStatus
from skylib.state.base import StateStore, UsageInterval
from tests.processes import Child, run_at_once
from tests.records import cluster_record, job_record, node_record
from tests.stores import KINDS, Opener, opened_stores


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens further stores on the same state."""
    with opened_stores(request.param, tmp_path) as opener:
        yield opener


@pytest.fixture
def store(open_store: Opener) -> StateStore:
    return open_store()


def test_a_fresh_store_is_empty(store: StateStore) -> None:
    """Every question to a store that nobody wrote to has an empty answer."""
    assert store.clusters() == []
    assert store.cluster("train") is None
    assert store.claims() == {}
    assert store.jobs("train") == []
    assert store.job("train", 1) is None
    assert store.history() == []
    assert store.events("train") == []
    assert store.open_intents() == []
    assert store.config_get("key") is None


def test_a_cluster_reads_back_as_it_was_written(store: StateStore, open_store: Opener) -> None:
    """Another store on the same state sees an equal record."""
    record = cluster_record(
        nodes=(node_record(0, price_per_hour=1.5), node_record(1, gpus=())), autostop=AutostopRecord(idle_minutes=5)
    )
    store.begin_launch(record)
    assert open_store().cluster("train") == record
    assert open_store().clusters() == [record]


def test_clusters_come_newest_first_and_by_name(store: StateStore) -> None:
    """Names that do not exist are left out."""
    for age, name in enumerate(["a", "b", "c"]):
        store.begin_launch(cluster_record(name, launched_at=100.0 + age))
    assert [record.name for record in store.clusters()] == ["c", "b", "a"]
    assert [record.name for record in store.clusters(["a", "c", "zz"])] == ["c", "a"]
    assert store.clusters([]) == []


def test_a_launch_begins_as_init(store: StateStore) -> None:
    """Whatever status the record has: until it is settled the cluster only may exist."""
    begun = store.begin_launch(cluster_record(status=ClusterStatus.UP))
    assert begun.status is ClusterStatus.INIT
    assert store.cluster("train") == begun


def test_a_launch_may_begin_again(store: StateStore) -> None:
    """The same life of the name takes the new record and is INIT again."""
    store.begin_launch(cluster_record())
    store.settle("train", ClusterStatus.UP, at=110.0)
    again = store.begin_launch(cluster_record(num_nodes=2, status_since=120.0))
    assert (again.status, again.status_since, again.num_nodes) == (ClusterStatus.INIT, 120.0, 2)
    assert store.clusters() == [again]


def test_two_launches_of_one_name_do_not_both_begin(store: StateStore) -> None:
    """The second, with an id of its own, is told what holds the name."""
    first = store.begin_launch(cluster_record())
    with pytest.raises(ClusterBusy) as caught:
        store.begin_launch(cluster_record(cluster_id="other"))
    assert (caught.value.cluster, caught.value.holder) == ("train", "train-1")
    assert store.cluster("train") == first


def test_a_life_that_is_over_does_not_come_back(store: StateStore) -> None:
    """A late writer cannot bring a cluster back that was taken down meanwhile."""
    record = store.begin_launch(cluster_record())
    store.remove_cluster("train", at=110.0)
    with pytest.raises(ClusterBusy):
        store.save_cluster(record)
    with pytest.raises(ClusterBusy):
        store.begin_launch(record)
    assert store.cluster("train") is None


def test_save_cluster_does_not_overwrite_another_life(store: StateStore) -> None:
    """The record of an earlier life of the name is refused."""
    store.begin_launch(cluster_record(cluster_id="new"))
    with pytest.raises(ClusterBusy):
        store.save_cluster(cluster_record(cluster_id="old"))
    assert [record.cluster_id for record in store.clusters()] == ["new"]


def test_settle_changes_status_and_fields(store: StateStore) -> None:
    """The record that comes back is the one that is kept."""
    store.begin_launch(cluster_record())
    settled = store.settle("train", ClusterStatus.UP, at=150.0, ray_port=6380, last_use="launch")
    assert (settled.status, settled.status_since, settled.ray_port) == (ClusterStatus.UP, 150.0, 6380)
    assert store.cluster("train") == settled


def test_settle_to_the_same_status_keeps_its_time(store: StateStore) -> None:
    """UNREACHABLE seen again is unreachable since the first time."""
    store.begin_launch(cluster_record())
    store.settle("train", ClusterStatus.UNREACHABLE, at=150.0)
    assert store.settle("train", ClusterStatus.UNREACHABLE, at=170.0).status_since == 150.0


def test_settle_needs_the_cluster(store: StateStore) -> None:
    """A name that does not exist gets the names that do."""
    store.begin_launch(cluster_record("other"))
    with pytest.raises(ClusterNotFound) as caught:
        store.settle("train", ClusterStatus.UP, at=1.0)
    assert (caught.value.cluster, caught.value.known) == ("train", ("other",))


def test_settle_of_an_old_life_leaves_the_new_one_alone(store: StateStore) -> None:
    """An observation of an earlier cluster does not change the one that has its name now."""
    current = store.begin_launch(cluster_record(cluster_id="new"))
    with pytest.raises(ClusterNotFound):
        store.settle("train", ClusterStatus.STOPPED, at=150.0, cluster_id="old")
    assert store.remove_cluster("train", at=150.0, cluster_id="old") is None
    assert store.cluster("train") == current


@pytest.mark.parametrize("field", ["name", "cluster_id", "status_since", "nonsense"])
def test_settle_refuses_fields_that_are_not_the_callers(store: StateStore, field: str) -> None:
    """Identity does not change, and a misspelled field is no silent success."""
    record = store.begin_launch(cluster_record())
    with pytest.raises((TypeError, ClusterNotFound)):
        store.settle("train", ClusterStatus.UP, at=1.0, **{field: "x"})  # type: ignore[arg-type]
    assert store.cluster("train") == record


def test_remove_is_done_once(store: StateStore) -> None:
    """The first call returns the record, a second finds nothing."""
    record = store.begin_launch(cluster_record())
    assert store.remove_cluster("train", at=110.0) == record
    assert store.remove_cluster("train", at=120.0) is None
    assert [life.ended_at for life in store.history()] == [110.0]


def test_a_cluster_that_is_forgotten_was_never_begun(store: StateStore) -> None:
    """Neither hosts, jobs nor history are kept, the same life may begin again, and another's is left alone."""
    record = store.begin_launch(cluster_record())
    store.claim_hosts("ssh/lab", ["h1"], "train", "train-1", 101.0)
    store.save_jobs("train-1", [job_record(1)])
    store.settle("train", ClusterStatus.UP, at=102.0)
    store.forget_cluster("train", "another")
    assert store.claims() == {("ssh/lab", "h1"): "train"}
    store.forget_cluster("train", "train-1")
    store.forget_cluster("train", "train-1")
    assert (store.clusters(), store.claims(), store.jobs("train"), store.history()) == ([], {}, [], [])
    assert store.begin_launch(record) == record


def test_hosts_are_claimed_all_or_none(store: StateStore) -> None:
    """One taken host is enough for none to be claimed, and the error names its holder."""
    store.begin_launch(cluster_record("a"))
    store.begin_launch(cluster_record("b"))
    store.claim_hosts("ssh/lab", ["h1", "h2"], "a", "a-1", 1.0)
    with pytest.raises(NoCapacityError) as caught:
        store.claim_hosts("ssh/lab", ["h3", "h2", "h1"], "b", "b-1", 2.0)
    assert caught.value.holders == {"h1": "a", "h2": "a"}
    assert store.claims() == {("ssh/lab", "h1"): "a", ("ssh/lab", "h2"): "a"}


def test_a_cluster_may_claim_its_hosts_again(store: StateStore) -> None:
    """Claims of the same cluster are no conflict, further hosts are added, doubles count once."""
    store.begin_launch(cluster_record("a"))
    store.claim_hosts("ssh/lab", ["h1"], "a", "a-1", 1.0)
    store.claim_hosts("ssh/lab", ["h1", "h2", "h2"], "a", "a-1", 2.0)
    assert sorted(store.claims()) == [("ssh/lab", "h1"), ("ssh/lab", "h2")]


def test_one_host_name_in_two_pools_is_two_hosts(store: StateStore) -> None:
    """Claims are per infra, and can be asked for by infra."""
    store.begin_launch(cluster_record("a"))
    store.begin_launch(cluster_record("b"))
    store.claim_hosts("ssh/lab", ["h1"], "a", "a-1", 1.0)
    store.claim_hosts("ssh/other", ["h1"], "b", "b-1", 1.0)
    assert store.claims("ssh/other") == {("ssh/other", "h1"): "b"}
    assert len(store.claims()) == 2


def test_a_claim_needs_its_cluster(store: StateStore) -> None:
    """A host cannot be held by a cluster that nobody wrote down, nor by an earlier life."""
    store.begin_launch(cluster_record("a", "a-2"))
    for cluster, cluster_id in [("zz", "zz-1"), ("a", "a-1")]:
        with pytest.raises(ClusterNotFound):
            store.claim_hosts("ssh/lab", ["h1"], cluster, cluster_id, 1.0)
    assert store.claims() == {}


def test_hosts_are_released(store: StateStore) -> None:
    """Some by name, all by default, and all when the cluster is removed; others keep theirs."""
    for name in ("a", "b"):
        store.begin_launch(cluster_record(name))
        store.claim_hosts("ssh/lab", [f"{name}1", f"{name}2", f"{name}3"], name, f"{name}-1", 1.0)
    store.release_hosts("a-1", ["a1", "b1"])
    assert [host for (_, host) in store.claims()] == ["a2", "a3", "b1", "b2", "b3"]
    store.release_hosts("a-1")
    store.remove_cluster("b", at=2.0)
    assert store.claims() == {}


def test_a_stopped_cluster_keeps_its_hosts(store: StateStore) -> None:
    """Only down releases."""
    store.begin_launch(cluster_record("a"))
    store.claim_hosts("ssh/lab", ["h1"], "a", "a-1", 1.0)
    store.settle("a", ClusterStatus.STOPPED, at=2.0)
    assert store.claims() == {("ssh/lab", "h1"): "a"}


def test_usage_is_counted_while_up(store: StateStore) -> None:
    """UP opens an interval, STOPPED and removal close it; what is unknown or autostopping goes on counting."""
    store.begin_launch(cluster_record())
    store.settle("train", ClusterStatus.UP, at=110.0)
    store.settle("train", ClusterStatus.UNREACHABLE, at=120.0)
    store.settle("train", ClusterStatus.UP, at=130.0)
    store.settle("train", ClusterStatus.AUTOSTOPPING, at=140.0)
    store.settle("train", ClusterStatus.STOPPED, at=150.0)
    store.begin_launch(cluster_record(status_since=160.0))
    store.settle("train", ClusterStatus.UP, at=170.0)
    (life,) = store.history()
    assert life.intervals == (UsageInterval(start=110.0, end=150.0), UsageInterval(start=170.0))
    store.remove_cluster("train", at=200.0)
    (life,) = store.history()
    assert life.intervals[-1] == UsageInterval(start=170.0, end=200.0)
    assert life.used_seconds(now=1000.0) == 70.0
    assert life.used_seconds(now=1000.0, since=140.0) == 40.0


def test_a_launch_that_failed_has_no_usage(store: StateStore) -> None:
    """It is in history, with no interval."""
    store.begin_launch(cluster_record())
    store.remove_cluster("train", at=110.0)
    (life,) = store.history()
    assert (life.ended_at, life.intervals) == (110.0, ())


def test_an_interval_never_ends_before_it_began(store: StateStore) -> None:
    """A clock that was set back makes it empty, not negative."""
    store.begin_launch(cluster_record())
    store.settle("train", ClusterStatus.UP, at=110.0)
    store.remove_cluster("train", at=90.0)
    assert store.history()[0].intervals == (UsageInterval(start=110.0, end=110.0),)


def test_history_since_leaves_out_what_ended_before(store: StateStore) -> None:
    """Lives that go on are always in it; newest first."""
    for number, ended in [(1, 110.0), (2, 210.0), (3, None)]:
        store.begin_launch(cluster_record("train", f"life{number}", launched_at=100.0 * number))
        if ended is not None:
            store.remove_cluster("train", at=ended)
    assert [life.cluster_id for life in store.history()] == ["life3", "life2", "life1"]
    assert [life.cluster_id for life in store.history(since=200.0)] == ["life3", "life2"]


def test_clusters_of_one_moment_come_in_the_order_of_their_launches(store: StateStore) -> None:
    """The later one first, among clusters that exist, in history, and in its jobs; a new status changes no order."""
    for name in ("b", "a", "c"):
        store.begin_launch(cluster_record(name))
    store.settle("a", ClusterStatus.UP, at=110.0)
    assert [record.name for record in store.clusters()] == ["c", "a", "b"]
    for number in (2, 1):
        store.begin_launch(cluster_record("train", f"life{number}"))
        store.save_jobs(f"life{number}", [job_record(1, name=str(number))])
        store.remove_cluster("train", at=110.0)
    assert [life.cluster_id for life in store.history()] == ["life1", "life2", "c-1", "a-1", "b-1"]
    assert [job.name for job in store.jobs("train")] == ["1", "2"]


def test_history_of_one_name(store: StateStore) -> None:
    """Its lives alone, each with its own usage; together with `since` both hold."""
    for name, number in [("train", 1), ("other", 1), ("train", 2)]:
        store.begin_launch(cluster_record(name, f"{name}{number}", launched_at=100.0 * number))
        store.settle(name, ClusterStatus.UP, at=100.0 * number + 1)
        store.remove_cluster(name, at=100.0 * number + 2)
    lives = store.history(name="train")
    assert [(life.cluster_id, life.intervals) for life in lives] == [
        ("train2", (UsageInterval(start=201.0, end=202.0),)),
        ("train1", (UsageInterval(start=101.0, end=102.0),)),
    ]
    assert [life.cluster_id for life in store.history(200.0, name="train")] == ["train2"]
    assert store.history(name="zz") == []


def test_jobs_are_kept_after_the_cluster_is_gone(store: StateStore) -> None:
    """And can still be written: the last look at a job may come after the row is gone."""
    store.begin_launch(cluster_record())
    store.save_jobs("train-1", [job_record(1, JobStatus.SUCCEEDED), job_record(2)])
    store.remove_cluster("train", at=300.0)
    store.save_jobs("train-1", [job_record(2, JobStatus.FAILED, exit_codes=(3, None))])
    assert [(job.job_id, job.status) for job in store.jobs("train")] == [
        (2, JobStatus.FAILED),
        (1, JobStatus.SUCCEEDED),
    ]
    assert store.job("train", 2) == job_record(2, JobStatus.FAILED, exit_codes=(3, None))


def test_the_newest_life_of_a_name_comes_first(store: StateStore) -> None:
    """Job ids begin again in each life; the older one's jobs are behind it, or asked for by id."""
    for number, jobs in [(1, (1, 2)), (2, (1,))]:
        store.begin_launch(cluster_record("train", f"life{number}", launched_at=100.0 * number))
        store.save_jobs(f"life{number}", [job_record(job, name=f"{number}/{job}") for job in jobs])
        store.remove_cluster("train", at=150.0 * number)
    assert [job.name for job in store.jobs("train")] == ["2/1", "1/2", "1/1"]
    assert [job.name for job in store.jobs("train", cluster_id="life1")] == ["1/2", "1/1"]
    assert [store.job("train", job_id).name for job_id in (1, 2)] == ["2/1", "1/2"]  # type: ignore[union-attr]
    assert store.job("train", 2, cluster_id="life2") is None


@pytest.mark.parametrize("status", [status for status in JobStatus if status.is_terminal])
def test_a_terminal_job_status_stays(store: StateStore, status: JobStatus) -> None:
    """Any other status that is seen later is dropped; more facts about the same one are taken."""
    store.begin_launch(cluster_record())
    store.save_jobs("train-1", [job_record(1, status)])
    for other in set(JobStatus) - {status}:
        store.save_jobs("train-1", [job_record(1, other, cause="late")])
    assert store.job("train", 1) == job_record(1, status)
    store.save_jobs("train-1", [job_record(1, status, ended_at=300.0)])
    assert store.job("train", 1) == job_record(1, status, ended_at=300.0)


def test_jobs_need_a_life_of_a_cluster(store: StateStore) -> None:
    """An id that was never begun is refused; no jobs at all are no error."""
    with pytest.raises(ClusterNotFound):
        store.save_jobs("never", [job_record()])
    store.save_jobs("never", [])


def test_changes_of_status_are_events(store: StateStore) -> None:
    """Each with the status before and after, and events of the caller's own between them, oldest first."""
    store.begin_launch(cluster_record())
    store.add_event("train", "note", at=105.0, cluster_id="train-1", details={"text": "hosts chosen"})
    store.settle("train", ClusterStatus.UP, at=110.0)
    store.settle("train", ClusterStatus.UP, at=120.0)
    store.remove_cluster("train", at=130.0)
    seen = [(event.kind, event.at, dict(event.details)) for event in store.events("train")]
    assert seen == [
        ("status", 100.0, {"from": None, "to": "INIT"}),
        ("note", 105.0, {"text": "hosts chosen"}),
        ("status", 110.0, {"from": "INIT", "to": "UP"}),
        ("status", 130.0, {"from": "UP", "to": None}),
    ]
    assert [event.at for event in store.events("train", limit=2)] == [110.0, 130.0]


def test_an_intent_is_open_until_it_is_settled(store: StateStore, open_store: Opener) -> None:
    """Another process sees who began what; the first outcome stays."""
    first = store.begin_intent("launch", "train", {"hosts": ["h1"]})
    second = store.begin_intent("down", "other")
    assert first != second
    (intent,) = open_store().open_intents("train")
    assert (intent.intent_id, intent.operation, intent.cluster) == (first, "launch", "train")
    assert (dict(intent.details), intent.pid, intent.outcome) == ({"hosts": ["h1"]}, os.getpid(), "")
    store.settle_intent(first, "done")
    store.settle_intent(first, "undone")
    assert [each.intent_id for each in store.open_intents()] == [second]


def test_an_unknown_intent_is_an_error(store: StateStore) -> None:
    """Nothing is settled that was never begun."""
    with pytest.raises(StateError):
        store.settle_intent(4711, "done")


def test_small_values_are_kept_as_json(store: StateStore, open_store: Opener) -> None:
    """Any JSON value; the last one wins; None forgets."""
    store.config_set("key", {"a": [1, 2.5, None, "ü"]})
    assert open_store().config_get("key") == {"a": [1, 2.5, None, "ü"]}
    store.config_set("key", False)
    assert store.config_get("key") is False
    store.config_set("key", None)
    assert store.config_get("key") is None


def test_the_first_value_of_a_key_stands(store: StateStore, open_store: Opener) -> None:
    """config_add says which one that is, whoever kept it; nothing is no value."""
    assert store.config_add("key", None) is None
    assert store.config_add("key", {"by": ["first"]}) == {"by": ["first"]}
    assert open_store().config_add("key", "second") == {"by": ["first"]}
    assert store.config_add("key", None) == {"by": ["first"]}
    assert store.config_get("key") == {"by": ["first"]}


def test_of_racing_first_values_one_stands(open_store: Opener) -> None:
    """Six processes add the same key: all are told the same value."""

    def work(number: int) -> Callable[[], bytes]:
        return lambda: json.dumps(open_store().config_add("identity", number)).encode()

    said = run_at_once([work(number) for number in range(6)])
    assert set(said) == {json.dumps(open_store().config_get("identity")).encode()}


def test_values_are_found_by_the_beginning_of_their_key(store: StateStore) -> None:
    """Letter by letter: no character of the prefix means anything else, and case counts."""
    for key in ("pools/b", "pools/a", "Pools/c", "pools%", "pool", "pools_/d", "pools/ü"):
        store.config_set(key, key)
    assert list(store.config_items("pools/").items()) == [(key, key) for key in ("pools/a", "pools/b", "pools/ü")]
    assert list(store.config_items("pools_")) == ["pools_/d"]
    assert store.config_items("zz") == {}
    assert len(store.config_items("")) == 7


def test_what_is_no_json_is_refused(store: StateStore) -> None:
    """Nothing is pickled instead, and nothing of the transaction stays."""
    store.begin_launch(cluster_record())
    with pytest.raises(StateError):
        store.settle("train", ClusterStatus.UP, at=1.0, resources={"key": object()})
    assert store.cluster("train") == cluster_record()


def test_a_closed_store_opens_itself_again(store: StateStore) -> None:
    """close() lets go of connections, not of the state."""
    store.begin_launch(cluster_record())
    store.close()
    store.close()
    assert len(store.clusters()) == 1


def test_many_threads_share_one_store(store: StateStore) -> None:
    """Eight threads that all open and write: nothing is lost, nothing is locked."""
    failures: list[BaseException] = []
    ready = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            ready.wait(30)
            for turn in range(5):
                name = f"t{number}-{turn}"
                store.begin_launch(cluster_record(name))
                store.claim_hosts("ssh/lab", [name], name, f"{name}-1", 1.0)
                assert store.cluster(name) is not None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(store.clusters()) == len(store.claims()) == 40


def test_processes_that_open_a_fresh_store_at_once_all_succeed(open_store: Opener) -> None:
    """Eight of them; each can write at once and sees its own write."""

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            store = open_store()
            store.begin_launch(cluster_record(f"c{number}"))
            return str(len(store.clusters([f"c{number}"]))).encode()

        return run

    assert run_at_once([work(number) for number in range(8)]) == [b"1"] * 8
    assert len(open_store().clusters()) == 8


def test_no_change_of_many_processes_is_lost(open_store: Opener) -> None:
    """Four processes begin and settle 50 intents each and claim 50 hosts each: the counts are exact."""
    open_store().begin_launch(cluster_record("shared"))

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            store = open_store()
            for turn in range(50):
                store.settle_intent(store.begin_intent("count", "shared"), "done")
                store.claim_hosts("ssh/lab", [f"h{number}-{turn}"], "shared", "shared-1", 1.0)
                store.add_event("shared", "count", at=float(turn))
            return b"ok"

        return run

    assert run_at_once([work(number) for number in range(4)]) == [b"ok"] * 4
    store = open_store()
    assert store.begin_intent("last", "shared") == 201
    assert len(store.claims()) == 200
    assert len([event for event in store.events("shared", limit=1000) if event.kind == "count"]) == 200


def test_read_and_change_is_one_step_among_processes(open_store: Opener) -> None:
    """Racing settles of one cluster open one usage interval, not several."""
    open_store().begin_launch(cluster_record())

    def run() -> bytes:
        store = open_store()
        for turn in range(20):
            store.settle("train", ClusterStatus.UP, at=200.0 + turn)
        return b"ok"

    run_at_once([run] * 4)
    (life,) = open_store().history()
    assert len(life.intervals) == 1


def test_of_racing_claims_exactly_one_wins(open_store: Opener) -> None:
    """Six processes want the same two hosts, in other orders: one gets both, the others nothing."""
    for number in range(6):
        open_store().begin_launch(cluster_record(f"c{number}"))

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            hosts = ["h1", "h2"] if number % 2 else ["h2", "h1"]
            try:
                open_store().claim_hosts("ssh/lab", hosts, f"c{number}", f"c{number}-1", 1.0)
            except NoCapacityError as error:
                return json.dumps(sorted(set(error.holders.values()))).encode()
            return b"won"

        return run

    said = run_at_once([work(number) for number in range(6)])
    winner = f"c{said.index(b'won')}"
    assert said.count(b"won") == 1
    assert {word for word in said if word != b"won"} == {json.dumps([winner]).encode()}
    assert set(open_store().claims().values()) == {winner}


def test_of_racing_launches_of_one_name_exactly_one_begins(open_store: Opener) -> None:
    """The others get ClusterBusy."""

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            try:
                open_store().begin_launch(cluster_record(cluster_id=f"life{number}"))
            except ClusterBusy:
                return b"busy"
            return b"won"

        return run

    assert sorted(run_at_once([work(number) for number in range(6)])) == [b"busy"] * 5 + [b"won"]


def test_a_store_works_on_both_sides_of_a_fork(store: StateStore) -> None:
    """Parent and child go on with the same object, neither disturbs the other."""
    store.begin_launch(cluster_record("before"))

    def in_child(child: Child) -> None:
        store.begin_launch(cluster_record("child"))
        child.say(str(len(store.clusters())).encode())

    child = Child(in_child)
    store.begin_launch(cluster_record("parent"))
    assert int(child.heard()) in (2, 3)
    assert child.ended() == 0
    assert {record.name for record in store.clusters()} == {"before", "child", "parent"}


def test_a_fork_while_other_threads_write_is_safe(store: StateStore) -> None:
    """Locks that another thread held at the fork do not hang the child."""
    store.begin_launch(cluster_record())
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.001):
            store.add_event("train", "tick", at=1.0)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        children = [Child(lambda child: store.add_event("train", "child", at=2.0)) for _ in range(3)]
        assert [child.ended() for child in children] == [0] * 3
    finally:
        stop.set()
        thread.join(30)
    kinds = [event.kind for event in store.events("train", limit=100_000)]
    assert kinds.count("child") == 3


def test_a_process_killed_while_it_writes_leaves_whole_changes(open_store: Opener) -> None:
    """After SIGKILL at any point each cluster has its history and its event, and the store goes on."""

    def work(child: Child) -> None:
        store = open_store()
        for number in range(10_000):
            store.begin_launch(cluster_record(f"c{number}"))
            if number == 3:
                child.say(b"going")

    child = Child(work)
    child.heard()
    child.kill()
    assert child.ended() < 0
    store = open_store()
    names = {record.name for record in store.clusters()}
    assert len(names) >= 4
    assert names == {life.name for life in store.history()}
    assert all(len(store.events(name)) == 1 for name in names)
    store.begin_launch(cluster_record("after"))
    assert store.cluster("after") is not None


def test_records_are_independent_of_the_callers_objects(store: StateStore) -> None:
    """What the caller changes later in its own dict is not in the store."""
    resources: dict[str, object] = {"cpus": "4+"}
    store.begin_launch(attrs.evolve(cluster_record(), resources=resources))
    resources["cpus"] = "8+"
    found = store.cluster("train")
    assert found is not None
    assert found.resources == {"cpus": "4+"}


def test_what_a_caller_does_to_a_record_is_not_in_the_next_one(store: StateStore) -> None:
    """Though a store need not decode again what has not changed."""
    store.begin_launch(cluster_record())
    for _ in range(3):
        (found,) = store.clusters()
        assert found == cluster_record()
        assert isinstance(found.resources, dict)
        found.resources["any_of"].append("mine")
        found.resources["cpus"] = "8+"


def test_every_change_is_in_the_next_status(store: StateStore, open_store: Opener) -> None:
    """Of this store and of another on the same state: nothing is remembered that is not so any more."""
    other = open_store()
    for number in range(20):
        store.begin_launch(cluster_record(f"c{number}"))
    assert len(store.clusters()) == len(other.clusters()) == 20
    other.settle("c3", ClusterStatus.UP, at=110.0)
    other.remove_cluster("c4", at=110.0)
    seen = {record.name: record.status for record in store.clusters()}
    assert (len(seen), seen["c3"], "c4" in seen) == (19, ClusterStatus.UP, False)


def test_what_is_old_can_be_dropped(open_store: Opener) -> None:
    """Events and settled intents. Open intents stay, and history, and the last event of a cluster that exists."""
    now = [0.0]
    store = open_store(clock=lambda: now[0])
    for name in ("gone", "here"):
        store.begin_launch(cluster_record(name))
        store.settle(name, ClusterStatus.UP, at=110.0)
    store.remove_cluster("gone", at=120.0)
    settled, left_open, newest = (store.begin_intent(operation, "here") for operation in ("launch", "exec", "stop"))
    store.settle_intent(settled, "done")
    store.settle_intent(newest, "done")
    now[0] = 200.0
    store.settle_intent(store.begin_intent("down", "here"), "done")
    store.add_event("here", "note", at=200.0, cluster_id="here-1")
    before = store.history()
    assert store.prune(100.0) == 2
    assert store.prune(150.0) == 5
    assert store.prune(150.0) == 0
    assert [event.at for event in store.events("here")] == [200.0]
    assert store.events("gone") == []
    assert [intent.intent_id for intent in store.open_intents()] == [left_open]
    assert store.history() == before
    store.prune(1000.0)
    assert [event.at for event in store.events("here")] == [200.0]
    assert store.begin_intent("start", "here") > newest + 1


def test_the_store_drops_by_itself_what_is_30_days_old(open_store: Opener) -> None:
    """Once a day, with an intent; however much there is, no single intent waits for all of it."""
    now = [0.0]
    day = 86400.0
    store = open_store(clock=lambda: now[0])
    store.settle_intent(store.begin_intent("launch", "train"), "done")
    for number in range(600):
        store.add_event("train", "tick", at=float(number))
    now[0] = 29 * day
    store.begin_intent("exec", "train")
    assert len(store.events("train", limit=1000)) == 600
    now[0] = 31 * day
    store.begin_intent("exec", "train")
    left = len(store.events("train", limit=1000))
    assert 0 < left < 600
    store.begin_intent("exec", "train")
    assert store.events("train", limit=1000) == []
    assert len(store.open_intents()) == 3
