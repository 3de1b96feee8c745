"""How records show themselves: one line in a terminal, a table in a notebook. Pure; nothing is looked up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from html import escape

__all__ = ["one_line", "short_bytes", "short_time", "table_html"]

_LONGEST_VALUE = 60
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def one_line(type_name: str, **fields: object) -> str:
    """`<Cluster name='train' status=UP>`: fields in the order given, None left out, long values cut."""
    shown = [f"{name}={_short(value)}" for name, value in fields.items() if value is not None]
    return f"<{' '.join([type_name, *shown])}>"


def short_time(seconds: float | None) -> str:
    """ "0.35 s", "12 s", "3m 05s", "2h 00m", "4d 01h": the two largest units; "-" for None and what is no time."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 0:
        return f"-{short_time(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    largest = next(index for index, (_, size) in enumerate(_UNITS) if whole >= size)
    (unit, size), (below, smaller) = _UNITS[largest], _UNITS[largest + 1]
    return f"{whole // size}{unit} {whole % size // smaller:02d}{below}"


def short_bytes(count: int) -> str:
    """ "512 B", "1.5 KiB", "12 MiB", "1.0 GiB": by 1024, with two digits at least."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1023.5 or unit == "TiB":
            break
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:,.0f} {unit}"


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; every heading and cell escaped, None an empty cell. A row shorter than `columns` is filled up.

    Raises ValueError on a row that is longer.
    """
    head = "".join(f"<th>{_cell(column)}</th>" for column in columns)
    body = []
    for row in rows:
        if len(row) > len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        cells = [*row, *[None] * (len(columns) - len(row))]
        body.append("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = str(value.value if isinstance(value, Enum) else value)
    return escape(text.encode("utf-8", "backslashreplace").decode(), quote=True)  # a name's bytes may be no UTF-8


def _short(value: object) -> str:
    text = str(value.value) if isinstance(value, Enum) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
