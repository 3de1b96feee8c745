"""How ranks end on real hosts, and in what environment they begin."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import skylib
from skylib.errors import JobFailed
from tests.control_groups import control_group
from tests.lab import Lab, first_lines, make_lab, texts
from tests.testbed import Host

# What a process begins with, one fact a line; variables in order.
_BEGINNING = """
env -0 | sort -z | tr '\\n\\0' '~\\n' | sed 's/^/env /'
ulimit -a -S | sed 's/^/soft /'
ulimit -a -H | sed 's/^/hard /'
echo "umask $(umask)"
echo "nice $(nice)"
echo "oom $(cat /proc/self/oom_score_adj)"
grep -E '^Sig(Ign|Blk)' /proc/self/status
echo "stdin $(cat | wc -c)"
"""
# Of one connection, of a shell's own doing, and where a job begins elsewhere than a login does.
_OF_A_LOGIN = ("SSH_", "XDG_", "SHLVL", "_=", "PWD", "OLDPWD", "TERM", "MOTD", "DBUS")


def _beginning(lines: list[str]) -> list[str]:
    kept = [line for line in lines if not line.startswith(tuple(f"env {name}" for name in _OF_A_LOGIN))]
    return sorted(line for line in kept if not line.startswith("env SKYPILOT_"))


def test_a_job_begins_as_a_login_of_its_account_does(shared: Lab):
    """Variables, limits, umask, priority, signals and stdin are those of `ssh host bash -lic`, and PYTHONUNBUFFERED=1."""
    job = shared.client.exec(shared.task(f"{{ {_BEGINNING}\n}}"), "shared")
    printed = texts(list(job.logs()))
    job.wait()
    (login, *_) = shared.client.cluster("shared").run(f"bash -lic {shlex.quote(_BEGINNING)}")
    expected = [*login.stdout.decode().splitlines(), "env PYTHONUNBUFFERED=1"]
    assert _beginning(printed) == _beginning(expected)


def test_setup_and_run_get_exactly_skypilots_variables(shared: Lab):
    """No variable of ours beside those that SkyPilot documents for the phase."""
    show = "env | cut -d= -f1 | grep -E '^(SKY|RAY|CUDA|OMP)' | sort | tr '\\n' ' '; echo"
    job = shared.client.launch(shared.task(show, setup=show, num_nodes=3), "shared")
    lines = list(job.logs())
    job.wait()
    common = "SKYPILOT_CLUSTER_INFO SKYPILOT_NUM_NODES SKYPILOT_TASK_ID SKYPILOT_USER".split()
    setup = "SKYPILOT_SETUP_NODE_IPS SKYPILOT_SETUP_NODE_RANK SKYPILOT_SETUP_NUM_GPUS_PER_NODE".split()
    run = "SKYPILOT_INTERNAL_JOB_ID SKYPILOT_NODE_IPS SKYPILOT_NODE_RANK SKYPILOT_NUM_GPUS_PER_NODE".split()
    assert {(line.stream, tuple(line.text.split())) for line in lines} == {
        ("setup", tuple(sorted([*common, *setup]))),
        ("run", tuple(sorted([*common, *run]))),
    }


def test_the_others_are_stopped_within_two_seconds(shared: Lab):
    """Ranks that are deaf to TERM write the time until they are killed: less than 2 s after the first failure."""
    run = (
        'if [ "$SKYPILOT_NODE_RANK" = 1 ]; then sleep 1; date +%s.%N; exit 5; fi\n'
        "trap '' TERM\n"
        "while :; do date +%s.%N; sleep 0.02; done"
    )
    job = shared.client.exec(shared.task(run, num_nodes=3), "shared")
    record = job.wait(timeout_s=30, check=False)
    last = {line.rank: float(line.text) for line in job.logs()}
    assert record.exit_codes == (137, 5, 137)
    assert max(last.values()) - last[1] < 2.0


def test_the_first_to_end_is_the_cause_although_it_is_heard_of_last(shared: Lab):
    """Rank 2 fails, and others because of it: its end is the first cause, however much it printed before."""
    run = (
        'if [ "$SKYPILOT_NODE_RANK" = 2 ]; then head -c 60000000 /dev/zero | tr "\\0" "x" | fold -w 99; exit 9; fi\n'
        'n="${SKYPILOT_NODE_IPS##*$(printf "\\n")}"; sleep 300'
    )
    job = shared.client.exec(shared.task(run, num_nodes=3), "shared")
    with pytest.raises(JobFailed) as caught:
        job.wait(timeout_s=60)
    cause = caught.value.first_cause
    assert (cause.rank, cause.exit_code, cause.signal, cause.reason) == (2, 9, None, "exit")
    assert cause.node in str(caught.value)
    assert 0 < len(cause.last_lines) <= 20


def test_killing_a_ranks_shell_ends_all_that_it_began(shared: Lab):
    """kill -9 of the shell: the signal is the cause, and its children do not outlive the job."""
    job = shared.client.exec(shared.task("echo $$; sleep 5151 & setsid sleep 5152 & wait", num_nodes=3), "shared")
    pids = {line.rank: int(line.text) for line in first_lines(job, 3)}
    hosts = shared.by_rank("shared")
    hosts[0].sh(f"kill -9 {pids[0]}", check=True)
    record = job.wait(timeout_s=30, check=False)
    assert record.status is skylib.JobStatus.FAILED
    assert record.first_cause is not None
    assert (record.first_cause.rank, record.first_cause.signal, record.first_cause.reason) == (0, signal.SIGKILL, "signal")
    assert record.signals[0] == signal.SIGKILL
    assert "SIGKILL" in record.cause
    assert [line for host in hosts for line in shared.ours(host) if line.startswith("sleep 51")] == []


def test_a_killed_supervisor_loses_its_rank_and_nothing_else(shared: Lab):
    """Nobody can say how the rank would have ended: FAILED_DRIVER, that cause, and its processes are ended."""
    job = shared.client.exec(shared.task("sleep 5251 & env -i setsid sleep 5252 & echo $PPID; wait", num_nodes=3), "shared")
    parents = {line.rank: int(line.text) for line in first_lines(job, 3)}
    hosts = shared.by_rank("shared")
    hosts[1].sh(f"kill -9 {parents[1]}", check=True)
    record = job.wait(timeout_s=30, check=False)
    assert record.status is skylib.JobStatus.FAILED_DRIVER
    assert record.first_cause is not None
    assert (record.first_cause.rank, record.first_cause.reason) == (1, "lost")
    assert "supervisor" in record.cause
    assert [line for host in hosts for line in shared.ours(host) if line.startswith("sleep 52")] == []


@pytest.mark.parametrize(
    ("run", "code", "reason"),
    [
        ("head -c 50000000 /dev/zero > big", 1, "disk_full"),
        ("yes lost | head -c 9000", 1, "disk_full"),
        ("yes lost | head -c 9000; exit 0", 0, "disk_full"),
        ("echo fits; kill -9 $$", 137, "signal"),
    ],
)
def test_a_full_disk_is_named(shared: Lab, run: str, code: int, reason: str):
    """A rank that fails on a full disk, or whose output could not be kept, has failed for want of room; no hang."""
    worker = shared.by_rank("shared")[1]
    gate = 'if [ "$SKYPILOT_NODE_RANK" = 1 ]; then echo ready; while [ ! -e /tmp/full ]; do sleep 0.05; done\n'
    job = shared.client.exec(shared.task(f"{gate}{run}\nelse sleep 300; fi", num_nodes=3), "shared")
    first_lines(job, 1)
    worker.fill_home(0)
    try:
        worker.sh("touch /tmp/full", check=True)
        record = job.wait(timeout_s=30, check=False)
    finally:
        worker.unfill_home()
        worker.sh("rm -f /tmp/full ~/sky_workdir/big", check=True)
    assert record.status is skylib.JobStatus.FAILED
    assert record.first_cause is not None
    assert (record.first_cause.rank, record.exit_codes[1]) == (1, code)
    assert record.first_cause.reason == reason
    assert shared.client.exec(shared.task("true", num_nodes=3), "shared").wait().status is skylib.JobStatus.SUCCEEDED


def test_a_rank_that_cannot_be_started_for_want_of_room_says_so(shared: Lab):
    """A home that is full before the job: FAILED at once, the cause names the disk and the host."""
    worker = shared.by_rank("shared")[1]
    worker.fill_home(0)
    try:
        record = shared.client.exec(shared.task("true", num_nodes=3), "shared").wait(timeout_s=30, check=False)
    finally:
        worker.unfill_home()
    assert record.first_cause is not None
    assert (record.status, record.first_cause.rank) == (skylib.JobStatus.FAILED, 1)
    assert record.first_cause.reason == "disk_full"
    assert "disk" in record.cause  # it could not be started, or not write down what it printed
    assert record.first_cause.node in record.cause


@pytest.mark.parametrize("counted", ["by the group", "by the machine"])
def test_a_rank_that_takes_all_memory_is_named(
    make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path, counted: str
):
    """The kernel ends what the rank began: the cause is memory, whether the shell was killed or says so."""
    host = make_warm_host()
    with control_group(host, "cgroup -o memory", "memory") as group:
        if counted == "by the machine":
            host.sh("umount /sys/fs/cgroup/memory", user="root", check=True)
        lab = make_lab(tmp_path / "sky", [host], wheels=wheels)
        lab.client.launch(lab.task("true"), "c").wait()
        limit = int(group.joinpath("memory.usage_in_bytes").read_text()) + (500 << 20)
        group.joinpath("memory.limit_in_bytes").write_text(str(limit))
        take = 'python3 -c "x = bytearray(2000 << 20)"'
        for run, number in ((f"{take}; exit", None), (f"exec {take}", 9)):
            with pytest.raises(JobFailed, match="ran out of memory") as caught:
                lab.client.exec(run, "c").wait(timeout_s=60)
            cause = caught.value.first_cause
            assert (cause.rank, cause.exit_code, cause.signal, cause.reason) == (0, 137, number, "oom")
        if counted == "by the group":
            record = lab.client.exec("sleep 60 & kill -9 $$", "c").wait(timeout_s=60, check=False)
            assert record.first_cause is not None
            assert record.first_cause.reason == "signal"
        lab.client.down("c")
