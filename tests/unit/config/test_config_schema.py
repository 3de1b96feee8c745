"""The schema of the configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import skylib
from skylib.config.schema import Key, keys

PACKAGE = Path(skylib.__file__).parent


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.name)
def test_every_key_is_read_somewhere(key: Key) -> None:
    """A documented setting does something: outside of config/ somebody reads it from its section."""
    section, name = key.name.split(".")
    reading = re.compile(rf"\b{section}\.{name}\b")
    users = [path for path in PACKAGE.rglob("*.py") if "config" not in path.relative_to(PACKAGE).parts]
    code = [re.sub(r'""".*?"""|#[^\n]*|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL) for path in users]
    assert any(reading.search(text) for text in code), f"nobody reads {key.name}"
