"""A small language model and everything that its training needs, in plain torch.

The parts whose state a checkpoint must hold are all here: model, optimizer, scheduler, the data
loader's place in the middle of an epoch, and dropout, which draws on torch's random numbers.
"""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR


@dataclass(frozen=True)
class Config:
    """Sizes of the model. The vocabulary is the 256 bytes."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 64
    dropout: float = 0.1


class Block(nn.Module):
    """Causal self-attention and an MLP, each added to the stream that passes through."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attend(self.norm_1(x)), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), self.dropout, self.training)


class Transformer(nn.Module):
    """Bytes `[batch, time]` to logits `[batch, time, 256]`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(256, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 256)
        for weight in (p for p in self.parameters() if p.dim() == 2):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class LoRA(nn.Module):
    """A frozen linear layer plus a trainable product of two thin matrices; starts as the layer itself."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return result


def add_lora(model: Transformer, rank: int = 8) -> None:
    """Freeze the model and put an adapter on every linear layer of its blocks."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(block, name, LoRA(layer, rank))


def corpus(size: int, skip: int = 0) -> Tensor:
    """`size` bytes of the sources of the standard library, and of torch where that has too few, after `skip` bytes."""
    text = bytearray()
    for root in (Path(sysconfig.get_paths()["stdlib"]), Path(torch.__file__).parent):
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
            if len(text) >= skip + size:
                break
            if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
                text += path.read_bytes()
    return torch.frombuffer(text, dtype=torch.uint8)[skip : skip + size].clone()


class Loader:
    """Shuffled batches of text without end. Its state says exactly where in which epoch it stands."""

    def __init__(self, text: Tensor, batch: int, context: int, seed: int) -> None:
        self.text, self.batch, self.context, self.seed = text, batch, context, seed
        self.windows = (len(text) - 1) // context
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = -1
        self._shuffle()

    def _shuffle(self) -> None:
        self.before = self.generator.get_state()  # enough to draw this epoch's order again
        self.order = torch.randperm(self.windows, generator=self.generator)
        self.epoch, self.cursor = self.epoch + 1, 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs and the bytes that follow them, both `[batch, context]`."""
        if self.cursor + self.batch > self.windows:
            self._shuffle()
        starts = self.order[self.cursor : self.cursor + self.batch] * self.context
        self.cursor += self.batch
        rows = self.text[starts[:, None] + torch.arange(self.context + 1)].long()
        return rows[:, :-1], rows[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch, "cursor": self.cursor, "generator": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self._shuffle()
        self.seed, self.epoch, self.cursor = state["seed"], state["epoch"], state["cursor"]


@dataclass
class Training:
    """A model with all that trains it."""

    model: Transformer
    optimizer: AdamW
    scheduler: LinearLR
    loader: Loader

    def step(self) -> float:
        """One optimizer step; returns the loss before it."""
        inputs, targets = self.loader.next()
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()


def deterministic(seed: int, threads: int) -> None:
    """The same numbers to the last bit in every process that calls this with the same arguments."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def trainer(model: Transformer, text: Tensor, *, batch: int, lr: float, warmup: int, seed: int) -> Training:
    """Train what is trainable in `model`, with AdamW and a linear warm-up."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    scheduler = LinearLR(optimizer, start_factor=0.05, total_iters=warmup)
    return Training(model, optimizer, scheduler, Loader(text, batch, model.config.context, seed))
