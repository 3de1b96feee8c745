"""Files that tell when they change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.agent.waking import Wakeup


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    made = Wakeup()
    if not made.trusted:
        pytest.skip("no inotify here")
    yield made
    made.close()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_change_is_told_each_time_that_it_is_looked_for(wakeup: Wakeup, tmp_path: Path) -> None:
    """A line, a new file, a file that takes another's place: each ends the wait."""
    for change in (
        lambda: append(tmp_path / "log", "line"),
        lambda: append(tmp_path / "log", "another"),
        lambda: (tmp_path / "new").touch(),
        lambda: (tmp_path / "new").rename(tmp_path / "exit"),
    ):
        wakeup.clear()
        assert wakeup.watch([str(tmp_path)])
        assert not wakeup.wait(0)
        change()
        assert wakeup.wait(10)


def test_a_writer_is_not_troubled_by_each_of_its_lines(wakeup: Wakeup, tmp_path: Path) -> None:
    """Once a change was told, more of them cost nothing and tell nothing until somebody looks again."""
    assert wakeup.watch([str(tmp_path)])
    append(tmp_path / "log", "line")
    assert wakeup.wait(10)
    wakeup.clear()
    append(tmp_path / "log", "another")
    assert not wakeup.wait(0.05)
    assert wakeup.watch([str(tmp_path)])
    append(tmp_path / "log", "a third")
    assert wakeup.wait(10)


def test_what_changed_between_looking_and_waiting_is_told(wakeup: Wakeup, tmp_path: Path) -> None:
    """In the order clear, watch, look, wait nothing is missed."""
    wakeup.clear()
    assert wakeup.watch([str(tmp_path)])
    append(tmp_path / "log", "printed while the caller looked")
    assert wakeup.wait(10)


def test_two_names_of_one_directory_are_both_watched_again(wakeup: Wakeup, tmp_path: Path) -> None:
    """A directory that is reached by two paths is one to the kernel."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    for _ in range(3):
        wakeup.clear()
        assert wakeup.watch([str(real), str(link)])
        append(real / "log", "line")
        assert wakeup.wait(10)
    wakeup.clear()
    assert wakeup.watch([str(link)])
    append(real / "log", "line")
    assert wakeup.wait(10)


def test_a_directory_that_is_not_there_cannot_be_watched(wakeup: Wakeup, tmp_path: Path) -> None:
    """The caller is told, and looks by itself."""
    assert not wakeup.watch([str(tmp_path / "none")])


def test_setting_it_ends_a_wait_without_any_file(wakeup: Wakeup) -> None:
    """Until it is cleared."""
    wakeup.set()
    assert wakeup.wait(10)
    wakeup.clear()
    assert not wakeup.wait(0)
