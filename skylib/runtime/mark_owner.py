"""A cluster whose state was rebuilt elsewhere: its nodes are told which home has it from now on."""

from __future__ import annotations

import json

from skylib.models.cluster import NodeRecord
from skylib.runtime.teardown import layout_of
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["change_owner"]

TIMEOUT_S = 30.0

# Runs in the node's private environment; stdin: {"id", "paths", "changes"}. Under the lock that claims take, each mark is
# written beside and renamed, if it still is that cluster's. Prints how many are as wanted now.
_CHANGE = r"""
import fcntl, json, os, sys
os.umask(0o077)
given = json.load(sys.stdin.buffer)
done = 0
for path in given["paths"]:
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
    except OSError:
        continue
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        try:
            with open(path, "rb") as file:
                mark = json.load(file)
        except (OSError, ValueError):
            continue
        if not isinstance(mark, dict) or mark.get("cluster_id") != given["id"]:
            continue
        if any(mark.get(name) != value for name, value in given["changes"].items()):
            beside = "%s.new%d" % (path, os.getpid())
            try:
                with open(beside, "w", encoding="utf-8") as file:
                    file.write(json.dumps({**mark, **given["changes"]}, indent=1))
                os.replace(beside, path)
            except OSError:
                os.unlink(beside)
                raise
        done += 1
    finally:
        os.close(folder)
print(done)
"""


def change_owner(transport: Transport, node: NodeRecord, cluster_id: str, *, owner: str, home: str) -> bool:
    """Whether the node's cluster.json, if it still is that cluster's, names this owner now; the temp dir's with it.

    Raises TransportError; CommandError when it cannot be written.
    """
    layout = layout_of(node)
    given = {
        "id": cluster_id,
        "paths": [layout.cluster_json, f"{layout.temp_dir}/cluster.json"],
        "changes": {"owner": owner, "home": home},
    }
    command = Command.of(node.python, "-S", "-E", "-c", _CHANGE)
    done = transport.run(command, stdin=json.dumps(given).encode(), timeout_s=TIMEOUT_S).check()
    return done.stdout.strip() not in (b"", b"0")
