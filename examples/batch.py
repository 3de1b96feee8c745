"""A batch: one cluster, many small jobs in its queue, their results as they end."""

import sys

import skylib

infra = sys.argv[1] if len(sys.argv) > 1 else "local"
count = int(sys.argv[2]) if len(sys.argv) > 2 else 8

with skylib.Client() as client:
    first = skylib.Task(run="echo warm", resources=skylib.Resources(infra=infra))
    client.launch(first, "batch").wait()
    try:
        commands = [f"echo square of {number} is $(({number} * {number}))" for number in range(count)]
        jobs = client.submit_many(commands, "batch")  # one round trip, however many
        for job in jobs:
            job.wait()
            print(*(line.text for line in job.logs()))
        print("ended:", sum(record.status is skylib.JobStatus.SUCCEEDED for record in client.queue("batch")))
    finally:
        client.down("batch")
