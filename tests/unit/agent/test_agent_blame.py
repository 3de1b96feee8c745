"""Which rank is to blame, how that is said, and why a rank failed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.blame import Failure, describe, failure_of, first_of, masked, not_started, signal_name
from skylib.agent.evidence import (
    MAX_LINES,
    disk_is_full,
    end_record,
    few,
    full_disk_error,
    last_lines,
    reason_of,
    speaks_of_a_full_disk,
)


@pytest.mark.parametrize(
    ("record", "setup", "text"),
    [
        ({"code": 3, "signal": None}, False, "exited 3"),
        ({"code": 3, "signal": None}, True, "exited 3 in setup"),
        ({"code": 137, "signal": 9}, False, "was ended by signal 9 (SIGKILL)"),
        ({"code": 178, "signal": 50}, False, "was ended by signal 50"),
        ({"code": 137, "signal": 9, "reason": "oom"}, False, "ran out of memory: the kernel ended it (signal 9)"),
        ({"code": 137, "signal": None, "reason": "oom"}, False, "ran out of memory: the kernel ended it (exit code 137)"),
        ({"code": 1, "signal": None, "reason": "disk_full"}, False, "exited 1: the disk of its node is full"),
        (
            {"code": 0, "signal": None, "reason": "disk_full"},
            False,
            "exited 0, but its disk is full: what it printed is not whole",
        ),
        ({"lost": "its node is gone"}, False, "was lost: its node is gone"),
        (not_started("no bash", disk_full=False), False, "could not be started: no bash"),
        (not_started("Errno 28", disk_full=True), False, "could not be started: the disk of its node is full"),
    ],
)
def test_what_became_of_a_rank_is_said_in_words(record: dict[str, Any], setup: bool, text: str) -> None:
    """One line that a person understands at once."""
    assert describe(record, setup=setup) == text


def test_a_rank_that_ended_well_is_no_failure() -> None:
    """Exit code 0 is none, but for a log that the disk has cut off."""
    assert failure_of(0, 0, "h", {"code": 0, "signal": None, "reason": "exit"}, now=1.0, setup=False) is None
    cut = failure_of(0, 4, "h", {"code": 0, "signal": None, "reason": "disk_full", "age_s": 0.25}, now=1.0, setup=False)
    assert cut is not None
    assert (cut.at, cut.cause["rank"], cut.cause["exit_code"], cut.lost) == (0.75, 4, 0, False)


def test_a_lost_rank_has_no_exit_code() -> None:
    """Nobody knows one."""
    failure = failure_of(1, 1, "h1", {"lost": "gone", "age_s": 0.0}, now=1.0, setup=False)
    assert failure is not None
    assert failure.cause == {
        "rank": 1,
        "node": "h1",
        "exit_code": None,
        "signal": None,
        "reason": "lost",
        "last_lines": [],
    }


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), min_size=1, max_size=8))
def test_the_first_to_end_is_first_in_whatever_order_it_is_heard(ends: list[tuple[float, float]]) -> None:
    """Each is heard of some time after its end; its age then tells when that was."""
    failures = []
    for place, (ended_at, delay_s) in sorted(enumerate(ends), key=lambda item: item[1][0] + item[1][1]):
        record = {"code": 1, "signal": None, "age_s": delay_s}
        failure = failure_of(place, place, "h", record, now=ended_at + delay_s, setup=False)
        assert failure is not None
        failures.append(failure)
    first = first_of(failures)
    assert first is not None
    assert ends[first.place][0] <= min(ended_at for ended_at, _ in ends) + 1e-6


def test_without_a_failure_nobody_is_first() -> None:
    """And of two at the same time it is the lower rank."""
    assert first_of([]) is None
    same = [Failure(1.0, 2, "", {}, False), Failure(1.0, 1, "", {}, False)]
    assert first_of(same) == same[1]


def test_a_secret_that_was_printed_is_not_kept() -> None:
    """The longer one first; what is shorter than four characters would hide half of the text."""
    cause = {"rank": 0, "last_lines": ["token=abcdef abcd", "x"]}
    assert masked(cause, ["abcd", "abcdef", "x"]) == {"rank": 0, "last_lines": ["token=*** ***", "x"]}
    assert masked(None, ["abcd"]) is None


def test_a_secret_of_several_lines_is_hidden_line_by_line() -> None:
    """A private key that a failing rank printed is not kept with the cause."""
    key = "-----BEGIN KEY-----\r\nMIIEow==\n-----END KEY-----\n"
    cause = {"last_lines": ["-----BEGIN KEY-----", "> MIIEow== <", "-----END KEY-----", "failed"]}
    assert masked(cause, [key]) == {"last_lines": ["***", "> *** <", "***", "failed"]}


def test_names_of_signals() -> None:
    """Those that have one."""
    assert (signal_name(15), signal_name(64), signal_name(200)) == ("SIGTERM", "SIGRTMAX", "")


@pytest.mark.parametrize(
    ("code", "signal", "memory_killed", "disk_full", "lines", "reason"),
    [
        (1, None, False, False, [], "exit"),
        (137, 9, False, False, [], "signal"),
        (137, 9, True, False, [], "oom"),
        (137, None, True, False, ["Killed"], "oom"),
        (137, None, False, False, ["Killed"], "exit"),
        (1, None, True, False, ["ProcessExitedException: signal SIGKILL"], "oom"),
        (1, None, True, False, ["KeyError: 3"], "exit"),
        (143, 15, True, False, [], "signal"),
        (1, None, False, True, [], "disk_full"),
        (1, None, False, False, ["OSError: [Errno 28] No space left on device"], "disk_full"),
        (1, None, False, False, ["tar: write error: Disk quota exceeded"], "disk_full"),
        (135, 7, False, True, [], "disk_full"),
        (137, 9, False, True, [], "signal"),
        (137, None, False, True, [], "exit"),
        (137, 9, True, True, [], "oom"),
    ],
)
def test_why_a_rank_failed(
    code: int, signal: int | None, memory_killed: bool, disk_full: bool, lines: list[str], reason: str
) -> None:
    """Memory kills count where something was killed; a full disk where it was not ended from outside."""
    assert reason_of(code, signal, memory_killed=memory_killed, disk_full=disk_full, lines=lines) == reason


@given(st.binary(max_size=6000))
def test_last_words_are_few(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """At most 20 lines and 4 KiB, whatever was printed; and they are the end of it."""
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(data)
    lines = few(last_lines(str(path)))
    assert len(lines) <= MAX_LINES
    assert len("\n".join(lines).encode("utf-8", "replace")) <= 4096
    text = data.decode("utf-8", "replace").rstrip()
    assert not text or text.endswith(lines[-1].rstrip()[-10:])


def test_last_words_of_a_progress_bar_and_of_one_endless_line(tmp_path: Path) -> None:
    """The bar's last state, however often it moved; the end of the line."""
    bar, line = tmp_path / "bar", tmp_path / "line"
    bar.write_text("start\n10%\r20%\r30%\n\n\n")
    line.write_text("x" * 50000 + "END")
    assert last_lines(str(bar)) == ["start", "30%"]
    bar.write_text("".join(f"{number}%\r" for number in range(100000)))
    assert last_lines(str(bar)) == ["99999%"]
    (told,) = few(last_lines(str(line)))
    assert told.endswith("xEND")
    assert len(told) < 4096
    assert last_lines(str(tmp_path / "none")) == []


SECRET = "Tr0ub4dor&3 correct horse  "


@pytest.mark.parametrize("edge", [4096, 65536])
@pytest.mark.parametrize("end", ["\n", "", "\nshort\n"])
def test_no_part_of_a_secret_is_told_wherever_words_are_cut(tmp_path: Path, edge: int, end: str) -> None:
    """Neither where the window begins that is read of a log, nor where a long line is cut: in any place of the secret."""
    path = tmp_path / "log"
    for inside in range(len(SECRET) + 1):
        path.write_text("=" * 70000 + SECRET + "=" * (edge - inside - len(end)) + end)
        told = masked({"last_lines": last_lines(str(path))}, [SECRET])
        assert told is not None
        assert set("".join(told["last_lines"])) <= set("=*short")


def test_a_log_of_secrets_alone_tells_none(tmp_path: Path) -> None:
    """Hiding makes lines shorter, so that more of them would have room: what was cut has not."""
    path = tmp_path / "log"
    for more in range(len(SECRET)):
        path.write_text("=" * more + SECRET * 4000)
        told = masked({"last_lines": last_lines(str(path))}, [SECRET])
        assert told is not None
        assert set("".join(told["last_lines"])) <= set("=*")
    path.write_text(f"{SECRET}\n" * 4000)
    assert masked({"last_lines": last_lines(str(path))}, [SECRET]) == {"last_lines": ["***"] * MAX_LINES}


def test_a_line_that_is_known_from_its_beginning_is_whole(tmp_path: Path) -> None:
    """One that the window begins with, too, and one that is longer than what is kept once its secrets are hidden."""
    path = tmp_path / "log"
    line = "x" * 65535
    path.write_text(f"before\n{line}\n")
    assert last_lines(str(path)) == [line]
    path.write_text(f"be\n{line}y\n")
    assert last_lines(str(path)) == []
    path.write_text(f"one\n{'z' * 5000}\ntwo\n")
    assert last_lines(str(path)) == ["z" * 5000, "two"]
    assert few(["one", "z" * 5000, "two"]) == ["two"]


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    """And the probe leaves nothing behind."""
    assert disk_is_full([str(tmp_path), str(tmp_path / "none")]) == ""
    assert list(tmp_path.iterdir()) == []


def test_errors_that_speak_of_room() -> None:
    """By number, or in a program's words."""
    assert full_disk_error(OSError(errno.ENOSPC, "x"))
    assert full_disk_error(OSError(errno.EDQUOT, "x"))
    assert not full_disk_error(OSError(errno.EIO, "x"))
    assert not full_disk_error(ValueError("x"))
    assert speaks_of_a_full_disk(["a", os.strerror(errno.ENOSPC)])
    assert not speaks_of_a_full_disk(["there is space left on this device"])


def test_the_record_of_an_end_has_words_only_for_a_failure(tmp_path: Path) -> None:
    """Code, signal and times as the supervisor wrote them."""
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    good = end_record({"code": 0, "signal": None, "oom": False, "at": 5.0, "mono": 7.0}, str(log), [str(tmp_path)])
    bad = end_record({"code": 9, "signal": None, "oom": True, "at": 5.0, "mono": 7.0}, str(log), [str(tmp_path)])
    assert good == {"code": 0, "signal": None, "reason": "exit", "at": 5.0, "mono": 7.0}
    assert bad == {**good, "code": 9, "last_lines": ["one", "two"]}
