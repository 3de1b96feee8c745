"""A task YAML on hosts that you reach by SSH: `python ssh_pool.py lab task.yaml`.

~/.sky/ssh_node_pools.yaml names the hosts:

lab:
  user: me
  identity_file: ~/.ssh/id_ed25519
  hosts: [10.0.0.11, 10.0.0.12, 10.0.0.13]
"""

import sys

import attrs

import skylib

pool, path = sys.argv[1:3]
task = skylib.Task.from_yaml(path)
task = attrs.evolve(task, resources=task.resources.override(infra=f"ssh/{pool}"))

with skylib.Client() as client:
    for infra in client.check():
        print(infra.infra, "usable" if infra.usable else f"not usable: {infra.reason}", *infra.problems)
    job = client.launch(task, f"on-{pool}", fast=True)
    for line in job.logs():
        print(line)
    job.wait()
    client.down(f"on-{pool}")
