"""Training runs of several ranks over gloo, sharded by FSDP2: restored on as many, on others, and in one process."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer, lr_scheduler

import cas
from cas.errors import CasError
from cas.torch import TrainState

O = torch.optim  # noqa: E741
ROWS = 12
"""A batch of all ranks; every number of ranks in here divides it."""


class Loader:
    """Batches by number. A rank of its own kind also draws noise, from the global generators."""

    def __init__(self, noise: bool) -> None:
        self.noise, self.count = noise, 0

    def next(self, rank: int, size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.count)
        self.count += 1
        batch = torch.randn(ROWS, 5, generator=generator).view(size, -1, 5)[rank]
        return batch + torch.rand(1) + random.random() + float(np.random.rand()) if self.noise else batch

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Sizes that do not divide: uneven shards on two ranks, and ranks without rows on four. Two layers are tied."""
    torch.manual_seed(0)
    tied = nn.Linear(7, 7)
    return nn.Sequential(nn.Linear(5, 7), tied, nn.GELU(), tied, nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def adamw(parameters: Any) -> Optimizer:
    return O.AdamW(parameters, lr=0.05, weight_decay=0.1)


class Run:
    """A training run of as many ranks as there are; without a process group of one process, with nothing sharded."""

    def __init__(
        self,
        noise: bool = False,
        optimizer: Callable[[Any], Optimizer] = adamw,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.group = dist.group.WORLD if dist.is_initialized() else None
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if self.group else (0, 1)
        self.model = network(dtype)
        if self.group:
            fully_shard(self.model, mesh=init_device_mesh("cpu", (self.size,)))
        self.optimizer, self.loader = optimizer(self.model.parameters()), Loader(noise)
        self.scheduler = lr_scheduler.StepLR(self.optimizer, 2)
        self.ts = TrainState(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, loader=self.loader)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(100 + self.rank)

    def step(self) -> float:
        batch = self.loader.next(self.rank, self.size).to(next(self.model.parameters()).dtype)
        loss: torch.Tensor = (self.model(batch).float() ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        mean = loss.detach()
        if self.group:
            dist.all_reduce(mean)
        return float(mean) / self.size

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]

    def whole(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state, gathered."""
        state = self.optimizer.state_dict()["state"]
        held = self.model.state_dict() | {f"{at}/{key}": t for at, own in state.items() for key, t in own.items()}
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for name, value in held.items()
            if isinstance(value, torch.Tensor)
        }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    equal = (one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one.keys() & other.keys())
    return one.keys() == other.keys() and all(equal)


# -- on as many ranks -------------------------------------------------------------------------------------------------


def _train_and_commit(rank: int, place: str, before: int, after: int, options: dict[str, Any]) -> list[float]:
    """The losses of the steps after the commit, exact."""
    run = Run(**options)
    with cas.open(place, create=True) as store:
        losses = run.steps(before)
        pending = store.commit_async(run.ts.capture(before), group=run.group, step=before)
        losses = run.steps(after)  # changes the tensors that capture gave
        assert pending.wait().step == before
    return losses


def _restore_and_train(
    rank: int,
    place: str,
    steps: int,
    options: dict[str, Any],
    per_rank: Literal["own", "skip"] = "own",
) -> tuple[int, list[float]]:
    run = Run(**options)
    with cas.open(place) as store:
        start = run.ts.restore(store.load("main", into=run.ts.template(), group=run.group, per_rank=per_rank))
    return start, run.steps(steps)


def test_a_run_of_ranks_goes_on_bit_for_bit_each_with_its_own_noise(tmp_path: Path) -> None:
    place, options = str(tmp_path / "s"), {"noise": True}
    expected = ranks.run(2, _train_and_commit, place, 3, 4, options)
    assert ranks.run(2, _restore_and_train, place, 4, options) == [(3, losses) for losses in expected]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "ASGD": O.ASGD,
    "Adadelta": O.Adadelta,
    "Adagrad": O.Adagrad,
    "Adam amsgrad": lambda p: O.Adam(p, amsgrad=True),
    "Adam foreach": lambda p: O.Adam(p, foreach=True),
    "Adam fused": lambda p: O.Adam(p, fused=True),
    "AdamW": adamw,
    "Adamax": O.Adamax,
    "NAdam": O.NAdam,
    "RAdam": O.RAdam,
    "RMSprop": lambda p: O.RMSprop(p, centered=True, momentum=0.9),
    "SGD": lambda p: O.SGD(p, lr=0.1),
    "SGD momentum": lambda p: O.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}
ROUNDED = ("ASGD", "AdamW", "NAdam")


def _every_optimizer(rank: int, place: str) -> dict[str, str]:
    """Each trains, is committed, trains on; a new one is restored and must do the same. What went wrong, by name."""
    wrong: dict[str, str] = {}
    with cas.open(place, create=True) as store:
        for name, dtype in [*product(OPTIMIZERS, [torch.float32]), *product(ROUNDED, [torch.bfloat16])]:
            branch, make = f"{name} {dtype}".replace(" ", "-"), OPTIMIZERS[name]
            run = Run(optimizer=make, dtype=dtype)
            run.steps(2)
            store.commit(run.ts.capture(2), group=run.group, branch=branch)
            held, expected = run.whole(), run.steps(3)
            other = Run(optimizer=make, dtype=dtype)
            other.ts.restore(store.load(branch, into=other.ts.template(), group=run.group))
            if not same(other.whole(), held):
                wrong[branch] = "was restored with other tensors"
            elif other.steps(3) != expected:
                wrong[branch] = "went on with other losses"
    return wrong


@pytest.mark.slow
def test_every_optimizer_of_sharded_parameters_goes_on(tmp_path: Path) -> None:
    """Some with bf16 weights too: left to itself torch rounds the fp32 state of ASGD and NAdam on loading."""
    assert ranks.run(2, _every_optimizer, str(tmp_path / "s")) == [{}, {}]


def _restore_what_has_stepped(rank: int, place: str) -> bool:
    """Live tensors of an optimizer and a model that ran already are filled in place, and train on as they should."""
    run = Run()
    with cas.open(place, create=True) as store:
        run.steps(2)
        store.commit(run.ts.capture(2), group=run.group)
        held = run.whole()
        expected = run.steps(3)
        template = run.ts.template()
        moments = run.optimizer.state_dict()["state"][0]["exp_avg"].to_local()
        place_of = template["optimizer"]["state"][0]["exp_avg"].to_local().data_ptr()
        run.ts.restore(store.load("main", into=template, group=run.group))
        assert place_of == moments.data_ptr()
        return same(run.whole(), held) and run.steps(3) == expected


def test_a_run_goes_back_to_its_own_commit(tmp_path: Path) -> None:
    assert ranks.run(2, _restore_what_has_stepped, str(tmp_path / "s")) == [True, True]


# -- on others --------------------------------------------------------------------------------------------------------


def _hop(rank: int, place: str, steps: int, until: int) -> list[float]:
    """Go on from what there is."""
    run = Run()
    with cas.open(place, create=True) as store:
        template = run.ts.template()
        start = run.ts.restore(store.load("main", into=template, default=None, group=run.group, per_rank="skip"))
        assert start == until - steps
        if start:  # where the commit had no loader for this rank: it counts steps, so it can be put in place by hand
            run.loader.count = start
        losses = run.steps(steps)
        store.commit(run.ts.capture(until), group=run.group, step=until)
    return losses


def _alone(place: str, steps: int) -> list[float]:
    """In this process, without ranks and without shards."""
    run = Run()
    with cas.open(place) as store:
        run.ts.restore(store.load("main"))
    return run.steps(steps)


def test_a_run_goes_on_with_any_number_of_ranks(tmp_path: Path) -> None:
    """Two, four (some without rows), three, one, then one process that shards nothing: as one that never stopped."""
    expected = Run().steps(11)
    place, done, found = str(tmp_path / "s"), 0, []
    for size in (2, 4, 3, 1):
        done += 2
        every = ranks.run(size, _hop, place, 2, done)
        assert all(losses == every[0] for losses in every)
        found += every[0]
    found += _alone(place, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(np.round(expected, 4))) == len(expected), "steps that look alike would prove nothing"


def test_a_run_of_one_process_goes_on_sharded(tmp_path: Path) -> None:
    place, run = str(tmp_path / "s"), Run()
    with cas.open(place, create=True) as store:
        run.steps(2)
        store.commit(run.ts.capture(2))
    expected = run.steps(2)
    for losses in ranks.run(4, _hop, place, 2, 4):
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


# -- what each rank has of its own ------------------------------------------------------------------------------------


def _draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def _commit_own(rank: int, place: str) -> tuple[float, float, float]:
    run = Run()
    _draws()  # on from where they start
    run.loader.count = 10 + rank
    with cas.open(place, create=True) as store:
        store.commit(run.ts.capture(1), group=run.group)
    return _draws()


def _load_own(rank: int, place: str, per_rank: Literal["own", "skip"]) -> tuple[Any, int]:
    run = Run()
    with cas.open(place) as store:
        run.ts.restore(store.load("main", into=run.ts.template(), group=run.group, per_rank=per_rank))
    return _draws(), run.loader.count


def test_each_rank_gets_its_own_generators_and_loader(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    draws = ranks.run(2, _commit_own, place)
    assert draws[0] != draws[1]
    assert ranks.run(2, _load_own, place, "own") == [(draws[0], 10), (draws[1], 11)]


def _fresh_draws(rank: int) -> tuple[float, float, float]:
    Run()
    return _draws()


def test_generators_for_fewer_ranks_are_never_shared_out_silently(tmp_path: Path) -> None:
    """What one process drew from would else become what four draw from, all alike."""
    place = str(tmp_path / "s")
    run = Run()
    _draws()
    run.loader.count = 10
    with cas.open(place, create=True) as store:
        store.commit(run.ts.capture(1))
    draws = _draws()
    with ranks.start(2, _load_own, place, "own") as job:
        job.end()
        for rank in job.ranks:
            assert "loader in commit" in str(rank.failure)
            assert 'none for rank 1; pass per_rank="skip"' in str(rank.failure)
    fresh = ranks.run(2, _fresh_draws)
    assert ranks.run(2, _load_own, place, "skip") == [(draws, 10), (fresh[1], 0)]


# -- the template -----------------------------------------------------------------------------------------------------


def _start_with_a_template(rank: int, place: str) -> bool:
    plain, run = Run(), Run()
    before = run.whole()
    with cas.open(place, create=True) as store:
        start = run.ts.restore(store.load("main", into=run.ts.template(), default=None, group=run.group))
    untouched = start == 0 and not run.optimizer.state and same(run.whole(), before)
    return untouched and all(p.grad is None for p in run.model.parameters()) and run.steps(3) == plain.steps(3)


def test_a_template_for_an_empty_branch_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """torch's own get_state_dict would have counted a step."""
    assert ranks.run(2, _start_with_a_template, str(tmp_path / "s")) == [True, True]


def _says(action: Callable[[], Any]) -> str:
    with pytest.raises(CasError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


class Counting(O.SGD):
    """Keeps a number of its own, which a copy of an optimizer does not get."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return super().step(closure)


def _errors(rank: int, place: str) -> list[str]:
    run = Run()
    with cas.open(place, create=True) as store:
        run.steps(1)
        store.commit(run.ts.capture(1), group=run.group)
        whole = store.load("main", group=run.group)
        extra = ("model", "scheduler", "loader")
        other = Run(optimizer=lambda p: O.SGD(p, lr=0.1, momentum=0.9))
        return [
            _says(lambda: run.ts.restore(whole)),
            _says(lambda: TrainState(optimizer=run.optimizer).restore({k: whole[k] for k in whole if k not in extra})),
            _says(lambda: store.load("main", into=other.ts.template(), group=run.group)),
            _says(Run(optimizer=Counting).ts.template),
        ]


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    expected = [
        "Invalid: model is sharded and its state was loaded whole; load it with into=ts.template()",
        "Invalid: optimizer is sharded and its state was loaded whole; load it with into=ts.template()",
        "Invalid: into= at optimizer/state/[0] has ['momentum_buffer'] that the commit does not have",
        "Invalid: the state that optimizer will have cannot be told: AttributeError: 'Counting' object has no "
        "attribute 'count'; let it make a step before template()",
    ]
    assert ranks.run(2, _errors, str(tmp_path / "s")) == [expected, expected]


def _some_stepped(rank: int, place: str) -> bool:
    """A layer that joins later: what is committed before has no state for it."""
    run, other = Run(), Run()
    for each in (run, other):
        each.model[5].requires_grad_(False)
    run.steps(2)
    with cas.open(place, create=True) as store:
        store.commit(run.ts.capture(2), group=run.group)
        for each in (run, other):
            each.model[5].requires_grad_(True)
        other.ts.restore(store.load("main", into=other.ts.template(), group=run.group))
    stepped = list(other.optimizer.state_dict()["state"])
    return stepped == [0, 1, 2, 3, 4, 5] and same(other.whole(), run.whole()) and run.steps(3) == other.steps(3)


def test_parameters_without_a_step_come_back_without(tmp_path: Path) -> None:
    assert ranks.run(2, _some_stepped, str(tmp_path / "s")) == [True, True]
