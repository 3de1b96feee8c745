"""The composition root: one home with everything that works on it. Each part is made when it is first used."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from skylib.config.database import find_database, given_settings, place_of
from skylib.config.layers import Origin
from skylib.config.load import Config, load_config
from skylib.errors import ClusterBusy, ClusterNotFound, ConfigError, InvalidSpecError, SkyError
from skylib.events import EventSink, Relay, discard, fan, span
from skylib.identity import account_name, client_hash, machine_name
from skylib.journal import Journal
from skylib.locks import Locks
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord, check_is_text
from skylib.models.frozen_map import PlacedMap
from skylib.models.node import HostAddress, NodeFacts
from skylib.models.secret import Secret
from skylib.models.spec_errors import kind_of
from skylib.models.task import Task
from skylib.parts import Parts
from skylib.paths import SkyHome, default_home
from skylib.providers.base import ProviderContext
from skylib.providers.pool_file import Pool, read_pools
from skylib.providers.registry import Registry
from skylib.providers.shared_pools import SharedPools
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.agent_restart import bring_back
from skylib.runtime.environment import Environment, ensure_environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.teardown import layout_of
from skylib.runtime.wheelhouse import Wheelhouse
from skylib.state import intents
from skylib.state.advisory import AdvisoryKeeper
from skylib.state.base import IntentRecord, StateStore
from skylib.state.postgres import PostgresStore
from skylib.state.shared import StoredHostKeys
from skylib.state.sqlite import SqliteStore
from skylib.transport.base import Transport
from skylib.transport.host_keys import HostKeys
from skylib.transport.pool import Transports
from skylib.transport.ssh_params import SshSettings

__all__ = ["Session"]

_T = TypeVar("_T")
_AGENT_WAIT_S = 0.5  # for whoever brings the agent back just now


class Session:
    """One home, open. Safe from many threads, and after fork; two sessions of one home do not disturb each other."""

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        config: Mapping[str, object] | None = None,
        events: EventSink | None = None,
        clock: Callable[[], float] = time.time,
        transports: Transports | None = None,
        store: StateStore | None = None,
    ) -> None:
        """transports, store: in the place of those that the home's configuration asks for; close() closes them, too."""
        self.home = SkyHome(default_home() if home is None else home)
        self.clock = clock
        self.expected_database: str | None = None  # where the cluster of a handle is, as far as the handle knows
        if events is not None and not callable(events):
            raise InvalidSpecError(f"events is called with each Event, not {kind_of(events)}", field="events")
        self._overrides = given_settings(config)
        self._sink = events or discard
        self._relay = Relay()
        self._parts = Parts({"transports": transports, "store": store}, self.home)
        self._tuned: Config | None = None

    def __repr__(self) -> str:
        return f"Session(home={str(self.home.root)!r})"

    @property
    def config(self) -> Config:
        return self._tuned or self._parts.get("config", self._load_config)

    @property
    def known_config(self) -> Config | None:
        """The configuration if it has been read; nothing is read for it."""
        known = self._tuned or self._parts.made.get("config")
        return known if isinstance(known, Config) else None

    def reload_config(self) -> Config:
        """Read all layers anew. Connections that are open keep what they were opened with. Raises ConfigError."""
        fresh = self._load_config()
        with self._parts.lock:
            self._parts.made["config"] = fresh
            transports = self._parts.made.get("transports")
        if isinstance(transports, Transports):
            transports.use(*_ssh_settings(fresh))
        return fresh

    def tuned(self, task: Task) -> Session:
        """This session with the task's own `config:` on top; all else is shared. Raises ConfigError with its place."""
        if not task.config:
            return self
        view = copy.copy(self)
        view._tuned = self.config.tuned(task.config, lambda path: _place(task.config, path))
        return view

    @property
    def database(self) -> Secret | None:
        """The database that the state is kept in; None: the home keeps it. As it was when the session first asked."""
        return self._parts.get("database", lambda: find_database(self.home, self._overrides))

    @property
    def where(self) -> str:
        """What keeps the state, for people: the home, or "database host/name"."""
        name = self.database_name
        return str(self.home.root) if name is None else f"database {name}"

    @property
    def database_name(self) -> str | None:
        """The database as "host/name", which can be shown."""
        url = self.database
        return None if url is None else place_of(url).label

    @property
    def store(self) -> StateStore:
        return self._part("store", self._make_store)

    @property
    def locks(self) -> Locks:
        """Of what everybody shares who shares the state: clusters, pools, configuration."""
        return self._part("locks", self._make_locks)

    @property
    def file_locks(self) -> Locks:
        """Of files of this home: wheels, kept logs, staging, catalogs, SQLite's schema."""
        return self._part("file_locks", lambda: Locks(self.home))

    @property
    def transports(self) -> Transports:
        return self._part("transports", self._make_transports)

    @property
    def providers(self) -> Registry:
        return self._part("providers", Registry)

    @property
    def wheelhouse(self) -> Wheelhouse:
        def make() -> Wheelhouse:
            def hold(scope: str) -> AbstractContextManager[object]:
                return self.file_locks.hold(scope, operation="wheels", timeout_s=1800)

            return Wheelhouse(self.home, hold=hold, events=self._relay)

        return self._part("wheelhouse", make)

    @property
    def user_hash(self) -> str:
        """Eight hex digits that name this client."""
        return client_hash(self.home)

    @property
    def user(self) -> str:
        """The account's name, for people and SKYPILOT_USER."""
        return account_name()

    @property
    def machine(self) -> str:
        """What this machine is called in the state: others see it, too, where that is in a database."""
        return "localhost" if self.database is None else machine_name()

    @property
    def host_keys(self) -> HostKeys:
        """The record of SSH hosts' keys."""
        return self._part(
            "host_keys", lambda: HostKeys(home=self.home, shared=self._shared_keys(), locks=self.file_locks)
        )

    def pools(self) -> Mapping[str, Pool]:
        """The SSH pools there are: the home's file, or what all homes of a database say. Raises ConfigError, StateError."""
        if self.database is None:
            return read_pools(self.home.ssh_node_pools)
        return SharedPools(
            home=self.home,
            values=self.store,
            where=self.where,
            hold=lambda: self.locks.hold("pool:file", operation="pools"),
        ).pools()

    def transport(self, address: HostAddress) -> Transport:
        """The kept way to a machine."""
        return self.transports.get(address)

    def agent(self, record: ClusterRecord) -> AgentClient:
        """The kept channel to a cluster's agent; opened when it is first asked. One that died is begun anew by then."""
        agent = self._agent(record.name, record.cluster_id, record.head)
        agent.on_nobody = partial(self._bring_back, record.name, record.cluster_id)
        return agent

    def _bring_back(self, name: str, cluster_id: str) -> bool:
        """Whether the agent of that life runs again. Not while an operation is on the cluster, or when it is not UP."""
        try:
            with self.hold(name, "agent", _AGENT_WAIT_S):
                record = self.store.cluster(name)
                if record is None or record.cluster_id != cluster_id or record.status is not ClusterStatus.UP:
                    return False
                return bring_back(self.transport(record.head.address), record.head, cluster_id)
        except ClusterBusy:
            return False

    def _agent(self, cluster: str, cluster_id: str, head: NodeRecord) -> AgentClient:
        return self.new_agent(cluster, cluster_id, self.transport(head.address), head.python, layout_of(head))

    def new_agent(self, cluster: str, cluster_id: str, transport: Transport, python: str, layout: NodeLayout) -> AgentClient:
        """The channel to the agent of this life of the cluster; the same one every time."""
        timeout_s = self.config.agent.call_timeout_s
        return self._parts.agents.get(cluster, cluster_id, transport, python, layout, timeout_s=timeout_s)

    def forget_agent(self, cluster_id: str) -> None:
        """Close the channels to an agent that is gone or about to go."""
        self._parts.agents.close(cluster_id)

    def environment(self, events: EventSink) -> Callable[[Transport, NodeFacts, NodeLayout], Environment]:
        """What makes or finds the private environment of one machine."""
        runtime = self.config.runtime

        def ensure(transport: Transport, facts: NodeFacts, layout: NodeLayout) -> Environment:
            return ensure_environment(
                transport,
                facts,
                layout,
                wheelhouse=self.wheelhouse,
                source=runtime.source,
                python=runtime.python,
                timeout_s=runtime.timeout_s,
                events=events,
            )

        return ensure

    def provider_context(self, events: EventSink, record: ClusterRecord | None = None) -> ProviderContext:
        """What providers work with, with the hosts that are held now. record: the cluster that it is for."""
        return ProviderContext(
            home=self.home,
            transports=self.transport,
            claims=self.store.claims(),
            cluster_name=record.name if record is not None else None,
            cluster_id=record.cluster_id if record is not None else None,
            events=events,
            max_at_once=self.config.ssh.parallel,
            machine=self.machine,
            pools=self.pools,
        )

    def require(self, name: str) -> ClusterRecord:
        """The record of an existing cluster. Raises ClusterNotFound that lists those that exist, InvalidSpecError."""
        record = self.store.cluster(check_is_text(name))
        if record is None:
            raise self.not_found(name)
        return record

    def not_found(self, name: str) -> ClusterNotFound:
        """The error for a cluster that is not known here."""
        known = tuple(self.store.names())
        words = f"there is no cluster {name!r} in {self.where}"
        return ClusterNotFound(words, cluster=name, known=known, hint=self._where_else(known))

    def can_reach(self, record: ClusterRecord) -> bool:
        """Whether its nodes can be asked from this machine at all; False: they are `local` to another one.

        That they do not answer here says nothing about them then.
        """
        local = [node.address for node in record.nodes if node.address.kind == "local"]
        return not any(address.is_elsewhere(self.machine) for address in local)

    @contextmanager
    def operation(self, name: str, cluster: str = "") -> Iterator[EventSink]:
        """One verb: its events and those of its commands go to the caller's sink and to a file of their own under logs."""
        check_is_text(cluster)
        journal = Journal(self.home, operation=name, cluster=cluster, keep=self.config.logs.keep)
        sink = fan(self._sink, journal)
        try:
            with self._relay.to(sink), span(sink, name, cluster=cluster):
                yield sink
        except SkyError as error:
            error.__dict__.setdefault("log_path", str(journal.path) if journal.path else None)
            raise
        finally:
            journal.close()

    @contextmanager
    def hold(self, cluster: str, operation: str, timeout_s: float | None = None) -> Iterator[None]:
        """The cluster's lock and nothing else. Raises ClusterBusy with who holds it. Verbs use ops/holding.py."""
        wait_s = self.config.locks.timeout_s if timeout_s is None else timeout_s
        with self.locks.hold(f"cluster:{cluster}", operation=operation, timeout_s=wait_s):
            yield

    def intent(
        self, operation: str, cluster: str, leaves: tuple[type[Exception], ...] = (), /, **details: object
    ) -> AbstractContextManager[int]:
        """Write down what is about to be done, before it is; settle it when that is done, or failed.

        Left open, for whoever holds the cluster next, by a process that was killed, by Ctrl-C and the like, by a state
        that could not be written, and by `leaves`: nobody has finished or undone it then. An operation that has, and
        still raises one of these, settles it itself. details: JSON values that another process needs to finish or undo
        it; never a secret. Gives its id.
        """
        return intents.acting(self.store, self._parts.intents, operation, cluster, details, leaves=leaves)

    def settle_intent(self, number: int, outcome: str) -> None:
        """Say how it ended. One that cannot be settled now is seen again, and harms nothing."""
        intents.settle(self.store, number, outcome)

    def left_intents(self, cluster: str | None = None) -> list[IntentRecord]:
        """Open intents that this session is not at, and no other living process that works without the lock; oldest first.

        Under the cluster's lock: what nobody is at any more. Without it, operations under way are among them.
        """
        return intents.left(self.store, self._parts.intents, cluster, now=self.clock())

    def close(self) -> None:
        """Close channels, connections and the store; each opens again when it is used."""
        with self._parts.lock:
            transports, store, locks = (self._parts.made.get(name) for name in ("transports", "store", "locks"))
        self._parts.agents.close()
        if isinstance(transports, Transports):
            transports.close()
        if store is not None:
            cast(StateStore, store).close()
        if isinstance(locks, Locks):
            locks.close()

    def _part(self, name: str, make: Callable[[], _T]) -> _T:
        return self._parts.get(name, make)

    def _load_config(self) -> Config:
        stored = None if self.database is None else self.store.config_get("config")
        config = load_config(self.home, overrides=self._overrides, stored=stored)
        if config.database != self.database:
            raise ConfigError("db is another one than when this client was made", key="db", hint="make a new Client")
        return config

    def _make_locks(self) -> Locks:
        if self.database is not None:
            return Locks(self.home, keeper=AdvisoryKeeper(self.database, events=self._relay))
        return Locks(self.home)

    def _make_store(self) -> StateStore:
        if self.database is not None:
            return PostgresStore(self.database, events=self._relay)
        return SqliteStore(self.home, locks=self.file_locks, events=self._relay)

    def _make_transports(self) -> Transports:
        settings, user_config = _ssh_settings(self.config)
        return Transports(
            self.home,
            settings=settings,
            user_config_path=user_config,
            host_keys=self.host_keys,
            machine=self.machine,
            events=self._relay,
        )

    def _shared_keys(self) -> StoredHostKeys | None:
        return None if self.database is None else StoredHostKeys(store=self.store, where=self.where)

    def _where_else(self, known: tuple[str, ...]) -> str:
        """What to do about a cluster that is not known here."""
        expected = self.expected_database
        if expected is not None and expected != self.database_name:
            return (
                f"the handle was made with the state in database {expected}, and handles do not carry "
                "Client(config={'db': ...}): set db in config.yaml of this home, or $SKYLIB_DB"
            )
        return "existing: " + ", ".join(known) if known else "client.launch(task, name) makes one"


def _ssh_settings(config: Config) -> tuple[SshSettings, Path]:
    """What connections are made with, and the user's own configuration of SSH."""
    ssh = config.ssh
    settings = SshSettings(
        connect_timeout_s=ssh.connect_timeout_s, keepalive_s=ssh.keepalive_s, max_channels=ssh.max_channels
    )
    return settings, Path(ssh.user_config).expanduser() if ssh.user_config else Path(os.devnull)


def _place(config: Mapping[str, object], path: tuple[str, ...]) -> Origin:
    """Where a task says so."""
    if isinstance(config, PlacedMap):
        return Origin(source=config.file, line=config.lines.get(path))
    return Origin(source="Task(config=...)")
