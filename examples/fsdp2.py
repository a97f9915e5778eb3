"""FSDP2 with a store: train, commit in the background, die, resume on however many ranks there are then.

    torchrun --nproc-per-node 2 examples/fsdp2.py --store runs.cas --die-at 8    # one rank is killed at step 8
    torchrun --nproc-per-node 3 examples/fsdp2.py --store runs.cas               # goes on from the last commit
    cas --store runs.cas log

Every rank calls `load` and `commit_async` with what it holds, and reads and writes no more than that. The batch of a
step is the same whatever the number of ranks, so the losses are too, but for the order in which floats are added:
they agree to about 1e-5. With as many ranks as before they agree exactly.
"""

from __future__ import annotations

import argparse
import os
import signal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import cas
from cas.torch import TrainState

VOCABULARY, LENGTH, WIDTH = 61, 24, 48
ROWS = 12
"""In the batch of all ranks together. Each takes an equal part, so that the mean of their losses is that of all."""


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of predicting each token from those before it."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        hidden = self.tokens(tokens[:, :-1]) + self.places.weight
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return cross_entropy(self.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())


def batch(step: int, rank: int, size: int) -> Tensor:
    """This rank's rows of what step `step` learns from: each counts up from a number of its own."""
    starts = torch.randint(VOCABULARY, (ROWS, 1), generator=torch.Generator().manual_seed(step))
    return ((starts + torch.arange(LENGTH + 1)) % VOCABULARY).chunk(size)[rank]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=".cas", help="directory of the store; made if there is none")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--every", type=int, default=3, help="commit every so many steps")
    parser.add_argument("--die-at", type=int, help="kill the last rank in this step")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    if ROWS % size:
        parser.error(f"{ROWS} rows cannot be split evenly among {size} ranks")
    torch.manual_seed(0)  # all ranks make the same weights, of which each keeps its shard
    model, mesh = Transformer(), init_device_mesh("cpu", (size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    torch.manual_seed(rank)  # what a rank draws from now on is its own, and so is the state of its generators

    ts = TrainState(model=model, optimizer=optimizer, scheduler=scheduler)
    with cas.open(args.store, create=True) as store:
        # into=: each rank reads just its shards. per_rank="skip": ranks that the commit has no random generators for
        # keep those that they have.
        start = ts.restore(store.load("main", into=ts.template(), default=None, group=group, per_rank="skip"))
        if rank == 0:
            print(f"{size} ranks start after step {start}", flush=True)
        for step in range(start + 1, args.steps + 1):
            if step == args.die_at and rank == size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = model(batch(step, rank, size))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            mean = loss.detach() / size
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step} loss {mean.item():.9g}", flush=True)
            if step % args.every == 0:
                store.commit_async(ts.capture(step), group=group, step=step, metrics={"loss": mean})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
