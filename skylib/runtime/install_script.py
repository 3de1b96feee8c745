"""The shell text that makes a runtime environment on a node, and the Python that readies its modules.

Nothing of it is seen before the last step, which is a rename; what an interrupted one left is removed by the next.
"""

from __future__ import annotations

__all__ = ["CONDA_FAILED", "INSTALL_SCRIPT", "NOT_OURS", "NO_SPACE", "WARM_SCRIPT"]

CONDA_FAILED = 81
NO_SPACE = 82
NOT_OURS = 85  # an environment of that name stands there that we did not make

# Arguments: environment, digest, python, conda ("" for none), conda's python version, pack (the directory of wheels.txt and
# the wheels; "-": they come as a tar on stdin, with uv), uv ("-": the one that comes), index ("": nothing is fetched;
# "conda": conda may fetch; "index": the packages are fetched, too), then the texts of the start hook, of the warm script
# and of the door guard. conda makes an environment in its own place: a file beside it, "$env.making", says so meanwhile,
# and that what an interrupted one left is ours. Any other that has no digest is not.
INSTALL_SCRIPT = r"""
env=$1 digest=$2 python=$3 conda=$4 conda_python=$5 pack=$6 uv=$7 index=$8 hook=$9
shift 9
warm=$1 guard=$2
for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in PYTHON* | VIRTUAL_ENV* | PIP_* | UV_* | CONDA_* | LD_PRELOAD) unset "$name" ;; esac
done
umask 077
work=$env.new.$$
final=$work/env
fail() {
    status=$?
    [ $# -gt 0 ] && status=$1
    free=$(df -Pk "${env%/*}" 2>/dev/null | awk 'NR > 1 { free = $4 } END { print free }')
    [ -n "$free" ] && [ "$free" -lt 2048 ] && status=82
    exit "$status"
}
clean() {
    rm -rf "$work"
    if [ "$final" = "$env" ]; then
        is_there || rm -rf "$env"
        rm -f "$env.making"
    fi
}
is_there() { [ "$(cat "$env/.skylib-digest" 2>/dev/null)" = "$digest" ]; }
is_ours() {
    [ -e "$env" ] || [ -L "$env" ] || return 0
    [ -f "$env/.skylib-digest" ] || [ -f "$env.making" ] || rmdir "$env" 2>/dev/null
}
is_there || is_ours || exit 85
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

clear_old() {
    for left in "$env".new.* "$env".old.*; do
        [ -d "$left" ] || continue
        pid=${left##*.}
        if [ "$pid" = $$ ] || ! kill -0 "$pid" 2>/dev/null; then rm -rf "$left"; fi
    done
}

unpack() {
    if command -v tar >/dev/null 2>&1; then
        tar -xof - -C "$work"
    else
        "$python" -c 'import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall(sys.argv[1])' "$work"
    fi
}

make_empty() {
    if [ -n "$conda" ]; then
        : >"$env.making" || return
        final=$env
        if [ -d "$env" ]; then mv "$env" "$env.old.$$"; fi
        make_conda --offline >"$work/conda.log" 2>&1 || fetch_conda || {
            tail -n 20 "$work/conda.log" >&2
            rm -rf "$env"
            [ -d "$env.old.$$" ] && mv "$env.old.$$" "$env"
            return 81
        }
        rm -rf "$env.old.$$"
    else
        "$uv" venv --quiet --no-config --no-project --offline --relocatable --cache-dir "$work/cache" \
            --python "$python" "$final" </dev/null
    fi
}

fetch_conda() {
    [ -n "$index" ] && make_conda >"$work/conda.log" 2>&1
}

make_conda() {
    rm -rf "$env"
    limit=
    command -v timeout >/dev/null 2>&1 && limit='timeout 300'
    $limit "$conda" create "$@" --yes --quiet --prefix "$env" "python=$conda_python" </dev/null
}

install() {
    if [ "$index" = index ]; then
        set --
    else
        set -- --offline --no-index --find-links "$pack"
    fi
    "$uv" pip install --quiet --no-config --python "$final/bin/python" --no-deps --require-hashes \
        --link-mode hardlink --cache-dir "$work/cache" "$@" --requirement "$pack/wheels.txt" </dev/null
}

ready() {
    site=$("$final/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
    printf '%s' "$hook" >"$site/skylib_start_hook.py" || return
    printf '%s' "$guard" >"$site/skylib_door_guard.py" || return
    printf '%s\n' 'import os; os.environ.get("SKYLIB_RAY_DOORS") and __import__("skylib_door_guard").install()' \
        >"$site/skylib_door_guard.pth" || return
    "$final/bin/python" -W ignore -c "$warm" </dev/null || return
    printf '%s\n' "$digest" >"$final/.skylib-digest"
}

swap() {
    [ "$final" = "$env" ] && return 0
    is_there && return 0
    if [ -e "$env" ] || [ -L "$env" ]; then mv "$env" "$env.old.$$" || return; fi
    mv "$final" "$env" || return
    rm -rf "$env.old.$$"
}

if is_there; then
    [ "$pack" = - ] && cat >/dev/null
    echo present
    exit 0
fi
mkdir -p "${env%/*}" || fail
clear_old
mkdir "$work" || fail
if [ "$pack" = - ]; then
    unpack || fail
    pack=$work/pack
fi
[ "$uv" != - ] || uv=$work/uv
make_empty || fail
install || fail
ready || fail
swap || fail
echo created
"""

# Run in the new environment: proves that Ray can be imported at all, and leaves the compiled form of every module that
# a node's Ray processes import; else five of them would compile the same ones side by side at the first start.
WARM_SCRIPT = r"""
import importlib, pkgutil
importlib.import_module("ray.scripts.scripts")
def quietly(name):
    try:
        return importlib.import_module(name)
    except Exception:
        return None
for name in ("head", "agent", "dashboard", "modules.dashboard_sdk", "modules.job.sdk"):
    quietly("ray.dashboard." + name)
for name in ("runtime_env.agent.main", "workers.default_worker"):
    quietly("ray._private." + name)
quietly("ray.autoscaler._private.monitor")
modules = quietly("ray.dashboard.modules")
if modules is not None:
    for found in pkgutil.walk_packages(modules.__path__, modules.__name__ + "."):
        if ".tests" not in found.name:
            quietly(found.name)
"""
