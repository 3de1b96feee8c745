"""Jobs on a cluster of three real SSH hosts."""

from __future__ import annotations

import subprocess
import sys

import pytest

import skylib
from skylib.errors import JobFailed, JobNotFound
from tests.lab import Lab, eventually, ranks_text, texts


def test_every_rank_runs_on_a_host_of_its_own_with_skypilots_variables(shared: Lab):
    """Three ranks: NODE_RANK 0 to 2, NUM_NODES 3, NODE_IPS in rank order with the head first, each on its host."""
    job = shared.client.exec(
        shared.task(
            'echo "$SKYPILOT_NODE_RANK $SKYPILOT_NUM_NODES $SKYPILOT_NUM_GPUS_PER_NODE $(hostname)"\n'
            'echo "$SKYPILOT_NODE_IPS" | tr "\\n" ,; echo',
            num_nodes=3,
        ),
        "shared",
    )
    lines = ranks_text(list(job.logs()))
    job.wait()
    nodes = shared.client.cluster("shared").nodes()
    ips = ",".join(node.internal_ip for node in nodes) + ","
    hosts = {host.ip: host.name for host in shared.hosts}
    expected = []
    for rank, node in enumerate(nodes):
        expected += [(rank, f"{rank} 3 0 {hosts[node.internal_ip]}"), (rank, ips)]
    assert lines == expected


def test_the_users_environment_is_not_ours(shared: Lab):
    """No RAY_*, SKYLIB_*, VIRTUAL_ENV, PYTHONPATH or OMP_NUM_THREADS leaks into a job; HOME and cwd are the account's."""
    job = shared.client.exec('env | cut -d= -f1; echo "cwd $PWD"; echo "home $HOME"', "shared")
    printed = texts(list(job.logs()))
    job.wait()
    leaked = [name for name in printed if name.startswith(("RAY_", "SKYLIB_")) or name in _NOT_OURS]
    assert leaked == []
    assert "cwd /home/sky/sky_workdir" in printed
    assert "home /home/sky" in printed
    assert "SKYPILOT_TASK_ID" in printed


_NOT_OURS = {"VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONHOME"}


def test_variables_and_secrets_reach_the_job_unharmed(shared: Lab):
    """Quotes, backslashes, newlines and dollars in values arrive byte for byte."""
    odd = "a'b\"c\\d $HOME `id`\nnext line\t*"
    task = shared.task(
        'printf %s "$PLAIN" | od -An -c; printf %s "$TOKEN" | od -An -c', envs={"PLAIN": odd}, secrets={"TOKEN": odd}
    )
    job = shared.client.exec(task, "shared")
    printed = texts(list(job.logs()))
    job.wait()
    expected = subprocess.run(["od", "-An", "-c"], input=odd.encode(), stdout=subprocess.PIPE, check=True).stdout.decode()
    assert printed == expected.splitlines() * 2


def test_a_secret_is_on_no_command_line_and_in_no_file_after_the_job(shared: Lab):
    """While the job runs no process shows the secret; afterwards no file of the account holds it, nor the client's home."""
    secret = "s3cr3t-value-4711"
    job = shared.client.exec(shared.task("touch ~/started; sleep 3", secrets={"TOKEN": secret}), "shared")

    def started() -> bool:
        return any(host.sh("ls ~/started 2>/dev/null; true").stdout.strip() for host in shared.hosts)

    eventually(started, what="the job's start")
    assert all(secret not in line for host in shared.hosts for _, line in host.processes())
    job.wait()
    for host in shared.hosts:
        assert host.sh(f"grep -r -l {secret} ~ /tmp 2>/dev/null; rm -f ~/started; true").stdout.strip() == ""
    found = subprocess.run(["grep", "-r", "-l", secret, str(shared.home)], stdout=subprocess.PIPE, check=False)
    assert found.stdout == b""


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("exit 3", 3),
        ("exit 137", 137),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exec 1>&- 2>&-; exit 4", 4),
        ("nosuchcommand", 127),
    ],
)
def test_a_failing_rank_fails_the_job_with_its_code(shared: Lab, run: str, code: int):
    """The exit code of the shell, 128 + n for signal n, is the job's; the error names it."""
    job = shared.client.exec(run, "shared")
    with pytest.raises(JobFailed) as caught:
        job.wait()
    assert caught.value.status is skylib.JobStatus.FAILED
    assert caught.value.exit_codes == (code,)
    assert caught.value.cause.startswith("rank 0 (")


def test_the_first_failing_rank_ends_the_others(shared: Lab):
    """Rank 1 exits 5 at once: ranks 0 and 2, which would sleep for minutes, are ended and the cause names rank 1."""
    job = shared.client.exec(shared.task('[ "$SKYPILOT_NODE_RANK" = 1 ] && exit 5; sleep 300', num_nodes=3), "shared")
    record = job.wait(timeout_s=30, check=False)
    assert record.status is skylib.JobStatus.FAILED
    assert record.exit_codes == (137, 5, 137)
    assert "rank 1" in record.cause


def test_closing_stdout_is_no_failure(shared: Lab):
    """A script that closes its output and ends well has succeeded, with what it printed before."""
    job = shared.client.exec("echo before; exec 1>&- 2>&-; true", "shared")
    assert texts(list(job.logs())) == ["before"]
    assert job.wait().status is skylib.JobStatus.SUCCEEDED


def test_eight_megabytes_without_a_newline_arrive_whole(shared: Lab):
    """An endless line comes in pieces, none of it lost."""
    job = shared.client.exec("head -c 8000000 /dev/zero | tr '\\0' x", "shared")
    pieces = list(job.logs())
    job.wait()
    assert sum(len(piece.raw) for piece in pieces) == 8_000_000
    assert all(piece.partial for piece in pieces[:-1])


def test_bytes_that_are_no_utf8_keep_their_value(shared: Lab):
    """raw has the bytes; text shows them as U+FFFD."""
    job = shared.client.exec("printf 'a\\377b\\n\\200\\n'", "shared")
    lines = list(job.logs())
    job.wait()
    assert [line.raw for line in lines] == [b"a\xffb", b"\x80"]
    assert lines[0].text == "a\ufffdb"


def test_a_log_resumes_at_any_offset(shared: Lab):
    """Reading again from a line's next_offset gives exactly the lines after it."""
    job = shared.client.exec("for i in $(seq 200); do echo line $i; done", "shared")
    lines = list(job.logs())
    job.wait()
    assert texts(lines) == [f"line {number}" for number in range(1, 201)]
    again = list(job.logs(offset=lines[99].next_offset))
    assert texts(again) == [f"line {number}" for number in range(101, 201)]


def test_cancel_ends_the_whole_tree_on_all_nodes(shared: Lab):
    """Children, grandchildren and processes that left their session are gone when cancel returns."""
    run = "setsid sleep 4242 & (setsid sh -c 'sleep 4343 & sleep 4344' &) ; touch ~/tree; sleep 4245"
    job = shared.client.exec(shared.task(run, num_nodes=3), "shared")

    def sleeping() -> list[str]:
        return [line for host in shared.hosts for line in shared.ours(host) if line.startswith("sleep 4")]

    eventually(lambda: len(sleeping()) == 12, what="twelve sleeping processes")
    done = job.cancel()
    assert sleeping() == []
    assert done is not None
    assert done.survivors == ()
    assert job.wait(check=False).status is skylib.JobStatus.CANCELLED


def test_an_empty_list_cancels_nothing(shared: Lab):
    """Ids that were computed and came out empty are not "the newest running job"."""
    job = shared.client.exec("sleep 1", "shared")
    assert shared.client.cancel("shared", []) == []
    assert job.wait().status is skylib.JobStatus.SUCCEEDED


def test_jobs_run_in_the_order_in_which_they_came(shared: Lab):
    """Three jobs that each want all CPUs of all nodes run one after the other, in order."""
    cpus = shared.client.cluster("shared").nodes()[0].cpus
    task = shared.task(
        "date +%s.%N; sleep 0.3; date +%s.%N", num_nodes=3, resources=skylib.Resources(infra="ssh/lab", cpus=cpus)
    )
    jobs = [shared.client.exec(task, "shared") for _ in range(3)]
    spans = []
    for job in jobs:
        job.wait()
        times = [float(line.text) for line in job.logs()]
        spans.append((min(times), max(times)))
    assert spans == sorted(spans)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


def test_what_can_never_run_is_refused_at_submit(shared: Lab):
    """More nodes, CPUs or devices than the cluster has: a typed error, no job."""
    before = len(shared.client.queue("shared"))
    for task in (
        shared.task(num_nodes=4),
        shared.task(resources=skylib.Resources(infra="ssh/lab", cpus="500+")),
        shared.task(resources=skylib.Resources(infra="ssh/lab", accelerators="A100")),
    ):
        with pytest.raises(skylib.errors.InvalidSpecError):
            shared.client.exec(task, "shared")
    assert len(shared.client.queue("shared")) == before


def test_the_same_key_gives_the_same_job(shared: Lab):
    """A second submit with a key is the first one's job, adopted, and runs nothing twice."""
    first = shared.client.exec("echo once >> ~/once", "shared", key="run-1")
    second = shared.client.exec("echo once >> ~/once", "shared", key="run-1")
    first.wait()
    assert (second.id, second.adopted, first.adopted) == (first.id, True, False)
    assert sum(host.sh("cat ~/once 2>/dev/null; rm -f ~/once").stdout.count("once") for host in shared.hosts) == 1


def test_a_handle_works_in_another_process_after_json(shared: Lab):
    """A job's JSON is all that another process needs to wait for it and read its log."""
    job = shared.client.exec("echo from afar", "shared")
    code = (
        "import sys, skylib\n"
        "job = skylib.Job.from_json(sys.stdin.read())\n"
        "print(job.wait().status.value, *[line.text for line in job.logs()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=job.to_json(), text=True, stdout=subprocess.PIPE, check=True)
    assert done.stdout == "SUCCEEDED from afar\n"


def test_leaving_a_log_leaves_the_job_running(shared: Lab):
    """Ctrl-C while watching a log (here: the iterator is closed) ends the watching, not the job."""
    job = shared.client.exec("echo begun; while [ ! -e ~/go ]; do sleep 0.1; done; echo done; rm ~/go", "shared")
    watching = job.logs()
    assert next(watching).text == "begun"
    watching.close()  # type: ignore[attr-defined]
    assert job.status() is skylib.JobStatus.RUNNING
    shared.client.cluster("shared").run("touch ~/go")
    job.wait()
    assert texts(list(job.logs())) == ["begun", "done"]
    shared.client.cluster("shared").run("rm -f ~/go")


def test_asking_for_an_unknown_job_is_a_typed_error(shared: Lab):
    """JobNotFound from job, logs and cancel."""
    with pytest.raises(JobNotFound):
        shared.client.job("shared", 9999)
    with pytest.raises(JobNotFound):
        list(shared.client.tail_logs("shared", 9999))
    with pytest.raises(JobNotFound):
        shared.client.cancel("shared", 9999)


def test_downloaded_logs_have_the_merged_log_and_each_ranks_own(shared: Lab):
    """run.log holds all ranks' lines with who printed them; node<rank>/ holds each rank's bytes."""
    job = shared.client.exec(shared.task("echo rank $SKYPILOT_NODE_RANK", num_nodes=3), "shared")
    job.wait()
    folder = shared.client.download_logs("shared", job.id)[job.id]
    merged = folder.joinpath("run.log").read_text().splitlines()
    assert sorted(line.split(") ", 1)[1] for line in merged) == ["rank 0", "rank 1", "rank 2"]
    own = sorted(path.read_text() for path in folder.glob("node*/*") if path.stat().st_size)
    assert own == ["rank 0\n", "rank 1\n", "rank 2\n"]


def test_run_gives_one_answer_per_node(shared: Lab):
    """cluster.run goes past the queue, to every node at once; a failing command is a value."""
    done = shared.client.cluster("shared").run("hostname; exit 7")
    assert [each.returncode for each in done] == [7, 7, 7]
    assert sorted(each.stdout.decode().strip() for each in done) == sorted(host.name for host in shared.hosts)


def test_ssh_command_opens_a_shell_there(shared: Lab):
    """The printed line names user, key and address of the node."""
    line = shared.client.cluster("shared").ssh_command(rank=1)
    node = shared.client.cluster("shared").nodes()[1]
    assert line.startswith("ssh ")
    assert node.internal_ip in line
    assert str(shared.hosts[0].key_path) in line


def test_a_script_that_ends_in_the_middle_of_a_log_ends_quietly(shared: Lab):
    """A process that leaves a log half read exits at once, prints nothing of ours, and the job goes on."""
    code = (
        "import sys, skylib\n"
        "client = skylib.Client(sys.argv[1])\n"
        "lines = client.exec('echo begun; sleep 1; echo ended', 'shared').logs()\n"
        "print(next(lines).text)\n"
    )
    argv = [sys.executable, "-c", code, str(shared.home)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")
    newest = shared.client.queue("shared")[-1]
    assert shared.client.job("shared", newest.job_id).wait().status is skylib.JobStatus.SUCCEEDED


def test_ctrl_c_in_a_watching_process_leaves_the_job_running(shared: Lab):
    """A real SIGINT ends the process that follows a log; the job runs to its end."""
    code = (
        "import os, signal, sys, skylib\n"
        "client = skylib.Client(sys.argv[1])\n"
        "for line in client.exec('echo begun; sleep 1; echo ended', 'shared').logs():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    argv = [sys.executable, "-c", code, str(shared.home)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "KeyboardInterrupt" in done.stderr
    newest = shared.client.queue("shared")[-1]
    job = shared.client.job("shared", newest.job_id)
    assert job.wait().status is skylib.JobStatus.SUCCEEDED
    assert texts(list(job.logs())) == ["begun", "ended"]
