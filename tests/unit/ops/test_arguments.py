"""What verbs are given that cannot be meant: refused before anything is asked, written or waited for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import skylib
from skylib.errors import ClusterNotFound, InvalidSpecError
from skylib.models.cluster import ClusterStatus
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import batch, checks, execute, joblogs, launch, reconcile, status
from skylib.session import Session
from tests.doom import Doom, Wires
from tests.scripted_node import ScriptedLab

NO_NAMES = [5, b"x", [], None, 1.5, "a\0b", "\ud800", 10**5000]
VERBS: dict[str, Callable[[skylib.Client, object], object]] = {
    "start": lambda client, name: client.start(name),  # type: ignore[arg-type]
    "stop": lambda client, name: client.stop(name),  # type: ignore[arg-type]
    "down": lambda client, name: client.down(name),  # type: ignore[arg-type]
    "purge": lambda client, name: client.down(name, purge=True),  # type: ignore[arg-type]
    "autostop": lambda client, name: client.autostop(name, 5),  # type: ignore[arg-type]
    "cluster": lambda client, name: client.cluster(name),  # type: ignore[arg-type]
    "queue": lambda client, name: client.queue(name),  # type: ignore[arg-type]
    "exec": lambda client, name: client.exec("true", name),  # type: ignore[arg-type]
    "cancel": lambda client, name: client.cancel(name, 1),  # type: ignore[arg-type]
    "tail_logs": lambda client, name: client.tail_logs(name),  # type: ignore[arg-type]
    "download_logs": lambda client, name: client.download_logs(name),  # type: ignore[arg-type]
    "adopt": lambda client, name: client.adopt(name),  # type: ignore[arg-type]
    "forget_host_key": lambda client, name: client.forget_host_key(name),  # type: ignore[arg-type]
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[skylib.Client]:
    with skylib.Client(tmp_path / "sky") as made:
        yield made


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """With a cluster that is UP, on a host in memory."""
    lab = ScriptedLab(1)
    home = tmp_path / "sky"
    home.mkdir(mode=0o700)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    made = Session(home, transports=Wires(lab, Doom()))
    launch.launch(made, Task(run="true", resources=Resources(infra="ssh/lab")), "a", launch.Options())
    yield made
    made.close()


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_is_text(client: skylib.Client, verb: str) -> None:
    """Whatever else it is given, each verb says what is wrong with it."""
    for name in NO_NAMES:
        with pytest.raises(InvalidSpecError):
            VERBS[verb](client, name)


@pytest.mark.parametrize("names", [5, b"x", [5], ["a", None], 1.5, ["a\0b"]])
def test_names_are_texts(client: skylib.Client, names: object) -> None:
    """One, several, or None: nothing else names clusters or hosts."""
    for verb in (client.status, client.reconcile, client.discover):
        with pytest.raises(InvalidSpecError) as caught:
            verb(names)  # type: ignore[arg-type]
        assert caught.value.field in ("names", "hosts")
    with pytest.raises(InvalidSpecError, match="hosts"):
        client.adopt("a", hosts=names)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0, -1, 0.0, math.nan, -math.inf, None, "x", True, [], -(10**400)])
def test_a_status_has_some_time(session: Session, timeout_s: object) -> None:
    """Without any nobody could answer: that says nothing of the clusters, and nothing is written."""
    for refresh in (False, True):
        with pytest.raises(InvalidSpecError) as caught:
            status.status(session, refresh_first=refresh, timeout_s=timeout_s)  # type: ignore[arg-type]
        assert caught.value.field == "timeout_s"
    assert session.require("a").status is ClusterStatus.UP


@pytest.mark.parametrize("timeout_s", [math.inf, 1e12, 1e308, 10**400], ids=["inf", "1e12", "1e308", "huge"])
def test_a_status_may_take_as_long_as_it_takes(session: Session, timeout_s: float) -> None:
    """It ends when all have answered."""
    session.store.begin_intent("launch", "b", {"cluster_id": "new", "new": True})  # there is something to settle, too
    (found,) = status.status(session, refresh_first=True, timeout_s=timeout_s)
    assert found.status is ClusterStatus.UP


def test_reconcile_knows_the_clusters_that_there_are(session: Session) -> None:
    """A name of none is not found, as in status; what is left of one that is gone is a name, too."""
    assert reconcile.reconcile(session, "a") == []
    with pytest.raises(ClusterNotFound) as caught:
        reconcile.reconcile(session, ["a", "b"])
    assert caught.value.known == ("a",)
    session.store.begin_intent("launch", "b", {"cluster_id": "new", "new": True})
    assert [each.cluster for each in reconcile.reconcile(session, ["a", "b"])] == ["b"]


@pytest.mark.parametrize("job_id", ["1", "12", True, 1.0, b"1", [None], ["1"], [True], {}.keys], ids=repr)
def test_ids_of_jobs_are_numbers(session: Session, job_id: Any) -> None:
    """Nothing else is taken for one: "12" would be 1 and 2, True the first. Nobody is asked, no job is ended."""
    several: list[Callable[[], object]] = [
        lambda: execute.cancel(session, "a", job_id),
        lambda: joblogs.download_logs(session, "a", job_id),
    ]
    single: list[Callable[[], object]] = [
        lambda: execute.job(session, "a", job_id),
        lambda: joblogs.tail_logs(session, "a", job_id),
    ]
    for call in several + single:
        with pytest.raises(InvalidSpecError) as caught:
            call()
        assert caught.value.field in ("job_id", "job_ids")


class _Integer:
    """A number of a library of its own, as numpy has them."""

    def __index__(self) -> int:
        return 1


def test_any_whole_number_is_an_id(session: Session) -> None:
    """One or several, of whatever kind; and in any collection."""
    number: Any = _Integer()
    for ids in (1, number, [number], (1,), {1}, range(1, 2), iter([1])):
        assert checks.job_ids(ids) == [1]
    assert execute.job(session, "a", number).job_id == 1


@pytest.mark.parametrize("timeout_s", [math.nan, "3", True, [], b"1"], ids=repr)
def test_a_wait_has_seconds_or_no_end(session: Session, timeout_s: Any) -> None:
    """Not a number would be to wait for ever."""
    with pytest.raises(InvalidSpecError) as caught:
        execute.wait(session, "a", 1, timeout_s=timeout_s)
    assert caught.value.field == "timeout_s"


@pytest.mark.parametrize("tasks", [None, 5, "true", Task(run="true")], ids=repr)
def test_many_tasks_are_several(session: Session, tasks: Any) -> None:
    """One is for exec, and nothing is no list."""
    with pytest.raises(InvalidSpecError) as caught:
        batch.submit_all(session, tasks, "a")
    assert caught.value.field == "tasks"


@pytest.mark.parametrize("key", ["", "~mine", "k" * 1001, 3, b"k", "k\udcff"], ids=lambda key: repr(key)[:12])
def test_a_key_is_text(session: Session, key: Any) -> None:
    """Of some length, which can be written down."""
    with pytest.raises(InvalidSpecError) as caught:
        execute.exec_(session, "true", "a", key=key)
    assert caught.value.field == "key"


@pytest.mark.parametrize("name", ["down", "retry_until_up", "fast", "no_setup"])
@pytest.mark.parametrize("value", ["no", 1, None, []], ids=repr)
def test_a_choice_of_launch_is_true_or_false(client: skylib.Client, name: str, value: Any) -> None:
    """ "no" would be yes: a cluster taken down that was to stay."""
    with pytest.raises(InvalidSpecError, match=name):
        client.launch(Task(run="true"), "a", **{name: value})


@pytest.mark.parametrize("value", ["5", "30m", True, math.nan, math.inf, [], 10**400], ids=lambda value: repr(value)[:12])
def test_idle_minutes_are_a_number(client: skylib.Client, value: Any) -> None:
    """For launch as for autostop, before anything is done."""
    with pytest.raises(InvalidSpecError, match="idle_minutes"):
        client.launch(Task(run="true"), "a", idle_minutes_to_autostop=value)
    with pytest.raises(InvalidSpecError, match="idle_minutes"):
        client.autostop("a", value)


@pytest.mark.parametrize("value", ["no", 1, None], ids=repr)
def test_autostop_takes_down_or_does_not(client: skylib.Client, value: Any) -> None:
    """As launch's choices."""
    with pytest.raises(InvalidSpecError, match="down"):
        client.autostop("a", 5, down=value)


@pytest.mark.parametrize("timeout_s", [math.nan, "5", True, []], ids=repr)
def test_a_launch_has_some_time(client: skylib.Client, timeout_s: Any) -> None:
    """Seconds, or None; 0 waits for nothing that another holds."""
    with pytest.raises(InvalidSpecError, match="timeout_s"):
        client.launch(Task(run="true"), "a", timeout_s=timeout_s)
