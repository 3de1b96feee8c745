"""One setting changed in a file that a person wrote: whatever its layout, nothing else changes."""

from __future__ import annotations

import difflib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.config.document import read_document
from skylib.config.edit import changed
from skylib.config.layers import leaves
from skylib.config.schema import SECTIONS, keys
from skylib.errors import ConfigError

FILE = "config.yaml"
NAMES = [key.name for key in keys()]
# A comment has a word of its own, so that it is found again wherever it stands.
COMMENTS = st.one_of(st.just(""), st.integers(0, 99999).map(lambda number: f"#c{number}: x, y] }}"))
VALUES = st.one_of(
    st.integers(0, 10**6),
    st.floats(0, 1e9, allow_nan=False),
    st.booleans(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.sampled_from(["", "~", "null", "yes", "1e5", "a: b", "a #b", "[x", "- a", "'q'", '"', "#", "% x", "a\nb\n", "~/x"]),
)
SCALARS = ["5", "0.5", "true", "plain", '"dou, #ble"', "'sin #gle'", "a b c", "''", "~/.ssh/config"]
BLOCKS = ["|-\n{pad}  literal # no comment\n{pad}  more\n", "|  {comment}\n{pad}  literal\n\n", ">-\n{pad}  folded: x\n"]


@st.composite
def flow_maps(draw: st.DrawFn, names: list[str], *, lines: bool) -> str:
    """`{a: 1, b: 2}`, over several lines with comments if `lines`."""
    parts = []
    for number, name in enumerate(names):
        last = number == len(names) - 1
        comma = "" if last and draw(st.booleans()) else ","
        comment = draw(COMMENTS) if lines else ""
        end = f" {comment}\n      " if lines else draw(st.sampled_from([" ", ""]))
        parts.append(f"{name}: {draw(st.sampled_from(SCALARS))}{comma}{end}")
    begin = draw(st.sampled_from(["{", "{ ", "{\n      "])) if lines else "{"
    return begin + "".join(parts) + "}"


@st.composite
def sections(draw: st.DrawFn, section: str, step: str) -> str:
    """One section in any of its forms, with comments around."""
    names = [name.split(".")[1] for name in NAMES if name.startswith(f"{section}.")]
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
    key = draw(st.sampled_from([section, f'"{section}"', f"'{section}'"]))
    behind = draw(COMMENTS)
    form = draw(st.sampled_from(["block", "flow", "lines", "null"]))
    if not chosen or form == "null":
        return f"{key}:{draw(st.sampled_from(['', ' ', ' {}', ' null', ' ~']))} {behind}\n"
    if form in ("flow", "lines"):
        return f"{key}: {draw(flow_maps(chosen, lines=form == 'lines'))} {behind}\n"
    text = f"{key}: {behind}\n"
    for name in chosen:
        above, beside = draw(COMMENTS), draw(COMMENTS)
        text += f"{step}{above}\n" if above or draw(st.booleans()) else ""
        if draw(st.integers(0, 5)):
            gap = draw(st.sampled_from([" ", "   ", f" \n{step}    "]))
            text += f"{step}{name}:{gap}{draw(st.sampled_from(SCALARS))} {beside}\n"
        else:
            text += f"{step}{name}: {draw(st.sampled_from(BLOCKS))}".replace("{pad}", step).replace("{comment}", beside)
    return text


@st.composite
def files(draw: st.DrawFn) -> str:
    """A configuration file as somebody might have written it."""
    step = draw(st.sampled_from(["  ", "    ", " "]))
    chosen = draw(st.lists(st.sampled_from(list(SECTIONS)), unique=True, max_size=4))
    text = draw(st.sampled_from(["", "---\n", "# top\n", "--- # first\n", "%YAML 1.1\n---\n"]))
    for section in chosen:
        text += draw(COMMENTS) + draw(st.sampled_from(["", "\n", "\n\n"]))
        text = text if not text or text.endswith("\n") else text + "\n"
        text += draw(sections(section, step))
    if chosen and not draw(st.integers(0, 7)):
        text = draw(flow_maps([f"{each}: {{}}, x{number}" for number, each in enumerate(chosen)], lines=False))
        text = re.sub(r", x\d+: [^,}]*", "", text)
    text += draw(COMMENTS)
    text += draw(st.sampled_from(["", "\n", "\n...\n"])) if not text.endswith("\n") else draw(st.sampled_from(["", "...\n"]))
    return text.replace("\n", "\r\n") if not draw(st.integers(0, 5)) else text


def _is_valid(text: str) -> bool:
    try:
        read_document(text, FILE)
    except ConfigError:
        return False
    return True


def _values(text: str) -> dict[str, object]:
    return {".".join(path): setting.value for path, setting in leaves(read_document(text, FILE)) if len(path) == 2}


def _comments(text: str) -> list[str]:
    return sorted(re.findall(r"#c\d+: x, y\] \}|# top|# first", text))


@given(text=files().filter(_is_valid), name=st.sampled_from(NAMES), value=VALUES)
def test_set_changes_one_setting_and_nothing_else(text: str, name: str, value: object) -> None:
    """Read again, the file has the new value, all others as they were, and every comment."""
    after = changed(text, FILE, name, value)
    assert _values(after) == {**_values(text), name: value}
    assert type(_values(after)[name]) is type(value)
    assert _comments(after) == _comments(text)
    assert ("\r\n" in after) == ("\r\n" in text) or "\n" not in text
    assert changed(after, FILE, name, value) == after


@given(text=files().filter(_is_valid), name=st.sampled_from(NAMES))
def test_unset_takes_one_setting_and_nothing_else(text: str, name: str) -> None:
    """The others stay, and every comment; what was not there changes nothing."""
    after = changed(text, FILE, name, None)
    before = _values(text)
    assert _values(after) == {key: value for key, value in before.items() if key != name}
    assert _comments(after) == _comments(text)
    assert name in before or after == text


@given(text=files().filter(_is_valid), steps=st.lists(st.tuples(st.sampled_from(NAMES), VALUES | st.none()), max_size=6))
def test_many_changes_come_to_what_a_dict_would(text: str, steps: list[tuple[str, object]]) -> None:
    """set and unset in any order."""
    wanted = _values(text)
    after = text
    for name, value in steps:
        after = changed(after, FILE, name, value)
        wanted.pop(name, None)
        if value is not None:
            wanted[name] = value
    assert _values(after) == wanted
    assert _comments(after) == _comments(text)


@given(text=files().filter(_is_valid), name=st.sampled_from(NAMES), value=VALUES)
def test_other_lines_stay_as_they_are(text: str, name: str, value: object) -> None:
    """Layout is kept: but for the few lines of the setting itself, no line is changed or moved."""
    after = changed(text, FILE, name, value).splitlines()
    same = difflib.SequenceMatcher(None, text.splitlines(), after, autojunk=False).get_matching_blocks()
    assert len(text.splitlines()) - sum(block.size for block in same) <= 4


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("ssh: &a {parallel: 3}\nprovision: *a\n", 1, 7),
        ("ssh: &a {parallel: 3}\nprovision: *a\n", 1, None),
        ("ssh: &a\n  parallel: 3\nprovision: *a\n", 2, 7),
        ("a: &a {parallel: 3}\nssh: *a\n", 2, 7),
        ("a: &a {parallel: 3}\nssh: *a\n", 2, None),
        ("ssh:\n  parallel: &x 3\nlogs:\n  keep: *x\n", 2, 7),
        ("ssh:\n  parallel: &x 3\nlogs:\n  keep: *x\n", 2, None),
        ("ssh:\n  parallel: !!int '3'\n", 2, 7),
        ("? ssh\n: parallel: 3\n", 2, None),
        ("ssh: [1]\n", 1, 7),
    ],
)
def test_a_form_that_is_not_known_is_refused_with_its_line(text: str, line: int, value: object) -> None:
    """Anchors, tags and the like, where a change would reach further: the error says which line to edit."""
    with pytest.raises(ConfigError, match="nothing was changed") as caught:
        changed(text, FILE, "ssh.parallel", value)
    assert (caught.value.file, caught.value.line, caught.value.key) == (FILE, line, "ssh.parallel")
