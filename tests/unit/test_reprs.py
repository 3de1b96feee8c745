"""How records show themselves."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.models.cluster import ClusterStatus
from skylib.reprs import one_line, short_bytes, short_time, table_html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.349, "0.35 s"),
        (0.999, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3600, "1h 00m"),
        (7380, "2h 03m"),
        (90_000, "1d 01h"),
        (-3, "-3.0 s"),
        (None, "-"),
        (math.inf, "-"),
        (math.nan, "-"),
    ],
)
def test_times_are_short(seconds: float | None, text: str) -> None:
    """Two units at most, carried over correctly."""
    assert short_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10_180, "9.9 KiB"),
        (10_200, "10 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1,024 TiB"),
    ],
)
def test_sizes_are_short(count: int, text: str) -> None:
    """Counted by 1024, two digits at least, carried over correctly."""
    assert short_bytes(count) == text


def test_a_record_is_one_line() -> None:
    """Values as Python writes them, statuses bare, None left out, long ones cut."""
    line = one_line("Cluster", name="a\nb", status=ClusterStatus.UP, since=None, text="x" * 100)
    assert line == f"<Cluster name='a\\nb' status=UP text='{'x' * 56}...>"
    assert one_line("Empty") == "<Empty>"


def test_a_table_escapes_everything() -> None:
    """Headings and cells."""
    html = table_html(["<b>", "x"], [["<script>alert('1')</script>", ClusterStatus.UP], ["&", None], ["short"]])
    assert "<script>" not in html
    assert "&lt;b&gt;" in html
    assert "<td>UP</td>" in html
    assert html.count("<td>") == 6


def test_a_row_that_is_too_long_is_refused() -> None:
    """It would be read under no heading."""
    with pytest.raises(ValueError, match="3 cells"):
        table_html(["a"], [[1, 2, 3]])


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=1, max_size=3))
def test_no_text_becomes_a_tag(cells: list[str]) -> None:
    """Whatever stands in the cells, a browser sees one table with that text."""
    parser = _Cells()
    parser.feed(table_html(["c"] * len(cells), [cells]))
    parser.close()
    assert parser.tags == ["table", "thead", "tr", *["th"] * len(cells), "tbody", "tr", *["td"] * len(cells)]
    assert parser.text == "c" * len(cells) + "".join(cells)
