"""What a launch decides before it touches anything."""

from __future__ import annotations

import subprocess

import pytest

from skylib.errors import InvalidSpecError
from skylib.models.cluster import AutostopRecord, check_cluster_name
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops.checks import check_task
from skylib.ops.launch import Options, autostop_of


def task(**resources: object) -> Task:
    return Task(run="true", resources=Resources(**resources))


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        (task(), Options(), None),
        (task(), Options(idle_minutes=5), AutostopRecord(idle_minutes=5)),
        (task(), Options(idle_minutes=0), AutostopRecord(idle_minutes=1)),
        (task(), Options(idle_minutes=-1), None),
        (task(), Options(down=True), AutostopRecord(idle_minutes=1, down=True)),
        (task(autostop=10), Options(), AutostopRecord(idle_minutes=10)),
        (task(autostop={"idle_minutes": 10, "down": True}), Options(), AutostopRecord(idle_minutes=10, down=True)),
        (task(autostop=10), Options(idle_minutes=3, down=True), AutostopRecord(idle_minutes=3, down=True)),
        (
            task(autostop={"idle_minutes": 10, "wait_for": "none", "hook": "sync", "hook_timeout": 60}),
            Options(idle_minutes=3),
            AutostopRecord(idle_minutes=3, wait_for="none", hook="sync", hook_timeout_s=60),
        ),
        (task(autostop=False), Options(), None),
        (task(autostop=False), Options(down=True), None),
    ],
)
def test_the_timer_comes_from_options_before_the_task(given, options, expected):
    """Arguments of launch overrule the task; an idle time of 0 is one minute; down alone means down after one."""
    assert autostop_of(given, options) == expected


def test_a_standing_timer_is_kept_when_nobody_says_and_ended_by_never():
    """No word keeps the cluster's timer; a negative time or `autostop: false` ends it."""
    known = AutostopRecord(idle_minutes=7)
    assert autostop_of(task(), Options(), known) == known
    assert autostop_of(task(), Options(idle_minutes=-1), known) is None
    assert autostop_of(task(autostop=False), Options(), known) is None


def test_fields_that_nothing_acts_on_are_refused_by_name():
    """A task with a field that would be ignored is refused, with every such field named."""
    with pytest.raises(InvalidSpecError) as caught:
        check_task(Task(run="true", resources=Resources(use_spot=True, ports=8080)))
    assert set(caught.value.fields) == {"resources.use_spot", "resources.ports"}


def test_a_task_without_anything_to_do_is_refused():
    """Neither run nor setup is an error, not an empty success."""
    with pytest.raises(InvalidSpecError, match="nothing to do"):
        check_task(Task())


@pytest.mark.parametrize("name", ["a;rm -rf /", "$(id)", "-x", "", "a b", "1a", "é", "a" * 64, "a\n", "a-"])
def test_a_cluster_name_with_shell_characters_is_refused(name):
    """Only letters, digits, '-', '_' and '.' make a name."""
    with pytest.raises(InvalidSpecError):
        check_cluster_name(name)


@pytest.mark.parametrize("name", ["train", "a", "A-b_c.d1"])
def test_usual_cluster_names_are_taken(name):
    """A good name is given back as it is."""
    assert check_cluster_name(name) == name


def _fills(name: str, size: int, letter: str = "x") -> str:
    """A value with which `name=value` and its NUL are `size` bytes."""
    value = letter * ((size - len(name) - 2) // len(letter.encode()))
    assert len(f"{name}={value}\0".encode()) == size
    return value


@pytest.mark.parametrize("kind", ["envs", "secrets"])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_variable_that_no_process_can_have_is_refused(kind: str, letter: str):
    """In bytes, not characters: the kernel would refuse it within the job. It is named, and its value is not shown."""
    with pytest.raises(InvalidSpecError, match="variable BIG takes 131075 bytes") as caught:
        check_task(Task(run="true", **{kind: {"SMALL": "1", "BIG": _fills("BIG", 131075, letter)}}))
    assert caught.value.field == f"{kind}.BIG"
    assert letter * 9 not in str(caught.value)


@pytest.mark.parametrize("size", [131072, 131073])
def test_a_variable_is_refused_just_where_the_kernel_does(size: int):
    """One of 128 KiB with name and NUL starts; one byte more does not."""
    value = _fills("BIG", size)
    try:
        subprocess.run(["/bin/true"], env={"BIG": value}, check=True)
    except OSError:
        with pytest.raises(InvalidSpecError):
            check_task(Task(run="true", envs={"BIG": value}))
    else:
        check_task(Task(run="true", envs={"BIG": value}))


@pytest.mark.parametrize("pattern", ["../x", "s3://bucket/x", "~other/x"])
def test_a_pattern_of_outputs_that_is_none_is_refused(pattern, tmp_path):
    """Before anything is launched, by its field."""
    with pytest.raises(InvalidSpecError) as caught:
        check_task(Task(run="true", outputs={pattern: str(tmp_path)}))
    assert caught.value.field == f"outputs[{pattern}]"


def test_outputs_need_a_directory_that_can_be_made(tmp_path):
    """A file in the way is found before the job runs, not after; a directory that is not there yet is fine."""
    (tmp_path / "file").touch()
    check_task(Task(run="true", outputs={"r": str(tmp_path / "new/deep")}))
    with pytest.raises(InvalidSpecError, match="no directory"):
        check_task(Task(run="true", outputs={"r": str(tmp_path / "file/deep")}))
