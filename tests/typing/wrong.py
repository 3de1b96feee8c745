"""What a type checker must refuse: one mistake on each line that says "error: <code>"."""

from __future__ import annotations

import skylib

client = skylib.Client()
task = skylib.Task(run="echo hello")

client.launch("echo hello", "train")  # error: arg-type
client.launch(task, "train", "key")  # error: call-arg|misc
client.launch(task, idle_minutes="5")  # error: call-arg
client.status(refresh="yes")  # error: arg-type
client.down("train", True)  # error: call-arg|misc
client.job("train", "1")  # error: arg-type
client.exec(["nvidia-smi"], "train")  # error: arg-type
client.nothing_like_it()  # error: attr-defined
skylib.nothing_like_it  # error: attr-defined
skylib.Task("echo hello")  # error: call-arg|misc
skylib.Task(num_nodes="two")  # error: arg-type
skylib.Resources(acelerators="A100")  # error: call-arg
task.run = "other"  # error: misc
for line in client.tail_logs("train"):
    line.upper()  # error: attr-defined
