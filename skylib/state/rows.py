"""Rows and records: columns to find by, and one JSON document with the number of its schema. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from skylib.errors import SkyError, StateError
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobRecord

__all__ = [
    "CLUSTER_SCHEMA",
    "JOB_SCHEMA",
    "ClusterDecoder",
    "Unreadable",
    "cluster_document",
    "cluster_from_document",
    "cluster_hint",
    "dump_json",
    "job_document",
    "job_from_document",
    "load_object",
    "load_value",
    "stored_cluster",
]

_T = TypeVar("_T")

_WRONG = (ArithmeticError, AttributeError, LookupError, RecursionError, SkyError, TypeError, ValueError)

CLUSTER_SCHEMA = 1
JOB_SCHEMA = 2

# From the schema of that number to the next: how an old document becomes a newer one.
_Upgrade = Callable[[dict[str, object]], dict[str, object]]
_CLUSTER_UPGRADES: dict[int, _Upgrade] = {}
_JOB_UPGRADES: dict[int, _Upgrade] = {1: dict}  # 2 adds fields that have defaults


class Unreadable(StateError):
    """A row that cannot be decoded. Facts: table, key (which row), problem, store (where; the store says that)."""

    table: str = ""
    key: object = None
    problem: str = ""
    store: str = ""

    def of(self, table: str, key: object, hint: str | None = None) -> Unreadable:
        """The same of that row, where that is not known yet."""
        return self if self.table else _unreadable(table, key, self.problem, self.store, self.hint or hint)

    def with_hint(self, hint: str) -> Unreadable:
        return _unreadable(self.table, self.key, self.problem, self.store, self.hint or hint)

    def within(self, store: str) -> Unreadable:
        """The same, of that store."""
        return _unreadable(self.table, self.key, self.problem, store, self.hint)


def _unreadable(table: str, key: object, problem: str, store: str = "", hint: str | None = None) -> Unreadable:
    row = f"row {key!r} of table {table}" if table else "a row"
    words = f"{row} in {store or 'the store'} cannot be read: {problem}"
    return Unreadable(words, table=table, key=key, problem=problem, store=store, hint=hint)


def cluster_hint(name: str) -> str:
    """What to do about a cluster that cannot be read."""
    return (
        f"client.down({name!r}, purge=True) takes the row away and leaves the hosts as they are; client.discover() lists "
        f"what runs there, and client.adopt({name!r}) takes it up again. Other clusters can be asked for by name"
    )


def dump_json(value: object) -> str:
    """Compact JSON. Raises StateError on a value that JSON does not have (NaN included)."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(f"cannot be kept as JSON: {error}", evidence=type(value).__name__) from error


def load_value(document: str, *, table: str = "", key: object = None, hint: str | None = None) -> object:
    """Raises Unreadable when it is no JSON. table, key: which row it is of."""
    try:
        value: object = json.loads(document)
    except (RecursionError, TypeError, ValueError) as error:
        raise _unreadable(table, key, f"it is no JSON: {error}", hint=hint) from error
    return value


def load_object(document: str, *, table: str = "", key: object = None, hint: str | None = None) -> dict[str, object]:
    """A JSON object. Raises Unreadable when it is none."""
    value = load_value(document, table=table, key=key, hint=hint)
    if not isinstance(value, dict):
        raise _unreadable(table, key, f"it is JSON of a {type(value).__name__}, not of an object", hint=hint)
    return value


def cluster_document(record: ClusterRecord) -> str:
    """Of CLUSTER_SCHEMA. Raises StateError when a field is no JSON."""
    return dump_json(record.to_json())


def cluster_from_document(schema: int, document: str, *, table: str = "", key: object = None) -> ClusterRecord:
    """Raises Unreadable on a document that is of a newer schema or does not fit its own."""
    try:
        return _read(ClusterRecord.from_json, schema, document, CLUSTER_SCHEMA, _CLUSTER_UPGRADES)
    except Unreadable as error:
        hint = cluster_hint(key) if table == "clusters" and isinstance(key, str) else None
        raise error.of(table, key, hint) from error.__cause__


def stored_cluster(name: str, schema: int, document: str) -> ClusterRecord:
    """The record of a cluster that exists. Raises Unreadable, which says what to do."""
    return cluster_from_document(schema, document, table="clusters", key=name)


class ClusterDecoder:
    """Decodes the clusters of one store. A document that it saw when it last decoded all of them is not decoded again.

    That is most of the time of a status: documents change seldom, and to compare them takes little. Safe from many
    threads: what is known is replaced, never changed.
    """

    def __init__(self) -> None:
        # With each record a copy of its resources: they are dicts, and the record is its caller's. All else is frozen.
        self._known: dict[tuple[str, int, str], tuple[ClusterRecord, dict[str, Any]]] = {}

    def all(self, rows: Sequence[tuple[str, int, str]]) -> list[ClusterRecord]:
        """The records of every cluster that the store has, as (name, schema, document). Raises Unreadable."""
        before, known, records = self._known, {}, []
        for row in rows:
            found = before.get(row)
            if found is None:
                record = stored_cluster(*row)
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


def job_from_document(schema: int, document: str, *, key: object = None) -> JobRecord:
    """Raises Unreadable on a document that is of a newer schema or does not fit its own. key: (cluster id, job id)."""
    try:
        return _read(JobRecord.from_json, schema, document, JOB_SCHEMA, _JOB_UPGRADES)
    except Unreadable as error:
        raise error.of("jobs", key) from error.__cause__


def _read(
    build: Callable[[Mapping[str, object]], _T],
    schema: int,
    document: str,
    ours: int,
    upgrades: Mapping[int, _Upgrade],
) -> _T:
    if not isinstance(schema, int):
        raise _unreadable("", None, f"its schema is {schema!r}, no number")
    if schema > ours:
        raise _unreadable("", None, f"it has schema {schema}, this skylib knows {ours}", hint="use a newer skylib")
    fields = load_object(document)
    try:
        for number in range(schema, ours):
            fields = upgrades[number](fields)
        return build(fields)
    except _WRONG as error:
        said = error.message if isinstance(error, SkyError) else f"{type(error).__name__}: {error}"
        raise _unreadable("", None, f"it does not read as schema {schema}: {said}") from error
