"""Take a node's part of a cluster away: end what runs, remove what we put there, and look whether anything is left."""

from __future__ import annotations

import json
from typing import Any

from skylib.errors import SkyError, TransportError
from skylib.facts.expiry import LEFT_IN_SKY
from skylib.models.cluster import NodeRecord
from skylib.models.receipts import NodeReceipt
from skylib.runtime.layout import NodeLayout
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["end_node", "layout_of", "release_node"]

END_TIMEOUT_S = 60.0
SURVIVORS = 1  # what `end` exits with when a process would not go

# $1 python, $2 the agent's bundle, $3 agent.json, $4 cluster id. Without a bundle or configuration nothing of ours ever
# ran there.
_END = """
[ -s "$2" ] && [ -f "$3" ] || { echo '{}'; exit 0; }
[ -x "$1" ] || { echo "no interpreter at $1" >&2; exit 4; }
exec "$1" -S -E "$2" end --config "$3" --cluster-id "$4"
"""

# $1 cluster id, $2 cluster.json, $3 where files mounted at absolute paths are, $4 a folder to remove when it is empty
# ("" for none), $5 the temp dir's mark, then paths. Nothing is removed when another cluster holds the account by now: one
# whose id is read in the mark or, where that has none, in agent.json; an agent.json of ours beside its mark is told. A
# holder has the temp dir's mark, too: without it, beside an agent.json of ours, its mark goes with the rest, as does one
# that names nobody.
_REMOVE = """
id="$1" mark="$2" mounts="$3" parent="$4" beside="$5"; shift 5
ours() { LC_ALL=C grep -q -s -F "\\"$id\\"" "$1"; }
named() { LC_ALL=C sed -n 's/.*"cluster_id" *: *"\\([^"]\\{1,\\}\\)".*/\\1/p' "$1" 2>/dev/null | head -n 1; }
foreign() {
  other=
  for told in "$@"; do
    if [ ! -f "$told" ]; then continue; fi
    if ours "$told"; then return 1; fi
    other=$(named "$told")
    if [ -n "$other" ]; then return 0; fi
  done
  return 1
}
if [ -e "$mark" ] && foreign "$mark" "${mark%/*}/agent.json"; then
  holder=$other
  if ! ours "${mark%/*}/agent.json"; then exit 0; fi
  if foreign "$beside"; then echo "left $mark: held by another cluster, $holder"; exit 0; fi
fi
remove() {
  rm -rf -- "$1" 2>/dev/null
  if [ -e "$1" ] || [ -L "$1" ]; then echo "left $1"; else echo "removed $1"; fi
}
if [ -d "$mounts" ]; then
  find "$mounts" -mindepth 1 | while IFS= read -r path; do
    link=${path#"$mounts"}
    if [ -L "$link" ] && [ "$(readlink "$link")" = "$path" ]; then remove "$link"; fi
  done
fi
for path in "$@"; do
  if foreign "$path/cluster.json"; then continue; fi
  if [ -e "$path" ] || [ -L "$path" ]; then remove "$path"; fi
done
[ -z "$parent" ] || rmdir -- "$parent" 2>/dev/null || :
"""


def layout_of(node: NodeRecord) -> NodeLayout:
    """Where things are on a node that the store knows."""
    return NodeLayout(root=node.root, temp_dir=node.temp_dir, env=node.env)


def end_node(transport: Transport, node: NodeRecord, cluster_id: str) -> NodeReceipt:
    """End every process of the cluster on this node, Ray's, the agent's and the jobs'; files stay.

    A failure is told in the receipt, not raised: the other nodes must go on.
    """
    layout = layout_of(node)
    command = Command.sh(_END, node.python, layout.agent_bundle, layout.agent_json, cluster_id)
    try:
        done = transport.run(command, timeout_s=END_TIMEOUT_S)
        if done.returncode != SURVIVORS:
            done.check()
        answer: dict[str, Any] = json.loads(done.stdout or b"{}")
    except TransportError as error:
        return NodeReceipt(rank=node.rank, host=node.host, error=str(error))
    except ValueError:
        return NodeReceipt(rank=node.rank, host=node.host, error=f"unexpected answer {done.stdout[:200]!r}")
    return NodeReceipt(
        rank=node.rank,
        host=node.host,
        ended=tuple(answer.get("ended", ())),
        ports_closed=tuple(sorted(answer.get("ports_closed", ()))),
        leftovers=tuple(f"process {pid} is still running" for pid in answer.get("survivors", ())),
    )


def release_node(transport: Transport, node: NodeRecord, *, cluster_id: str) -> NodeReceipt:
    """Remove what the cluster put on the node, but for the private environment, which the next cluster will use.

    Removed: .sky's files of this cluster, sky_workdir, sky_logs, Ray's temp dir; for a `local` node its whole root.
    Links that mounts at absolute paths made go as well. Mounted files in ~ and /tmp belong to the user and stay.
    """
    layout = layout_of(node)
    local = node.address.kind == "local"
    paths = [layout.root] if local else _account_paths(layout)
    if node.rank == 0 or not local:
        paths.insert(0, layout.temp_dir)
    parent = layout.root.rpartition("/")[0] if local else ""
    beside = f"{layout.temp_dir}/cluster.json"
    words = (cluster_id, layout.cluster_json, f"{layout.sky}/file_mounts", parent, beside, *paths)
    try:
        done = transport.run(Command.sh(_REMOVE, *words), timeout_s=END_TIMEOUT_S).check()
    except SkyError as error:
        return NodeReceipt(rank=node.rank, host=node.host, error=str(error))
    lines = done.stdout.decode(errors="replace").splitlines()
    return NodeReceipt(
        rank=node.rank,
        host=node.host,
        paths_removed=tuple(line.removeprefix("removed ") for line in lines if line.startswith("removed ")),
        leftovers=tuple(line.removeprefix("left ") for line in lines if line.startswith("left ")),
    )


def _account_paths(layout: NodeLayout) -> list[str]:
    """In the order in which they go: the mark, which holds the account, last."""
    return [layout.workdir, layout.job_logs, *[f"{layout.sky}/{name}" for name in LEFT_IN_SKY]]
