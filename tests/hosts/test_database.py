"""State in a real PostgreSQL, clusters on real hosts: the home is expendable, and machines share what they know."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skylib
from skylib.errors import ClusterBusy, NoCapacityError
from skylib.transport.known_hosts import known_name
from tests.lab import Lab, make_lab
from tests.postgres import Server
from tests.testbed import Host

MakeClient = Callable[[str], skylib.Client]


@pytest.fixture
def home_of(tmp_path: Path, database: str, wheels: Path) -> Callable[[str], Path]:
    """Makes a home whose config.yaml says `db` and nothing else, as another machine would have one."""

    def make(name: str) -> Path:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        home.joinpath("config.yaml").write_text(f"db: {database}\n")
        home.joinpath("runtime").mkdir(mode=0o700)
        home.joinpath("runtime", "wheels").symlink_to(wheels)
        return home

    return make


@pytest.fixture
def db_lab(home_of: Callable[[str], Path], warm_hosts: list[Host]) -> Iterator[Lab]:
    """The three warm hosts as pool `lab` of a home whose state is in a database."""
    made = make_lab(home_of("first"), warm_hosts)
    yield made
    with skylib.Client(made.home) as client:
        for record in client.status():
            client.down(record.name, purge=True)
    made.client.close()


def test_the_whole_home_may_be_lost(db_lab: Lab, home_of: Callable[[str], Path]):
    """After ~/.sky is deleted another home finds cluster, pools, host keys and settings in the database, and works on."""
    db_lab.client.config.set("ssh.keepalive_s", 7.0)
    job = db_lab.client.launch(db_lab.task("echo from $SKYPILOT_NODE_RANK", num_nodes=2), "kept")
    job.wait(timeout_s=60)
    db_lab.client.close()
    shutil.rmtree(db_lab.home)

    home = home_of("second")
    with skylib.Client(home) as client:
        assert client.config.ssh.keepalive_s == 7.0
        (record,) = client.status()
        assert (record.name, record.status, record.num_nodes) == ("kept", skylib.ClusterStatus.UP, 2)
        again = client.exec("echo again", "kept")
        assert [line.text for line in again.logs() if line.stream == "run"] == ["again"]
        assert [each.job_id for each in client.queue("kept")] == [job.id, again.id]
        assert not home.joinpath("ssh_node_pools.yaml").exists()
        assert not home.joinpath("known_hosts").exists()  # no host was new
        assert {status.infra: len(status.hosts) for status in client.check() if status.infra == "ssh/lab"} == {"ssh/lab": 3}
        assert client.down("kept").clean
        assert client.status() == []


def test_private_keys_and_passwords_stay_at_home(db_lab: Lab, database: str, postgres: Server):
    """The database holds paths of keys, never a key, and neither its own password nor one of the pool file."""
    text = (db_lab.home / "ssh_node_pools.yaml").read_text()
    db_lab.pool(text.replace('"lab":\n', '"lab":\n  password: sudo-secret-word\n', 1))
    db_lab.client.check()
    name = database.rpartition("/")[2]
    values = postgres.run("SELECT key, value FROM skylib.config ORDER BY key", database=name)
    assert {key.partition("/")[0] for key, _ in values} >= {"pools", "host_keys"}
    everything = repr(values)
    assert "sudo-secret-word" not in everything
    key = Path(db_lab.hosts[0].key_path).read_text()
    assert str(db_lab.hosts[0].key_path) in everything
    assert key.splitlines()[1] not in everything


def test_two_machines_do_not_take_one_host_twice(db_lab: Lab, home_of: Callable[[str], Path]):
    """Hosts that one home holds are held for the other, and a cluster that one works on is busy for the other."""
    task = db_lab.task("true", num_nodes=2)
    other = skylib.Client(home_of("second"), config={"locks": {"timeout_s": 0}})
    began, done = threading.Event(), threading.Event()
    client = skylib.Client(db_lab.home, events=lambda event: began.set() if event.step == "runtime.files" else None)
    launching = threading.Thread(target=lambda: (client.launch(task, "a"), done.set()))
    launching.start()
    try:
        assert began.wait(60)
        with pytest.raises(ClusterBusy) as busy:
            other.launch(task, "a")
        assert busy.value.holder.operation == "launch"
        with pytest.raises(NoCapacityError) as full:
            other.launch(task, "b")
        assert set(full.value.holders.values()) <= {"a"}
    finally:
        launching.join()
        client.close()
    assert done.is_set()
    assert [record.status for record in other.status("a")] == [skylib.ClusterStatus.UP]
    other.down("a")
    other.close()
    db_lab.assert_nothing_left()


def test_a_changed_host_key_stops_every_home(db_lab: Lab, home_of: Callable[[str], Path], database: str, postgres: Server):
    """A key that one home met is what the other expects; forget_host_key takes it back for all."""
    db_lab.client.check()
    name = database.rpartition("/")[2]
    met, another = (known_name(host.ip, host.port) for host in db_lab.hosts[:2])

    def line_of(host: str) -> str:
        rows = postgres.run("SELECT value FROM skylib.config WHERE key = %s", f"host_keys/{host}", database=name)
        return rows[0][0]

    forged = line_of(another).replace(another, met)
    postgres.run("UPDATE skylib.config SET value = %s WHERE key = %s", forged, f"host_keys/{met}", database=name)
    with skylib.Client(home_of("second")) as client:
        status = next(each for each in client.check() if each.infra == "ssh/lab")
        assert len(status.hosts) == 2
        assert "host key" in " ".join(status.problems)
        client.forget_host_key(met)
        status = next(each for each in client.check() if each.infra == "ssh/lab")
        assert len(status.hosts) == 3
