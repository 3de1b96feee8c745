"""A stand-in for `nvidia-smi`, for hosts that shall have GPUs."""

from __future__ import annotations

__all__ = ["nvidia_smi_script"]

_SCRIPT = r"""#!/bin/sh
# Answers --query-gpu=... --format=csv[,noheader][,nounits] [-i INDEX] and -L for the devices below.
devices() {
    cat <<'END'
@DEVICES@
END
}
query= noheader= nounits= only= list=
while [ $# -gt 0 ]; do
    case $1 in
        --query-gpu=*) query=${1#*=} ;;
        --query-compute-apps=*) exit 0 ;;
        --format=*)
            case ,${1#*=}, in *,noheader,*) noheader=1 ;; esac
            case ,${1#*=}, in *,nounits,*) nounits=1 ;; esac ;;
        -i|--id) shift; only=$1 ;;
        --id=*|-i=*) only=${1#*=} ;;
        -L|--list-gpus) list=1 ;;
        *) echo "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help." >&2; exit 2 ;;
    esac
    shift
done
devices | awk -F'|' -v query="$query" -v noheader="$noheader" -v nounits="$nounits" -v only="$only" -v list="$list" '
function unit(name) {
    if (name ~ /^memory\./) return "MiB"
    if (name ~ /^utilization\./) return "%"
    if (name ~ /^power\./) return "W"
    return ""
}
BEGIN {
    known = "index uuid gpu_uuid name gpu_name memory.total memory.used memory.free utilization.gpu " \
            "utilization.memory driver_version pci.bus_id gpu_bus_id compute_cap compute_mode count " \
            "power.draw temperature.gpu"
    split(known, names, " ")
    for (i in names) valid[names[i]] = 1
    fields = split(query, asked, /, */)
    for (i = 1; i <= fields; i++)
        if (!(asked[i] in valid)) {
            printf "Field \"%s\" is not a valid field to query.\n\n", asked[i]
            bad = 1
            exit 2
        }
    if (query != "" && !noheader) {
        for (i = 1; i <= fields; i++) {
            u = unit(asked[i])
            printf "%s%s%s", (i > 1 ? ", " : ""), asked[i], (u != "" ? " [" u "]" : "")
        }
        print ""
    }
}
{ row[NR] = $0 }
END {
    if (bad) exit 2
    for (n = 1; n <= NR; n++) {
        split(row[n], part, "|")
        if (only != "" && only != part[1] && only != part[2]) continue
        if (list) { printf "GPU %s: %s (UUID: %s)\n", part[1], part[3], part[2]; continue }
        v["index"] = part[1]; v["uuid"] = v["gpu_uuid"] = part[2]; v["name"] = v["gpu_name"] = part[3]
        v["memory.total"] = v["memory.free"] = part[4]; v["memory.used"] = 0
        v["utilization.gpu"] = v["utilization.memory"] = 0; v["driver_version"] = "550.54.15"
        v["pci.bus_id"] = v["gpu_bus_id"] = sprintf("00000000:%02X:00.0", part[1] + 1)
        v["compute_cap"] = "8.0"; v["compute_mode"] = "Default"; v["count"] = NR
        v["power.draw"] = "50.00"; v["temperature.gpu"] = 30
        if (query == "") { printf "|   %s  %s  | 0MiB / %sMiB |\n", part[1], part[3], part[4]; continue }
        for (i = 1; i <= fields; i++) {
            u = nounits ? "" : unit(asked[i])
            printf "%s%s%s", (i > 1 ? ", " : ""), v[asked[i]], (u != "" ? " " u : "")
        }
        print ""
    }
}'
"""


def nvidia_smi_script(gpus: list[str]) -> str:
    """The program's text; gpus: one "name, memory in MiB" a device, in index order; ValueError on another shape."""
    rows = []
    for index, gpu in enumerate(gpus):
        name, comma, memory = gpu.rpartition(",")
        if not comma or not memory.strip().isdigit():
            raise ValueError(f"not 'name, MiB': {gpu!r}")
        uuid = f"GPU-{index:08x}-5b79-4c1b-8d3a-{index:012x}"
        rows.append(f"{index}|{uuid}|{name.strip()}|{memory.strip()}")
    return _SCRIPT.replace("@DEVICES@", "\n".join(rows))
