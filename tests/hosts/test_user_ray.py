"""The user's own Ray on 6379 lives beside ours."""

from __future__ import annotations

import sys

from tests.lab import Lab
from tests.testbed import Host

RAY = "env -u SKYLIB_CLUSTER_ID ~/skypilot-runtime/bin/ray"
SUBMIT = f"{RAY} job submit --address http://127.0.0.1:8265 -- echo from-the-users-ray"


def _submits(host: Host) -> bool:
    """Whether a job goes through the user's own dashboard."""
    done = host.sh(SUBMIT, timeout_s=90)
    if "from-the-users-ray" not in done.stdout:
        print(done.stdout, done.stderr, file=sys.stderr)
        return False
    return True


def test_the_users_ray_works_before_during_and_after(lab: Lab):
    """A Ray that the account started with all defaults takes `ray job submit` before, beside and after our cluster."""
    host = lab.hosts[0]
    lab.pool(lab.home.joinpath("ssh_node_pools.yaml").read_text())
    host.sh(f"{RAY} start --head --disable-usage-stats", timeout_s=90, check=True)
    users = {pid for pid, _ in host.processes("sky")}
    try:
        assert _submits(host)
        lab.client.launch(lab.task("true", num_nodes=3), "beside").wait()
        assert _submits(host)
        lab.client.exec("true", "beside").wait()
        lab.client.down("beside")
        assert _submits(host)
        assert 6379 in host.listening_ports()
        assert 6380 not in host.listening_ports()
    finally:
        mine = [pid for pid, line in host.processes("sky") if pid in users or "/tmp/ray/" in line or "ray::" in line]
        for pid in mine:
            host.sh(f"kill -9 {pid} 2>/dev/null; true")
        host.sh("rm -rf /tmp/ray")
    lab.assert_nothing_left()
