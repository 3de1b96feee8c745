"""`python3 -m tests.testbed [COUNT]`: hosts to try things on by hand, until Enter or Ctrl-C."""

from __future__ import annotations

import contextlib
import sys

from tests.testbed.bed import Testbed, pool_yaml


def main() -> None:
    """Brings the hosts up, says how to reach them, and waits."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with Testbed() as bed, contextlib.suppress(KeyboardInterrupt):
        hosts = bed.hosts(count)
        print(pool_yaml(hosts))
        for host in hosts:
            print(f"ssh -i {host.key_path} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null sky@{host.ip}")
            print(f"nsenter -a -t {host.init_pid} bash -l   # root on {host.name}")
        sys.stdout.flush()
        sys.stdin.readline()


main()
