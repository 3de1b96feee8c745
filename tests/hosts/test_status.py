"""status(refresh=True) on real hosts: cut off, back again, wiped."""

from __future__ import annotations

import time

import pytest

import skylib
from skylib.paths import SkyHome
from skylib.state.sqlite import SqliteStore
from tests.lab import Lab, eventually
from tests.testbed import Host, pool_yaml

UP, UNREACHABLE = skylib.ClusterStatus.UP, skylib.ClusterStatus.UNREACHABLE
BOUND_S = 6.0


def _hosts_of(lab: Lab, name: str) -> list[Host]:
    """The hosts of a cluster, by rank."""
    nodes = lab.client.status(name)[0].nodes
    return [next(host for host in lab.hosts if host.ip == node.internal_ip) for node in nodes]


def _held(lab: Lab) -> dict[str, str]:
    """host -> the cluster that holds it."""
    store = SqliteStore(SkyHome(lab.home))
    try:
        return {host: cluster for (_, host), cluster in store.claims().items()}
    finally:
        store.close()


def _wipe(lab: Lab, host: Host) -> None:
    """By hand: end the account's processes, by their pids, and remove what a cluster put there."""

    def ended() -> bool:
        pids = [str(pid) for pid, line in host.processes("sky") if not line.startswith("sshd")]
        if pids:
            host.sh(f"kill -9 {' '.join(pids)}", check=False)
        return not pids

    eventually(ended, what=f"an end of all processes on {host.name}")
    host.sh("rm -rf ~/.sky ~/sky_workdir ~/sky_logs /tmp/ray_skypilot")


def _statuses(lab: Lab, timeout_s: float = 30.0) -> dict[str, skylib.ClusterStatus]:
    return {each.name: each.status for each in lab.client.status(refresh=True, timeout_s=timeout_s)}


def test_a_host_that_is_cut_off_is_unreachable_and_recovers_by_itself(lab: Lab):
    """Within the bound, since then, with its hosts; the other cluster is told as it is; UP again when the host is back."""
    lab.client.launch(lab.task("true", num_nodes=2), "pair").wait()
    lab.client.launch(lab.task("true"), "one").wait()
    head = _hosts_of(lab, "pair")[0]
    held = _held(lab)
    assert _statuses(lab) == {"pair": UP, "one": UP}
    before = time.time()
    head.cut()
    try:
        began = time.monotonic()
        assert _statuses(lab, BOUND_S) == {"pair": UNREACHABLE, "one": UP}
        assert time.monotonic() - began < BOUND_S + 3
        record = lab.client.status("pair")[0]
        assert before <= record.status_since <= time.time()
        assert len(held) == 3
        assert _held(lab) == held
        assert _statuses(lab, BOUND_S) == {"pair": UNREACHABLE, "one": UP}
        assert lab.client.status("pair")[0].status_since == record.status_since
    finally:
        head.restore()
    eventually(lambda: _statuses(lab) == {"pair": UP, "one": UP}, within_s=90, what="the cluster that is back UP")
    assert _held(lab) == held
    assert [job.job_id for job in lab.client.queue("pair")] == [1]
    assert lab.client.exec("true", "pair").wait().job_id == 2


def test_a_cluster_that_was_wiped_by_hand_is_gone_and_what_it_cost_is_known(lab: Lab):
    """A wiped host is a doubt while the other cannot be asked; both wiped: gone, hosts free. The price is that of then."""
    priced = pool_yaml(lab.hosts).replace("  hosts:", "  price_per_hour: 36.0\n  hosts:", 1)
    lab.pool(priced)
    lab.client.launch(lab.task("true", num_nodes=2), "lost").wait()
    lab.pool(priced.replace("36.0", "1.0"))
    head, worker = _hosts_of(lab, "lost")
    _wipe(lab, head)
    worker.cut()
    try:
        assert _statuses(lab, BOUND_S) == {"lost": UNREACHABLE}
        assert len(_held(lab)) == 2
    finally:
        worker.restore()
    _wipe(lab, worker)
    eventually(lambda: _statuses(lab) == {}, within_s=90, what="the end of the cluster")
    lab.assert_nothing_left()
    store = SqliteStore(SkyHome(lab.home))
    (life,) = store.history()
    assert store.events("lost")[-1].details["to"] is None
    assert "nothing of the cluster" in str(store.events("lost")[-1].details["reason"])
    store.close()
    (row,) = lab.client.cost_report()
    assert (row.name, row.running, row.num_nodes, row.prices) == ("lost", False, 2, (36.0, 36.0))
    assert row.seconds == life.used_seconds(now=time.time())
    assert row.cost == pytest.approx(72.0 * row.seconds / 3600)
