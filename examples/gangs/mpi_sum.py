"""The sum of every rank's number, which each rank gets."""

import socket

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1, op=MPI.SUM)
print(f"rank {world.rank} of {world.size} on {socket.gethostname()}: {total}", flush=True)
