"""Bad input gets a typed error, and nothing is left behind: no process, no held host, no record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import skylib
from skylib import errors
from tests.lab import Lab, make_lab
from tests.testbed import Host, Testbed, pool_yaml


@pytest.fixture
def lab_of(wheels: Path, tmp_path: Path) -> Callable[..., Lab]:
    """Makes a lab of given hosts."""

    def make(*hosts: Host, **options: object) -> Lab:
        return make_lab(tmp_path / "sky", hosts, wheels=wheels, **options)  # type: ignore[arg-type]

    return make


def test_an_unknown_key_is_refused_with_place_and_nearest_key(lab: Lab, tmp_path: Path):
    """File, line and the nearest valid key; nothing is touched."""
    path = tmp_path / "task.yaml"
    path.write_text("num_nodes: 1\nresorces: {infra: ssh/lab}\nrun: 'true'\n")
    with pytest.raises(errors.InvalidSpecError) as caught:
        skylib.Task.from_yaml(path)
    assert (caught.value.file, caught.value.line) == (str(path), 2)
    assert "resources" in str(caught.value)


@pytest.mark.parametrize("text", ["num_nodes: -1\nrun: x", "num_nodes: two\nrun: x", "envs: [a]\nrun: x", "run: {a: b}"])
def test_a_wrong_type_or_figure_is_refused(text: str):
    """Negative nodes and wrong types name the field and the line."""
    with pytest.raises(errors.InvalidSpecError) as caught:
        skylib.Task.from_yaml_str(text)
    assert caught.value.line is not None


def test_a_pool_that_does_not_exist(lab: Lab):
    """PoolNotFound names the pools there are."""
    with pytest.raises(errors.PoolNotFound) as caught:
        lab.client.launch(lab.task(resources=skylib.Resources(infra="ssh/lob")), "c")
    assert "lab" in str(caught.value)
    lab.assert_nothing_left()


def test_more_nodes_than_the_pool_has(lab: Lab):
    """NoOfferError, since waiting would not help."""
    with pytest.raises(errors.NoOfferError):
        lab.client.launch(lab.task(num_nodes=4), "c")
    lab.assert_nothing_left()


@pytest.mark.parametrize("name", ["a;touch /tmp/x", "$(reboot)", "a b", "-f", "../up"])
def test_a_cluster_name_with_shell_characters(lab: Lab, name: str):
    """InvalidSpecError before anything is touched."""
    with pytest.raises(errors.InvalidSpecError):
        lab.client.launch(lab.task(), name)
    lab.assert_nothing_left()


def test_a_field_that_is_not_acted_on(lab: Lab):
    """The launch is refused with the field's name, not silently trimmed."""
    with pytest.raises(errors.InvalidSpecError, match=r"resources\.use_spot"):
        lab.client.launch(lab.task(resources=skylib.Resources(infra="ssh/lab", use_spot=True)), "c")
    lab.assert_nothing_left()


def test_a_workdir_that_does_not_exist(lab: Lab):
    """StagingError with the path, before any host is touched."""
    with pytest.raises(errors.StagingError) as caught:
        lab.client.launch(lab.task(workdir="/no/such/dir"), "c")
    assert caught.value.path == "/no/such/dir"
    lab.assert_nothing_left()


def test_a_host_that_refuses_the_connection(lab: Lab):
    """A host without sshd on that port: the error says which host and that it refused; nothing is left."""
    lab.pool(pool_yaml([lab.hosts[0]]).replace("port: 22", "port: 2"))
    with pytest.raises(errors.ProvisionError) as caught:
        lab.client.launch(lab.task(), "c")
    assert lab.hosts[0].ip in str(caught.value)
    assert "refused" in str(caught.value).lower()
    lab.assert_nothing_left()


def test_a_host_that_refuses_the_key(lab: Lab, testbed: Testbed):
    """Another key than the account's: the error says so for that host."""
    text = pool_yaml([lab.hosts[0]]).replace(str(lab.hosts[0].key_path), str(testbed.second_key_path))
    lab.pool(text)
    with pytest.raises(errors.ProvisionError) as caught:
        lab.client.launch(lab.task(), "c")
    assert "key" in str(caught.value)
    assert any(isinstance(attempt.cause, errors.AuthError) for attempt in caught.value.attempts)
    lab.assert_nothing_left()


def test_a_host_whose_key_changed(make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """The launch stops with both fingerprints."""
    host = make_warm_host()
    lab = lab_of(host)
    lab.client.check()
    old = host.host_key_fingerprint
    host.regenerate_host_key()
    lab.client.close()
    with pytest.raises(errors.ProvisionError) as caught:
        lab.client.launch(lab.task(), "c")
    assert old in str(caught.value) or any(old in str(attempt.cause) for attempt in caught.value.attempts)
    assert any(isinstance(attempt.cause, errors.HostKeyError) for attempt in caught.value.attempts)
    lab.assert_nothing_left()


def test_a_host_with_a_full_disk(make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """PreflightError with the host and what is free there."""
    host = make_warm_host()
    lab = lab_of(host)
    host.fill_home(leave_bytes=1_000_000)
    with pytest.raises(errors.PreflightError) as caught:
        lab.client.launch(lab.task(), "c")
    assert caught.value.problems[0].host == host.ip or host.ip in str(caught.value)
    assert "MiB" in str(caught.value)
    host.unfill_home()
    lab.assert_nothing_left()


def test_a_disk_that_fills_while_files_are_sent(
    make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab], tmp_path: Path
):
    """StagingError names host and path; the cluster that was coming up is taken away again."""
    host = make_warm_host(home_size_mib=1600)
    lab = lab_of(host)
    big = tmp_path / "big"
    big.mkdir()
    with big.joinpath("file").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(errors.SkyError) as caught:
        lab.client.launch(lab.task(workdir=str(big)), "c")
    assert isinstance(caught.value, errors.StagingError)
    assert host.ip in str(caught.value.host)
    lab.assert_nothing_left()


def test_a_host_without_python(make_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """PreflightError says that there is no Python and what to do."""
    host = make_host(pythons=())
    lab = lab_of(host)
    with pytest.raises(errors.ProvisionError) as caught:
        lab.client.launch(lab.task(), "c")
    assert "Python" in str(caught.value)
    lab.assert_nothing_left()


def test_a_host_whose_python_is_too_new(make_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """The versions that were seen are named."""
    host = make_host(pythons=("3.13",))
    lab = lab_of(host)
    with pytest.raises(errors.ProvisionError) as caught:
        lab.client.launch(lab.task(), "c")
    assert "3.13" in str(caught.value)
    lab.assert_nothing_left()


LISTEN = (
    "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',6380)); s.listen(); print('ok',flush=True); time.sleep(600)"
)


def _listen(host: Host, user: str) -> int:
    """Have an account of the host listen on 6380; the pid there."""
    done = host.sh(
        f'nohup python3 -c "{LISTEN}" >/tmp/listen-{user}.log 2>&1 & echo $!; '
        f"until grep -q ok /tmp/listen-{user}.log; do sleep 0.05; done",
        user=user,
    )
    return int(done.stdout.split()[0])


def test_6380_held_by_the_same_account(make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """A process of our own account on 6380 is not worked around: PreflightError names the port."""
    host = make_warm_host()
    lab = lab_of(host)
    pid = _listen(host, "sky")
    with pytest.raises(errors.PreflightError, match="6380"):
        lab.client.launch(lab.task(), "c")
    host.sh(f"kill {pid}")
    lab.assert_nothing_left()


def test_6380_held_by_another_user_moves_ours(make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """Another user's 6380 makes ours the next free port, written to ray_port.json and used by the workers."""
    first, second = make_warm_host(), make_warm_host()
    lab = lab_of(first, second)
    pid = _listen(first, "other")
    job = lab.client.launch(lab.task("true", num_nodes=2), "c")
    assert job.wait().exit_codes == (0, 0)
    assert lab.client.status("c")[0].ray_port == 6381
    assert '"ray_port": 6381' in first.sh("cat ~/.sky/ray_port.json").stdout
    lab.client.down("c")
    first.sh(f"kill {pid}", user="other")
    lab.assert_nothing_left()


def test_two_launches_of_one_name_when_there_is_no_time_to_wait(lab: Lab):
    """With timeout_s=0 the second is told who holds the cluster; the first goes on."""
    entered = threading.Event()
    first: list[skylib.Job] = []

    def sink(event: skylib.events.Event) -> None:
        if event.step == "runtime.start":
            entered.set()

    client = skylib.Client(lab.home, events=sink)
    thread = threading.Thread(target=lambda: first.append(client.launch(lab.task(), "c")))
    thread.start()
    assert entered.wait(60)
    with pytest.raises(errors.ClusterBusy) as caught:
        lab.client.launch(lab.task(), "c", timeout_s=0)
    thread.join()
    assert caught.value.holder.operation == "launch"
    assert first[0].wait().status is skylib.JobStatus.SUCCEEDED
    client.close()


def test_a_host_that_a_purge_gave_up_is_cleaned_by_the_same_call_later(
    make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]
):
    """A cut-off worker keeps its processes; when it is back, down(purge=True) ends them and the host serves again."""
    head, worker = make_warm_host(), make_warm_host()
    lab = lab_of(head, worker, config={"ssh": {"keepalive_s": 1, "connect_timeout_s": 3}})
    lab.client.launch(lab.task("true", num_nodes=2), "lost").wait()
    cut = worker if lab.client.status("lost")[0].nodes[1].host == worker.ip else head
    cut.cut()
    given_up = lab.client.down("lost", purge=True)
    assert not given_up.clean
    assert lab.client.status() == []
    cut.restore()
    cut.wait_ssh(20)
    assert lab.ours(cut)
    assert lab.client.down("lost", purge=True).clean
    lab.assert_nothing_left()
    assert lab.client.launch(lab.task("true", num_nodes=2), "found").wait().exit_codes == (0, 0)
    lab.client.down("found")


def test_a_host_that_dies_during_the_launch(make_warm_host: Callable[..., Host], lab_of: Callable[..., Lab]):
    """A worker that crashes while Ray starts: a typed error with the host; after its return down() finds nothing more."""
    head, worker = make_warm_host(), make_warm_host()

    def sink(event: skylib.events.Event) -> None:
        if event.step == "runtime.ray_worker" and event.phase.value == "started":
            worker.crash()

    lab = lab_of(head, worker)
    client = skylib.Client(
        lab.home, events=sink, config={"provision": {"timeout_s": 40}, "ssh": {"keepalive_s": 1, "connect_timeout_s": 3}}
    )
    with pytest.raises(errors.SkyError):
        client.launch(lab.task(num_nodes=2), "c")
    worker.boot()
    worker.wait_ssh(20)
    for record in client.status():
        client.down(record.name)
    client.close()
    lab.assert_nothing_left()
