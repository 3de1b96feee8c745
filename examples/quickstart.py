"""The main job on this machine: a cluster of two Ray nodes, one job on both, its log as it comes, and down again."""

import skylib

task = skylib.Task(
    name="hello",
    num_nodes=2,
    resources=skylib.Resources(infra="local"),
    run='echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES says hello"',
)

with skylib.Client() as client:
    job = client.launch(task, "quickstart")
    try:
        for line in job.logs():
            print(line)
        record = job.wait()
        print(f"job {record.job_id} {record.status.value}, exit codes {list(record.exit_codes)}")
    finally:
        receipt = client.down("quickstart")
    for node in receipt.nodes:
        print(f"node {node.rank}: {len(node.ended)} processes ended, leftovers: {list(node.leftovers) or 'none'}")
