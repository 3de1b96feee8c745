"""skylib: clusters from Python, over plain SSH, with no server.

    import skylib
    client = skylib.Client()
    job = client.launch(skylib.Task(run="echo hello", resources=skylib.Resources(infra="ssh/lab")), "train")
    for line in job.logs():
        ...
    client.down("train")

Importing does nothing: no file, thread or socket; names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skylib import errors, events, progress
    from skylib.client import Client
    from skylib.handles import Cluster, Job
    from skylib.jobs.stream import LogStream
    from skylib.models.cluster import ClusterRecord, ClusterStatus
    from skylib.models.cost import ClusterCost
    from skylib.models.discovered import Discovered
    from skylib.models.job import FirstCause, JobRecord, JobStatus, LogLine
    from skylib.models.plan import Plan
    from skylib.models.receipts import DownReceipt, InfraStatus, NodeReceipt, PrefetchReceipt, Reconciled, StartReceipt
    from skylib.models.resources import Resources
    from skylib.models.sync_report import LeftOut, TreeReport
    from skylib.models.task import Task
    from skylib.models.transfers import Fetched, OutputsReceipt
    from skylib.results import CostReport, SyncReport

__version__ = "0.1.0"

_HOMES = {
    "Client": "skylib.client",
    "Cluster": "skylib.handles",
    "ClusterCost": "skylib.models.cost",
    "ClusterRecord": "skylib.models.cluster",
    "ClusterStatus": "skylib.models.cluster",
    "CostReport": "skylib.results",
    "Discovered": "skylib.models.discovered",
    "DownReceipt": "skylib.models.receipts",
    "Fetched": "skylib.models.transfers",
    "FirstCause": "skylib.models.job",
    "InfraStatus": "skylib.models.receipts",
    "Job": "skylib.handles",
    "JobRecord": "skylib.models.job",
    "JobStatus": "skylib.models.job",
    "LeftOut": "skylib.models.sync_report",
    "LogLine": "skylib.models.job",
    "LogStream": "skylib.jobs.stream",
    "NodeReceipt": "skylib.models.receipts",
    "OutputsReceipt": "skylib.models.transfers",
    "Plan": "skylib.models.plan",
    "PrefetchReceipt": "skylib.models.receipts",
    "Reconciled": "skylib.models.receipts",
    "Resources": "skylib.models.resources",
    "StartReceipt": "skylib.models.receipts",
    "SyncReport": "skylib.results",
    "Task": "skylib.models.task",
    "TreeReport": "skylib.models.sync_report",
}
_MODULES = ("errors", "events", "progress")

__all__ = [
    "Client",
    "Cluster",
    "ClusterCost",
    "ClusterRecord",
    "ClusterStatus",
    "CostReport",
    "Discovered",
    "DownReceipt",
    "Fetched",
    "FirstCause",
    "InfraStatus",
    "Job",
    "JobRecord",
    "JobStatus",
    "LeftOut",
    "LogLine",
    "LogStream",
    "NodeReceipt",
    "OutputsReceipt",
    "Plan",
    "PrefetchReceipt",
    "Reconciled",
    "Resources",
    "StartReceipt",
    "SyncReport",
    "Task",
    "TreeReport",
    "__version__",
    "errors",
    "events",
    "progress",
]


if not TYPE_CHECKING:  # a type checker reads the imports above, and so finds a name that is none

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"skylib.{name}")
        else:
            raise AttributeError(f"module 'skylib' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
