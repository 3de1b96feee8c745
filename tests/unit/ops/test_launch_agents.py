"""When a launch is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from skylib.events import Event, Phase
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import launch
from skylib.session import Session
from tests.doom import Doom, Wires
from tests.scripted_node import ScriptedHost, ScriptedLab

_T = TypeVar("_T")


class LateAgent(Doom):
    """The worker's agent is begun when Ray has all nodes already."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = threading.Event()

    def act(self, what: str, effect: Callable[[], _T], *, host: ScriptedHost | None = None) -> _T:
        if what == "daemon" and host is not None and host.name == "h2":
            assert self.ready.wait(60)
        return super().act(what, effect, host=host)

    def told(self, event: Event) -> None:
        if (event.step, event.phase) == ("runtime.ready", Phase.FINISHED):
            self.ready.set()


def test_a_launch_ends_when_every_node_has_its_agent(tmp_path: Path):
    """An agent that comes after Ray has all nodes is waited for: a client that ends right after leaves no node without."""
    lab, late = ScriptedLab(2), LateAgent()
    tmp_path.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    session = Session(tmp_path, transports=Wires(lab, late), events=late.told)
    task = Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab"))
    launch.launch(session, task, "a", launch.Options())
    record = session.require("a")
    assert [host.kinds(record.cluster_id) for host in lab.hosts.values()] == [["agent", "ray"]] * 2
    session.close()
