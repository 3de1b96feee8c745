"""The client: one short method per verb. Everything happens in the caller's process; nothing listens, nothing stays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from skylib.errors import InvalidSpecError
from skylib.events import EventSink
from skylib.handles import Cluster, Job
from skylib.jobs.polling import Cancelled
from skylib.jobs.stream import LogStream
from skylib.jobs.submit import Submitted
from skylib.models.cluster import ClusterRecord, check_is_text
from skylib.models.discovered import Discovered
from skylib.models.job import JobRecord
from skylib.models.plan import Plan
from skylib.models.receipts import DownReceipt, InfraStatus, Reconciled, StartReceipt
from skylib.models.task import Task
from skylib.models.transfers import OutputsReceipt
from skylib.ops import (
    adopt,
    batch,
    cost,
    discover,
    execute,
    joblogs,
    launch,
    lifecycle,
    outputs,
    planning,
    reconcile,
    status,
)
from skylib.ops.ahead import Runtime
from skylib.ops.settings import Settings
from skylib.ops.timer import lease_seconds, timer_of
from skylib.results import CostReport, SyncReport
from skylib.session import Session

__all__ = ["Client"]


class Client:
    """Clusters, jobs and their state in one home.

    home: $SKY_HOME, else ~/.sky. config: settings over those of the files, {"ssh": {"connect_timeout_s": 5}}. events:
    called with an Event for every step (from worker threads; it must be quick and must not raise).
    Raises InvalidSpecError, ConfigError for arguments that cannot be meant so; the home is looked at by the first verb.
    Any number of threads, processes and Clients may use one home. A Client is a context manager; leaving it, or close(),
    closes connections and nothing else: clusters and jobs go on.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        config: Mapping[str, object] | None = None,
        events: EventSink | None = None,
    ) -> None:
        self._session = Session(home, config=config, events=events)

    @property
    def home(self) -> Path:
        """The directory with all of this client's state."""
        return self._session.home.root

    @property
    def config(self) -> Settings:
        """The settings in force, by section: `config.ssh.keepalive_s`; `config.explain(key)`, `set(key, value)`, `unset`."""
        return Settings(self._session)

    @property
    def runtime(self) -> Runtime:
        """Ray's packages, which nodes get from this machine: `runtime.prefetch(platform, python)` brings them here ahead."""
        return Runtime(self._session)

    def launch(
        self,
        task: Task | Plan,
        cluster_name: str | None = None,
        *,
        key: str | None = None,
        idle_minutes_to_autostop: int | None = None,
        down: bool = False,
        retry_until_up: bool = False,
        fast: bool = False,
        no_setup: bool = False,
        timeout_s: float | None = None,
        lease: str | float | timedelta | None = None,
    ) -> Job:
        """Make the cluster stand if it does not, bring the files, queue the job. Done when the job is queued.

        A cluster that is UP is used as it is. key: the same key returns the job it was first used for. fast: skip setup
        where the same one has succeeded. no_setup: never run it. down: release the cluster when it is idle (for
        idle_minutes_to_autostop, by default one). retry_until_up: wait for hosts that are held now. timeout_s: for all.
        lease ("2h", "90m", 7200 seconds, a timedelta): the nodes end the cluster, running jobs included, and give
        themselves back when no client was in contact for so long. Contact is any verb that asks the cluster; a `wait` or
        a followed log is one as long as it lasts. None: a cluster that has a lease keeps it.
        Raises InvalidSpecError, NoOfferError, NoCapacityError, PreflightError, BringUpError, StagingError, ClusterBusy,
        TransportError; a launch that fails leaves no process, no held host and no record behind.
        """
        options = launch.Options(
            key=key,
            idle_minutes=idle_minutes_to_autostop,
            down=down,
            retry_until_up=retry_until_up,
            fast=fast,
            no_setup=no_setup,
            timeout_s=timeout_s,
            lease_s=lease_seconds(lease),
        )
        name, done = launch.launch(self._session, task, cluster_name, options)
        return self._job(name, done)

    def exec(self, task_or_command: Task | str, cluster_name: str, *, key: str | None = None) -> Job:
        """Queue a job on a cluster that is UP. The task's workdir is brought up to date and its run is run, nothing else.

        As SkyPilot's exec does: setup is not run, and file_mounts are not looked at; both are as the last launch left
        them on the nodes, and launch on the standing cluster does them anew.
        key: the first job with it is the one; the same key again, whatever the task, returns that job with
        `adopted=True`, ended or not. A key is its cluster's, and known for as long as the cluster exists.

        Raises ClusterNotFound, ClusterNotUp, InvalidSpecError, StagingError, AgentError, TransportError.
        """
        done = execute.exec_(self._session, task_or_command, cluster_name, key=key)
        return self._job(cluster_name, done)

    def submit_many(
        self, tasks: Iterable[Task | str], cluster_name: str, *, keys: Sequence[str | None] | None = None
    ) -> list[Job]:
        """Queue many jobs on a cluster that is UP, in one round trip: all of them, in order, or none.

        The workdir is brought up to date once: one that is another than the first task's is refused. As in exec, no
        task's setup is run, and no task's file_mounts are looked at. keys: one for each task, as in exec.
        Raises as exec; an InvalidSpecError has `index`, the place of the task at fault.
        """
        return [self._job(cluster_name, done) for done in batch.submit_all(self._session, tasks, cluster_name, keys=keys)]

    def plan(self, task: Task, cluster_name: str | None = None) -> Plan:
        """What launch would do now, as data; nothing is changed anywhere. launch(plan) does exactly that.

        A timer and a lease are not steps of it: the task's own timer is in plan.task, and launch's arguments (lease=,
        idle_minutes_to_autostop=, ...) are given with the plan to launch.
        """
        return planning.plan(self._session, task, cluster_name)

    def plan_sync(self, task: Task) -> SyncReport:
        """What launch would send to each node: files, bytes, the largest directories, and why each other path stays here.

        No node is asked, so what a node has already counts, too. Above 10,000 files or 1 GiB there is a warning. Git
        workdirs and URLs are brought to the home, as a launch would. Raises InvalidSpecError, StagingError.
        """
        trees, warnings = planning.plan_sync(self._session, task)
        return SyncReport(trees=trees, base=os.getcwd(), warnings=warnings)

    def status(
        self, names: str | Iterable[str] | None = None, *, refresh: bool = False, timeout_s: float = 30.0
    ) -> list[ClusterRecord]:
        """Records of clusters, the newest launch first; `refresh` asks their nodes, for up to timeout_s in all.

        A cluster that does not answer in time is UNREACHABLE since then, and UP again when it answers: nothing of it is
        dropped. One that is on none of its hosts any more is gone. timeout_s: above 0; math.inf is as long as it takes.
        Raises ClusterNotFound, InvalidSpecError.
        """
        return status.status(self._session, names, refresh_first=refresh, timeout_s=timeout_s)

    def cluster(self, name: str) -> Cluster:
        """A handle. Raises ClusterNotFound."""
        self._session.require(name)
        return Cluster(self.home, name, session=self._session)

    def start(self, name: str) -> StartReceipt:
        """Bring a stopped or broken cluster up again on its hosts; what stands is left alone. Says what was done."""
        return lifecycle.start(self._session, name)

    def stop(self, name: str) -> DownReceipt:
        """End jobs and Ray on all nodes; files, logs and the hosts are kept for start()."""
        return lifecycle.stop(self._session, name)

    def down(self, name: str, *, purge: bool = False) -> DownReceipt:
        """End everything, remove what was put on the nodes, release the hosts. The jobs' logs come home first.

        purge: forget the cluster even when a node cannot be cleaned.
        """
        return lifecycle.down(self._session, name, purge=purge)

    def autostop(
        self,
        name: str,
        idle_minutes: float,
        *,
        down: bool = False,
        wait_for: str = "jobs_and_ssh",
        hook: str | None = None,
        hook_timeout_s: float | None = None,
    ) -> None:
        """Let the nodes end Ray by themselves after so long without work (0: one minute); negative: never.

        wait_for: what counts as work, "jobs_and_ssh" (jobs, and terminals over SSH on the head), "jobs", or "none" (the
        time since the last setting or job's start). hook: a script that runs on the head before that, in the account's
        login environment, with SKYPILOT_HOOK_EVENT=stop (or down), its output in ~/.sky/hooks/<event>.log there, for
        hook_timeout_s (by default an hour); its failure keeps nothing from ending.
        """
        setting = timer_of(idle_minutes, down=down, wait_for=wait_for, hook=hook, hook_timeout_s=hook_timeout_s)
        lifecycle.autostop(self._session, name, setting)

    def reconcile(self, names: str | Iterable[str] | None = None) -> list[Reconciled]:
        """Finish or undo what processes that died had begun, on all clusters (or `names`) at once; what was done, and why.

        The next verb on a cluster does the same for that cluster. What cannot be told, since a host is not reached, is
        kept and told; a cluster that an operation is on is told as busy. Nothing to do is an empty list. Raises
        ClusterNotFound, InvalidSpecError.
        """
        return reconcile.reconcile(self._session, names)

    def queue(self, name: str) -> list[JobRecord]:
        """All jobs of the cluster, oldest first; what was seen of them, when it is stopped or gone."""
        return execute.queue(self._session, name)

    def job(self, name: str, job_id: int) -> Job:
        """A handle. Raises JobNotFound, ClusterNotFound."""
        return Cluster(self.home, name, session=self._session).job(job_id)

    def cancel(self, name: str, job_ids: int | Sequence[int] | None = None, *, all: bool = False) -> list[Cancelled]:
        """End jobs and every process of theirs on all nodes; neither ids nor all: the newest running one."""
        if all and job_ids is not None:
            raise InvalidSpecError("give job_ids or all, not both", field="job_ids")
        return execute.cancel(self._session, name, job_ids, all_jobs=all)

    def tail_logs(
        self,
        name: str,
        job_id: int | None = None,
        *,
        follow: bool = True,
        offset: int = 0,
        tail: int | None = None,
    ) -> LogStream:
        """Lines of a job's log (None: the newest job's) as they come, until it has ended; for `for` and `async for`.

        Stopping to read ends nothing but the reading. tail: begin with the last so many lines that are there. follow:
        False gives what is there now. Raises ClusterNotFound, InvalidSpecError; what is read from it JobNotFound,
        InvalidSpecError (no line begins at the offset), AgentError, TransportError.
        """
        return joblogs.tail_logs(self._session, name, job_id, follow=follow, offset=offset, tail=tail)

    def fetch_outputs(self, name: str, job_id: int | None = None) -> dict[int, OutputsReceipt]:
        """Fetch what the outputs of a job's task match (None: of all jobs that have any): job id -> what came.

        A job that still runs gives what is there now. What is here unchanged is not fetched again. A cluster that is
        stopped is asked as long as its hosts answer. Raises StagingError (host, path) when not all came, after all the
        rest; JobNotFound, ClusterNotFound, TransportError.
        """
        return outputs.fetch_outputs(self._session, name, job_id)

    def download_logs(self, name: str, job_ids: int | Sequence[int] | None = None) -> dict[int, Path]:
        """Bring logs home: job id -> folder with run.log (merged) and each rank's own files."""
        return joblogs.download_logs(self._session, name, job_ids)

    def discover(self, hosts: str | Iterable[str] | None = None) -> list[Discovered]:
        """Clusters that machines tell of, whoever launched them, by name; nothing is changed anywhere.

        hosts: an infra ("ssh/lab", "ssh", "local"), names of hosts of the pools, or None for all pools and this machine.
        Each gets one short command, all at once. A host that does not answer is a problem of its cluster, or a warning in
        the log. Raises ConnectError when none answered at all, InvalidSpecError, PoolNotFound, ConfigError.
        """
        return discover.discover(self._session, hosts)

    def adopt(
        self, name: str, *, cluster_id: str | None = None, hosts: str | Iterable[str] | None = None
    ) -> ClusterRecord:
        """Take up a cluster that this home does not know, from what its nodes say; all verbs work on it then.

        cluster_id: which one, when several have the name. hosts: as in discover. Members that are in no pool of this home
        are reached as their cluster.json says. A cluster with a member that does not answer is UNREACHABLE until
        status(refresh=True) finds out more. Its time of launch is kept; its usage here begins now. The nodes name this
        home from now on; another home that still has the cluster keeps its record, and finds it gone after a down here.
        One that is known already, by the same id, is looked at and returned.
        Raises ClusterNotFound, ClusterBusy (the name is another cluster's here), InvalidSpecError (two of the name),
        NoCapacityError (a host is held by another cluster here), ConnectError.
        """
        return adopt.adopt(self._session, name, cluster_id=cluster_id, hosts=hosts)

    def cost_report(self, days: float = 30) -> CostReport:
        """What clusters were in use for in the last days, and what that cost where their hosts have a `price_per_hour`.

        A row for each life of a cluster that was in use, those that still are included up to now; no node is asked.
        """
        rows, since, now = cost.costs_since(self._session, days)
        return CostReport(clusters=rows, since=since, until=now)

    def check(self) -> list[InfraStatus]:
        """Every infra that is configured, whether nodes can be had there, and what is wrong with which host."""
        return status.check(self._session)

    def forget_host_key(self, host: str) -> None:
        """Take the key of an SSH host ("gpu1", "[gpu1]:2222") off our record: the next one that it shows is accepted once.

        For a host that was installed anew. ~/.ssh/known_hosts is the user's and stays as it is.
        """
        self._session.host_keys.forget(check_is_text(host, field="host"))

    def close(self) -> None:
        """Close connections. The client can be used again."""
        self._session.close()

    def _job(self, name: str, done: Submitted) -> Job:
        return Job(self.home, name, done.job_id, cluster_id=done.cluster_id, adopted=done.adopted, session=self._session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Client holds connections and is not pickled: pickle job.to_json(), or make a new Client where it is needed"
        )

    def __repr__(self) -> str:
        return f"Client(home={str(self.home)!r})"
