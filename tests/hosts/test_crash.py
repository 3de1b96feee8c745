"""A client that is killed in the middle: the next verb on that cluster converges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import skylib
from tests.lab import Lab

LAUNCH = """
import os, signal, sys
import skylib

home, step, phase, number = sys.argv[1:5]

def sink(event):
    if (event.step, event.phase.value) == (step, phase):
        os.kill(os.getpid(), int(number))

client = skylib.Client(home, events=sink)
client.launch(skylib.Task(run="true", num_nodes=2, resources=skylib.Resources(infra="ssh/lab")), "c")
"""


def _launch_and_die(lab: Lab, step: str, phase: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", LAUNCH, str(lab.home), step, phase, str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("step", "phase"), [("runtime.files", "started"), ("runtime.ready", "started"), ("runtime.start", "finished")]
)
def test_a_killed_launch_is_undone_or_finished_by_the_next(lab: Lab, step: str, phase: str):
    """kill -9 of the client at a step of the launch: the same launch again comes up, and down leaves nothing."""
    died = _launch_and_die(lab, step, phase, signal.SIGKILL)
    assert died.returncode == -signal.SIGKILL
    job = lab.client.launch(lab.task("echo here", num_nodes=2), "c")
    assert job.wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
    lab.client.down("c")
    lab.assert_nothing_left()


def test_a_killed_launch_can_be_taken_down(lab: Lab):
    """kill -9 while Ray starts: down finds and ends what was begun, and releases the hosts."""
    died = _launch_and_die(lab, "runtime.ready", "started", signal.SIGKILL)
    assert died.returncode == -signal.SIGKILL
    assert lab.client.status("c")[0].status is skylib.ClusterStatus.INIT
    lab.client.down("c")
    lab.assert_nothing_left()


def test_an_interrupted_launch_leaves_nothing(lab: Lab):
    """Ctrl-C while Ray starts: the launch undoes itself before KeyboardInterrupt leaves it."""
    died = _launch_and_die(lab, "runtime.ready", "started", signal.SIGINT)
    assert "KeyboardInterrupt" in died.stderr
    lab.assert_nothing_left()
