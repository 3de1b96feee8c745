"""Run by `ray start` in a runtime environment (RAY_START_HOOK), where it is a module of its own: no imports of skylib.

Trims what our Ray has no use for, and gives each node its own private directory of sockets: Ray counts names up
("raylet", "raylet.1") and two nodes of one machine that start together would count to the same one.
Lets nobody oversleep: Ray 2.9.3 asks a GCS that is not there yet again after 1 s on the head (node.py, _init_gcs_client)
and after 2 s on a worker (utils.py, internal_kv_get_with_retry), though it is there within 0.2 s of its start.
Hides our address from other Rays of the account: `ray.init(address="auto")`, `ray status` and the like read it off the
command lines of raylets (services.py, _find_address_from_flag; in 2.9.3 and in 2.60.0 alike).
Waits for the certificates of its bring-up, which are made beside it, and keeps the temp dir the account's own.
Every attribute is checked first, so that another Ray version starts as it likes. Python 3.8, standard library and Ray.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

__all__ = ["trim", "unscanned"]

_ADDRESS_FLAG = "--gcs-address="
_POLL_S = 0.01
_GCS_WAIT_S = 5.0
_HEAD_WAIT_S = 120.0


def trim(params: Any, head: bool, *, certificates_within_s: float = 60.0) -> None:
    """params: RayParams before the node is made. SKYLIB_RAY_TEMP_DIR: the cluster's temp dir on this machine.

    SKYLIB_RAY_GCS_ADDRESS: for a worker, its head's. SKYLIB_RAY_DASHBOARD_GRPC_PORT: for a head whose Ray has such a
    port (newer ones have no flag for it either). SKYLIB_RAY_TLS_STAMP: what the file `stamp` beside RAY_TLS_CA_CERT
    says once the certificates are there; TimeoutError when it does not in time. Ray gives `params` and `head` alone.
    """
    authority, stamp = os.environ.get("RAY_TLS_CA_CERT", ""), os.environ.get("SKYLIB_RAY_TLS_STAMP", "")
    _wait_for_certificates(authority, stamp, within_s=certificates_within_s)
    wanted: dict[str, Any] = {
        "ray_client_server_port": None,  # `ray://`: 0.9 CPU seconds at each start
        "include_log_monitor": False,  # sends workers' logs to drivers: 0.5 CPU seconds at each start
    }
    temp_dir = os.environ.get("SKYLIB_RAY_TEMP_DIR")
    if temp_dir:
        os.makedirs(temp_dir, mode=0o700, exist_ok=True)
        os.chmod(temp_dir, 0o700)
        sockets = tempfile.mkdtemp(prefix="sockets-", dir=temp_dir)
        wanted["plasma_store_socket_name"] = os.path.join(sockets, "plasma_store")
        wanted["raylet_socket_name"] = os.path.join(sockets, "raylet")
    grpc_port = os.environ.get("SKYLIB_RAY_DASHBOARD_GRPC_PORT")
    if head and grpc_port:
        wanted["dashboard_grpc_port"] = int(grpc_port)
    for name, value in wanted.items():
        if hasattr(params, name):
            setattr(params, name, value)
    _hide_address()
    if head:
        _return_when_gcs_listens()
    else:
        _wait_for_session(os.environ.get("SKYLIB_RAY_GCS_ADDRESS", ""))


def _wait_for_certificates(authority: str, stamp: str, *, within_s: float) -> None:
    path = os.path.join(os.path.dirname(authority), "stamp")

    def there() -> bool:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read() == stamp
        except OSError:
            return False

    if authority and stamp and not _until(there, within_s):
        raise TimeoutError(f"the certificates in {os.path.dirname(authority)} did not come")


def _hide_address() -> None:
    """Have the raylet's command line give the GCS address in a way that no scan knows."""
    services: Any = sys.modules.get("ray._private.services")
    start: Any = getattr(services, "start_ray_process", None)
    if start is None:
        return

    @functools.wraps(start)
    def start_hidden(command: Any, *args: Any, **options: Any) -> Any:
        if "raylet" in os.path.basename(command[0]):
            command = [unscanned(word) for word in command]
        return start(command, *args, **options)

    services.start_ray_process = start_hidden


def unscanned(word: str) -> str:
    """One word of a raylet's command line, which means the same to it. Scans look, in each word split at spaces, for
    parts that begin with the flag: the raylet's own flag may be spelled with "_" (gflags), and in the command lines
    of workers and agents that the raylet is given, quotes around the flag are taken off when it starts those.
    """
    if word.startswith(_ADDRESS_FLAG):
        return f"--gcs_address={word[len(_ADDRESS_FLAG) :]}"
    return " ".join(f'"{part}"' if part.startswith(_ADDRESS_FLAG) else part for part in word.split(" "))


def _return_when_gcs_listens() -> None:
    """Have Node.start_gcs_server return only when its port accepts, so that the first question is answered."""
    node: Any = getattr(sys.modules.get("ray._private.node"), "Node", None)
    start: Any = getattr(node, "start_gcs_server", None)
    if start is None:
        return

    @functools.wraps(start)
    def start_and_wait(self: Any) -> None:
        start(self)
        address = str(getattr(self, "gcs_address", "") or "")
        _until(lambda: _accepts(address), _GCS_WAIT_S)

    node.start_gcs_server = start_and_wait


def _wait_for_session(address: str) -> None:
    """A worker that began before its head goes on the moment that the head has written what every worker reads first.

    That is session and temp dir; a newer Ray has no temp dir there, and looks for the head's node instead.
    """
    client_of: Any = getattr(sys.modules.get("ray._raylet"), "GcsClient", None)
    if not address or client_of is None or not _until(lambda: _accepts(address), _HEAD_WAIT_S):
        return
    client: Any = client_of(address=address)

    def written() -> bool:
        try:
            if not client.internal_kv_get(b"session_name", b"session"):
                return False
            return bool(client.internal_kv_get(b"temp_dir", b"session") or client.get_all_node_info(1.0))
        except Exception:  # whatever this Ray raises while its GCS comes up: it is asked again, and then by Ray itself
            return False

    _until(written, _HEAD_WAIT_S)


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except (OSError, ValueError):
        return False
    return True


def _until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
