"""The agent's connection to Ray comes back, whatever ends it; the child that holds it is a script here."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skylib.agent.config import AgentConfig
from skylib.agent.link import RayLink
from tests.ray.agent_harness import NodeFolders, the_bundle

CHILD = """
import os, sys
sys.path.insert(0, {bundle!r})
from skylib_agent.frames import pack
def send(*message):
    os.write(1, pack(message))
lives = {lives!r}
os.close(os.open(os.path.join(lives, str(os.getpid())), os.O_CREAT))
"""
CONNECTED = """
node = dict(rank=0, node_id="n", ip="127.0.0.1", alive=True, resources=dict())
send(None, "connected", "2.9.3")
send(None, "nodes", [node])
sys.stdin.read()
"""
ONCE_RUBBISH = 'if len(os.listdir(lives)) == 1: os.write(1, b"\\x04\\0\\0\\0\\0\\0\\0\\0rubb"); sys.stdin.read()\n'


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    (tmp_path / "lives").mkdir()
    return NodeFolders(tmp_path, count=1).write()[0]


def be_child(config: AgentConfig, tmp_path: Path, body: str) -> None:
    (tmp_path / "real.pyz").write_bytes(the_bundle().data)
    head = CHILD.format(bundle=str(tmp_path / "real.pyz"), lives=str(tmp_path / "lives"))
    Path(config.bundle_of(config.me)).write_text(head + body)


def run_until(link: RayLink, condition: Callable[[], bool], *, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Runs the link until the condition holds; fails when the link ends by itself, or after ten seconds."""

    async def run() -> None:
        task = asyncio.ensure_future(link.run())

        async def wait() -> None:
            while not condition():
                assert not task.done(), task
                meanwhile()
                await asyncio.sleep(0.005)

        try:
            await asyncio.wait_for(wait(), 10)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_trouble_with_the_news_does_not_end_the_connection(config: AgentConfig, tmp_path: Path) -> None:
    """Whoever is told may fail: the connection is the same, and goes on bringing news."""
    be_child(config, tmp_path, CONNECTED)
    link = RayLink(config)
    told: list[list[int]] = []

    def fail() -> None:
        told.append(link.alive())
        raise OSError("no space left")

    link.on_change = fail
    run_until(link, lambda: link.alive() == [0] and len(told) == 2)
    assert len(list((tmp_path / "lives").iterdir())) == 1


def test_a_child_that_speaks_rubbish_is_replaced(config: AgentConfig, tmp_path: Path) -> None:
    """It is ended first; the next one connects."""
    be_child(config, tmp_path, ONCE_RUBBISH + CONNECTED)
    link = RayLink(config)
    run_until(link, lambda: link.up and link.alive() == [0])
    lives = [int(path.name) for path in (tmp_path / "lives").iterdir()]
    assert len(lives) == 2
    assert not [pid for pid in lives if os.path.exists(f"/proc/{pid}")]


def test_a_child_that_cannot_be_begun_is_begun_later(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is there for those who ask meanwhile."""
    be_child(config, tmp_path, CONNECTED)
    link = RayLink(config)
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    seen: list[str] = []

    def mend() -> None:
        if link.detail:
            seen.append(link.detail)
            monkeypatch.setattr(sys, "executable", python)

    run_until(link, lambda: link.alive() == [0], meanwhile=mend)
    assert "none" in seen[0]


STUB = """
class cloudpickle:
    register_pickle_by_value = staticmethod(lambda module: None)
class exceptions:
    RayActorError = RpcError = OSError
__version__ = "stub"
_raylet = util = None
def init(**options): pass
def remote(kind): return Actor()
def nodes(): raise RuntimeError("the GCS is gone")
class Actor:
    def __getattr__(self, name):
        return self
    def __call__(self, *args, **options):
        return self
"""


def test_a_connection_without_news_of_the_nodes_ends(tmp_path: Path) -> None:
    """Ray's answer was an exception: the child says so and ends, since the agent begins another."""
    (tmp_path / "ray" / "util").mkdir(parents=True)
    (tmp_path / "ray" / "__init__.py").write_text(STUB)
    (tmp_path / "ray" / "util" / "__init__.py").touch()
    names = "placement_group = placement_group_table = remove_placement_group = None\n"
    (tmp_path / "ray" / "util" / "placement_group.py").write_text(names)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = NodeFolders(tmp_path, count=1, ray_port=listening.getsockname()[1]).write()[0]
        argv = [sys.executable, config.bundle_of(config.me), "ranks", "--config", config.path]
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ
        ) as child:
            try:
                assert child.wait(15) == 1
            finally:
                child.kill()
            assert child.stderr is not None
            assert b"the nodes cannot be watched any more: RuntimeError('the GCS is gone')" in child.stderr.read()
