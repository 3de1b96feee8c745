"""One home, many users: threads, forks, event loops, and several Clients side by side."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import skylib
from skylib.errors import ClusterNotFound
from tests.embed.child import run_python


def test_threads_share_one_client(tmp_path: Path) -> None:
    """Many threads that ask a fresh home through one Client at the same moment all get the same answer."""
    together = threading.Barrier(8)
    with skylib.Client(tmp_path / "home") as client:

        def ask(number: int) -> list[skylib.ClusterRecord]:
            together.wait(60)
            return client.status()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == [[]] * 8


def test_clients_of_one_home_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Closing one Client leaves another of the same home at work, and a closed one can be used again."""
    first, second = skylib.Client(tmp_path / "home"), skylib.Client(tmp_path / "home")
    assert (first.status(), second.status()) == ([], [])
    first.close()
    assert second.status() == []
    assert first.status() == []
    first.close()
    first.close()
    second.close()


def test_homes_are_apart(tmp_path: Path) -> None:
    """Two Clients with two homes in one process write each into its own, readable by the owner only."""
    for name in ("a", "b"):
        with skylib.Client(tmp_path / name) as client:
            client.status()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    modes = {path: path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")}
    assert {path: mode for path, mode in modes.items() if mode} == {}


def _ask(client: skylib.Client, answers: multiprocessing.Queue[object]) -> None:
    try:
        answers.put(client.status())
    except BaseException as error:
        answers.put(repr(error))


def test_a_client_works_after_fork(tmp_path: Path) -> None:
    """A child that was forked from a process with an open Client uses it as its own, and the parent goes on."""
    context = multiprocessing.get_context("fork")
    with skylib.Client(tmp_path / "home") as client:
        assert client.status() == []
        answers: multiprocessing.Queue[object] = context.Queue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of fork beside threads
            children = [context.Process(target=_ask, args=(client, answers)) for _ in range(3)]
            for child in children:
                child.start()
        assert [answers.get(timeout=60) for _ in children] == [[]] * 3
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert client.status() == []


def test_a_client_works_inside_a_running_event_loop(tmp_path: Path) -> None:
    """Verbs block and need no loop of their own, so they work in a notebook's cell and in a coroutine."""

    async def cell() -> list[skylib.ClusterRecord]:
        with skylib.Client(tmp_path / "home") as client:
            return client.status() + await asyncio.to_thread(client.status)

    assert asyncio.run(cell()) == []


def test_a_closed_client_leaves_nothing_open(tmp_path: Path, isolated_home: Path) -> None:
    """After close() there are no more threads, descriptors or children than before the first verb."""
    program = f"""
import gc, os, threading
import skylib

def seen():
    gc.collect()
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            fds.append(os.readlink(f"/proc/self/fd/{{name}}"))
        except OSError:
            pass
    children = open(f"/proc/self/task/{{os.getpid()}}/children").read()
    return [sorted(fds), sorted(thread.name for thread in threading.enumerate()), children]

with skylib.Client({str(tmp_path / "home")!r}) as client:
    client.status()
before = seen()
for number in range(5):
    with skylib.Client({str(tmp_path / "home")!r}) as client:
        client.status()
answer = [before, seen()]
"""
    before, after = run_python(program, home=isolated_home)
    assert before == after
    assert before[1] == ["MainThread"]
    assert [name for name in before[0] if str(tmp_path) in name] == []


def test_nothing_is_printed_even_when_it_fails(tmp_path: Path, isolated_home: Path) -> None:
    """Verbs and their errors are silent: the caller owns the terminal (run_python fails on any output)."""
    program = f"""
import skylib
client = skylib.Client({str(tmp_path / "home")!r})
answer = []
for verb in ("queue", "down", "stop", "start", "cluster", "cancel", "tail_logs", "download_logs"):
    try:
        getattr(client, verb)("nothing-like-it")
    except skylib.errors.ClusterNotFound as error:
        answer.append(verb)
client.status()
client.close()
"""
    verbs = run_python(program, home=isolated_home)
    assert verbs == ["queue", "down", "stop", "start", "cluster", "cancel", "tail_logs", "download_logs"]


def test_the_callers_logging_is_left_alone(tmp_path: Path) -> None:
    """skylib adds no handler, sets no level, and stops no record on its way to the caller's handlers.

    One logger is excepted: paramiko's own lines, which would otherwise reach stderr without any handler, are off until
    the caller sets a level.
    """
    with skylib.Client(tmp_path / "home") as client:
        client.status()
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "skylib"]
    for name in set(names) - {"skylib.wire"}:
        logger = logging.getLogger(name)
        assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)


def test_the_callers_sink_gets_events_of_a_failing_verb(tmp_path: Path) -> None:
    """events= is called for each step, a failing one with what failed."""
    seen: list[skylib.events.Event] = []
    with skylib.Client(tmp_path / "home", events=seen.append) as client, pytest.raises(ClusterNotFound):
        client.down("nothing-like-it")
    assert [(event.step, event.phase.value) for event in seen if event.step == "down"] == [
        ("down", "started"),
        ("down", "failed"),
    ]


def test_the_environment_is_not_written(tmp_path: Path) -> None:
    """Verbs leave os.environ and the working directory as they were."""
    before = dict(os.environ), Path.cwd()
    with skylib.Client(tmp_path / "home") as client:
        client.status()
        client.check()
    assert (dict(os.environ), Path.cwd()) == before
