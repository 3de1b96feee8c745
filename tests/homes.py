"""Homes for tests, by what keeps their state: a file of theirs, or a database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from skylib.session import Session
from tests.postgres import shared_server
from tests.stores import KINDS

__all__ = ["KINDS", "Home", "make_home"]


@attrs.frozen(kw_only=True)
class Home:
    """folder: the home's. config: what a Client or a Session of it is given."""

    folder: Path
    config: Mapping[str, object]

    def session(self, **options: object) -> Session:
        """One more session; options: Session's own."""
        return Session(self.folder, config=self.config, **options)  # type: ignore[arg-type]


def make_home(kind: str, folder: Path, **config: object) -> Home:
    """A fresh home. kind: of KINDS. folder: one that does not exist. config: further settings."""
    folder.mkdir(mode=0o700, parents=True)
    database = {"db": shared_server().new_database()} if kind == "postgres" else {}
    return Home(folder=folder, config={**database, **config})
