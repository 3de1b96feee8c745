"""Files from and to the nodes of a standing cluster, on real hosts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import skylib
from skylib.errors import AgentError, InvalidSpecError, StagingError, TransportError
from skylib.events import Event
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.staging.fetch import fetch
from skylib.staging.wanted import parse_wanted
from skylib.transport.ssh import SshTransport
from tests.hosts.test_ssh_trouble import QUICK
from tests.hosts.test_staging import here, on_host
from tests.lab import Lab, eventually, make_lab
from tests.testbed import Host
from tests.unit.staging.trees import snapshot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with odd names, modes and links."""
    root = tmp_path / "tree"
    (root / "sub/empty").mkdir(parents=True)
    for name in ("a", "new\nline", "'quoted' \"x\" $x", "-rf", "*", "n" * 255):
        (root / name).write_text(name)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("bytes")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub/big").write_bytes(os.urandom(3_000_000))
    (root / "sub/up").symlink_to("../a")
    return root


def test_what_is_put_can_be_got(shared: Lab, tree: Path, tmp_path: Path) -> None:
    """A tree goes to two nodes of three and comes back the same; both ways the second time moves nothing."""
    cluster = shared.client.cluster("shared")
    sent = cluster.put(tree, "data/tree", ranks=[0, 2])
    assert [outcome.skipped for outcome in sent] == [False, False]
    hosts = shared.by_rank("shared")
    assert [host.sh("ls sky_workdir/data 2>/dev/null").stdout.split() for host in hosts] == [["tree"], [], ["tree"]]
    assert on_host(hosts[2], "sky_workdir/data/tree") == here(tree)
    back = cluster.get("data/tree", tmp_path / "back", rank=2)
    assert snapshot(tmp_path / "back") == snapshot(tree)
    assert back.files == 10
    assert all(outcome.skipped for outcome in cluster.put(tree, "data/tree", ranks=[0, 2]))
    again = cluster.get("data/tree", tmp_path / "back", rank=2)
    assert (again.files, again.bytes, again.unchanged) == (0, 0, 10)


def test_a_file_or_a_pattern_is_got(shared: Lab, tmp_path: Path) -> None:
    """One file takes the name that is given, or lies in the directory; a pattern fills a directory; `~` is the home."""
    cluster = shared.client.cluster("shared")
    head = shared.by_rank("shared")[0]
    head.sh("mkdir -p ~/runs/1 ~/runs/2 && echo one > ~/runs/1/loss && echo two > ~/runs/2/loss", check=True)
    cluster.get("~/runs/1/loss", tmp_path / "named")
    cluster.get("~/runs/2/loss", f"{tmp_path}/folder/")
    cluster.get("~/runs/*/loss", tmp_path / "all")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"named": "one\n", "folder/loss": "two\n", "all/1/loss": "one\n", "all/2/loss": "two\n"}


def test_what_cannot_be_got_is_named(shared: Lab, tmp_path: Path) -> None:
    """Nothing there, nothing to be read, no such rank: an error with host and path; what can be read comes all the same."""
    cluster = shared.client.cluster("shared")
    host = shared.by_rank("shared")[1]
    with pytest.raises(StagingError, match="not there") as caught:
        cluster.get("no/such*", tmp_path / "x", rank=1)
    assert (caught.value.host, caught.value.path) == (cluster.nodes()[1].host, f"{host.home}/sky_workdir/no/such*")
    host.sh("mkdir -p ~/mixed && echo yes > ~/mixed/open && echo no > ~/mixed/shut && chmod 0 ~/mixed/shut", check=True)
    with pytest.raises(StagingError, match="permission denied") as caught:
        cluster.get("~/mixed", tmp_path / "mixed", rank=1)
    assert (caught.value.host, caught.value.path) == (host.ip, f"{host.home}/mixed/shut")
    assert (tmp_path / "mixed/open").read_text() == "yes\n"
    with pytest.raises(InvalidSpecError, match="no rank 3"):
        cluster.get("x", tmp_path, rank=3)


RUN = """
mkdir -p results/$SKYPILOT_NODE_RANK && cd results
echo "loss of $SKYPILOT_NODE_RANK" > $SKYPILOT_NODE_RANK/loss.json
echo shared > model.bin
"""


def test_outputs_come_home_when_the_job_ends(shared: Lab, tmp_path: Path) -> None:
    """wait() brings what the patterns match: rank 0's into the directory, others' beside; the next time nothing comes."""
    wanted = {"results/*/loss.json": tmp_path / "losses", "results/model.bin": tmp_path / "model", "no/*": tmp_path / "no"}
    job = shared.client.exec(shared.task(RUN, num_nodes=2, outputs=wanted), "shared")
    record = job.wait(60)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        "losses/0/loss.json",
        "losses/rank-1/1/loss.json",
        "model/model.bin",
        "model/rank-1/model.bin",
    }
    assert record.fetched is not None
    assert (record.fetched.done, record.fetched.files, record.fetched.missing) == (True, 4, ("no/*",))
    again = shared.client.fetch_outputs("shared", job.id)[job.id]
    assert (again.done, again.files, again.unchanged) == (True, 0, 4)


def test_another_process_brings_outputs(shared: Lab, tmp_path: Path) -> None:
    """Nobody waits for the job: a client that only looks at the cluster fetches what another one asked for."""
    job = shared.client.exec(shared.task("echo done > late.txt", outputs={"late.txt": tmp_path / "late"}), "shared")
    for line in job.logs():
        line.text.strip()
    with skylib.Client(shared.home) as other:
        eventually(lambda: bool(other.status("shared", refresh=True)) and (tmp_path / "late/late.txt").exists())
        assert [each.fetched.done for each in other.queue("shared") if each.job_id == job.id and each.fetched] == [True]


def test_outputs_that_do_not_come_leave_the_job_as_it_is(shared: Lab, tmp_path: Path) -> None:
    """A place here that cannot take them: the job has succeeded, the record says why, and the next contact tries again."""
    task = shared.task("sleep 1; echo x > once.txt", outputs={"once.txt": tmp_path / "in/the/way"})
    job = shared.client.exec(task, "shared")
    (tmp_path / "in").write_text("a file")
    record = job.wait(60)
    assert record.status is skylib.JobStatus.SUCCEEDED
    assert record.fetched is not None
    assert not record.fetched.done
    assert str(tmp_path / "in") in record.fetched.error
    with pytest.raises(StagingError, match="could not put"):
        shared.client.fetch_outputs("shared", job.id)
    (tmp_path / "in").unlink()
    shared.client.queue("shared")
    assert (tmp_path / "in/the/way/once.txt").read_text() == "x\n"


def test_a_cluster_that_goes_leaves_its_outputs(
    make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path
) -> None:
    """down fetches the outputs of the jobs that it ends; when they do not come, the cluster stays until it is purged."""
    host = make_warm_host()
    lab = make_lab(tmp_path / "sky", [host], wheels=wheels)
    task = lab.task("echo half > checkpoint; sleep 600", outputs={"checkpoint": tmp_path / "out"})
    job = lab.client.launch(task, "brief")
    eventually(lambda: "half" in host.sh("cat ~/sky_workdir/checkpoint 2>/dev/null; true").stdout)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(AgentError, match="outputs of job"):
        lab.client.down("brief")
    (tmp_path / "out").unlink()
    lab.client.down("brief")
    assert (tmp_path / "out/checkpoint").read_text() == "half\n"
    assert job.status() is skylib.JobStatus.CANCELLED
    lab.assert_nothing_left()
    lab.client.close()


def test_downloaded_logs_go_on_where_they_end(shared: Lab) -> None:
    """What is here of a rank's log is not fetched again, whatever came of the first download."""
    job = shared.client.exec(shared.task("seq 300000"), "shared")
    job.wait(60)
    seen: list[Event] = []
    with skylib.Client(shared.home, events=seen.append) as client:
        folder = client.download_logs("shared", job.id)[job.id]
        log = max(folder.glob("node*/*"), key=lambda path: path.stat().st_size)
        whole = log.read_bytes()
        assert whole.endswith(b"300000\n")
        os.truncate(log, len(whole) - 1000)
        seen.clear()
        client.download_logs("shared", job.id)
    assert log.read_bytes() == whole
    assert sum(int(str(event.facts.get("stdout_bytes") or 0)) for event in seen) < 100_000


def test_a_fetch_that_breaks_off_is_gone_on_with(make_host: Callable[..., Host], tmp_path: Path) -> None:
    """The host dies while files come: those that came stay, nothing else is left, and then only the rest is fetched."""
    host = make_host()
    host.sh("mkdir -p ~/sky_workdir/r && cd ~/sky_workdir/r && echo a > a && truncate -s 50G huge && echo z > z", check=True)
    address = HostAddress(kind="ssh", host=host.ip, user=host.user, port=host.port, identity_file=str(host.key_path))
    here = tmp_path / "here"
    wanted = [parse_wanted("r", here, root=host.home)]
    with contextlib.closing(SshTransport(address, home=SkyHome(tmp_path / ".sky"), settings=QUICK)) as transport:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(fetch, transport, wanted)
            eventually(lambda: running.done() or bool(list(here.glob(".skylib-fetch-*/*")) and (here / "a").exists()))
            host.crash()
            with pytest.raises(TransportError):
                running.result()
        assert [path.name for path in here.iterdir()] == ["a"]
        host.boot()
        host.sh("truncate -s 3 ~/sky_workdir/r/huge", check=True)
        done = fetch(transport, wanted)
    assert (done.files, done.unchanged) == (2, 1)
    assert sorted(path.name for path in here.iterdir()) == ["a", "huge", "z"]
