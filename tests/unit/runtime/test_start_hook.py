"""The start hook: nobody sleeps longer than the other side needs, and a Ray without these parts starts as it likes."""

from __future__ import annotations

import shlex
import socket
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from skylib.runtime import start_hook


class Params:
    """What `ray start` fills in before it makes a node."""

    ray_client_server_port: int | None = 10001


def test_the_client_server_is_left_out_and_what_is_not_there_is_not_made(monkeypatch: pytest.MonkeyPatch):
    """Only attributes that this Ray has are changed."""
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    monkeypatch.delenv("SKYLIB_RAY_GCS_ADDRESS", raising=False)
    params = Params()
    start_hook.trim(params, False)
    assert params.ray_client_server_port is None
    assert not hasattr(params, "include_log_monitor")


def test_the_gcs_start_returns_when_its_port_accepts(monkeypatch: pytest.MonkeyPatch):
    """A head's first question finds a listener: start_gcs_server comes back no sooner than that."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    opened: list[float] = []

    def open_late() -> None:
        opened.append(time.monotonic())
        listener.listen()

    class Node:
        gcs_address = f"127.0.0.1:{listener.getsockname()[1]}"

        def start_gcs_server(self) -> None:
            threading.Timer(0.2, open_late).start()

    module = types.ModuleType("ray._private.node")
    module.Node = Node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray._private.node", module)
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    start_hook.trim(Params(), True)
    Node().start_gcs_server()
    assert opened
    assert time.monotonic() >= opened[0]
    listener.close()


def test_no_scan_of_command_lines_finds_our_address(monkeypatch: pytest.MonkeyPatch):
    """A raylet's command line has no part that begins with the flag that Ray looks for, and means the same as before."""
    nested = ["python", "default_worker.py", "--gcs-address=10.0.0.1:6380", "--session-name=s"]
    command = ["/x/raylet", f"--python_worker_command={' '.join(nested)}", "--gcs-address=10.0.0.1:6380", "--head"]
    other = ["/x/python", "agent.py", "--gcs-address=10.0.0.1:6380"]
    started: list[tuple[list[str], dict[str, object]]] = []

    module = types.ModuleType("ray._private.services")
    module.start_ray_process = lambda command, kind, **options: started.append((command, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray._private.services", module)
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    monkeypatch.delenv("SKYLIB_RAY_GCS_ADDRESS", raising=False)
    start_hook.trim(Params(), False)
    module.start_ray_process(command, "raylet", fate_share=False)
    module.start_ray_process(other, "agent", fate_share=True)
    (raylet, options), (agent, _) = started
    assert [part for word in raylet for part in word.split(" ") if part.startswith("--gcs-address")] == []
    assert shlex.split(raylet[1].partition("=")[2]) == nested
    assert raylet[2:] == ["--gcs_address=10.0.0.1:6380", "--head"]
    assert agent == other
    assert options == {"fate_share": False}


def test_a_worker_goes_on_when_its_head_has_written_the_session(monkeypatch: pytest.MonkeyPatch):
    """It asks until both keys are there, past refusals and answers that are not there yet."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    answers: list[object] = [ConnectionError("not yet"), None, b"s", None, b"s", b"/tmp"]
    asked: list[bytes] = []

    class GcsClient:
        def __init__(self, *, address: str) -> None:
            self.address = address

        def internal_kv_get(self, key: bytes, namespace: bytes) -> object:
            asked.append(key)
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def get_all_node_info(self, timeout_s: float) -> dict[bytes, object]:
            return {}

    raylet = types.ModuleType("ray._raylet")
    raylet.GcsClient = GcsClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray._raylet", raylet)
    monkeypatch.setenv("SKYLIB_RAY_GCS_ADDRESS", address)
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    start_hook.trim(Params(), False)
    assert answers == []
    assert asked[-2:] == [b"session_name", b"temp_dir"]
    listener.close()


def test_a_worker_of_a_newer_ray_goes_on_when_its_head_is_there(monkeypatch: pytest.MonkeyPatch):
    """One that writes no temp dir is waited for until it has a node."""
    nodes: list[dict[bytes, object]] = [{}, {b"id": object()}]

    class GcsClient:
        def __init__(self, *, address: str) -> None:
            self.address = address

        def internal_kv_get(self, key: bytes, namespace: bytes) -> object:
            return b"s" if key == b"session_name" else None

        def get_all_node_info(self, timeout_s: float) -> dict[bytes, object]:
            return nodes.pop(0)

    raylet = types.ModuleType("ray._raylet")
    raylet.GcsClient = GcsClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray._raylet", raylet)
    monkeypatch.delenv("SKYLIB_RAY_TEMP_DIR", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("SKYLIB_RAY_GCS_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        start_hook.trim(Params(), False)
    assert nodes == []


def test_nothing_is_started_before_its_certificates_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of an earlier bring-up will not do; when its own do not come, the start fails and says so."""
    stamp = tmp_path / "stamp"
    stamp.write_text("old")
    for name, value in {"RAY_TLS_CA_CERT": str(tmp_path / "ca.crt"), "SKYLIB_RAY_TLS_STAMP": "new"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SKYLIB_RAY_TEMP_DIR", "SKYLIB_RAY_GCS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TimeoutError, match="certificates"):
        start_hook.trim(Params(), False, certificates_within_s=0.1)
    stamp.write_text("new")
    start_hook.trim(Params(), False)
