"""Delivery of a plan's trees to nodes.

Each node is asked once what it has (one round trip); what it lacks goes as one archive through one channel, and is
unpacked beside the targets and renamed into place (see remote.py). Nodes that lack the same share one archive, which is
built once while it is sent. The files themselves are compared, so that what a job changed is restored, at the price of
one `find` over our own paths (0.1 s for 20,000). What was removed here goes there, too, when it was put there by a sync
and nobody changed it since (removal.py; asked in a second round trip); a job's output is never deleted.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import attrs

from skylib.errors import ConnectError, SkyError, StagingError
from skylib.events import Event, EventSink, Phase, discard, span
from skylib.staging.feed import Feed
from skylib.staging.manifest import Kind, Manifest
from skylib.staging.meter import Amount, Meter
from skylib.staging.needs import Need, NeedReader
from skylib.staging.pack import Member, pack
from skylib.staging.plan import SyncPlan
from skylib.staging.remote import Step, failure, holding, install, probe, take
from skylib.staging.removal import identity, record_of
from skylib.staging.rest import member_name, rest_path
from skylib.transport.base import Completed, Transport

__all__ = ["SyncNode", "SyncOutcome", "sync"]

_STEP = "files.deliver"
_ATTEMPTS = 3
_Out = TypeVar("_Out")
_In = TypeVar("_In")


@attrs.frozen(kw_only=True, eq=False)
class SyncNode:
    """A node to deliver to. root: absolute path of the account's home there (of a `local` node: its own directory)."""

    transport: Transport
    root: str


@attrs.frozen(kw_only=True)
class SyncOutcome:
    """What one node was given. bytes: sent, archive headers included. removed: files. skipped: it had everything."""

    host: str
    files: int
    bytes: int
    seconds: float
    skipped: bool
    removed: int = 0


def sync(
    nodes: Sequence[SyncNode], plan: SyncPlan, *, events: EventSink = discard, timeout_s: float | None = None
) -> tuple[SyncOutcome, ...]:
    """Bring every node to the plan's state; outcomes in the order of `nodes`. Nothing to send costs no round trip.

    timeout_s: for each of the two steps on a node. Several `nodes` with one transport and root are served once.
    Raises StagingError (facts: host, path, evidence; failures: host -> message of each node that failed) or the
    transport's own error. A connection that breaks while files are sent is opened again up to twice, and what had
    arrived is not sent again; `bytes` are then those of the last time. All nodes are asked before the first is
    changed; a node that fails does not stop the others.
    """
    if not plan or not nodes:
        return tuple(_skipped(node, 0.0) for node in nodes)
    for _again in range(_ATTEMPTS - 1):
        try:
            return _sync(nodes, plan, events, timeout_s)
        except _BrokenOff as broken:
            events(Event(step=_STEP, phase=Phase.NOTE, at=time.time(), facts={"warning": f"{broken.error.message}; again"}))
    try:
        return _sync(nodes, plan, events, timeout_s)
    except _BrokenOff as broken:
        raise broken.error from None


class _BrokenOff(Exception):
    """A connection broke while files were sent, and nothing else went wrong."""

    def __init__(self, error: SkyError) -> None:
        super().__init__(error.message)
        self.error = error


def _sync(nodes: Sequence[SyncNode], plan: SyncPlan, events: EventSink, timeout_s: float | None) -> tuple[SyncOutcome, ...]:
    unique = {(id(node.transport), node.root): node for node in nodes}
    places = list(unique.values())
    with span(events, "staging.probe", nodes=len(places), files=plan.files, bytes=plan.bytes):
        needs = _ask(places, plan, timeout_s)
    groups: dict[tuple[object, ...], list[SyncNode]] = {}
    wanted: dict[tuple[object, ...], Need] = {}
    done: dict[tuple[int, str], SyncOutcome | SkyError] = {}
    for node, (need, seconds) in zip(places, needs, strict=True):
        if need:
            groups.setdefault(need.key, []).append(node)
            wanted[need.key] = need
        else:
            done[id(node.transport), node.root] = _skipped(node, seconds)
    if groups:
        with span(events, "staging.send", nodes=sum(map(len, groups.values()))) as running:
            stop = threading.Event()
            sent = _each(list(groups), lambda key: _deliver(groups[key], wanted[key], plan, timeout_s, stop, events), stop)
            for key, results in zip(groups, sent, strict=True):
                shared = [results] * len(groups[key]) if isinstance(results, SkyError) else results
                for node, result in zip(groups[key], shared, strict=True):
                    done[id(node.transport), node.root] = result
            results = [done[id(node.transport), node.root] for node in places]
            failed = [result for result in results if isinstance(result, SkyError)]
            try:
                _raise_first(places, results)
            except SkyError as error:
                if all(isinstance(each, (ConnectError, _RestTaken)) for each in failed):
                    raise _BrokenOff(error) from error
                raise
            outcomes = [outcome for outcome in done.values() if isinstance(outcome, SyncOutcome)]
            running.note(bytes=sum(each.bytes for each in outcomes), removed=sum(each.removed for each in outcomes))
    found = [done[id(node.transport), node.root] for node in nodes]
    return tuple(outcome for outcome in found if isinstance(outcome, SyncOutcome))


class _RestTaken(StagingError):
    """Another client went on with what an archive had left, between our question and our taking it."""


def _skipped(node: SyncNode, seconds: float) -> SyncOutcome:
    return SyncOutcome(host=node.transport.host, files=0, bytes=0, seconds=seconds, skipped=True)


def _each(items: Sequence[_In], work: Callable[[_In], _Out], stop: threading.Event | None = None) -> list[_Out | SkyError]:
    """`work` on all items at once, a thread each; errors of ours are kept as values.

    stop: set when anything else is raised (an interrupt), so that work under way can end early.
    """

    def kept(item: _In) -> _Out | SkyError:
        try:
            return work(item)
        except SkyError as error:
            return error

    if len(items) == 1:
        return [kept(items[0])]
    with ThreadPoolExecutor(len(items), thread_name_prefix="skylib-staging") as pool:
        try:
            return list(pool.map(kept, items))
        except BaseException:
            if stop is not None:
                stop.set()
            raise


def _raise_first(nodes: Sequence[SyncNode], results: Sequence[object]) -> None:
    """Raise the first error, with what went wrong on every node as its fact `failures`."""
    failed = [(node, result) for node, result in zip(nodes, results, strict=True) if isinstance(result, SkyError)]
    if failed:
        first = failed[0][1]
        first.__dict__["failures"] = {node.transport.host: error.message for node, error in failed}
        raise first


def _ask(nodes: Sequence[SyncNode], plan: SyncPlan, timeout_s: float | None) -> list[tuple[Need, float]]:
    """What each node lacks, and the seconds that its answer took. Raises as sync() does."""
    reader = NeedReader(plan)
    questions = {node.root: (reader.command(node.root), reader.question(node.root)) for node in nodes}

    def answer(node: SyncNode) -> Completed:
        command, question = questions[node.root]
        return node.transport.run(command, stdin=question, timeout_s=timeout_s)

    def need(node: SyncNode, done: Completed) -> tuple[Need, float]:
        return reader.need(node.root, done.stdout, node.transport.host), done.seconds

    found = _read(nodes, _each(nodes, answer), need)
    needs = dict(zip(nodes, found, strict=True))
    doubtful = [node for node in nodes if any(needs[node][0].left)]
    if doubtful:
        doubts = {node: reader.doubt(node.root, needs[node][0]) for node in doubtful}

        def settled(node: SyncNode, done: Completed) -> tuple[Need, float]:
            return reader.settled(node.root, needs[node][0], done.stdout), needs[node][1] + done.seconds

        answers = _each(doubtful, lambda node: node.transport.run(probe(), stdin=doubts[node], timeout_s=timeout_s))
        needs.update(zip(doubtful, _read(doubtful, answers, settled), strict=True))
    broken = [node for node in nodes if needs[node][0].has_rest]
    if broken:

        def resumed(node: SyncNode, done: Completed) -> tuple[Need, float]:
            return reader.resumed(needs[node][0], done.stdout), needs[node][1] + done.seconds

        answers = _each(broken, lambda node: node.transport.run(holding(rest_path(node.root, plan)), timeout_s=timeout_s))
        needs.update(zip(broken, _read(broken, answers, resumed), strict=True))
    return [needs[node] for node in nodes]


def _read(
    nodes: Sequence[SyncNode], answers: Sequence[Completed | SkyError], meaning: Callable[[SyncNode, Completed], _Out]
) -> list[_Out]:
    """What all answers mean. Raises what is wrong with the first that has none, after all were looked at."""
    results: list[_Out | SkyError] = []
    for node, done in zip(nodes, answers, strict=True):
        try:
            if isinstance(done, SkyError):
                raise done
            if done.returncode != 0:
                raise failure(done, node.transport.host, node.root, ())
            results.append(meaning(node, done))
        except SkyError as error:
            results.append(error)
    _raise_first(nodes, results)
    return [result for result in results if not isinstance(result, SkyError)]


def _deliver(
    nodes: Sequence[SyncNode],
    need: Need,
    plan: SyncPlan,
    timeout_s: float | None,
    stop: threading.Event,
    events: EventSink,
) -> list[SyncOutcome | SkyError]:
    """Send what is lacking to nodes that lack the same: first what goes below their roots, then what goes to /tmp."""
    started = time.perf_counter()
    failed: dict[int, SkyError] = {}
    sizes = [0] * len(nodes)
    for below_root in (True, False):
        numbers = [
            number
            for number, tree in enumerate(plan.trees)
            if tree.mount.below_root is below_root and need.lacks(number)
        ]
        left = [place for place in range(len(nodes)) if place not in failed]
        if not numbers or not left:
            continue
        results = _send([nodes[place] for place in left], need, plan, numbers, timeout_s, stop, events)
        for place, result in zip(left, results, strict=True):
            if isinstance(result, SkyError):
                failed[place] = result
            else:
                sizes[place] += result
    seconds = time.perf_counter() - started
    files = sum(entry.kind is not Kind.DIR for change in need.deltas for entry in change.send)
    removed = sum(len(gone.files) for gone in need.removals)
    given = SyncOutcome(host="", files=files, bytes=0, seconds=seconds, skipped=False, removed=removed)
    return [
        failed.get(place) or attrs.evolve(given, host=node.transport.host, bytes=sizes[place])
        for place, node in enumerate(nodes)
    ]


def _send(
    nodes: Sequence[SyncNode],
    need: Need,
    plan: SyncPlan,
    numbers: Sequence[int],
    timeout_s: float | None,
    stop: threading.Event,
    events: EventSink,
) -> list[int | SkyError]:
    """One archive to all nodes at once; the bytes that each was given, or its error.

    Raises StagingError when a file here cannot be read: the archive then lacks its end, and no node takes it.
    """
    feeds = [Feed() for _node in nodes]
    lacking = [entry for number in numbers for entry in need.sends(number) if entry.kind is not Kind.DIR]
    total = Amount(files=len(lacking), bytes=sum(entry.size for entry in lacking if entry.kind is Kind.FILE))
    packed = Amount()
    pairs = list(zip(nodes, feeds, strict=True))

    def receive(pair: tuple[SyncNode, Feed]) -> None:
        node, feed = pair
        meter = Meter(events=events, step=_STEP, host=node.transport.host, total=total, packed=packed)
        try:
            _install(node, meter.through(feed), need, plan, numbers, timeout_s)
        finally:
            feed.close()

    with ThreadPoolExecutor(1, thread_name_prefix="skylib-staging") as pool:
        receivers = pool.submit(_each, pairs, receive)
        sent = 0
        try:
            for block in pack(_counted(_members(need, plan, numbers), packed)):
                taken = [feed.put(block) for feed in feeds]
                if stop.is_set() or not any(taken):
                    break
                sent += len(block)
        finally:
            for feed in feeds:
                feed.end()
        results = receivers.result()
    return [result if isinstance(result, SkyError) else sent for result in results]


def _install(
    node: SyncNode, feed: Iterable[bytes], need: Need, plan: SyncPlan, numbers: Sequence[int], timeout_s: float | None
) -> None:
    token = secrets.token_hex(8)
    below_root = plan.trees[numbers[0]].mount.below_root
    incoming = f"{node.root.rstrip('/')}/.sky/incoming/{token}" if below_root else f"/tmp/.sky-incoming-{token}"
    steps = [
        Step(
            number=number,
            target=plan.trees[number].mount.on(node.root),
            is_file=plan.trees[number].manifest.is_file,
            link=need.links[number],
            record=need.records[number],
        )
        for number in numbers
    ]
    rest = rest_path(node.root, plan) if below_root else ""
    if rest and need.rest is not None:
        drop = b"".join(os.fsencode(name) + b"\0" for name in need.rest.drop)
        taken = node.transport.run(take(rest, incoming), stdin=drop, timeout_s=timeout_s)
        if not taken.ok:
            host = node.transport.host
            raise _RestTaken(f"what had arrived on {host} is there no more", host=host, path=rest, evidence=taken.stderr)
    done = node.transport.run(install(incoming, steps, rest=rest), stdin=feed, timeout_s=timeout_s)
    if not done.ok:
        raise failure(done, node.transport.host, incoming, steps)


def _counted(members: Iterable[Member], packed: Amount) -> Iterator[Member]:
    for member in members:
        yield member
        packed.files += member.content is None and member.entry.kind is not Kind.DIR


def _kept_account(number: int, need: Need, manifest: Manifest) -> Iterator[Member]:
    """What goes from a node, and its new record or what is added to that."""
    gone = need.removals[number]
    for name, paths in (("files", gone.files), ("dirs", gone.dirs)):
        if paths:
            yield Member.literal(f"gone/{number}.{name}", os.fsencode("".join(f"./{path}\0" for path in paths)))
    if need.records[number] and need.whole[number]:
        told = f"{identity(manifest)}\n".encode() + record_of(manifest.entries)
        yield Member.literal(f"record/{number}", told)
    elif need.records[number]:
        yield Member.literal(f"more/{number}", record_of(need.deltas[number].send))


def _members(need: Need, plan: SyncPlan, numbers: Sequence[int]) -> Iterator[Member]:
    for number in numbers:
        tree, change = plan.trees[number], need.deltas[number]
        for entry in need.sends(number):
            name = member_name(number, tree, entry.path)
            yield Member(name=name, entry=entry, source=tree.manifest.source_of(entry), kept=bool(tree.snapshot))
        modes: dict[int, list[str]] = {}
        for entry in change.remode:
            modes.setdefault(entry.mode, []).append(f"./{entry.path}\0")
        for mode, paths in modes.items():
            yield Member.literal(f"modes/{number}.{mode:o}", os.fsencode("".join(paths)))
        yield from _kept_account(number, need, tree.manifest)
    yield Member.literal("complete", b"")
