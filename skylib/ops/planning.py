"""What a launch would do, without doing it."""

from __future__ import annotations

from skylib.models.cluster import ClusterRecord, ClusterStatus, check_cluster_name
from skylib.models.plan import Plan, PlanStep
from skylib.models.sync_report import TreeReport
from skylib.models.task import Task
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.files import prepare_files, report_files
from skylib.ops.launch import name_for
from skylib.ops.provision import choose
from skylib.session import Session
from skylib.staging.plan import SyncPlan

__all__ = ["plan", "plan_sync"]


def plan_sync(session: Session, task: Task) -> tuple[tuple[TreeReport, ...], tuple[str, ...]]:
    """Look at the task's files alone: each source, and warnings. Raises InvalidSpecError, StagingError."""
    session = session.tuned(task)
    with session.operation("plan_sync") as events:
        return report_files(session, task, events)


def plan(session: Session, task: Task, name: str | None) -> Plan:
    """Look at hosts, cluster and files; change nothing. Raises what launch would raise before it changes anything."""
    check_task(task)
    session = session.tuned(task)
    cluster = check_cluster_name(name) if name is not None else name_for(session, task)
    with session.operation("plan", cluster) as events:
        files = prepare_files(session, task, events)
        record = session.store.cluster(cluster)
        if record is not None:
            refuse_misfit(task, record)
            return Plan(
                cluster_name=cluster,
                task=task,
                infra=record.infra,
                exists=True,
                steps=(*_steps_of_existing(record), *_job_steps(task, files)),
            )
        context = session.provider_context(events)
        placement = choose(session, task, context)
        steps = [PlanStep(step="claim", detail=", ".join(sorted({offer.host for offer in placement.chosen})))]
        for offer in {offer.host: offer for offer in placement.chosen}.values():
            facts = context.probes.facts(offer.address)
            steps.append(
                PlanStep(
                    step="environment",
                    host=offer.host,
                    skipped=bool(facts.runtime_digest),
                    detail="stands there" if facts.runtime_digest else "made and installed",
                )
            )
        steps.append(PlanStep(step="ray", detail=f"started on {len(placement.chosen)} nodes"))
        return Plan(
            cluster_name=cluster,
            task=task,
            infra=placement.infra,
            exists=False,
            chosen=placement.chosen,
            alternatives=placement.alternatives,
            refusals=placement.refusals,
            steps=(*steps, *_job_steps(task, files)),
        )


def _steps_of_existing(record: ClusterRecord) -> tuple[PlanStep, ...]:
    up = record.status is ClusterStatus.UP
    return (PlanStep(step="ray", skipped=up, detail=f"the cluster is {record.status.value}"),)


def _job_steps(task: Task, files: SyncPlan) -> tuple[PlanStep, ...]:
    return (
        PlanStep(step="files", skipped=not files, detail=f"{files.files} files, {files.bytes} bytes at most to each node"),
        PlanStep(step="setup", skipped=not task.setup, detail="on every node, as part of the job" if task.setup else ""),
        PlanStep(step="job", detail=f"queued for {task.num_nodes} ranks"),
    )
