"""The sinks that show what goes on: what they write where, and what they never do."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skylib
from skylib.errors import ClusterNotFound
from skylib.events import Event, Phase, fan, span
from skylib.progress import NotebookSink, TerminalSink
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, sync
from tests.unit.staging.test_staging_meter import Slow

STARTED, FINISHED, FAILED, NOTE = Phase.STARTED, Phase.FINISHED, Phase.FAILED, Phase.NOTE
HALF = {"host": "gpu1", "files": 12, "total_files": 400, "bytes": 34 << 20, "total_bytes": 1 << 30, "rate_bytes_s": 98 << 20}


def event(step: str, phase: Phase, at: float = 0.0, seconds: float | None = None, **facts: object) -> Event:
    return Event(step=step, phase=phase, at=at, seconds=seconds, facts=facts)


LAUNCH = [
    event("launch", STARTED, 0.0, cluster="train"),
    event("transport.connect", STARTED, 0.1, host="gpu1"),
    event("transport.connect", FINISHED, 0.4, 0.3, host="gpu1"),
    event("files.deliver", STARTED, 1.0, nodes=2),
    event("files.deliver", NOTE, 2.0, **HALF),
    event("files.deliver", FINISHED, 12.0, 11.0, bytes=1 << 30),
    event("launch", FINISHED, 12.5, 12.5, cluster="train"),
]


class Screen(io.StringIO):
    """A terminal, as far as it goes: lines, up to the start of an earlier one, and clear from here to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.ever: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for up, line in re.findall(r"\x1b\[(\d+)F\x1b\[J|([^\x1b\n]*)\n", text):
            if up:
                assert int(up) <= len(self.lines)
                del self.lines[len(self.lines) - int(up) :]
            else:
                self.lines.append(line)
                self.ever.append(line)
        return len(text)


def plain(*events: Event) -> list[str]:
    """What a file gets."""
    file = io.StringIO()
    sink = TerminalSink(file)
    for each in events:
        sink(each)
    return file.getvalue().splitlines()


def test_a_file_gets_a_line_for_each_step_with_its_seconds() -> None:
    """Every step's end is a line, with node, seconds and what it moved; beginnings are none."""
    assert plain(*LAUNCH) == [
        "gpu1  transport.connect  0.30 s",
        "launch train  files.deliver  11 s  1.0 GiB",
        "launch train  12 s",
    ]


def test_a_long_transfer_is_told_every_ten_seconds() -> None:
    """In a file, a node's progress is a line once in ten seconds of the step."""
    notes = [event("files.deliver", NOTE, at / 5, **HALF) for at in range(1, 5 * 25)]
    lines = plain(LAUNCH[0], *notes)
    assert lines == ["gpu1  files.deliver  12 of 400 files, 34 MiB of 1.0 GiB, 98 MiB/s"] * 2


def test_a_terminal_has_one_line_for_each_node_that_is_rewritten() -> None:
    """While a verb runs: its line, then each node's with what it is at and how far."""
    screen = Screen()
    sink = TerminalSink(screen)
    for each in LAUNCH[:4]:
        sink(each)
    sink(event("runtime.install", STARTED, 1.5, host="gpu2"))
    assert screen.lines == [
        "launch train  files.deliver  1.5 s",
        "gpu1  transport.connect done  0.30 s",
        "gpu2  runtime.install  0.00 s",
    ]
    sink(event("runtime.install", FINISHED, 4.5, 3.0, host="gpu2"))
    assert screen.lines[2] == "gpu2  runtime.install done  3.0 s"


def test_a_terminal_is_left_with_one_line_a_verb() -> None:
    """When it has ended, how long it took stays, and nothing else."""
    screen = Screen()
    sink = TerminalSink(screen)
    for each in [*LAUNCH, *LAUNCH]:
        sink(each)
    assert screen.lines == ["launch train  12 s"] * 2


def test_progress_is_on_the_nodes_line() -> None:
    """Files, bytes and rate stand behind the node's name."""
    screen = Screen()
    sink = TerminalSink(screen)
    sink(LAUNCH[0])
    sink(event("staging.probe", STARTED, 0.5))
    sink(event("files.deliver", NOTE, 2.0, **HALF))
    sink(event("staging.send", STARTED, 2.1))
    assert screen.lines[1].startswith("gpu1  ")
    assert screen.lines[1].endswith("12 of 400 files, 34 MiB of 1.0 GiB, 98 MiB/s")


def test_a_failure_and_a_warning_stay_to_be_read() -> None:
    """On a terminal both are lines that are not rewritten: the error's first line, and the warning."""
    screen = Screen()
    sink = TerminalSink(screen)
    sink(LAUNCH[0])
    sink(event("files.scan", NOTE, warning="20,000 files would go"))
    sink(event("runtime.install", FAILED, 1.0, 1.0, host="gpu1", error="BringUpError: first try"))
    sink(event("launch", FAILED, 3.0, 3.0, cluster="train", error="StagingError: the disk is full\n  host: gpu1"))
    assert screen.lines == [
        "launch train files.scan: 20,000 files would go",
        "launch train  failed after 3.0 s: StagingError: the disk is full",
    ]


def test_several_verbs_at_once_have_their_own_lines() -> None:
    """Two launches of one client: a line each while they run, and the screen is clean only when both have ended."""
    screen = Screen()
    sink = TerminalSink(screen)
    sink(event("launch", STARTED, 0.0, cluster="a"))
    sink(event("launch", STARTED, 0.0, cluster="b"))
    sink(event("launch", FINISHED, 2.0, 2.0, cluster="a"))
    assert screen.lines == ["launch a  2.0 s", "launch b  0.00 s"]
    sink(event("launch", FINISHED, 3.0, 3.0, cluster="b"))
    assert screen.lines == ["launch a  2.0 s", "launch b  3.0 s"]


def test_more_nodes_than_fit_are_counted() -> None:
    """A hundred nodes on 24 lines: those that fit, and how many more there are."""
    screen = Screen()
    sink = TerminalSink(screen)
    sink(LAUNCH[0])
    for rank in range(100):
        sink(event("transport.connect", STARTED, 1.0, host=f"gpu{rank}"))
    assert len(screen.lines) < 24
    assert screen.lines[-1] == f"and {101 - (len(screen.lines) - 1)} more"


def test_what_is_no_name_number_or_word_is_not_shown() -> None:
    """Commands, output and whatever else an event carries stay out of sight."""
    secret = "hunter2"
    facts = dict.fromkeys(("command", "stderr", "evidence", "url"), secret) | {"host": "gpu1", "env": {"TOKEN": secret}}
    screen = Screen()
    sink = TerminalSink(screen)
    shown = []
    for phase in (STARTED, NOTE, FINISHED):
        sink(event("launch", STARTED, cluster="a"))
        sink(event("runtime.install", phase, 1.0, 1.0, **facts))
        shown.append("\n".join(screen.lines))
    assert secret not in "".join([*shown, *plain(event("runtime.install", FINISHED, 1.0, 1.0, **facts))])


_facts = st.dictionaries(
    st.sampled_from(["host", "node", "cluster", "bytes", "total_bytes", "files", "rate_bytes_s", "error", "warning"]),
    st.text(max_size=30) | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.integers(), max_size=2),
)
_events = st.builds(
    lambda step, phase, at, seconds, facts: Event(step=step, phase=phase, at=at, seconds=seconds, facts=facts),
    st.sampled_from(["launch", "down", "files.deliver", "runtime.install", "a.\x1b[2J"]),
    st.sampled_from(list(Phase)),
    st.floats(0, 1e9),
    st.none() | st.floats(),
    _facts,
)


@given(st.lists(_events, max_size=30))
def test_whatever_comes_nothing_reaches_a_terminal_but_text(events: list[Event]) -> None:
    """Any events, in any order, from hosts of any name: no error, no line that wraps, no character that a terminal obeys."""
    screen, file = Screen(), io.StringIO()
    sinks = TerminalSink(screen), TerminalSink(file)
    for each in events:
        for sink in sinks:
            sink(each)
    for line in [*screen.lines, *file.getvalue().split("\n")]:
        assert not [char for char in line if unicodedata.category(char)[0] == "C"]


@given(st.lists(st.tuples(st.sampled_from(["gpu1", "gpu2", "長い名前" * 40]), st.sampled_from(["a.b", "a.c"])), max_size=20))
def test_a_screen_is_clean_when_all_has_ended(steps: list[tuple[str, str]]) -> None:
    """Whatever steps there were, no line of them stays, and none was wider than the terminal."""
    screen = Screen()
    sink = TerminalSink(screen)
    sink(event("launch", STARTED, cluster="x"))
    for host, step in steps:
        sink(event(step, STARTED, 1.0, host=host))
        for line in screen.lines:
            assert sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line) < 100
    sink(event("launch", FINISHED, 2.0, 2.0, cluster="x"))
    assert screen.lines == ["launch x  2.0 s"]


def test_many_threads_write_whole_lines() -> None:
    """Eight threads' events come out as lines, none lost, none mixed."""
    file = io.StringIO()
    sink = TerminalSink(file)

    def work(number: int) -> None:
        for _ in range(200):
            sink(event("runtime.install", FINISHED, 1.0, 1.0, host=f"gpu{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wanted = [f"gpu{number}  runtime.install  1.0 s" for number in range(8)]
    assert sorted(file.getvalue().splitlines()) == sorted(wanted * 200)


def test_a_file_that_takes_nothing_more_fails_no_verb(tmp_path: Path) -> None:
    """A closed file, a full disk and a character set without the character are no errors of the caller."""
    closed = io.StringIO()
    closed.close()
    full = Path("/dev/full").open("w")
    with (tmp_path / "ascii").open("w", encoding="ascii") as ascii_only:
        for file in (closed, full, ascii_only):
            sink = TerminalSink(file)
            sink(event("launch", STARTED, cluster="x"))
            sink(event("launch", FAILED, 1.0, 1.0, cluster="x", error="Ünicode"))
    with contextlib.suppress(OSError):
        full.close()
    assert (tmp_path / "ascii").read_text() == "launch x  failed after 1.0 s: ?nicode\n"


def test_stderr_is_looked_up_when_an_event_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file it is sys.stderr of that moment; stdout is never written to."""
    sink = TerminalSink()
    with pytest.MonkeyPatch.context() as patch:
        mine = io.StringIO()
        patch.setattr(sys, "stderr", mine)
        for each in LAUNCH:
            sink(each)
        patch.setattr(sys, "stderr", None)
        sink(LAUNCH[0])
    assert mine.getvalue().endswith("launch train  12 s\n")
    assert capsys.readouterr() == ("", "")


def test_a_forked_child_writes_on_its_own() -> None:
    """A fork while another thread is at it leaves the child a sink that works."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        sink = TerminalSink(file)
        with sink._mutex:
            thread = threading.Thread(target=_fork_and_tell, args=(sink,))
            thread.start()
            thread.join(60)
    with os.fdopen(read) as told:
        assert told.read() == "launch x  1.0 s\n"


def _fork_and_tell(sink: TerminalSink) -> None:
    child = os.fork()
    if child == 0:
        try:
            sink(event("launch", STARTED, cluster="x"))
            sink(event("launch", FINISHED, 1.0, 1.0, cluster="x"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_real_verb_on_a_real_terminal(tmp_path: Path) -> None:
    """A client's own events on a pseudo terminal of 60 columns: what stays is what failed, a line for each verb."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    with os.fdopen(slave, "w") as terminal, skylib.Client(tmp_path / "sky", events=TerminalSink(terminal)) as client:
        for name in ("one", "two"):
            with pytest.raises(ClusterNotFound):
                client.down(name)
        told = b""
        while not (b"down two  failed" in told and told.endswith(b"\n")):
            ready, _, _ = select.select([master], [], [], 30)
            assert ready, told
            told += os.read(master, 100_000)
    os.close(master)
    screen = Screen()
    screen.write(told.decode().replace("\r", ""))
    assert len(screen.lines) == 2
    for line, name in zip(screen.lines, ("one", "two"), strict=True):
        assert re.match(rf"down {name}  failed after \S+ s: ClusterNotFound: ", line)


def test_a_real_sync_shows_how_far_each_node_is(tmp_path: Path) -> None:
    """While a directory goes to a node, its line has files, bytes and rate; a file gets none for so short a time."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work/big").write_bytes(os.urandom(2 << 20))
    (tmp_path / "node").mkdir()
    screen, file = Screen(), io.StringIO()
    node = SyncNode(transport=Slow(), root=str(tmp_path / "node"))
    events = fan(TerminalSink(screen), TerminalSink(file))
    with span(events, "put", cluster="train"), span(events, "files.deliver", nodes=1):
        sync([node], plan_sync(str(tmp_path / "work")), events=events)
    figures = re.escape(node.transport.host) + r"  \S+ s  [01] of 1 files, \S+ \w+ of 2\.0 MiB, \S+ \w+/s"
    assert [line for line in screen.ever if re.fullmatch(figures, line)]
    assert not re.findall(r"files, .* of ", file.getvalue())
    assert re.findall("(?m)^put train  files.deliver  .* s$", file.getvalue())
    assert len(screen.lines) == 1


def test_importing_it_imports_no_notebook() -> None:
    """IPython comes with the first event of a NotebookSink, and not before."""
    script = "import sys, skylib; skylib.progress.NotebookSink(); print('IPython' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("missing", [True, False])
def test_outside_of_a_notebook_there_is_text(missing: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """With IPython or without, a plain program gets lines on stderr."""
    sink = NotebookSink()
    with pytest.MonkeyPatch.context() as patch:
        if missing:
            patch.setitem(sys.modules, "IPython", None)
        for each in LAUNCH:
            sink(each)
    assert capsys.readouterr().err.endswith("launch train  12 s\n")


NOTEBOOK = """
import skylib
from skylib.events import Event, Phase
sink = skylib.progress.NotebookSink()
def tell(step, phase, at, seconds=None, **facts):
    sink(Event(step=step, phase=phase, at=at, seconds=seconds, facts=facts))
tell("status", Phase.STARTED, 0.0)
tell("status", Phase.FINISHED, 0.1, 0.1)
tell("launch", Phase.STARTED, 0.0, cluster="<b>train")
tell("files.deliver", Phase.STARTED, 0.2, host="gpu1")
tell("files.deliver", Phase.NOTE, 1.0, host="gpu1", bytes=1024, total_bytes=4096)
tell("files.deliver", Phase.FINISHED, 2.0, 1.8, host="gpu1", bytes=4096)
tell("launch", Phase.FINISHED, 3.0, 3.0, cluster="<b>train")
"""


def test_a_notebook_shows_one_table_that_is_updated_in_place() -> None:
    """In a real kernel: one display for the verb with steps, whose last state stands; names are escaped; none for others."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(
        cwd=str(Path(__file__).resolve().parents[2])
    )
    (output,) = notebook.cells[0].outputs
    data: Mapping[str, str] = output["data"]
    assert output["output_type"] == "display_data"
    assert "launch &lt;b&gt;train" in data["text/html"]
    assert "<td>gpu1</td><td>files.deliver done</td><td>1.8 s</td><td>4.0 KiB</td>" in data["text/html"]
    assert data["text/plain"].splitlines() == ["launch <b>train  done  3.0 s", "gpu1  files.deliver done  1.8 s  4.0 KiB"]
