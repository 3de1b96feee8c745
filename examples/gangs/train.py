"""Each rank fits one linear model to data of its own; the gradients are averaged, so all ranks end with the same weights."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WEIGHTS = torch.tensor([[1.0], [-2.0], [3.0]])
STEPS = 150

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(STEPS):
    inputs = torch.randn(32, 3)
    loss = torch.nn.functional.mse_loss(model(inputs), inputs @ WEIGHTS + 0.5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

mine = torch.cat([each.detach().flatten() for each in model.parameters()])
everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
dist.all_gather(everyones, mine)
agree = all(torch.equal(each, mine) for each in everyones)
found = " ".join(f"{number:.2f}" for number in mine.tolist())
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: weights {found}, all ranks agree: {agree}", flush=True)
dist.destroy_process_group()
