"""A node's Ray is kept: decided by a table, shown on processes that are called like Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.agent.config import AgentConfig, RayStart, load_config
from skylib.agent.portwatch import ANSWERS, REFUSED, SILENT, UNKNOWN
from skylib.agent.processes import Process, carrying, end, own
from skylib.agent.protocol import RAY_RANK_VARIABLE, TOKEN_VARIABLE
from skylib.agent.rayhold import RayHold, Seen, pause_s, step
from tests.ray.agent_harness import NodeFolders


@pytest.mark.parametrize(
    ("head", "seen", "todo"),
    [
        (True, Seen(kept=False, raylet=False, gcs_process=False, gcs_port=""), "wait"),
        (True, Seen(kept=False, raylet=True, gcs_process=True, gcs_port=""), "wait"),
        (True, Seen(kept=True, raylet=True, gcs_process=True, gcs_port=""), "up"),
        (True, Seen(kept=True, raylet=False, gcs_process=True, gcs_port=""), "start"),
        (True, Seen(kept=True, raylet=True, gcs_process=False, gcs_port=""), "start"),
        (False, Seen(kept=False, raylet=False, gcs_process=True, gcs_port=ANSWERS), "wait"),
        (False, Seen(kept=True, raylet=True, gcs_process=True, gcs_port=ANSWERS), "up"),
        (False, Seen(kept=True, raylet=True, gcs_process=True, gcs_port=SILENT), "up"),
        (False, Seen(kept=True, raylet=True, gcs_process=True, gcs_port=UNKNOWN), "up"),
        (False, Seen(kept=True, raylet=True, gcs_process=True, gcs_port=REFUSED), "end"),
        (False, Seen(kept=True, raylet=False, gcs_process=True, gcs_port=ANSWERS), "start"),
        (False, Seen(kept=True, raylet=False, gcs_process=True, gcs_port=REFUSED), "wait"),
        (False, Seen(kept=True, raylet=False, gcs_process=True, gcs_port=SILENT), "wait"),
    ],
)
def test_what_is_to_be_done(head: bool, seen: Seen, todo: str):
    """Nothing before the first start; the head needs both processes; a worker its raylet and a head that listens."""
    assert step(seen, head=head) == todo


def test_the_back_off_grows_to_its_bound():
    """At once at first, then ever longer, half a minute at most."""
    pauses = [pause_s(failures) for failures in range(20)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30


class Ray:
    """Sleeping processes called raylet and gcs_server, which a node's `ray start` begins."""

    def __init__(self, base: Path, *, head: bool, port: int = 1) -> None:
        folders = NodeFolders(base, count=2, ray_port=port)
        self.base = base
        self.config: AgentConfig = folders.write()[0 if head else 1]
        self.programs = ("gcs_server", "raylet") if head else ("raylet",)
        for name in self.programs:
            shutil.copy(shutil.which("sleep") or "/bin/sleep", base / name)
        token = {TOKEN_VARIABLE: self.config.cluster_id, RAY_RANK_VARIABLE: str(self.config.rank)}
        self.environ = {**os.environ, **token}
        run = "{base}/{name} 1000 </dev/null >/dev/null 2>&1 & "
        run += "until read comm </proc/$!/comm && [ $comm = {name} ]; do :; done"
        lines = [run.format(base=base, name=name) for name in self.programs]  # succeeds when they are there, as Ray's does
        self.script = "\n".join([f"echo start >> {base}/starts", f"[ ! -e {base}/broken ] || exit 7", *lines])
        start = {"argv": ["/bin/sh", "-c", self.script], "env": token}
        path = Path(self.config.path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "ray_start": start, "standing": "first"}))
        self.config = load_config(str(path))
        assert isinstance(self.config.ray_start, RayStart)

    def begin(self) -> None:
        """As bring-up does."""
        subprocess.run(["/bin/sh", "-c", self.script], env=self.environ, check=True)

    def processes(self) -> dict[str, int]:
        """By name."""
        wanted = {TOKEN_VARIABLE: self.config.cluster_id, RAY_RANK_VARIABLE: str(self.config.rank)}
        found = {}
        for pid in carrying(own().values(), wanted):
            with contextlib.suppress(OSError):
                found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
        return found

    def starts(self) -> int:
        try:
            return len((self.base / "starts").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        def find() -> list[Process]:
            processes = own()
            return [processes[pid] for pid in carrying(processes.values(), {TOKEN_VARIABLE: self.config.cluster_id})]

        end(find, grace_s=0.0)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Ray]:
    made = Ray(tmp_path, head=True)
    yield made
    made.close()


def keep(hold: RayHold, *steps: Callable[[], bool]) -> None:
    """Runs the hold until each condition in turn has come true."""

    async def run() -> None:
        task = asyncio.ensure_future(hold.run())
        deadline = time.monotonic() + 20
        for condition in steps:
            while not condition():
                assert time.monotonic() < deadline, (hold.to_json(), condition)
                assert not task.done(), task
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def all_of(ray: Ray) -> bool:
    return set(ray.processes()) >= set(ray.programs)


def kill(ray: Ray, name: str) -> bool:
    os.kill(ray.processes()[name], signal.SIGKILL)
    return True


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_the_head_starts_its_whole_ray_again(head: Ray, victim: str):
    """Whichever of the two has ended, the other one is ended as well, and both begin anew."""
    head.begin()
    old = head.processes()
    told: list[str] = []

    async def go() -> None:
        hold = RayHold(head.config, on_down=told.append, on_start=lambda: told.append("start"))
        hold.confirm()
        task = asyncio.ensure_future(hold.run())
        await _until(lambda: hold.state == "up")
        kill(head, victim)
        await _until(lambda: hold.restarts == 1 and hold.state == "up")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert all_of(head)
    assert not set(head.processes().values()) & set(old.values())
    assert ("GCS" if victim == "gcs_server" else "raylet") in told[0]
    assert told[1:] == ["start"]


async def _until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_ray_that_has_stood_is_started_again_without_a_pause(head: Ray):
    """However often it is ended: the back-off is for starts that do not last."""
    head.begin()

    async def go() -> None:
        hold = RayHold(head.config, stable_s=0.2)
        hold.confirm()
        task = asyncio.ensure_future(hold.run())
        for count in range(5):
            await _until(lambda: hold.state == "up")
            up_at = time.monotonic()
            await _until(lambda: time.monotonic() > up_at + 0.6)  # it has stood, and was looked at
            kill(head, "raylet")
            await _until(lambda: hold.restarts == count + 1, within_s=pause_s(4) - 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


def test_nothing_is_started_before_the_first_start_has_succeeded(head: Ray):
    """An agent beside a bring-up that is at work, or has failed, leaves Ray to it."""

    async def go() -> None:
        hold = RayHold(head.config)
        task = asyncio.ensure_future(hold.run())
        await _until(lambda: hold._found)
        head.begin()
        kill(head, "raylet")
        await asyncio.sleep(0.6)  # three looks
        assert (hold.state, hold.restarts) == ("waiting", 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert head.starts() == 1


def test_ray_that_came_up_between_two_looks_is_left_alone(head: Ray):
    """When its start is confirmed, what an earlier look found says nothing any more."""

    async def go() -> None:
        hold = RayHold(head.config)
        task = asyncio.ensure_future(hold.run())
        await _until(lambda: hold._found)
        head.begin()
        while not all_of(head):  # without a look of the hold in between
            time.sleep(0.005)
        hold.confirm()
        await _until(lambda: hold.state == "up")
        assert hold.restarts == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert head.starts() == 1


def test_an_agent_that_is_begun_anew_brings_ray_back(head: Ray):
    """That Ray once was up is written down: after a boot, or with an agent that died, it is started again."""
    RayHold(head.config).confirm()
    hold = RayHold(head.config)
    keep(hold, lambda: hold.state == "up" and all_of(head))
    assert (hold.restarts, head.starts()) == (1, 1)


def test_another_bring_up_is_another_matter(head: Ray):
    """What an earlier bring-up of the cluster achieved says nothing of the one that is at work."""
    RayHold(head.config).confirm()
    path = Path(head.config.path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "standing": "second"}))
    assert not RayHold(load_config(str(path)))._was_kept()


def test_starts_that_fail_are_told_and_tried_again(head: Ray):
    """The reason is in `info`; when it has passed, Ray comes up."""
    (head.base / "broken").touch()
    RayHold(head.config).confirm()
    hold = RayHold(head.config)

    def mend() -> bool:
        assert "exited 7" in hold.last_error
        (head.base / "broken").unlink()
        return True

    keep(hold, lambda: hold.state == "failing", mend, lambda: hold.state == "up")
    assert hold.last_error == ""
    assert all_of(head)


def test_a_temp_dir_that_a_boot_took_away_is_made_again(head: Ray):
    """For the account alone, with the claim on it."""
    folder = head.base / "temp"
    Path(head.config.sky, "cluster.json").write_text('{"cluster": "train"}')
    RayHold(head.config).confirm()
    hold = RayHold(head.config._replace(temp_dir=str(folder)))
    keep(hold, lambda: hold.state == "up")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "cluster.json").read_text() == '{"cluster": "train"}'
    assert (folder / "cluster.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("link", ["temp", "temp/cluster.json"])
def test_nothing_is_written_through_a_link_that_somebody_left_in_its_place(head: Ray, link: str):
    """After a boot anybody may be the first to make what stands there."""
    (head.base / "theirs").mkdir()
    Path(head.config.sky, "cluster.json").write_text("{}")
    folder, target = head.base / "temp", head.base / "theirs" / "target"
    if link == "temp":
        folder.symlink_to(head.base / "theirs")
    else:
        folder.mkdir(mode=0o700)
        (folder / "cluster.json").symlink_to(target)
    RayHold(head.config).confirm()
    hold = RayHold(head.config._replace(temp_dir=str(folder)))
    keep(hold, lambda: hold.state == ("failing" if link == "temp" else "up"))
    assert ("no directory of this account" in hold.last_error) is (link == "temp")
    assert list((head.base / "theirs").iterdir()) == []


def test_a_paused_hold_starts_nothing(head: Ray):
    """While the cluster is being ended its Ray stays down."""
    head.begin()
    RayHold(head.config).confirm()
    hold = RayHold(head.config)

    def pause() -> bool:
        hold.pause()
        return kill(head, "raylet")

    began = time.monotonic()
    keep(hold, lambda: hold.state == "up", pause, lambda: time.monotonic() - began > 1.0)
    assert (hold.restarts, head.starts()) == (0, 1)


def test_a_job_is_no_part_of_ray(head: Ray):
    """A rank's process, which has the cluster's token and no mark of Ray, lives through a restart."""
    head.begin()
    environ = {name: value for name, value in head.environ.items() if name != RAY_RANK_VARIABLE}
    job = subprocess.Popen(["sleep", "1000"], env=environ)
    RayHold(head.config).confirm()
    hold = RayHold(head.config)
    again = lambda: hold.restarts == 1 and hold.state == "up"  # noqa: E731
    keep(hold, lambda: hold.state == "up", lambda: kill(head, "gcs_server"), again)
    assert job.poll() is None
    job.kill()
    job.wait()


def test_a_worker_waits_for_its_head(tmp_path: Path):
    """Its raylet is ended when the head's GCS port is refused, and started when somebody listens there again."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        ray = Ray(tmp_path, head=False, port=port)
        ray.begin()
        hold = RayHold(ray.config)
        again = socket.socket()

        def listen() -> bool:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.close()
            again.bind(("127.0.0.1", port))
            again.listen()
            return True

        try:
            down = lambda: hold.state == "down" and not ray.processes()  # noqa: E731
            keep(hold, down, listen, lambda: hold.state == "up" and all_of(ray))
        finally:
            again.close()
            ray.close()
    assert ray.starts() == 2
