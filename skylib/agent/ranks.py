"""The one connection to Ray, in a process of its own: Ray ends a driver whose raylet is gone, and the agent must live on.

Speaks frames (frames.py) on stdin and stdout. Requests: (id, op, args); answers: (id, True, value) or (id, False,
(kind, text)); events without a request: (None, name, value):
    ("connected", ray version)   ("nodes", [{rank, node_id, ip, port of its raylet, alive, resources}])
    ("standing", (rank, hello or None, detail))   ("failed", why)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Dict, List, Optional, Sequence, Set, Tuple

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from .certs import wait_for_stamp
from .config import AgentConfig, load_config
from .frames import pack, read_blocking

__all__ = ["main"]

_NAMESPACE = "skylib"
_WATCH_FAST_S = 0.03
_WATCH_S = 0.5
_CONNECT_S = 120.0
_RESERVE_S = 10.0
_NEWS_S = 60.0
_PATIENCE_S = 16.0
_INIT_S = 90.0


class _Standing:
    """The class of the standing actors. It travels by value, since the bundle is not on a worker's path."""

    def __init__(self, bundle: str, config_path: str) -> None:
        import importlib
        import sys

        if bundle not in sys.path:
            sys.path.insert(0, bundle)
        self._service = importlib.import_module("skylib_agent.node").NodeService(config_path, bundle)
        self._shrink = importlib.import_module("skylib_agent.frames").shrink

    def call(self, method: str, args: Tuple[Any, ...]) -> Any:
        return self._shrink(getattr(self._service, method)(*args))


class _Link:
    def __init__(self, config: AgentConfig, out: BinaryIO) -> None:
        self._config = config
        self._out = out
        self._write_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=16)
        self._actors: List[Any] = []
        self._groups: Dict[str, Any] = {}
        self._unheard: Set[int] = set()
        self._asked_at: Dict[int, float] = {}

    def send(self, message: Tuple[Any, Any, Any]) -> None:
        data = pack(message)
        with self._write_lock:
            self._out.write(data)
            self._out.flush()

    def connect(self) -> None:
        """Raises ConnectionError when Ray does not come up in time."""
        address = f"{self._config.head_ip}:{self._config.ray_port}"
        deadline = time.monotonic() + _CONNECT_S
        stamp = os.environ.get("SKYLIB_RAY_TLS_STAMP", "")
        if stamp and not wait_for_stamp(self._config.tls, stamp, deadline):
            raise ConnectionError(f"the certificates in {self._config.tls} did not come")
        _wait_for_port(self._config.head_ip, self._config.ray_port, deadline)
        _wait_for_raylet(address, self._config.node_ip, deadline)
        stuck = threading.Timer(_INIT_S, os._exit, (1,))  # then the agent begins another
        stuck.daemon = True
        stuck.start()
        while True:
            try:
                ray.init(
                    address=address,
                    namespace=_NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=50,
                    _node_ip_address=self._config.node_ip,
                )
                break
            except (RuntimeError, ConnectionError, ValueError, KeyError) as exc:
                ray.shutdown()
                if time.monotonic() > deadline:
                    raise ConnectionError(f"Ray at {address}: {exc}") from exc
                time.sleep(0.1)
        stuck.cancel()
        self.send((None, "connected", ray.__version__))
        self._news = threading.Timer(_NEWS_S, self._give_up, ("Ray does not say which nodes there are",))
        self._news.daemon = True
        self._news.start()
        threading.Thread(target=self._watch_for_good, daemon=True).start()
        self._stand()

    def _stand(self) -> None:
        """All standing actors at once; one whose node has not come yet waits for it."""
        config = self._config
        by_value: Any = ray.cloudpickle.register_pickle_by_value
        by_value(sys.modules[__name__])
        kind = ray.remote(_Standing)
        stamp = f"{config.cluster_id[:8]}-{config.bundle[:12]}"
        for node in config.nodes:
            actor = kind.options(
                name=f"rank-{node.rank}-{stamp}",
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources={f"skylib_rank_{node.rank}": 0.001},
                max_concurrency=8,
                max_restarts=-1,
            ).remote(config.bundle_of(node), config.config_of(node))
            self._actors.append(actor)
            self._greet(node.rank)

    def _greet(self, rank: int) -> None:
        def answered(future: Future[Any]) -> None:
            error = future.exception()
            self._unheard.discard(rank)
            hello = None if error else future.result()
            self.send((None, "standing", (rank, hello, "" if error is None else _describe(error)[1])))

        self._unheard.add(rank)
        self._actors[rank].call.remote("hello", ()).future().add_done_callback(answered)

    @staticmethod
    def _give_up(why: str) -> None:
        """Whatever hangs hangs for good: the agent begins another connection."""
        sys.stderr.write(f"{why}: the connection is begun anew\n")
        sys.stderr.flush()
        os._exit(1)

    def _miss_actors(self, alive: Sequence[int], now: float) -> None:
        """An actor whose node has been there for long, and that has never answered, is asked by another connection."""
        for rank in alive:
            if rank in self._unheard and now - self._asked_at.setdefault(rank, now) > _NEWS_S:
                self._give_up(f"the standing actor of node {rank} does not answer")

    def _watch_for_good(self) -> None:
        """Without news of the nodes this process is of no use: it ends, and the agent begins another."""
        try:
            self._watch_nodes()
        except BaseException as exc:  # boundary: of a thread whose end nobody would see
            self._give_up(f"the nodes cannot be watched any more: {exc!r}")

    def _watch_nodes(self) -> None:
        last: Dict[int, Any] = {}
        while True:
            nodes: Dict[int, Any] = {}
            table: List[Dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call, unused-ignore]
            for node in table:
                for name in node["Resources"]:
                    if name.startswith("skylib_rank_"):
                        rank = int(name[len("skylib_rank_") :])
                        known = nodes.get(rank)
                        if known is None or node["Alive"]:
                            nodes[rank] = {
                                "rank": rank,
                                "node_id": node["NodeID"],
                                "ip": node["NodeManagerAddress"],
                                "port": int(node.get("NodeManagerPort") or 0),
                                "alive": bool(node["Alive"]),
                                "resources": dict(node["Resources"]),
                            }
            self._news.cancel()
            if nodes != last:
                self.send((None, "nodes", list(nodes.values())))
                last = nodes
            alive = [rank for rank, node in nodes.items() if node["alive"]]
            self._miss_actors(alive, time.monotonic())
            time.sleep(_WATCH_S if len(alive) == len(self._config.nodes) else _WATCH_FAST_S)

    def serve(self, stream: BinaryIO) -> None:
        while True:
            try:
                number, op, args = read_blocking(stream)
            except EOFError:
                return
            if op == "call":
                self._pool.submit(self._call, number, *args)
            elif op == "keep":
                self._answer(number, op, args)  # before any reservation that is asked for after it
            else:
                self._pool.submit(self._answer, number, op, args)

    def _call(self, number: int, rank: int, method: str, args: Tuple[Any, ...]) -> None:
        def answered(future: Future[Any]) -> None:
            error = future.exception()
            self.send((number, True, future.result()) if error is None else (number, False, _describe(error)))

        try:
            self._actors[rank].call.remote(method, args).future().add_done_callback(answered)
        except Exception as exc:  # boundary: whatever Ray raises is the answer
            self.send((number, False, _describe(exc)))

    def _answer(self, number: int, op: str, args: Tuple[Any, ...]) -> None:
        try:
            operations: Dict[str, Any] = {"reserve": self._reserve, "release": self._release, "keep": self._keep}
            self.send((number, True, operations[op](*args)))
        except Exception as exc:  # boundary: whatever Ray raises is the answer
            self.send((number, False, _describe(exc)))

    def _reserve(self, name: str, bundles: List[Dict[str, float]]) -> bool:
        """Reserves one bundle per node; False when Ray could not do so in time (the reservation stays asked for)."""
        group = self._groups.get(name)
        if group is None:
            try:
                group = ray.util.get_placement_group(name)
            except ValueError:
                group = placement_group(bundles, strategy="STRICT_SPREAD", name=name, lifetime="detached")
            self._groups[name] = group
        return bool(group.wait(_RESERVE_S))

    def _release(self, name: str) -> None:
        group = self._groups.pop(name, None)
        try:
            remove_placement_group(group or ray.util.get_placement_group(name))
        except ValueError:
            return  # there is none

    def _keep(self, names: List[str]) -> None:
        """Releases every reservation of ours but these."""
        for entry in placement_group_table().values():
            name = str(entry.get("name") or "")
            if name.startswith("sky-") and name not in names and entry.get("state") != "REMOVED":
                remove_placement_group(ray.util.get_placement_group(name))


def _describe(error: BaseException) -> Tuple[str, str]:
    """(kind, text): kind "node" when the node's actor is not there, else the name of the exception that it raised."""
    if isinstance(error, ray.exceptions.RayActorError):
        return "node", str(error)
    cause: Optional[BaseException] = getattr(error, "cause", None)
    shown = cause if cause is not None else error
    return type(shown).__name__, str(shown)


def _wait_for_port(ip: str, port: int, deadline: float) -> None:
    while True:
        try:
            socket.create_connection((ip, port), timeout=1.0).close()
            return
        except OSError as exc:
            if time.monotonic() > deadline:
                raise ConnectionError(f"nothing listens on {ip}:{port}: {exc}") from exc
            time.sleep(0.02)


def _wait_for_raylet(address: str, ip: str, deadline: float) -> None:
    """Until the GCS knows a node of this machine that is alive; `ray.init` itself looks only once a second."""
    client = getattr(ray._raylet, "GcsClient", None)
    if client is None or not hasattr(client, "get_all_node_info"):
        return
    patience_s = 1.0
    while time.monotonic() < deadline:
        try:
            nodes = client(address=address).get_all_node_info(patience_s).values()
            if any(node["state"] == 0 and _stands_at(node, ip) for node in nodes):
                return
        except ray.exceptions.RpcError:
            patience_s = min(2 * patience_s, _PATIENCE_S)  # the GCS is not quite there, or the machine is busy
        except Exception as exc:  # boundary: a private interface; `ray.init` decides
            sys.stderr.write(f"the raylet is not waited for: {exc!r}\n")
            return
        time.sleep(0.02)


def _stands_at(node: Any, ip: str) -> bool:
    """A node's name is its IP, unless it was given another; a Ray that tells no name is not waited for any longer."""
    name = node.get("node_name", b"")
    return not name or (name.decode() if isinstance(name, bytes) else str(name)) == ip


def main(config_path: str) -> int:
    """Holds the connection until stdin ends. 1 when Ray does not come up in time."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever Ray prints goes to the agent's log
    link = _Link(load_config(config_path), out)
    try:
        link.connect()
    except ConnectionError as exc:
        link.send((None, "failed", str(exc)))
        return 1
    link.serve(sys.stdin.buffer)
    os._exit(0)
