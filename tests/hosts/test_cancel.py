"""Cancel on real hosts: everything that a job began is gone, and what cannot be reached now is ended later."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import skylib
from tests.control_groups import control_group
from tests.lab import Lab, eventually, first_lines, make_lab
from tests.testbed import Host

# Ways to hide: another session, a double fork without a parent, an empty environment, deafness, another output.
_HIDING = """
trap '' TERM
setsid sleep 6001 &
(setsid sh -c 'sleep 6002 & sleep 6003' &)
env -i nohup setsid sleep 6004 >/dev/null 2>&1 &
(env -i setsid sh -c 'trap "" TERM; sleep 6005 & sleep 6006 & wait' >/dev/null 2>&1 </dev/null &)
echo begun
while :; do sleep 0.1; done
"""
# A tree in which whatever ends is forked again at once, and whose leaves fork all the time. All of it is deaf.
_BOMB = """
trap '' TERM
b() { if [ "$1" = 5 ]; then while :; do sleep 0.1; done; fi; keep $(($1 + 1)) & keep $(($1 + 1)) & wait; }
keep() { while :; do (b "$1"); done; }
b 0
"""


def _sleeping(lab: Lab, prefix: str) -> list[str]:
    return [line for host in lab.hosts for line in lab.ours(host) if line.startswith(prefix)]


def test_nothing_that_hides_survives_a_cancel(shared: Lab):
    """Six hidden processes on each of three hosts are gone when cancel returns, the deaf ones too."""
    job = shared.client.exec(shared.task(_HIDING, num_nodes=3), "shared")
    first_lines(job, 3)
    eventually(lambda: len(_sleeping(shared, "sleep 600")) >= 18, what="the hidden processes")
    done = job.cancel()
    assert _sleeping(shared, "sleep 600") == []
    assert done is not None
    assert (done.survivors, done.nodes_unreached) == ((), ())
    assert len(done.ended) >= 6
    assert job.wait(check=False).status is skylib.JobStatus.CANCELLED


def test_a_bounded_fork_bomb_is_ended(shared: Lab):
    """A hundred deaf processes that come again when they are killed: all gone when cancel returns."""
    job = shared.client.exec(shared.task(_BOMB), "shared")
    host = shared.by_rank("shared")[0]
    eventually(lambda: sum("/jobs/" in line for line in shared.ours(host)) > 60, what="the bomb")
    done = job.cancel()
    assert done is not None
    assert done.survivors == ()
    assert [line for line in shared.ours(host) if "/jobs/" in line] == []
    assert shared.client.exec("true", "shared").wait().status is skylib.JobStatus.SUCCEEDED


def test_a_job_in_setup_is_cancelled(shared: Lab):
    """Setup's own tree is ended on all nodes; run never begins."""
    job = shared.client.launch(shared.task("touch ~/began", setup="setsid sleep 6101 & sleep 6102", num_nodes=3), "shared")
    eventually(lambda: len(_sleeping(shared, "sleep 610")) == 6, what="setup on three nodes")
    assert job.status() is skylib.JobStatus.SETTING_UP
    done = job.cancel()
    assert done is not None
    assert done.survivors == ()
    assert _sleeping(shared, "sleep 610") == []
    assert job.wait(check=False).status is skylib.JobStatus.CANCELLED
    assert [host.sh("ls ~/began 2>/dev/null").stdout for host in shared.hosts] == ["", "", ""]


def test_what_belongs_to_another_account_is_told(shared: Lab):
    """A child that became root cannot be ended by the account: cancel says so within seconds, and the rest is gone."""
    host = shared.by_rank("shared")[0]
    become = "import os; os.setuid(0); os.execv('/bin/sleep', ['sleep', '6201'])"
    host.sh("install -m 4755 $(readlink -f $(command -v python3)) /usr/local/bin/as-root", user="root", check=True)
    job = shared.client.exec(f'/usr/local/bin/as-root -S -c "{become}" & sleep 6202', "shared")
    eventually(lambda: any(line.startswith("sleep 6201") for _, line in host.processes("root")), what="root's process")
    (pid,) = (pid for pid, line in host.processes("root") if line.startswith("sleep 6201"))
    done = job.cancel()
    host.sh(f"kill -9 {pid}; rm /usr/local/bin/as-root", user="root", check=True)
    assert done is not None
    assert done.survivors == (pid,)
    assert _sleeping(shared, "sleep 620") == []
    assert str(pid) in job.wait(check=False).cause


def test_a_node_that_is_cut_off_is_cancelled_when_it_is_back(shared: Lab):
    """Cancel answers in bounded time and names the host; its processes end by themselves once the link is back."""
    job = shared.client.exec(shared.task("setsid sleep 6301 & sleep 6302", num_nodes=3), "shared")
    eventually(lambda: len(_sleeping(shared, "sleep 630")) == 6, what="six sleeping processes")
    worker = shared.by_rank("shared")[2]
    worker.cut()
    try:
        began = time.monotonic()
        done = job.cancel()
        seconds = time.monotonic() - began
        assert done is not None
        assert [worker.ip in (name, _ip(shared, name)) for name in done.nodes_unreached] == [True]
        assert len(_sleeping(shared, "sleep 630")) == 2
        assert job.wait(check=False).status is skylib.JobStatus.CANCELLED
    finally:
        worker.restore()
    assert seconds < 30
    eventually(lambda: _sleeping(shared, "sleep 630") == [], within_s=90, what="the end of what was left")
    assert shared.client.exec(shared.task("true", num_nodes=3), "shared").wait(120).status is skylib.JobStatus.SUCCEEDED


def test_cancel_while_ray_is_down(shared: Lab):
    """The user typed `ray stop` on the head: its own rank ends at once, the others when Ray is back, all without a call."""
    job = shared.client.exec(shared.task("setsid sleep 6401 & sleep 6402", num_nodes=3), "shared")
    eventually(lambda: len(_sleeping(shared, "sleep 640")) == 6, what="six sleeping processes")
    head = shared.by_rank("shared")[0]
    head.sh("~/skypilot-runtime/bin/ray stop --force", timeout_s=60)
    done = job.cancel()
    assert done is not None
    assert [line for line in shared.ours(head) if line.startswith("sleep 640")] == []
    assert job.wait(check=False).status is skylib.JobStatus.CANCELLED
    eventually(lambda: _sleeping(shared, "sleep 640") == [], within_s=90, what="the end of what was left")


def test_a_rank_has_a_control_group_where_the_account_may_make_one(
    make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path
):
    """Delegated: what hides from all else, its supervisor killed, is still ended, and the group is gone afterwards."""
    host = make_warm_host()
    with control_group(host, "cgroup2", "unified") as group:
        host.sh(f"chown sky {group} {group}/cgroup.procs", user="root", check=True)
        lab = make_lab(tmp_path / "sky", [host], wheels=wheels)
        lab.client.launch(lab.task("true"), "c").wait()
        job = lab.client.exec("echo $PPID; (env -i setsid sh -c 'sleep 6501 & wait' >/dev/null 2>&1 &) ; sleep 6502", "c")
        supervisor = first_lines(job, 1)[0].text
        groups = [path.name for path in group.iterdir() if path.is_dir()]
        assert len(groups) == 1
        assert groups[0].startswith("skylib-sky-")
        eventually(lambda: len(_sleeping(lab, "sleep 650")) == 2, what="both processes")
        host.sh(f"kill -9 {supervisor}", check=True)
        assert job.wait(timeout_s=30, check=False).status is skylib.JobStatus.FAILED_DRIVER
        assert _sleeping(lab, "sleep 650") == []
        eventually(lambda: not [path for path in group.iterdir() if path.is_dir()], what="no group of a rank")
        lab.client.down("c")


def _ip(lab: Lab, name: str) -> str:
    return next((host.ip for host in lab.hosts if host.name == name), "")
