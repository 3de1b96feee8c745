"""What mpirun takes for ssh: `mpi_agent.py HOST COMMAND...` has a command run by the rank that waits on that host.

`mpi_agent.py serve` is that rank: it runs one command for whoever knows $MPI_TOKEN, and ends with its exit code.
"""

import hmac
import os
import socket
import subprocess
import sys
import time

PORT = 29511
PATIENCE_S = 60.0


def serve() -> int:
    with socket.create_server(("", PORT)) as listener:
        while True:
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as lines:
                if not hmac.compare_digest(lines.readline().strip(), os.environ["MPI_TOKEN"].encode()):
                    continue
                return subprocess.run(["sh", "-c", lines.read().decode()], stdin=subprocess.DEVNULL, check=False).returncode


def ask(host: str, command: str) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            peer = socket.create_connection((host, PORT), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with peer:
        peer.sendall(os.environ["MPI_TOKEN"].encode() + b"\n" + command.encode())
        peer.shutdown(socket.SHUT_WR)
        peer.settimeout(None)
        peer.recv(1)  # until the command has ended
    return 0


sys.exit(serve() if sys.argv[1:] == ["serve"] else ask(sys.argv[1], " ".join(sys.argv[2:])))
