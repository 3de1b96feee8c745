"""`$NAME` and `${NAME}` in a task's paths and settings.

Done on parsed text, never on a serialised form, so that quotes, backslashes and newlines in values survive and no value
can add keys. One pass: what a value brings in is not looked at again. Names without a value stay as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from skylib.models.spec_errors import spec_error, within
from skylib.models.yaml_source import Verbatim

__all__ = ["keep", "substitute", "substitute_in"]

_NAME = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))", re.ASCII)


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`text` with each known name replaced; Verbatim text as it is."""
    if isinstance(text, Verbatim):
        return str(text)
    return _NAME.sub(lambda match: values.get(match[1] or match[2], match[0]), text)


def substitute_in(value: object, values: Mapping[str, str]) -> object:
    """The same for every text inside a YAML value, keys included.

    Raises InvalidSpecError when two keys become one.
    """
    if isinstance(value, str):
        return substitute(value, values)
    if isinstance(value, Mapping):
        found: dict[str, object] = {}
        for key, inner in value.items():
            name = substitute(key, values)
            if name in found:
                raise spec_error("another key becomes the same when the variables are put in", key)
            with within(key):
                found[name] = substitute_in(inner, values)
        return found
    if isinstance(value, list):
        found_items = []
        for index, inner in enumerate(value):
            with within(index):
                found_items.append(substitute_in(inner, values))
        return found_items
    return value


def keep(text: str, values: Mapping[str, str]) -> str:
    """`text` in the form from which `substitute` gives `text` again: marked as Verbatim where it has to be."""
    return Verbatim(text) if substitute(text, values) != text else text
