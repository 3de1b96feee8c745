"""Can this machine carry a node of ours, and on which ports? Pure: facts in, decisions out."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from skylib.errors import PreflightError, ProvisionError
from skylib.models.node import NodeFacts
from skylib.runtime.layout import DASHBOARD_PORT, RAY_PORT, TEMP_DIR
from skylib.runtime.ports import HeadPorts, next_free

__all__ = ["Problem", "check_disk", "choose_head_ports", "choose_temp_dir", "foreign_cluster", "no_ports", "raise_problems"]


@attrs.frozen(kw_only=True)
class Problem:
    """Why a host cannot be a node. step: what was checked."""

    host: str
    step: str
    reason: str
    hint: str = ""

    @classmethod
    def of(cls, error: ProvisionError) -> Problem:
        """What was found only when a host was claimed, before anything was changed on it."""
        step = f"preflight.{(error.step or 'host').rpartition('.')[2]}"
        return cls(host=error.host or "", step=step, reason=error.message, hint=error.hint or "")


def check_disk(host: str, facts: NodeFacts, *, min_free_gib: float) -> Problem | None:
    """A home without room for logs and state cannot be used, even when the environment stands there already."""
    if facts.disk_free_gib >= min_free_gib:
        return None
    return Problem(
        host=host,
        step="preflight.disk",
        reason=f"only {facts.disk_free_gib * 1024:.0f} MiB are free in {facts.home}",
        hint=f"free at least {min_free_gib * 1024:.0f} MiB there (provision.min_disk_gib)",
    )


def choose_temp_dir(facts: Sequence[NodeFacts]) -> str:
    """One for all nodes (Ray tells the workers the head's): /tmp/ray_skypilot, with the head's uid when that is taken.

    Taken: it belongs to another account on one of the machines. facts: of the nodes, the head first.
    """
    if all(each.temp_dir_owner in (None, each.uid) for each in facts):
        return TEMP_DIR
    return f"{TEMP_DIR}_{facts[0].uid}"


def choose_head_ports(host: str, facts: NodeFacts, *, base: int) -> HeadPorts | Problem:
    """6380 and 8266; the next free ones when another account holds them. What our own account runs there is in the way.

    Ray's default ports are never taken: they belong to the user's own Ray.
    """
    holders = {holder.port: holder.uid for holder in facts.port_holders}
    for wanted in (RAY_PORT, DASHBOARD_PORT):
        if holders.get(wanted) == facts.uid:
            return Problem(
                host=host,
                step="preflight.ports",
                reason=f"port {wanted} is held by another process of the same account ({facts.user})",
                hint=f"end what listens on port {wanted} of {host}",
            )
    try:
        taken = frozenset(facts.listening)
        ray = next_free(RAY_PORT, taken)
        return HeadPorts.at(base, ray=ray, dashboard=next_free(DASHBOARD_PORT, taken | {ray}))
    except PreflightError as error:
        return no_ports(host, error)


def no_ports(host: str, error: PreflightError) -> Problem:
    """What runtime.ports says, with the host that it does not know."""
    reason = f"{error.message} ({error.evidence})"
    return Problem(host=host, step="preflight.ports", reason=reason, hint=error.hint or "")


def foreign_cluster(host: str, facts: NodeFacts, cluster_id: str) -> Problem | None:
    """One cluster per account of a host: another one's mark is respected, whoever made it."""
    mark = facts.cluster
    if mark is None or mark.get("cluster_id") == cluster_id:
        return None
    return Problem(
        host=host,
        step="preflight.cluster",
        reason=f"account {facts.user} there already serves cluster {mark.get('cluster')!r}",
        hint=f"client.down({mark.get('cluster')!r}) frees it, from the home that has it ({mark.get('home', 'unknown')}), "
        f"or from this one after client.adopt({mark.get('cluster')!r})",
    )


def raise_problems(cluster: str, problems: Sequence[Problem]) -> None:
    """Raises PreflightError that carries every problem; nothing when there is none."""
    if not problems:
        return
    first = problems[0]
    raise PreflightError(
        f"cluster {cluster!r} cannot stand on {', '.join(sorted({problem.host for problem in problems}))}: "
        + "; ".join(f"{problem.host}: {problem.reason}" for problem in problems),
        cluster=cluster,
        host=first.host,
        step=first.step,
        problems=tuple(problems),
        attempts=tuple(problems),
        hint=first.hint or None,
    )
