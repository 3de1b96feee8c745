"""What a stream of a job's lines promises, over a real agent and a real channel; nodes are folders."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylib.errors import AgentError, InvalidSpecError, JobNotFound
from skylib.jobs import logs
from skylib.jobs.stream import LogStream, Place
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.agent_stream import WINDOW_BYTES
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from tests.ray.agent_harness import Client, InProcessAgent, NodeFolders, until

COUNT = "for i in $(seq {}); do echo $SKYPILOT_NODE_RANK $i; done"
SLOW = "for i in $(seq 60); do echo $SKYPILOT_NODE_RANK $i; sleep 0.01; done"
THREADS = "skylib-log"


class Site:
    """An agent, and ways to it."""

    def __init__(self, base: Path) -> None:
        self.agent = InProcessAgent(NodeFolders(base, count=2))
        self.agent.begin()
        head = self.agent.head
        words = (sys.executable, "-S", "-E", head.bundle_of(head.me), "bridge", "--socket", head.socket)
        self.client = AgentClient(
            LocalTransport(), Command.of(*words), cluster="train", cluster_id=head.cluster_id, version="test"
        )
        self.plain = Client(head.socket)
        self.plain.call("ready", timeout_s=10)

    def submit(self, run: str, **spec: Any) -> int:
        return self.plain.submit(run, **spec)

    def stream(self, job_id: int, *, follow: bool = True, patience_s: float = 20.0, **place: Any) -> LogStream:
        def open_source(place: Place) -> Any:
            return logs.open_source(self.client, "train", job_id, place, follow=follow)

        return LogStream(open_source, Place(**place), patience_s=patience_s)

    def go(self) -> None:
        """Jobs that wait for the file "go" go on, on whichever node they run."""
        for config in self.agent.configs:
            Path(config.root, "sky_workdir").mkdir(exist_ok=True)
            Path(config.root, "sky_workdir", "go").touch()

    def cut(self) -> None:
        """The channel breaks under whoever uses it."""
        channel = self.client._channel
        if channel is not None:
            channel._process.close()

    def again(self) -> None:
        self.agent.stop()
        self.agent.begin()

    def close(self) -> None:
        self.client.close()
        self.plain.close()
        self.agent.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def texts(stream: LogStream) -> list[str]:
    return [line.text for line in stream]


async def all_of(stream: LogStream) -> list[str]:
    return [line.text async for line in stream]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def test_threads_and_loops_read_the_same_lines(site: Site) -> None:
    """Two event loops and two threads follow one job at once; each has every line, in order."""
    job_id = site.submit(COUNT.format(3000))
    found: list[list[str]] = []
    loops = [in_thread(lambda: found.append(asyncio.run(all_of(site.stream(job_id))))) for _ in range(2)]
    threads = [in_thread(lambda: found.append(texts(site.stream(job_id)))) for _ in range(2)]
    for thread in loops + threads:
        thread.join(60)
    assert found == [[f"0 {number}" for number in range(1, 3001)]] * 4


def test_a_stream_leaves_the_callers_loop_alone(site: Site) -> None:
    """While lines are waited for, and while many come at once, other tasks of the loop have their turns."""
    job_id = site.submit("until [ -e go ]; do sleep 0.01; done; " + COUNT.format(20000))

    async def run() -> tuple[list[str], float]:
        longest, over = 0.0, False

        async def tick() -> None:
            nonlocal longest
            while not over:
                began = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - began)

        ticking = asyncio.ensure_future(tick())
        reading = asyncio.ensure_future(all_of(site.stream(job_id)))
        await asyncio.sleep(0.05)
        site.go()
        found = await reading
        over = True
        await ticking
        return found, longest

    found, longest = asyncio.run(run())
    assert len(found) == 20000
    assert longest < 1.0  # a batch of them takes far longer to be printed than a turn


def test_cancelling_a_task_that_waits_closes_its_stream(site: Site) -> None:
    """The job goes on, no thread of ours is left, and the stream has ended."""
    job_id = site.submit("echo begun; until [ -e go ]; do sleep 0.01; done")

    async def run() -> LogStream:
        stream = site.stream(job_id)
        assert (await stream.__anext__()).text == "begun"
        waiting = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return stream

    stream = asyncio.run(run())
    assert stream.closed
    assert texts(stream) == []
    assert site.plain.job(job_id)["status"] == "RUNNING"
    until(lambda: not ours())
    site.go()
    assert site.plain.done(job_id)["status"] == "SUCCEEDED"


def test_closing_ends_a_thread_that_waits(site: Site) -> None:
    """`close` from another thread; the loop over the lines just ends."""
    job_id = site.submit("echo begun; sleep 100")
    stream = site.stream(job_id)
    assert next(stream).text == "begun"
    found: list[list[str]] = []
    reading = in_thread(lambda: found.append(texts(stream)))
    stream.close()
    reading.join(10)
    assert found == [[]]
    assert texts(site.stream(job_id, follow=False)) == ["begun"]


def test_async_with_closes(site: Site) -> None:
    """Leaving the block early ends the watching."""
    job_id = site.submit("echo begun; sleep 100")

    async def run() -> LogStream:
        async with site.stream(job_id) as stream:
            async for _ in stream:
                break
        return stream

    assert asyncio.run(run()).closed
    until(lambda: not ours())


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["cut", "agent", "new"])), max_size=4), st.booleans())
def test_each_line_comes_once_whatever_breaks(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[tuple[int, str]], in_loop: bool
) -> None:
    """Channels are cut, agents begin anew, clients go on from an offset: each rank's lines are there once, in order."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        job_id = site.submit(SLOW, num_nodes=2)
        stream = site.stream(job_id)
        found: list[str] = []
        left = list(breaks)
        count = left[0][0] if left else -1
        loop = asyncio.new_event_loop()
        while True:
            try:
                line = loop.run_until_complete(stream.__anext__()) if in_loop else next(stream)
            except (StopIteration, StopAsyncIteration):
                break
            found.append(line.text)
            count -= 1
            if count == 0:
                _, what = left.pop(0)
                count = left[0][0] if left else -1
                if what == "cut":
                    site.cut()
                elif what == "agent":
                    site.again()
                else:
                    offset = stream.offset
                    stream.close()
                    stream = site.stream(job_id, offset=offset)
        loop.close()
        for rank in (0, 1):
            assert [each for each in found if each.startswith(f"{rank} ")] == [f"{rank} {i}" for i in range(1, 61)]
    finally:
        site.close()


def test_a_stream_that_stays_broken_is_no_end(site: Site) -> None:
    """After its patience an error is raised, again and again; when the agent is back the same stream goes on."""
    job_id = site.submit("echo one; until [ -e go ]; do sleep 0.01; done; echo two")
    stream = site.stream(job_id, patience_s=0.3)
    assert next(stream).text == "one"
    site.agent.stop()
    for _ in range(2):
        with pytest.raises(AgentError):
            next(stream)
    site.agent.begin()
    site.go()
    assert texts(stream) == ["two"]


def test_a_follower_that_does_not_read_holds_nobody_up_and_little_memory(site: Site) -> None:
    """The job ends, another follower has it all, and what waits for the idle one is no more than its window and a piece."""
    size = 30_000_000
    job_id = site.submit(f"head -c {size} /dev/zero | tr '\\0' x | fold -w 99")
    idle = site.stream(job_id)
    next(idle)
    assert sum(len(line.raw) + 1 for line in site.stream(job_id)) >= size
    assert site.plain.done(job_id)["status"] == "SUCCEEDED"
    waiting = idle._held.source._stream._replies._messages  # type: ignore[union-attr]
    held = 0
    while not waiting.empty():
        message = waiting.get_nowait()
        held += len(message["item"]["text"])
    assert 0 < held <= WINDOW_BYTES + (1 << 20)
    idle.close()


def test_a_slow_follower_gets_everything(site: Site) -> None:
    """One that reads a little at a time, far behind the job, misses nothing."""
    job_id = site.submit(COUNT.format(400000))
    stream = site.stream(job_id)
    first = [next(stream).text for _ in range(10)]
    site.plain.done(job_id)
    assert first + texts(stream) == [f"0 {number}" for number in range(1, 400001)]


def test_a_stream_that_nobody_has_any_more_is_ended(site: Site) -> None:
    """It was left in the middle: the agent is told so when its next line comes."""
    job_id = site.submit(SLOW + "; " + SLOW)
    for _ in site.stream(job_id):
        break
    channel = site.client._channel
    assert channel is not None
    until(lambda: not channel._pending, timeout_s=20)
    assert site.plain.job(job_id)["status"] == "RUNNING"


def test_a_job_in_the_queue_is_waited_for(site: Site) -> None:
    """`follow` waits until it runs; without, there is nothing yet."""
    holder = site.submit("until [ -e go ]; do sleep 0.01; done", num_nodes=2, demand={"CPU": 4})
    waiting = site.submit("echo ran", num_nodes=2, demand={"CPU": 4})
    site.plain.when(holder, "RUNNING")
    assert texts(site.stream(waiting, follow=False)) == []
    found: list[list[str]] = []
    reading = in_thread(lambda: found.append(texts(site.stream(waiting))))
    site.go()
    reading.join(30)
    assert found == [["ran", "ran"]]


@pytest.mark.parametrize("tail", [0, 1, 5, 100, 1000])
def test_a_tail_is_exact(site: Site, tail: int) -> None:
    """The last so many lines that are there, whichever rank they are of; all of them, if there are no more."""
    job_id = site.submit(SLOW.replace("60", "50"), num_nodes=2)
    site.plain.done(job_id)
    every = [(line.rank, line.text) for line in site.stream(job_id)]
    assert len(every) == 100
    wanted = every[-tail:] if tail else []
    assert [(line.rank, line.text) for line in site.stream(job_id, tail=tail)] == wanted
    assert [(line.rank, line.text) for line in site.stream(job_id, tail=tail, follow=False)] == wanted


def test_a_tail_resumes_where_it_began(site: Site) -> None:
    """A break before the first line of a tail loses no line that came meanwhile."""
    job_id = site.submit("echo one; echo two; until [ -e go ]; do sleep 0.01; done; echo three")
    until(lambda: len(texts(site.stream(job_id, follow=False))) == 2)
    stream = site.stream(job_id, tail=0)
    found: list[list[str]] = []
    reading = in_thread(lambda: found.append(texts(stream)))
    until(lambda: stream.offset)
    site.cut()
    site.go()
    reading.join(30)
    assert found == [["three"]]


def test_offsets_where_no_line_begins_are_refused(site: Site) -> None:
    """Within a line, and beyond the end, with what is there in the error; the end itself is fine."""
    job_id = site.submit("echo one; echo two")
    lines = list(site.stream(job_id))
    for offset in (1, lines[0].next_offset + 3, lines[1].next_offset + 1):
        with pytest.raises(InvalidSpecError, match=f"no line begins at offset {offset}"):
            next(site.stream(job_id, offset=offset))
    assert texts(site.stream(job_id, offset=lines[0].next_offset)) == ["two"]
    assert texts(site.stream(job_id, offset=lines[1].next_offset)) == []
    with pytest.raises(JobNotFound):
        next(site.stream(99))


BINARY = {
    "nul": (b"a\0b\nc\0\n", [b"a\0b", b"c\0"]),
    "progress": (b"\r 1%\r 2%\r100%\ndone\n", [b"\r 1%\r 2%\r100%", b"done"]),
    "no newline at the end": (b"one\ntwo", [b"one", b"two"]),
    "not UTF-8": (b"\xff\xfe\n\x80\n", [b"\xff\xfe", b"\x80"]),
    "empty lines": (b"\n\n\nx\n", [b"", b"", b"", b"x"]),
    "like a prefix": (b"(head, rank=0) \n(head, rank=0) x\n", [b"(head, rank=0) ", b"(head, rank=0) x"]),
}


@pytest.mark.parametrize("kind", BINARY)
def test_bytes_come_as_they_were_printed(site: Site, tmp_path: Path, kind: str) -> None:
    """Whatever they are; the whole of it, in a stream and in a kept log."""
    data, lines = BINARY[kind]
    source = tmp_path / "data"
    source.write_bytes(data)
    job_id = site.submit(f"cat {source}")
    assert [line.raw for line in site.stream(job_id)] == lines
    path = tmp_path / "kept" / "run.log"
    logs.keep(site.client, "train", job_id, path)
    assert [line.raw for line in logs.kept_source(path, Place()).take(None).lines] == lines  # type: ignore[union-attr]
    (merged,) = Path(site.agent.head.root, "sky_logs").glob("*/run.log")
    assert path.read_bytes() == merged.read_bytes()


def test_an_endless_line_comes_in_pieces(site: Site) -> None:
    """Ten megabytes without a newline, whole, each piece but the last one said to go on."""
    job_id = site.submit("head -c 10000000 /dev/zero | tr '\\0' y")
    pieces = list(site.stream(job_id))
    assert sum(len(piece.raw) for piece in pieces) == 10_000_000
    assert all(piece.partial for piece in pieces[:-1])


def test_a_flood_of_one_job_keeps_no_other_waiting(site: Site) -> None:
    """While a job prints without end, each line of another comes before its next is printed."""
    flood = site.submit("while :; do seq 5000; done")
    site.plain.when(flood, "RUNNING")
    job_id = site.submit("for i in $(seq 5); do rm -f go; echo $i; until [ -e go ]; do sleep 0.01; done; done")
    found = []
    for line in site.stream(job_id):
        found.append(line.text)
        site.go()
    assert found == ["1", "2", "3", "4", "5"]
    site.plain.call("cancel", job_ids=[flood])


def test_what_a_gang_printed_before_one_of_it_failed_is_all_there(site: Site) -> None:
    """Rank 1 fails when rank 0 has printed far more than was collected by then: the log has all that rank 0 had written."""
    flood = "head -c 60000000 /dev/zero | tr '\\0' x | fold -w 999; touch ../printed; sleep 100"
    last = "until [ -e ../../n0/printed ]; do sleep 0.01; done; exit 3"
    job_id = site.submit(f'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then {flood}; else {last}; fi', num_nodes=2)
    assert sum(len(line.raw) for line in site.stream(job_id)) == 60_000_000
    assert site.plain.done(job_id)["status"] == "FAILED"


def test_what_a_job_printed_before_it_was_cancelled_is_all_there(site: Site) -> None:
    """A cancel ends its processes at once and its log when all of it has come in."""
    job_id = site.submit("head -c 20000000 /dev/zero | tr '\\0' x | fold -w 999; touch ../printed; sleep 100")
    until(lambda: any(Path(config.root, "printed").exists() for config in site.agent.configs), timeout_s=60)
    site.plain.call("cancel", job_ids=[job_id])
    assert sum(len(line.raw) for line in site.stream(job_id)) == 20_000_000
