"""Two more models to train: one with an expert for each domain, and one whose vocabulary grows.

Both stand for how such models are really trained: experts by domain are DEMix (Gururangan et al., 2021), and new rows
alone are trained where tokens are added to a finished model.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from bench.model import Block, Config, Transformer

WORD = re.compile(rb"[A-Za-z_]+|[0-9]|\s+|[^\w\s]")


class DomainBlock(Block):
    """A block with one MLP for each domain of text; the others' get no gradient, and AdamW leaves them as they are."""

    def __init__(self, config: Config, experts: int, hidden: int) -> None:
        super().__init__(config)
        del self.up, self.down
        pairs = [(nn.Linear(config.width, hidden), nn.Linear(hidden, config.width)) for _ in range(experts)]
        self.experts = nn.ModuleList(nn.Sequential(up, nn.GELU(), down) for up, down in pairs)
        self.chosen = 0

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm_1(x))
        result: Tensor = x + self.experts[self.chosen](self.norm_2(x))
        return result


class Mixture(Transformer):
    """The transformer of bench/model.py with such blocks."""

    def __init__(self, config: Config, experts: int, hidden: int) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(DomainBlock(config, experts, hidden) for _ in range(config.layers))
        for weight in (p for p in self.blocks.parameters() if p.dim() == 2):
            nn.init.normal_(weight, std=0.02)

    def choose(self, expert: int) -> None:
        for block in self.blocks:
            assert isinstance(block, DomainBlock)
            block.chosen = expert


class Words(nn.Module):
    """A one-layer transformer over words, whose tables are made of old rows and of rows that were appended."""

    def __init__(self, config: Config, words: int) -> None:
        super().__init__()
        self.old = nn.ParameterDict({name: _rows(words, config.width) for name in ("token", "head")})
        self.new = nn.ParameterDict({name: _rows(0, config.width) for name in ("token", "head")})
        self.position = nn.Embedding(config.context, config.width)
        self.block, self.norm = Block(config), nn.LayerNorm(config.width)

    def table(self, name: str) -> Tensor:
        return torch.cat([self.old[name], self.new[name]])

    def append(self, rows: int) -> None:
        """More words: only their rows are trained from now on."""
        width = self.position.embedding_dim
        self.requires_grad_(False)
        for name in ("token", "head"):
            self.old[name] = nn.Parameter(self.table(name), requires_grad=False)
            self.new[name] = _rows(rows, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.table("token")) + self.position(torch.arange(tokens.shape[1]))
        return F.linear(self.norm(self.block(x)), self.table("head"))

    def state(self) -> dict[str, Tensor]:
        """The weights as they are saved: whole tables."""
        kept = {name: p for name, p in self.named_parameters() if not name.startswith(("old.", "new."))}
        return {name: p.detach().clone() for name, p in {**self.tables(), **kept}.items()}

    def tables(self) -> dict[str, Tensor]:
        return {f"{name}.weight": self.table(name) for name in ("token", "head")}

    def train_on(self, numbers: Tensor, known: int, steps: int, batch: int, lr: float) -> None:
        """AdamW on random windows; words that are not known yet are word 0."""
        optimizer = AdamW([p for p in self.parameters() if p.requires_grad], lr=lr)
        tokens = torch.where(numbers < known, numbers, 0)
        span = torch.arange(self.position.num_embeddings + 1)
        for _ in range(steps):
            rows = tokens[torch.randint(len(tokens) - len(span), (batch, 1)) + span]
            loss = F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _rows(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width) * 0.02)


def numbered(text: Tensor) -> Tensor:
    """The words of a text by their rank in frequency, from 1; equally frequent ones in the order of the alphabet."""
    words = WORD.findall(text.numpy().tobytes())
    ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    rank = {word: number for number, (word, _) in enumerate(ranked, 1)}
    return torch.tensor([rank[word] for word in words])
