"""Where files may go, decided before anything is touched."""

from __future__ import annotations

import pytest

from skylib.errors import InvalidSpecError
from skylib.models.task import Task
from skylib.ops.files import check_targets


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
