"""Rows and records: columns to find by, and one JSON document with the number of its schema. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from skylib.errors import StateError
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobRecord

__all__ = [
    "CLUSTER_SCHEMA",
    "JOB_SCHEMA",
    "ClusterDecoder",
    "cluster_document",
    "cluster_from_document",
    "dump_json",
    "job_document",
    "job_from_document",
    "load_object",
    "load_value",
]

_T = TypeVar("_T")

CLUSTER_SCHEMA = 1
JOB_SCHEMA = 1

# From the schema of that number to the next: how an old document becomes a newer one.
_Upgrade = Callable[[dict[str, object]], dict[str, object]]
_CLUSTER_UPGRADES: dict[int, _Upgrade] = {}
_JOB_UPGRADES: dict[int, _Upgrade] = {}


def dump_json(value: object) -> str:
    """Compact JSON. Raises StateError on a value that JSON does not have (NaN included)."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(f"cannot be kept as JSON: {error}", evidence=type(value).__name__) from error


def load_value(document: str) -> object:
    """Raises StateError when it is no JSON."""
    try:
        value: object = json.loads(document)
    except ValueError as error:
        raise StateError(f"a document in the store is no JSON: {error}") from error
    return value


def load_object(document: str) -> dict[str, object]:
    """A JSON object. Raises StateError when it is none."""
    value = load_value(document)
    if not isinstance(value, dict):
        raise StateError(f"a document in the store is a {type(value).__name__}, not an object")
    return value


def cluster_document(record: ClusterRecord) -> str:
    """Of CLUSTER_SCHEMA. Raises StateError when a field is no JSON."""
    return dump_json(record.to_json())


def cluster_from_document(schema: int, document: str) -> ClusterRecord:
    """Raises StateError on a document that is of a newer schema or does not fit its own."""
    return _read(ClusterRecord.from_json, "cluster", schema, document, CLUSTER_SCHEMA, _CLUSTER_UPGRADES)


class ClusterDecoder:
    """Decodes the clusters of one store. A document that it saw when it last decoded all of them is not decoded again.

    That is most of the time of a status: documents change seldom, and to compare them takes little. Safe from many
    threads: what is known is replaced, never changed.
    """

    def __init__(self) -> None:
        # With each record a copy of its resources: they are dicts, and the record is its caller's. All else is frozen.
        self._known: dict[tuple[int, str], tuple[ClusterRecord, dict[str, Any]]] = {}

    def all(self, rows: Sequence[tuple[int, str]]) -> list[ClusterRecord]:
        """The records of every cluster that the store has, as (schema, document). Raises StateError."""
        before, known, records = self._known, {}, []
        for row in rows:
            found = before.get(row)
            if found is None:
                record = cluster_from_document(*row)
                found = record, _copied(record.resources)
            else:
                record = attrs.evolve(found[0], resources=_copied(found[1]))
            known[row] = found
            records.append(record)
        self._known = known
        return records


def _copied(value: Any) -> Any:
    """A JSON value of the caller's own."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value


def job_document(record: JobRecord) -> str:
    """Of JOB_SCHEMA. Raises StateError when a field is no JSON."""
    return dump_json(record.to_json())


def job_from_document(schema: int, document: str) -> JobRecord:
    """Raises StateError on a document that is of a newer schema or does not fit its own."""
    return _read(JobRecord.from_json, "job", schema, document, JOB_SCHEMA, _JOB_UPGRADES)


def _read(
    build: Callable[[Mapping[str, object]], _T],
    noun: str,
    schema: int,
    document: str,
    ours: int,
    upgrades: Mapping[int, _Upgrade],
) -> _T:
    if schema > ours:
        raise StateError(f"a {noun} in the store has schema {schema}, this skylib knows {ours}", hint="use a newer skylib")
    fields = load_object(document)
    for number in range(schema, ours):
        fields = upgrades[number](fields)
    try:
        return build(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"a {noun} in the store does not read as schema {schema}: {error}", hint="use the skylib that wrote it"
        ) from error
