"""Real SSH hosts on one machine, for tests: namespaces, an overlay of `/`, and sshd.

Needs root, iproute2 and openssh-server.

    with Testbed() as bed:
        host = bed.host()
        host.sh("id", user="sky")

`python3 -m tests.testbed 3` brings three hosts up by hand and keeps them until Enter or Ctrl-C.
"""

from __future__ import annotations

from tests.testbed.bed import Testbed, pool_yaml
from tests.testbed.host import Host, User
from tests.testbed.image import HostSpec
from tests.testbed.machine import PythonMissing, TestbedError, TestbedUnavailable, missing_requirement

__all__ = [
    "Host",
    "HostSpec",
    "PythonMissing",
    "Testbed",
    "TestbedError",
    "TestbedUnavailable",
    "User",
    "missing_requirement",
    "pool_yaml",
]
