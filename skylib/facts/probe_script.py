"""The probe's text: POSIX sh for any node, with or without Python.

It changes nothing there, but that what a cluster which gave itself up left behind goes when its time is over (expiry.py).

It is read from stdin whole before it begins (one function, called in the last line), so a cut connection runs no half.
Its answer is read by `facts.hardware.parse_probe`; PROBE_VERSION is raised when the answer's form changes.
"""

from __future__ import annotations

from skylib.facts.expiry import EXPIRE

__all__ = ["PROBE_SCRIPT", "PROBE_VERSION"]

PROBE_VERSION = 1

_SCRIPT = r"""# One answer: lines of "key<TAB>value" between "skylib-probe 1" and "end".
# $1: the directory that holds our files (default: the account's home). $2: Ray's temp dir (default: the usual one).
say() { printf '%s\t%s\n' "$1" "$2"; }
say_file() { while IFS= read -r l || [ -n "$l" ]; do printf '%s\t%s\n' "$1" "$l"; done <"$2" 2>/dev/null; }

identity() {
    uid=$(id -u)
    user=$(id -un 2>/dev/null) || user=$uid
    home=$(getent passwd "$uid" 2>/dev/null) || home=$(grep "^[^:]*:[^:]*:$uid:" /etc/passwd 2>/dev/null)
    home=${home%:*} home=${home##*:}
    [ -d "$home" ] || home=$HOME
    root=${1:-$home}
    set -- $(uname -snm)
    say os "$1"; say hostname "$2"; say arch "$3"
    say user "$user"; say uid "$uid"; say home "$home"
}

libc() {
    version=$(getconf GNU_LIBC_VERSION 2>/dev/null)
    if [ -z "$version" ]; then
        for loader in /lib/ld-musl-*; do
            [ -x "$loader" ] && version="musl $("$loader" 2>&1 | sed -n 's/^Version //p')"
        done
    fi
    say libc "$version"
}

limits() {
    unset OMP_NUM_THREADS OMP_THREAD_LIMIT
    say cpus "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null)"
    if [ -r /proc/meminfo ]; then
        while read -r name kib _; do
            [ "$name" = MemTotal: ] && { say memory_kib "$kib"; break; }
        done </proc/meminfo
    else
        bytes=$(sysctl -n hw.memsize 2>/dev/null) && say memory_kib "$((bytes / 1024))"
    fi
    [ -r /proc/self/cgroup ] || return 0
    while IFS=: read -r _ kinds group; do
        case ,$kinds, in
            ,,) climb /sys/fs/cgroup "$group" ;;
            *,cpu,*) climb /sys/fs/cgroup/cpu "$group" ;;
            *,memory,*) climb /sys/fs/cgroup/memory "$group" ;;
        esac
    done </proc/self/cgroup
}

# Limits of a control group and of all above it; the tightest counts.
climb() {
    group=${2%/}
    while :; do
        at=$1$group
        [ -r "$at/cpu.max" ] && say_file cpu_quota "$at/cpu.max"
        [ -r "$at/memory.max" ] && say_file memory_limit "$at/memory.max"
        [ -r "$at/memory.limit_in_bytes" ] && say_file memory_limit "$at/memory.limit_in_bytes"
        if [ -r "$at/cpu.cfs_quota_us" ] && read -r quota <"$at/cpu.cfs_quota_us"; then
            read -r period <"$at/cpu.cfs_period_us"
            say cpu_quota "$quota $period"
        fi
        [ -n "$group" ] || return 0
        group=${group%/*}
    done
}

disk() {
    set -- $(df -Pk "$root" 2>/dev/null | tail -n 1)
    [ $# -ge 6 ] || return 0
    say disk_free_kib "$4"
    shift 5
    [ -r /proc/self/mounts ] || return 0
    kind=
    while read -r _ point type _; do [ "$point" = "$1" ] && kind=$type; done </proc/self/mounts
    say home_file_system "$kind"
}

gpus() {
    smi=$(command -v nvidia-smi) || smi=/usr/lib/wsl/lib/nvidia-smi
    [ -x "$smi" ] || return 0
    patience=
    command -v timeout >/dev/null 2>&1 && patience="timeout 20"
    rows=$($patience "$smi" --query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits 2>&1)
    say gpu_status $?
    printf '%s\n' "$rows" | sed 's/^/gpu	/'
}

pythons() {
    roots=
    for prefix in conda miniconda3 miniforge3 mambaforge anaconda3; do roots="$roots $home/$prefix /opt/$prefix"; done
    conda=$(command -v conda) || conda=
    [ -n "$conda" ] && roots="${conda%/*/*} $roots"
    [ -x "$CONDA_EXE" ] && roots="${CONDA_EXE%/*/*} $roots"
    for prefix in $roots; do
        [ -x "$prefix/bin/conda" ] && { say conda "$prefix/bin/conda"; break; }
    done
    for file in "$(command -v uv)" "$home/.local/bin/uv" "$home/.cargo/bin/uv"; do
        [ -x "$file" ] && { say uv "$file"; break; }
    done
    seen=' '
    places=
    for prefix in $roots; do places="$places:$prefix/bin"; done
    IFS=:
    set -f
    set -- $PATH:/usr/bin:/usr/local/bin
    set +f
    for place in "$@" $places; do look_in "$place"; done
    unset IFS
    for place in /opt/*/bin "$home"/.pyenv/versions/*/bin "$home"/.local/share/uv/python/*/bin; do
        look_in "$place"
    done
}

look_in() {
    case $1 in */shims|"") return 0 ;; esac
    for name in python3 python3.8 python3.9 python3.10 python3.11 python3.12 python3.13 python3.14; do
        [ -x "$1/$name" ] || continue
        real=$(readlink -f "$1/$name" 2>/dev/null) || real=$1/$name
        case $seen in *" $real "*) continue ;; esac
        seen="$seen$real "
        origin=path
        [ -d "${real%/*/*}/conda-meta" ] && origin=conda
        case $real in */uv/python/*) origin=uv ;; esac
        printf 'python\t%s\t%s\t%s\n' "$origin" "$("$real" -V 2>&1 | tail -n 1)" "$real"
    done
}

network() {
    set -- $SSH_CONNECTION
    [ -n "$3" ] && say ssh_ip "$3"
    if command -v ip >/dev/null 2>&1; then
        ip -4 -o addr show scope global 2>/dev/null | while read -r _ interface _ address _; do
            say ip "$interface ${address%%/*}"
        done
    elif [ -r /proc/net/fib_trie ]; then
        awk '/\|--/ { a = $2 } /host LOCAL/ && !seen[a]++ { print "ip\t- " a }' /proc/net/fib_trie
    fi
    awk 'FNR > 1 && $4 == "0A" { split($2, a, ":"); print "listen\t" a[2] " " $8 }' /proc/net/tcp /proc/net/tcp6
}

claims() {
    [ -r "$root/skypilot-runtime/.skylib-digest" ] && say_file runtime_digest "$root/skypilot-runtime/.skylib-digest"
    [ -r "$root/.sky/cluster.json" ] && say_file cluster "$root/.sky/cluster.json"
    usual=${1:-/tmp/ray_skypilot}
    for temp in "$usual" "${usual}_$uid"; do
        [ -d "$temp" ] || [ -L "$temp" ] || continue
        set -- $(ls -ldn "$temp")
        [ "$temp" = "$usual" ] && say temp_dir_owner "$3"
        [ "$3" = "$uid" ] && stands "$temp/cluster.json" && say_file temp_cluster "$temp/cluster.json"
    done
}

# Whether a mark in a temp dir is of a cluster that is still there: one of its roots has its own cluster.json.
# A mark that names no root, or one in a spelling that sh cannot read, counts as standing.
stands() {
    [ -r "$1" ] || return 1
    roots=$(sed -n 's/.*"root": *"\([^"]*\)".*/\1/p' "$1")
    [ -n "$roots" ] || return 0
    while IFS= read -r one; do
        case $one in *\\*) return 0 ;; esac
        [ -e "$one/.sky/cluster.json" ] && return 0
    done <<END
$roots
END
    return 1
}

boot() {
    id= start=
    { read -r id </proc/sys/kernel/random/boot_id; read -r stat </proc/1/stat; } 2>/dev/null
    set -- ${stat##*) }
    [ $# -ge 20 ] && { shift 19; start=$1; }
    say boot "$id:$start"
}

main() {
    LC_ALL=C PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    export LC_ALL PATH
    echo 'skylib-probe 1'
    identity "$1"; expire "$root" "${2:-/tmp/ray_skypilot}"; libc; limits; disk; gpus; pythons; network; claims "$2"; boot
    say clock "$(date +%s.%N)"
    echo end
}
main "$@" </dev/null 2>/dev/null
"""

PROBE_SCRIPT = EXPIRE + _SCRIPT
