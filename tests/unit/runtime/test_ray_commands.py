"""The `ray start` lines: what they say, and the environment in which they say it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from skylib.runtime import start_hook
from skylib.runtime.layout import NodeLayout
from skylib.runtime.ports import FIXED_BASE, HeadPorts, NodePorts
from skylib.runtime.ray_commands import RayNode, head_start, ray_resources, worker_start
from skylib.transport.command import Command

LAYOUT = NodeLayout(root="/home/me", temp_dir="/tmp/ray_skypilot")
NODE = RayNode(
    rank=0,
    ip="10.0.0.4",
    cpus=8,
    gpus=2,
    resources={"A100": 2},
    layout=LAYOUT,
    ports=NodePorts.for_rank(0, nodes_on_machine=1),
)
HEAD = HeadPorts.at()


def flags(command: Command) -> dict[str, str]:
    """The flags after `ray start`."""
    words = command.argv[command.argv.index("start") + 1 :]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def settings(command: Command) -> dict[str, str]:
    """The assignments before `ray`."""
    return dict(word.split("=", 1) for word in command.argv[: command.argv.index("start") - 1])


def test_the_head_is_started_as_skypilot_starts_it() -> None:
    """SkyPilot's ports, temp dir and resources, no usage statistics, the dashboard on this machine only."""
    command = head_start(NODE, HEAD, cluster_id="c1")
    said = flags(command)
    assert command.argv[command.argv.index("start") - 1] == "/home/me/skypilot-runtime/bin/ray"
    assert said["--head"] == ""
    assert said["--disable-usage-stats"] == ""
    assert (said["--port"], said["--dashboard-port"], said["--dashboard-host"]) == ("6380", "8266", "127.0.0.1")
    assert said["--temp-dir"] == "/tmp/ray_skypilot"
    assert (said["--num-cpus"], said["--num-gpus"], said["--node-ip-address"]) == ("8", "2", "10.0.0.4")
    assert json.loads(said["--resources"]) == {"A100": 2, "skylib_rank_0": 1}
    assert said["--object-manager-port"] == "8076"


def test_strangers_who_knock_fill_no_disk() -> None:
    """gRPC, which would write a line for each refused connection, into files that nobody turns over, is silent."""
    for command in (head_start(NODE, HEAD, cluster_id="c1"), worker_start(NODE, "10.0.0.3:6380", cluster_id="c1")):
        assert settings(command)["GRPC_VERBOSITY"] == "NONE"


def test_a_worker_is_told_only_where_its_head_is() -> None:
    """No flag that Ray allows on heads only."""
    said = flags(worker_start(attrs.evolve(NODE, rank=1), "10.0.0.3:6380", cluster_id="c1"))
    assert said["--address"] == "10.0.0.3:6380"
    assert not {"--head", "--port", "--temp-dir", "--dashboard-port"} & said.keys()
    assert json.loads(said["--resources"])["skylib_rank_1"] == 1


def test_each_process_carries_the_clusters_token() -> None:
    """The environment says whose process it is; SkyPilot's settings are there."""
    for command in (head_start(NODE, HEAD, cluster_id="c1"), worker_start(NODE, "h:6380", cluster_id="c1")):
        said = settings(command)
        assert said["SKYLIB_CLUSTER_ID"] == "c1"
        assert said["RAY_worker_maximum_startup_concurrency"] == "24"
        assert (said["RAY_SCHEDULER_EVENTS"], said["RAY_DEDUP_LOGS"]) == ("0", "0")


@pytest.mark.parametrize("rank", range(4))
def test_every_port_of_a_node_is_given(rank: int) -> None:
    """Nothing is left to Ray's defaults or to chance."""
    ports = NodePorts.for_rank(rank, FIXED_BASE, nodes_on_machine=4)
    said = flags(worker_start(attrs.evolve(NODE, rank=rank, ports=ports), "h:6380", cluster_id="c"))
    given = {int(value) for name, value in said.items() if name.endswith("-port")}
    assert given == {*ports.fixed(), ports.worker_min, ports.worker_max}


def test_a_heads_further_ports_are_given() -> None:
    """Client server by flag, metrics by Ray's variables, dashboard gRPC through the start hook."""
    command = head_start(NODE, HEAD, cluster_id="c")
    assert flags(command)["--ray-client-server-port"] == str(HEAD.client_server)
    said = settings(command)
    assert {int(said[name]) for name in said if name.endswith("_PORT")} == {
        HEAD.autoscaler_metrics,
        HEAD.dashboard_metrics,
        HEAD.dashboard_grpc,
    }


def test_a_resource_of_the_callers_cannot_take_the_ranks_name() -> None:
    """The rank's own resource wins, and names are in order."""
    node = attrs.evolve(NODE, rank=3, resources={"skylib_rank_3": 9, "B": 1, "A": 2})
    assert list(ray_resources(node).items()) == [("A", 2), ("B", 1), ("skylib_rank_3", 1)]


def test_the_callers_environment_stays_outside(tmp_path: Path) -> None:
    """What a shell really hands to ray: our settings and the account's name, nothing of the caller's; words unchanged."""
    fake = tmp_path / "env dir" / "bin" / "ray"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\npwd\nulimit -n\nprintf "%s\\0" "$@"; echo; env -0\n')
    fake.chmod(0o755)
    node = attrs.evolve(NODE, layout=NodeLayout(root="/r", temp_dir="/tmp/t", env=str(tmp_path / "env dir")))
    command = head_start(node, HEAD, cluster_id="c1")
    poison = {"RAY_ADDRESS": "auto", "PYTHONPATH": "/x", "CUDA_VISIBLE_DEVICES": "", "http_proxy": "http://x"}
    done = subprocess.run(
        ["/bin/sh", "-c", command.text()],
        env={**os.environ, **poison, "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=20,
    )
    where, files, words, env = done.stdout.split(b"\n", 3)
    seen = dict(line.split("=", 1) for line in env.decode().split("\0") if "=" in line)
    assert where.decode() == str(tmp_path)
    assert files == b"unlimited" or int(files) >= 1024
    assert words.decode().split("\0")[:-1] == list(command.argv[command.argv.index("start") :])
    assert not poison.keys() & seen.keys()
    assert seen["SKYLIB_CLUSTER_ID"] == "c1"
    assert seen["HOME"] == str(tmp_path)
    assert seen["PATH"].startswith(f"{tmp_path}/env dir/bin:")


def test_the_start_hook_trims_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client server, no log monitor, sockets in a private directory of this start."""
    monkeypatch.setenv("SKYLIB_RAY_TEMP_DIR", str(tmp_path / "ray"))
    monkeypatch.setenv("SKYLIB_RAY_DASHBOARD_GRPC_PORT", "20356")
    names = ("ray_client_server_port", "include_log_monitor", "plasma_store_socket_name", "raylet_socket_name")
    seen = []
    for _ in range(2):
        params = SimpleNamespace(**dict.fromkeys(names, "ray's"), dashboard_grpc_port=None)
        start_hook.trim(params, True)
        assert (params.ray_client_server_port, params.include_log_monitor) == (None, False)
        assert params.dashboard_grpc_port == 20356
        folder = Path(params.raylet_socket_name).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert Path(params.plasma_store_socket_name).parent == folder
        seen.append(folder)
    assert seen[0] != seen[1]


def test_the_start_hook_leaves_another_ray_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that a Ray does not have are not made, so that it starts as it likes."""
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    params = SimpleNamespace(other=1)
    start_hook.trim(params, False)
    assert vars(params) == {"other": 1}
