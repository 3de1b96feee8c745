"""A ring: each rank hands on what it got from the one before it, until everyone has seen every number."""

import os
import socket
import time

PORT = 29512
PATIENCE_S = 60.0

rank = int(os.environ["SKYPILOT_NODE_RANK"])
ips = os.environ["SKYPILOT_NODE_IPS"].split()


def connect(ip: str) -> socket.socket:
    """The next rank may not listen yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((ip, PORT), timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


with socket.create_server(("", PORT)) as listener:
    following = connect(ips[(rank + 1) % len(ips)])
    preceding, _ = listener.accept()
numbers = [10**rank]
with following, preceding, preceding.makefile("rb") as lines:
    for _ in ips[1:]:
        following.sendall(b"%d\n" % numbers[-1])
        numbers.append(int(lines.readline()))
print(f"rank {rank} of {len(ips)}: {sum(numbers)}")
