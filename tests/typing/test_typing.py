"""The published types, as a user's type checker sees them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]


def check(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What mypy --strict says of a file, with a configuration of its own: that of the package is not the user's."""
    api = pytest.importorskip("mypy.api")
    monkeypatch.setenv("MYPYPATH", str(CHECKOUT))
    monkeypatch.chdir(HERE)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = ["--strict", "--config-file=", "--no-error-summary", "--hide-error-context", "--no-color-output"]
    quiet = ["--follow-imports=silent", f"--cache-dir={cache}", f"--python-version={max(python, '3.11')}"]
    said, trouble, _ = api.run([*options, *quiet, name])
    assert trouble == ""
    return str(said)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_a_users_program_is_well_typed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that uses each public name passes mypy --strict, and every value has the promised type."""
    assert check("user.py", cache, monkeypatch) == ""


@pytest.mark.parametrize("name", sorted(path.name for path in (CHECKOUT / "examples").glob("*.py")))
def test_examples_are_well_typed(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users copy first passes mypy --strict."""
    assert check(str(CHECKOUT / "examples" / name), cache, monkeypatch) == ""


def test_a_users_mistakes_are_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong argument, name or assignment is an error on its own line, and there is no other error."""
    wanted = {
        number: line.rpartition("# error: ")[2]  # "|" between codes of older and newer checkers
        for number, line in enumerate((HERE / "wrong.py").read_text().splitlines(), 1)
        if "# error: " in line
    }
    said = check("wrong.py", cache, monkeypatch)
    found = {int(line): code for line, code in re.findall(r"^wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", said, re.MULTILINE)}
    assert found.keys() == wanted.keys(), said
    assert [line for line, code in found.items() if code not in wanted[line].split("|")] == []
    assert len(wanted) > 10
