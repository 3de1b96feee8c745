"""What a cluster that gave itself up leaves on its nodes, and when that goes: text of sh for every look at a machine.

A cluster that was released by itself, idle or with a lease that ran out, ends its processes and ports; its files stay
until its home has fetched the logs. If nobody comes for KEPT_DAYS, the first contact of any client with the node removes
them. It is recognised by stopped.json ("down": true), as old, beside a cluster.json of the same id, and no process of it.
"""

from __future__ import annotations

__all__ = ["EXPIRE", "KEPT_DAYS", "LEFT_IN_SKY"]

KEPT_DAYS = 7

# What a cluster has in ~/.sky; cluster.json last: it holds the account until all the rest is gone.
LEFT_IN_SKY = (
    "agent.lock",
    "agent.log",
    "agent.sock",
    "file_mounts",
    "incoming",
    "synced",
    "hooks",
    "jobs",
    "jobs.db",
    "jobs.db-shm",
    "jobs.db-wal",
    "lease.json",
    "python_path",
    "ray_kept.json",
    "ray_path",
    "ray_port.json",
    "ray_start.log",
    "secrets",
    "setup_done",
    "stopped.json",
    "tls",
    "agent",
    "agent.json",
    "cluster.json",
)

# expire ROOT TEMP: ROOT holds our files, TEMP is Ray's usual temp dir, which may be of another account.
EXPIRE = r"""
expire() {
    said=$1/.sky/stopped.json
    [ -n "$(find "$said" -mtime +DAYS)" ] || return 0
    grep -q '"down" *: *true' "$said" || return 0
    gone=$(sed -n 's/.*"cluster_id" *: *"\([^"]\{1,\}\)".*/\1/p' "$said" | head -n 1)
    [ -n "$gone" ] && grep -q -F "\"$gone\"" "$1/.sky/cluster.json" || return 0
    [ -r /proc/self/environ ] || return 0
    [ -z "$(grep -l -s -F "SKYLIB_CLUSTER_ID=$gone" /proc/[0-9]*/environ)" ] || return 0
    for left in "$2" "${2}_$(id -u)"; do
        [ -d "$left" ] && [ ! -L "$left" ] && [ -O "$left" ] || continue
        grep -q -F "\"$gone\"" "$left/cluster.json" && rm -rf -- "$left"
    done
    mounts=$1/.sky/file_mounts
    [ -d "$mounts" ] && find "$mounts" -mindepth 1 | while IFS= read -r left; do
        [ -L "${left#"$mounts"}" ] && [ "$(readlink "${left#"$mounts"}")" = "$left" ] && rm -f -- "${left#"$mounts"}"
    done
    rm -rf -- "$1/sky_workdir" "$1/sky_logs"
    for left in NAMES; do rm -rf -- "$1/.sky/$left"; done
}
""".replace("DAYS", str(KEPT_DAYS - 1)).replace("NAMES", " ".join(LEFT_IN_SKY))
