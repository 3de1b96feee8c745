"""Connections of one process to one PostgreSQL database: lent to one thread at a time, kept for the next, left at a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from skylib.forks import watch
from skylib.state.gate import Gate
from skylib.state.pg_address import Address
from skylib.state.pg_link import Link, open_link

__all__ = ["LinkPool"]

_KEPT = 4
# How long a fork waits for a connection that another thread is just opening: its child would inherit it unseen.
_FORK_WAIT_S = 5.0


class LinkPool:
    """Opens connections as they are asked for, none before. Usable again after `close` and fork."""

    def __init__(
        self,
        address: Address,
        *,
        application: str,
        connect_timeout_s: float,
        answer_s: float,
        prepare: Callable[[Link], None] = lambda link: None,
    ) -> None:
        """prepare: what is done with each new connection first."""
        self._address = address
        self._application = application
        self._connect_timeout_s = connect_timeout_s
        self._answer_s = answer_s
        self._prepare = prepare
        self._mutex = threading.Lock()
        self._openings = Gate()
        self._idle: list[Link] = []
        self._all: set[Link] = set()
        self._pid = 0

    def borrow(self, *, within_s: float) -> Link:
        """One that no other thread uses until it is given back or dropped. Raises Away, StateError and ConfigError.

        within_s: how long connecting may take, if it has to.
        """
        self._watch_forks()
        with self._mutex:
            if self._idle:
                return self._idle.pop()
        with self._openings.inside():
            link = open_link(
                self._address,
                application=self._application,
                timeout_s=min(within_s, self._connect_timeout_s),
                answer_s=self._answer_s,
            )
            with self._mutex:
                self._all.add(link)
        try:
            self._prepare(link)
        except BaseException:
            self.drop(link)
            raise
        return link

    def give_back(self, link: Link) -> None:
        """Outside of any transaction."""
        with self._mutex:
            if not link.broken and link in self._all and len(self._idle) < _KEPT:
                self._idle.append(link)
                return
        self.drop(link)

    def drop(self, link: Link) -> None:
        """Close it."""
        with self._mutex:
            self._all.discard(link)
        link.close()

    def close(self) -> None:
        """Close those that nobody has borrowed. After trouble, too: the others of that time are as broken."""
        self._watch_forks()
        with self._mutex:
            unused, self._idle = self._idle, []
            self._all.difference_update(unused)
        for link in unused:
            link.close()

    def _watch_forks(self) -> None:
        """Once in each process that uses this pool: see to it that no child uses or closes its parent's connections."""
        if self._pid == os.getpid():
            return
        if self._pid:
            self._start_in_child()
            return
        self._pid = os.getpid()
        watch(
            self,
            before=lambda each: each._openings.shut(timeout_s=_FORK_WAIT_S),
            in_parent=lambda each: each._openings.open(),
            in_child=LinkPool._start_in_child,
        )

    def _start_in_child(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._openings = Gate()
        inherited, self._all, self._idle = self._all, set(), []
        for link in inherited:
            link.abandon()
