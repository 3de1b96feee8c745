"""Ray, certificates and agents on all nodes at once, until Ray says that the cluster stands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

from skylib.errors import BringUpError, SkyError
from skylib.events import span
from skylib.runtime.agent_client import AgentClient, daemon_command
from skylib.runtime.blame import failed_start, named, open_doors
from skylib.runtime.node_files import NodePlan
from skylib.runtime.race import Race
from skylib.runtime.site import Member, Site, Tools
from skylib.runtime.tls import Seal, spread_certificates
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["start"]

DAEMON_TIMEOUT_S = 60.0
ENDING_S = 15.0  # how long a failed start waits for its other steps

# $1 a log file, then a command: runs it so that it outlives this channel, and tells its end and last words.
_DETACHED = """
log="$1"; shift
nohup "$@" >"$log" 2>&1 </dev/null &
wait $!; rc=$?
[ $rc = 0 ] || tail -c 4000 "$log" >&2
exit $rc
"""


def start(
    site: Site, nodes: Sequence[NodePlan], commands: Sequence[Command], seal: Seal, tools: Tools
) -> tuple[AgentClient, dict[str, Any]]:
    """The head's agent, and its word that all stands and no door is open. commands: what starts Ray, by rank.

    The agents import what they need, and certificates are made, while Ray comes up.
    After a failure no step begins anything, and those under way were waited for (ENDING_S): the caller may undo.
    """
    agent = tools.agent(tools.transport(site.members[0].address), nodes[0])
    race = Race()
    steps = _Steps(site=site, nodes=nodes, commands=commands, seal=seal, tools=tools, agent=agent, race=race)
    try:
        for member, node in zip(site.members, nodes, strict=True):
            race.go(f"ray-{node.rank}", partial(_blame, steps.ray, site, member, node, "runtime.ray"))
            race.go(f"agent-{node.rank}", partial(_blame, steps.daemon, site, member, node, "runtime.agent"))
        race.go("certificates", steps.certificates)
        race.go("ready", steps.ready)
        race.go("files", steps.files)
        agents = {f"agent-{node.rank}" for node in nodes}  # Ray has all nodes before a worker's agent may stand
        return agent, race.until({"ready", "files", *agents}, tools.timeout_s)["ready"]
    except BaseException as error:
        race.stop()
        with span(tools.events, "runtime.stop", cluster=site.cluster) as step:
            steps.daemons.set()
            step.note(still_running=_end(race, agent))
        known = failed_start(error, site.cluster, [node.host for node in nodes], tools.timeout_s)
        if known is error:
            raise
        raise known from error


@attrs.frozen(kw_only=True)
class _Steps:
    """What is done side by side. daemons: set once the head's agent listens."""

    site: Site
    nodes: Sequence[NodePlan]
    commands: Sequence[Command]
    seal: Seal
    tools: Tools
    agent: AgentClient
    race: Race
    daemons: threading.Event = attrs.field(factory=threading.Event)

    def _act(self, member: Member, command: Command, timeout_s: float) -> None:
        transport = self.tools.transport(member.address)
        self.race.check()
        transport.run(command, timeout_s=timeout_s).check()

    def ray(self, member: Member, node: NodePlan) -> None:
        with span(self.tools.events, "runtime.ray_head" if node.rank == 0 else "runtime.ray_worker", node=member.host):
            command = _detached(self.commands[node.rank], f"{node.layout.sky}/ray_start.log")
            self._act(member, command, self.tools.timeout_s)

    def daemon(self, member: Member, node: NodePlan) -> None:
        with span(self.tools.events, "runtime.agent", node=member.host):
            self._act(member, daemon_command(node.python, node.layout, self.site.cluster_id), DAEMON_TIMEOUT_S)
        if node.rank == 0:
            self.daemons.set()

    def _reach(self, node: NodePlan) -> Transport:
        return self.tools.transport(self.site.members[node.rank].address)

    def certificates(self) -> None:
        head = self.nodes[0].host
        with span(self.tools.events, "runtime.certificates", node=head):
            try:
                spread_certificates(self.nodes, self.seal, self._reach, self.race.check)
            except SkyError as error:
                raise named(error, self.site.cluster, error.host or head, "runtime.certificates") from error

    def ready(self) -> dict[str, Any]:
        cluster, head, limit_s = self.site.cluster, self.nodes[0].host, self.tools.timeout_s
        if not self.daemons.wait(DAEMON_TIMEOUT_S):
            raise BringUpError("the agent did not start", cluster=cluster, host=head, step="runtime.agent")
        self.race.check()
        with span(self.tools.events, "runtime.ready", node=head) as step:
            answer = self.agent.call("ready", answer_within_s=limit_s + 10, timeout_s=limit_s, doors=True)
            step.note(doors_s=answer.get("doors_s"))
        error = open_doors(answer.get("doors") or (), cluster, [node.host for node in self.nodes])
        if error is not None:
            raise error
        return answer

    def files(self) -> None:
        self.race.check()
        self.tools.while_starting(self.nodes)


def _end(race: Race, agent: AgentClient) -> tuple[str, ...]:
    """Wait for what is under way, at most ENDING_S; who asks the agent just then, or asks it again, is cut short."""
    deadline = time.monotonic() + ENDING_S
    while True:
        agent.close()
        running = race.join(0.2)
        if not running or time.monotonic() > deadline:
            return running


def _blame(act: Callable[[Member, NodePlan], None], site: Site, member: Member, node: NodePlan, step: str) -> None:
    try:
        act(member, node)
    except SkyError as error:
        raise named(error, site.cluster, member.host, step) from error


def _detached(command: Command, log: str) -> Command:
    return Command.sh(_DETACHED, log, *command.words(), env=command.env, cwd=command.cwd)
