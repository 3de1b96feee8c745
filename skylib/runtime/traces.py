"""What of a cluster is on a node: one short command that needs nothing of ours there. Parsing is pure."""

from __future__ import annotations

import json
from enum import Enum

from skylib.models.cluster import NodeRecord
from skylib.runtime.teardown import layout_of
from skylib.transport.base import Completed, Transport
from skylib.transport.command import Command

__all__ = ["Trace", "parse_trace", "trace_of"]


class Trace(str, Enum):
    """OURS: the cluster's mark, or a process of it. NONE: neither. UNKNOWN: the node did not say so clearly."""

    OURS = "OURS"
    NONE = "NONE"
    UNKNOWN = "UNKNOWN"


# $1 cluster id, $2 cluster name, $3 the node's root, $4 its cluster.json. Processes are known by what they inherited, a
# job's by its task id. Says "root yes|empty|no", "processes <how many>", "mark none|<as it stands>".
_LOOK = """
[ -r /proc/self/environ ] && command -v grep >/dev/null || exit 3
if [ ! -d "$3" ]; then echo "root no"; elif [ -n "$(ls -A "$3")" ]; then echo "root yes"; else echo "root empty"; fi
found=$(LC_ALL=C grep -l -s -e "SKYLIB_CLUSTER_ID=$1" -e "SKYPILOT_TASK_ID=sky-[-0-9]*_$2_[0-9]" /proc/[0-9]*/environ)
set -f; set -- "$4" $found
echo "processes $(($# - 1))"
if [ -e "$1" ] || [ -L "$1" ]; then printf "mark "; exec cat "$1"; fi
echo "mark none"
"""
_ROOTS = ("root yes", "root empty", "root no")


def trace_of(transport: Transport, node: NodeRecord, *, cluster: str, cluster_id: str, timeout_s: float) -> Trace:
    """Ask the node. Raises TransportError when its host is not reached."""
    words = (cluster_id, cluster, node.root, layout_of(node).cluster_json)
    done = transport.run(Command.sh(_LOOK, *words), timeout_s=timeout_s)
    return parse_trace(done, cluster_id=cluster_id, may_lack_root=node.address.kind == "local")


def parse_trace(done: Completed, *, cluster_id: str, may_lack_root: bool = False) -> Trace:
    """An account whose home is not there or empty, as where it is not mounted, or a mark that cannot be read, says nothing.

    may_lack_root: but the first may.
    """
    if not done.ok:
        return Trace.UNKNOWN
    root, _, rest = done.stdout.decode(errors="replace").partition("\n")
    processes, _, mark = rest.partition("\n")
    if root not in _ROOTS or not processes.startswith("processes ") or not mark.startswith("mark "):
        return Trace.UNKNOWN
    if processes != "processes 0":
        return Trace.OURS
    if root != "root yes" and not may_lack_root:
        return Trace.UNKNOWN
    if mark == "mark none\n":
        return Trace.NONE
    try:
        holder = json.loads(mark.removeprefix("mark "))["cluster_id"]
    except (ValueError, KeyError, TypeError):
        return Trace.UNKNOWN
    if not isinstance(holder, str) or not holder:
        return Trace.UNKNOWN
    return Trace.OURS if holder == cluster_id else Trace.NONE
