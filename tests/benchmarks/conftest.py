"""Hosts for benchmarks: those of the tests on hosts, with the private environment or without."""

from __future__ import annotations

from tests.hosts.conftest import shared, warm_host, warm_hosts, wheels

__all__ = ["shared", "warm_host", "warm_hosts", "wheels"]
