"""Run by `ray start` in a runtime environment (RAY_START_HOOK), where it is a module of its own: no imports of skylib.

Trims what our Ray has no use for, and gives each node its own private directory of sockets: Ray counts names up
("raylet", "raylet.1") and two nodes of one machine that start together would count to the same one.
Every attribute is checked first, so that another Ray version starts as it likes. Python 3.8, standard library.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

__all__ = ["trim"]


def trim(params: Any, head: bool) -> None:
    """params: RayParams before the node is made. SKYLIB_RAY_TEMP_DIR: the cluster's temp dir on this machine.

    SKYLIB_RAY_DASHBOARD_GRPC_PORT: for a head whose Ray has such a port (newer ones have no flag for it either).
    """
    wanted: dict[str, Any] = {
        "ray_client_server_port": None,  # `ray://`: 0.9 CPU seconds at each start
        "include_log_monitor": False,  # sends workers' logs to drivers: 0.5 CPU seconds at each start
    }
    temp_dir = os.environ.get("SKYLIB_RAY_TEMP_DIR")
    if temp_dir:
        os.makedirs(temp_dir, exist_ok=True)
        sockets = tempfile.mkdtemp(prefix="sockets-", dir=temp_dir)
        wanted["plasma_store_socket_name"] = os.path.join(sockets, "plasma_store")
        wanted["raylet_socket_name"] = os.path.join(sockets, "raylet")
    grpc_port = os.environ.get("SKYLIB_RAY_DASHBOARD_GRPC_PORT")
    if head and grpc_port:
        wanted["dashboard_grpc_port"] = int(grpc_port)
    for name, value in wanted.items():
        if hasattr(params, name):
            setattr(params, name, value)
