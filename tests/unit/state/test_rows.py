"""Documents and records."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from skylib.state.rows import CLUSTER_SCHEMA, ClusterDecoder, cluster_document
from tests.records import cluster_record


def test_the_process_keeps_its_collection_of_cycles() -> None:
    """It is its owner's: a child forked meanwhile would be without for ever."""
    seen: list[bool] = []

    class Rows(list[tuple[str, int, str]]):
        def __iter__(self) -> Iterator[tuple[str, int, str]]:
            for row in super().__iter__():
                seen.append(gc.isenabled())
                yield row

    record = cluster_record("a")
    assert ClusterDecoder().all(Rows([("a", CLUSTER_SCHEMA, cluster_document(record))])) == [record]
    assert seen == [True]
