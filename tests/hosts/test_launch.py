"""Clusters on real SSH hosts: from nothing to up, stop, start, down."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import skylib
from skylib.errors import ClusterNotFound, ClusterNotUp
from tests.lab import Lab, eventually, ranks_text, texts

EXAMPLES = Path(__file__).parents[1] / "data" / "skypilot_examples"


def test_a_task_yaml_runs_across_three_hosts_and_leaves_nothing(lab: Lab, tmp_path: Path):
    """The main job: a SkyPilot YAML with workdir, mount, setup and run on three hosts, its log, and down with a receipt."""
    workdir = tmp_path / "project"
    workdir.mkdir()
    workdir.joinpath("main.sh").write_text(
        "echo $GREETING from $SKYPILOT_NODE_RANK with $(cat made-by-setup) and $(cat ~/data.txt)\n"
    )
    workdir.joinpath("ignored.log").write_text("x")
    workdir.joinpath(".skyignore").write_text("*.log\n")
    tmp_path.joinpath("data.txt").write_text("data")
    task = skylib.Task.from_yaml_str(
        f"""
        name: main
        num_nodes: 3
        resources: {{infra: ssh/lab}}
        workdir: {workdir}
        envs: {{GREETING: hello}}
        file_mounts: {{~/data.txt: {tmp_path}/data.txt}}
        setup: echo setup > made-by-setup; ls
        run: sh main.sh
        """
    )
    job = lab.client.launch(task, "main")
    lines = list(job.logs())
    assert job.wait().exit_codes == (0, 0, 0)
    run = ranks_text([line for line in lines if line.stream == "run"])
    assert run == [(rank, f"hello from {rank} with setup and data") for rank in range(3)]
    assert "ignored.log" not in texts(lines)
    receipt = lab.client.down("main")
    assert receipt.clean
    assert all(node.ended for node in receipt.nodes)
    assert 6380 in receipt.nodes[0].ports_closed
    assert all("/home/sky/.sky/cluster.json" in node.paths_removed for node in receipt.nodes)
    for host in lab.hosts:
        host.sh("rm -f ~/data.txt")
    lab.assert_nothing_left()
    assert texts(list(job.logs())) == texts(lines)


def test_the_nodes_hold_skypilots_three_small_files(lab: Lab):
    """ray_port.json, python_path and ray_path are as SkyPilot writes them, and Ray is on 6380 with its temp dir."""
    lab.client.launch(lab.task("true"), "files").wait()
    head = lab.client.cluster("files").nodes()[0]
    host = next(host for host in lab.hosts if host.ip == head.internal_ip)
    assert json.loads(host.sh("cat ~/.sky/ray_port.json").stdout) == {"ray_port": 6380, "ray_dashboard_port": 8266}
    assert host.sh("$(cat ~/.sky/python_path) -c 'import ray; print(ray.__version__)'").stdout.strip() == "2.9.3"
    assert host.sh("$(cat ~/.sky/ray_path) --version 2>/dev/null").stdout.strip() == "ray, version 2.9.3"
    assert {6380, 8266} <= host.listening_ports()
    assert host.sh("ls /tmp/ray_skypilot/session_latest >/dev/null && ls -d /tmp/ray 2>/dev/null; true").stdout == ""


def test_launch_on_an_up_cluster_reuses_it(lab: Lab):
    """A second launch of the name queues a job on the standing cluster: same id, same processes."""
    lab.client.launch(lab.task("true"), "again").wait()
    before = lab.client.status("again")[0]
    job = lab.client.launch(lab.task("echo second"), "again")
    job.wait()
    after = lab.client.status("again")[0]
    assert (job.id, after.cluster_id, after.launched_at) == (2, before.cluster_id, before.launched_at)


def test_fast_skips_a_setup_that_has_succeeded_and_only_that(lab: Lab):
    """With fast, setup runs once for the same script, variables and files, and again when one of them changes."""
    task = lab.task("true", setup="echo ran >> ~/setups", num_nodes=2)
    lab.client.launch(task, "fast", fast=True).wait()
    lab.client.launch(task, "fast", fast=True).wait()
    lab.client.launch(lab.task("true", setup="echo ran >> ~/setups", num_nodes=2, envs={"A": "1"}), "fast", fast=True).wait()
    lab.client.launch(task, "fast").wait()
    done = lab.client.cluster("fast").run("grep -c ran ~/setups; rm ~/setups")
    assert [each.stdout.strip() for each in done] == [b"3", b"3"]


def test_setup_that_fails_on_one_host_fails_the_job_before_run(lab: Lab):
    """FAILED_SETUP with the code of that node; run does not start; the cluster stays up for a look."""
    task = lab.task("echo never", setup='[ "$SKYPILOT_SETUP_NODE_RANK" = 1 ] && exit 9; true', num_nodes=3)
    job = lab.client.launch(task, "setup")
    record = job.wait(check=False)
    assert record.status is skylib.JobStatus.FAILED_SETUP
    assert record.exit_codes[1] == 9
    assert "never" not in texts(list(job.logs()))
    assert lab.client.status("setup")[0].status is skylib.ClusterStatus.UP


def test_stop_keeps_files_and_hosts_and_start_brings_it_back(lab: Lab):
    """Stopped: no process, hosts held, logs readable; started: same hosts, files there, jobs' history kept."""
    job = lab.client.launch(lab.task("echo kept > ~/sky_workdir/kept; echo printed", num_nodes=2), "nap")
    job.wait()
    lab.client.stop("nap")
    assert lab.client.status("nap")[0].status is skylib.ClusterStatus.STOPPED
    assert [line for host in lab.hosts for line in lab.ours(host)] == []
    assert texts(list(job.logs())) == ["printed", "printed"][: len(list(job.logs()))]
    with pytest.raises(ClusterNotUp):
        lab.client.exec("true", "nap")
    lab.client.start("nap")
    again = lab.client.exec("cat ~/sky_workdir/kept", "nap")
    assert texts(list(again.logs())) == ["kept"]
    assert [record.job_id for record in lab.client.queue("nap")] == [1, 2]


@pytest.mark.parametrize("down", [False, True])
def test_a_launch_on_a_cluster_that_stopped_by_itself_brings_it_up_again(lab: Lab, down: bool):
    """Nobody refreshed in between: the launch sees what the node wrote, and the job runs."""
    lab.client.launch(lab.task("true"), "nextday").wait()
    lab.client.autostop("nextday", 0.05, down=down)
    eventually(lambda: not any(lab.ours(host) for host in lab.hosts), within_s=40, what="the node's own end")
    job = lab.client.launch(lab.task("echo again"), "nextday", idle_minutes_to_autostop=5)
    assert texts(list(job.logs())) == ["again"]


def test_a_cluster_is_not_idle_while_files_are_sent_to_it(lab: Lab, tmp_path: Path):
    """A delivery that takes longer than the timer does not find the cluster stopped at its end."""
    lab.client.launch(lab.task("true"), "slow").wait()
    lab.client.autostop("slow", 0.02)
    big = tmp_path / "big"
    big.mkdir()
    with big.joinpath("file").open("wb") as file:
        file.truncate(2_000_000_000)
    started = time.monotonic()
    job = lab.client.launch(lab.task("stat -c %s file", workdir=str(big)), "slow")
    assert time.monotonic() - started > 0.02 * 60
    assert texts(list(job.logs())) == ["2000000000"]


def test_a_name_used_again_keeps_the_logs_of_both_lives(lab: Lab):
    """After down, the same name makes a new cluster whose job 1 is another: both handles read their own log."""
    first = lab.client.launch(lab.task("echo first life"), "twice")
    first.wait()
    lab.client.down("twice")
    second = lab.client.launch(lab.task("echo second life"), "twice")
    second.wait()
    assert (first.id, second.id) == (1, 1)
    assert texts(list(first.logs())) == ["first life"]
    assert texts(list(second.logs())) == ["second life"]
    lab.client.down("twice")
    assert texts(list(first.logs())) == ["first life"]
    assert texts(list(second.logs())) == ["second life"]
    assert [record.job_id for record in lab.client.queue("twice")] == [1]


def test_a_launch_beside_a_dead_agent_leaves_running_jobs_alone(lab: Lab):
    """The agent is killed while a job runs: the next launch starts it anew, and the job goes on to its end."""
    job = lab.client.launch(lab.task("while [ ! -e ~/go ]; do sleep 0.1; done; echo survived", num_nodes=2), "agentless")
    eventually(lambda: job.status() is skylib.JobStatus.RUNNING, what="the job's start")
    head = next(host for host in lab.hosts if host.ip == lab.client.status("agentless")[0].head.internal_ip)
    pid = head.sh('python3 -c \'import json,os; print(json.load(open(os.path.expanduser("~/.sky/agent.lock")))["pid"])\'')
    head.sh(f"kill -9 {int(pid.stdout)}", check=True)
    again = lab.client.launch(lab.task("echo beside"), "agentless")
    assert texts(list(again.logs())) == ["beside"]
    assert job.status() is skylib.JobStatus.RUNNING
    lab.client.cluster("agentless").run("touch ~/go")
    assert job.wait(timeout_s=30).status is skylib.JobStatus.SUCCEEDED
    assert texts(list(job.logs())) == ["survived", "survived"]
    lab.client.cluster("agentless").run("rm ~/go")


def test_stop_cancels_what_is_queued_and_start_does_not_run_it(lab: Lab):
    """A job that waited when the cluster was stopped is cancelled; after start it has not run."""
    blocker = lab.task("sleep 300", num_nodes=1, resources=skylib.Resources(infra="ssh/lab", cpus=2))
    first = lab.client.launch(blocker, "halt")
    waiting = lab.client.exec(blocker, "halt")
    lab.client.stop("halt")
    assert [job.status() for job in (first, waiting)] == [skylib.JobStatus.CANCELLED] * 2
    lab.client.start("halt")
    assert [job.status() for job in (first, waiting)] == [skylib.JobStatus.CANCELLED] * 2


def test_two_launches_of_one_name_at_once_make_one_cluster(lab: Lab):
    """Two threads, one name: one cluster, two jobs, both succeed."""
    jobs: list[skylib.Job] = []
    threads = [threading.Thread(target=lambda: jobs.append(lab.client.launch(lab.task("true"), "one"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.id for job in jobs) == [1, 2]
    assert [job.wait().status.value for job in jobs] == ["SUCCEEDED", "SUCCEEDED"]
    assert len(lab.client.status()) == 1


def test_a_second_cluster_takes_other_hosts(lab: Lab):
    """A host serves one cluster: the second takes what is free, the third is told who holds what."""
    lab.client.launch(lab.task("true", num_nodes=2), "first").wait()
    lab.client.launch(lab.task("true"), "second").wait()
    hosts = [{node.host for node in record.nodes} for record in lab.client.status(["first", "second"])]
    assert not hosts[0] & hosts[1]
    with pytest.raises(skylib.errors.NoCapacityError) as caught:
        lab.client.launch(lab.task("true"), "third")
    assert len(caught.value.reasons) == 3
    assert "first" in str(caught.value)
    assert [record.name for record in lab.client.status()] == ["second", "first"]


def test_plan_says_what_launch_would_do_and_changes_nothing(lab: Lab):
    """Hosts chosen, steps to skip; launch(plan) takes exactly those hosts."""
    plan = lab.client.plan(lab.task("true", num_nodes=2), "planned")
    assert lab.client.status() == []
    assert [len(plan.chosen), len(plan.alternatives)] == [2, 1]
    assert {step.step for step in plan.steps if step.skipped} >= {"environment"}
    lab.client.launch(plan).wait()
    assert {node.host for node in lab.client.cluster("planned").nodes()} == {offer.host for offer in plan.chosen}


def test_autostop_ends_ray_on_the_nodes_and_keeps_the_claim(lab: Lab):
    """The nodes stop the idle cluster by themselves; a refresh sees STOPPED; the hosts are still held."""
    lab.client.launch(lab.task("true"), "idle").wait()
    record = lab.client.status("idle")[0]
    lab.client.autostop("idle", 0.05)
    host = next(host for host in lab.hosts if host.ip == record.head.internal_ip)
    eventually(lambda: lab.ours(host) == [], within_s=40, what="the node's own stop")
    assert lab.client.status("idle", refresh=True)[0].status is skylib.ClusterStatus.STOPPED
    assert "idle" in str(lab.client.status())


def test_a_cluster_that_goes_down_by_itself_is_released_at_the_next_look(lab: Lab):
    """With down, the idle cluster ends itself; a refresh brings its logs home, cleans the hosts and releases them."""
    job = lab.client.launch(lab.task("echo printed", num_nodes=2), "brief")
    job.wait()
    lab.client.autostop("brief", 0.05, down=True)
    eventually(lambda: not any(lab.ours(host) for host in lab.hosts), within_s=40, what="the nodes' own end")
    assert lab.client.status(refresh=True) == []
    assert sorted(texts(list(job.logs()))) == ["printed", "printed"]
    assert job.status() is skylib.JobStatus.SUCCEEDED
    lab.assert_nothing_left()


@pytest.mark.parametrize("name", ["minimal", "multi_hostname", "env_check", "multi_echo"])
def test_skypilots_published_examples_run(lab: Lab, name: str):
    """Tasks with the shape of SkyPilot's own examples run on the pool as they are."""
    secrets_or_envs = {"INDEX": "1"} if name == "multi_echo" else None
    task = skylib.Task.from_yaml(EXAMPLES / f"{name}.yaml", envs=secrets_or_envs)
    job = lab.client.launch(task, name.replace("_", "-"))
    assert job.wait().status is skylib.JobStatus.SUCCEEDED


def test_verbs_on_an_unknown_cluster_are_a_typed_error(lab: Lab):
    """ClusterNotFound from every verb that takes a name, with the names that exist."""
    client = lab.client
    for verb in (client.start, client.stop, client.down, client.queue, client.cancel, client.tail_logs, client.cluster):
        with pytest.raises(ClusterNotFound):
            verb("nobody")
    with pytest.raises(ClusterNotFound):
        client.exec("true", "nobody")
    with pytest.raises(ClusterNotFound):
        client.status("nobody")
