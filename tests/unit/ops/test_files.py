"""Where files may go, decided before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skylib.errors import InvalidSpecError
from skylib.events import discard
from skylib.models.task import Task
from skylib.ops.files import check_targets, staged_files
from skylib.session import Session


def test_a_mount_into_the_persons_own_home_is_refused_on_local():
    """On this machine ~ is the user's own: the target is named, with what to do; on SSH hosts it is the node's."""
    task = Task(run="true", file_mounts={"~/data": "/etc/hostname"})
    with pytest.raises(InvalidSpecError, match="~/data") as caught:
        check_targets(task, "local")
    assert "relative path" in str(caught.value.hint)
    check_targets(task, "ssh/lab")


def test_other_targets_are_fine_on_local():
    """Relative paths and /tmp lie in the node or are the user's word."""
    check_targets(Task(run="true", file_mounts={"data": "/etc/hostname", "/tmp/x": "/etc/hostname"}), "local")


@pytest.mark.parametrize("user", ["../../..", "a/b", ".", "-rf", "", "x" * 300, "ab12cd34"])
def test_snapshots_are_under_the_home_whatever_the_user_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """$SKYPILOT_USER_ID can be anything: it never leads elsewhere."""
    monkeypatch.setenv("SKYPILOT_USER_ID", user)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/f").write_text("f")
    session = Session(tmp_path / "sky")
    with staged_files(session, Task(run="true", workdir=str(tmp_path / "work")), discard) as files:
        clients, name, last = Path(files.trees[0].snapshot).parts[-4:-1]
        tree = os.path.realpath(files.trees[0].manifest.source)
    assert (clients, last) == ("clients", "file_mounts")
    assert tree.startswith(f"{tmp_path}/sky/api_server/clients/{name}/file_mounts/")
    session.close()


def test_exec_stages_the_workdir_alone(tmp_path: Path) -> None:
    """Its mounts are as a launch left them; nothing is staged, or made in the home, for a task without files."""
    (tmp_path / "f").write_text("f")
    session = Session(tmp_path / "sky")
    task = Task(run="true", file_mounts={"data": str(tmp_path / "f")})
    with staged_files(session, task, discard, workdir_only=True) as files:
        assert not files
    assert not (tmp_path / "sky/api_server").exists()
    session.close()
