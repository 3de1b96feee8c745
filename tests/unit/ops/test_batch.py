"""Many jobs in one call, on hosts in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.errors import ClusterNotFound, InvalidSpecError, StagingError
from skylib.jobs.submit import Submitted
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import batch, execute, launch
from skylib.session import Session
from tests.doom import Doom, Wires
from tests.scripted_node import ScriptedLab


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    lab = ScriptedLab(2)
    home = tmp_path / "sky"
    home.mkdir(mode=0o700)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    made = Session(home, transports=Wires(lab, Doom()))
    launch.launch(made, Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab")), "c", launch.Options())
    yield made
    made.close()


def test_tasks_and_command_lines_are_queued_in_order(session: Session):
    """One answer for each, in the order given; all of them are in the queue."""
    done = batch.submit_all(session, [f"echo {n}" for n in range(20)] + [Task(run="x", name="last", num_nodes=2)], "c")
    assert [each.job_id for each in done] == list(range(2, 23))
    assert [each.adopted for each in done] == [False] * 21
    assert [record.name for record in execute.queue(session, "c")][-1] == "last"


def test_keys_adopt(session: Session):
    """One key a task; a known one gives its job."""
    first = batch.submit_all(session, ["a", "b"], "c", keys=["one", None])
    again = batch.submit_all(session, ["c", "d"], "c", keys=["two", "one"])
    assert [each.job_id for each in again] == [4, first[0].job_id]
    assert [each.adopted for each in again] == [False, True]


def test_no_tasks_are_no_jobs(session: Session):
    """An empty list asks the agent nothing; the cluster must be there all the same."""
    assert batch.submit_all(session, [], "c") == []
    with pytest.raises(ClusterNotFound):
        batch.submit_all(session, [], "nowhere")


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        (7, "tasks[2]", "expected a Task or a command line"),
        (Task(), "tasks[2].run", "neither run nor setup"),
        (Task(run="x", num_nodes=3), "tasks[2].resources", "has 2 nodes, 3 asked"),
        (Task(run="x", resources={"use_spot": True}), "tasks[2].resources.use_spot", "does not act on"),
        (Task(run="x", envs={"BIG": "x" * (1 << 17)}), "tasks[2].envs.BIG", "takes 131077 bytes"),
        (Task(run="x", workdir="/elsewhere"), "tasks[2].workdir", "another than that of tasks"),
        (Task(run="x", config={"provision": {"timeout_s": 5}}), "tasks[2].config", "another than that of tasks"),
    ],
)
def test_the_task_at_fault_is_named_and_none_is_queued(session: Session, wrong: object, field: str, message: str):
    """Its place is in the message, in `field` and in `index`."""
    with pytest.raises(InvalidSpecError, match=message) as caught:
        batch.submit_all(session, ["true", "true", wrong, "true"], "c")  # type: ignore[list-item]
    assert caught.value.index == 2  # type: ignore[attr-defined]
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert "tasks[2]" in str(caught.value)
    assert len(execute.queue(session, "c")) == 1


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"], "ab", ["a", "~b"], ["a", 3], 5])
def test_keys_that_cannot_be_meant(session: Session, keys: object):
    """As many as the tasks, each a text of the user's own."""
    with pytest.raises(InvalidSpecError, match="keys"):
        batch.submit_all(session, ["true", "true"], "c", keys=keys)  # type: ignore[arg-type]


def test_one_task_is_not_several(session: Session):
    """A command line in the place of a list is a mistake, not a list of letters."""
    with pytest.raises(InvalidSpecError, match="exec takes one"):
        batch.submit_all(session, "true", "c")


@pytest.mark.parametrize("one", [True, False], ids=["exec", "submit_many"])
def test_neither_setup_nor_file_mounts_are_looked_at(session: Session, one: bool):
    """They are as a launch left them: a source that is gone by now is no mistake, a workdir that is gone is one."""

    def submit(task: Task) -> Submitted:
        return execute.exec_(session, task, "c") if one else batch.submit_all(session, [task], "c")[0]

    assert submit(Task(run="x", setup="exit 1", file_mounts={"/tmp/data": "/nowhere/data"})).job_id == 2
    with pytest.raises(StagingError, match="/nowhere/code"):
        submit(Task(run="x", workdir="/nowhere/code"))
    assert len(execute.queue(session, "c")) == 2
