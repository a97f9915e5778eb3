"""A restored run goes on as the captured one would have, to the last bit, whatever it is made of."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

import cas
from cas.errors import Invalid, Unsupported
from cas.store import Store
from cas.torch import PerRank, TrainState

O = torch.optim  # noqa: E741
S = lr_scheduler


class Loader:
    """Shuffled batches; its state is its place in the middle of an epoch."""

    def __init__(self, batch: int = 8) -> None:
        self.data = torch.arange(640, dtype=torch.float32).view(40, 16) / 640
        self.batch, self.order, self.cursor = batch, torch.empty(0, dtype=torch.int64), 0

    def next(self) -> torch.Tensor:
        if self.cursor + self.batch > len(self.order):
            self.order, self.cursor = torch.randperm(40), 0  # draws on torch's global generator
        self.cursor += self.batch
        return self.data[self.order[self.cursor - self.batch : self.cursor]]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.cursor = state["order"], state["cursor"]


def network() -> nn.Module:
    """Dropout draws random numbers, batch norm has buffers, the first and last layer share their weight."""
    first, last = nn.Linear(16, 16), nn.Linear(16, 16)
    last.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.Dropout(0.3), nn.GELU(), last)


class Run:
    """A small training run with everything that a TrainState holds."""

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: Callable[[Any], Optimizer] = lambda p: O.AdamW(p, lr=1e-2),
        scheduler: Callable[[Optimizer], Any] = lambda o: S.StepLR(o, 2),
    ) -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        self.model = network() if model is None else model
        self.optimizer, self.loader = optimizer(list(self.model.parameters())), Loader()
        self.scheduler, self.scaler = scheduler(self.optimizer), torch.amp.GradScaler("cpu", init_scale=8.0)
        self.ts = TrainState(
            model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, scaler=self.scaler, loader=self.loader
        )

    def step(self) -> str:
        """One step; the loss, exact to the last bit. numpy's and python's generators disturb the input."""
        batch = self.loader.next() + random.random() + float(np.random.standard_normal())
        batch = batch.to(next(self.model.parameters()).dtype)

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss: torch.Tensor = (self.model(batch).float() ** 2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = self.optimizer.step(closure)  # type: ignore[arg-type]
        loss = torch.as_tensor(loss).float()
        if isinstance(self.scheduler, S.ReduceLROnPlateau):
            self.scheduler.step(float(loss.detach()))
        else:
            self.scheduler.step()
        return float(loss.detach()).hex()

    def steps(self, count: int) -> list[str]:
        return [self.step() for _ in range(count)]

    def weights(self) -> list[bytes]:
        return [value.view(-1).view(torch.uint8).numpy().tobytes() for value in self.model.state_dict().values()]


def bits(node: Any) -> Any:
    """A state with every tensor as its dtype, shape and bytes, and every number exact."""
    if isinstance(node, torch.Tensor):
        return str(node.dtype), tuple(node.shape), node.detach().contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(node, np.ndarray):
        return str(node.dtype), node.tolist()
    if isinstance(node, dict):
        return type(node), [(key, bits(value)) for key, value in node.items()]
    if isinstance(node, list | tuple):
        return type(node), [bits(value) for value in node]
    if isinstance(node, PerRank):
        return PerRank, bits(node.value)
    return type(node), repr(node)


def goes_on(store: Store, make: Callable[[], Run], before: int = 3, after: int = 4) -> None:
    """Train, commit, train on; a new run, led astray first, must restore and then do the same."""
    run = make()
    run.steps(before)
    store.commit(run.ts.capture(before), branch="main", step=before)
    captured = bits(run.ts.capture(before))
    expected, weights = run.steps(after), run.weights()
    other = make()
    other.steps(2)
    random.random(), random.random(), np.random.rand(3), torch.rand(5)
    assert other.ts.restore(store.load("main")) == before
    assert bits(other.ts.capture(other.ts.step)) == captured
    assert other.steps(after) == expected
    assert other.weights() == weights


def test_a_run_goes_on_bit_for_bit(store: Store) -> None:
    goes_on(store, Run)


def test_a_run_goes_on_in_another_process(tmp_path: Path) -> None:
    with cas.open(tmp_path / "store", create=True) as store:
        run = Run()
        run.steps(3)
        store.commit(run.ts.capture(3), branch="main", step=3)
    expected = run.steps(5)
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import cas, test_train_state\n"
        "run = test_train_state.Run()\n"
        f"step = run.ts.restore(cas.open({str(tmp_path / 'store')!r}).load('main'))\n"
        "print(json.dumps([step, run.steps(5)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, expected]


def test_a_run_goes_on_from_a_background_commit(store: Store) -> None:
    run = Run()
    run.steps(3)
    pending = store.commit_async(run.ts.capture(3), branch="main", step=3)
    expected = run.steps(4)  # changes the tensors that capture gave
    pending.wait()
    other = Run()
    other.ts.restore(store.load("main"))
    assert other.steps(4) == expected


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "ASGD": O.ASGD,
    "Adadelta": O.Adadelta,
    "Adafactor": O.Adafactor,
    "Adagrad": O.Adagrad,
    "Adam": O.Adam,
    "Adam amsgrad": lambda p: O.Adam(p, amsgrad=True),
    "Adam foreach": lambda p: O.Adam(p, foreach=True),
    "Adam fused": lambda p: O.Adam(p, fused=True),
    "Adam tensor lr": lambda p: O.Adam(p, lr=torch.tensor(1e-2)),
    "AdamW": lambda p: O.AdamW(p, weight_decay=0.1),
    "AdamW groups": lambda p: O.AdamW([{"params": p[:2], "lr": 0.1}, {"params": p[2:], "betas": (0.5, 0.6)}]),
    "Adamax": O.Adamax,
    "LBFGS": lambda p: O.LBFGS(p, max_iter=3),
    "NAdam": O.NAdam,
    "RAdam": O.RAdam,
    "RMSprop": lambda p: O.RMSprop(p, centered=True, momentum=0.9),
    "Rprop": O.Rprop,
    "SGD": lambda p: O.SGD(p, lr=0.1),
    "SGD momentum": lambda p: O.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Muon": lambda p: O.Muon([t for t in p if t.ndim == 2]),
}


class Sparse(nn.Module):
    """An embedding with sparse gradients, which SparseAdam is for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 4, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table((x * 8).abs().long() % 64)
        return found


def test_the_table_holds_every_optimizer_of_torch() -> None:
    every = {n for n, c in vars(O).items() if isinstance(c, type) and issubclass(c, Optimizer)} - {"Optimizer"}
    assert every == {name.split()[0] for name in OPTIMIZERS} | {"SparseAdam"}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_goes_on(store: Store, name: str, dtype: torch.dtype) -> None:
    """With bf16 weights too: left to itself torch rounds the fp32 state of ASGD and NAdam on loading."""
    goes_on(store, lambda: Run(network().to(dtype), OPTIMIZERS[name]))


def test_sparse_adam_goes_on(store: Store) -> None:
    goes_on(store, lambda: Run(Sparse(), O.SparseAdam))


def decay(epoch: int) -> float:
    return 0.9**epoch


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.5, 4), S.ExponentialLR(o, 0.9)]),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 4),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: S.CyclicLR(o, 1e-3, 1e-1, 2),
    "CyclicLR function": lambda o: S.CyclicLR(o, 1e-3, 1e-1, 2, scale_fn=lambda x: 0.5, scale_mode="cycle"),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: S.LambdaLR(o, decay),
    "LinearLR": lambda o: S.LinearLR(o, 0.1, total_iters=5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [2, 4, 4]),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, decay),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 0.2, total_steps=10),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 6),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=0, threshold=10),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1), S.MultiStepLR(o, [1, 2])], [4]),
    "StepLR": lambda o: S.StepLR(o, 2),
    "SWALR": lambda o: O.swa_utils.SWALR(o, 0.05, anneal_epochs=4),
}


def test_the_table_holds_every_scheduler_of_torch() -> None:
    every = {n for n, c in vars(S).items() if isinstance(c, type) and issubclass(c, S.LRScheduler)}
    assert every - {"LRScheduler", "_LRScheduler"} == {name.split()[0] for name in SCHEDULERS} - {"SWALR"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on(store: Store, name: str) -> None:
    goes_on(store, lambda: Run(optimizer=lambda p: O.SGD(p, lr=0.01, momentum=0.5), scheduler=SCHEDULERS[name]))


class Callback:
    """A rate that carries an object which is no plain value."""

    def __init__(self) -> None:
        self.hook = decay

    def __call__(self, epoch: int) -> float:
        return self.hook(epoch)


def test_what_is_not_plain_is_refused_by_its_path(store: Store) -> None:
    run = Run(scheduler=lambda o: S.LambdaLR(o, Callback()))
    with pytest.raises(Unsupported, match=r"state path scheduler/lr_lambdas/\[0\]/hook is a builtins.function"):
        store.commit(run.ts.capture(0), branch="main")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "instance norm": lambda: nn.Sequential(nn.Unflatten(1, (4, 4)), nn.InstanceNorm1d(4), nn.Flatten()),
    "tracking norm": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 4)), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_with_more_than_weights_go_on(store: Store, name: str) -> None:
    def make() -> Run:
        torch.manual_seed(0)
        return Run(nn.Sequential(MODELS[name](), nn.Linear(16, 16)))

    goes_on(store, make)


class Versioned(nn.Linear):
    """A module that reads older states differently, as torch.ao's observers do."""

    _version = 3

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 3:
            state[prefix + "weight"] = state[prefix + "weight"].T
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_learn_the_version_that_wrote_their_state(store: Store) -> None:
    goes_on(store, lambda: Run(nn.Sequential(Versioned(16, 16))))


def test_a_captured_model_loads_without_a_train_state(store: Store) -> None:
    run = Run()
    store.commit(run.ts.capture(1), branch="main")
    model = network()
    model.load_state_dict(store.load("main")["model"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters(), strict=True))


def test_capture_copies_no_tensor() -> None:
    run = Run()
    state = run.ts.capture(0)
    assert state["model"]["0.weight"].data_ptr() == next(run.model.parameters()).data_ptr()


def test_other_parts_come_under_their_own_names(store: Store) -> None:
    ema = O.swa_utils.AveragedModel(network())
    ts = TrainState(ema=ema, discriminator=nn.Linear(2, 2))
    store.commit(ts.capture(7), branch="main")
    state = store.load("main")
    assert list(state) == ["ema", "discriminator", "metadata", "rng", "step"]
    assert TrainState(ema=ema, discriminator=nn.Linear(2, 2)).restore(state) == 7


def test_an_empty_branch_restores_nothing(store: Store) -> None:
    run, same = Run(), Run()
    assert run.ts.restore(store.load("main", default=None)) == 0
    assert run.weights() == same.weights()


def test_generators_and_loader_are_those_of_one_rank(store: Store) -> None:
    """What one process drew from must not become what all the ranks of a later job draw from."""
    run = Run()
    state = run.ts.capture(0)
    assert [name for name, value in state.items() if isinstance(value, PerRank)] == ["loader", "rng"]
    store.commit(state, branch="main")
    assert bits(store.load("main")) == bits(plain(state))
    assert bits(store.load("main", only="rng/**")) == bits({"rng": state["rng"].value})


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """What `capture` gave, as `load` gives it back."""
    return {name: value.value if isinstance(value, PerRank) else value for name, value in state.items()}


def test_a_state_without_generators_and_loader_leaves_them_as_they_are() -> None:
    """As it comes for a rank that has none in the commit, with `per_rank="skip"`."""
    run, other = Run(), Run()
    run.steps(3)
    other.steps(1)
    state = run.ts.capture(3)
    before = list(generators()), other.loader.cursor
    assert other.ts.restore({name: value for name, value in state.items() if name not in ("rng", "loader")}) == 3
    assert (list(generators()), other.loader.cursor) == before
    assert other.weights() == run.weights()


def test_a_template_without_sharded_parts_takes_whatever_comes(store: Store) -> None:
    """Optimizers that have made no step yet have no tensors to fill, and no form to compare with."""
    run = Run()
    run.steps(3)
    store.commit(run.ts.capture(3), branch="main")
    expected = run.steps(4)
    other = Run()
    assert other.ts.restore(store.load("main", into=other.ts.template())) == 3
    assert other.steps(4) == expected


def generators() -> Iterator[Any]:
    yield random.getstate()
    yield str(np.random.get_state())
    yield torch.get_rng_state().tolist()


def test_random_generators_in_every_state_come_back(store: Store) -> None:
    random.seed("text")
    random.gauss(0, 1)  # keeps a second number for the next call
    np.random.seed(3)
    np.random.standard_normal()  # so does this
    torch.manual_seed(1 << 60)
    torch.randn(3)
    before = list(generators())
    ts = TrainState()
    store.commit(ts.capture(0), branch="main")
    random.random(), np.random.rand(), torch.rand(1)
    ts.restore(store.load("main"))
    assert list(generators()) == before


def test_another_kind_of_numpy_generator_comes_back(store: Store) -> None:
    original = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(5))
    try:
        ts = TrainState()
        store.commit(ts.capture(0), branch="main")
        expected = np.random.rand(4).tolist()
        ts.restore(store.load("main"))
        assert np.random.rand(4).tolist() == expected
    finally:
        np.random.set_bit_generator(original)


def test_a_missing_and_an_extra_part_are_named_and_change_nothing() -> None:
    run = Run()
    state = plain(run.ts.capture(2))
    weights, step = run.weights(), run.ts.step
    for wrong, reason in (
        ({k: v for k, v in state.items() if k != "scaler"}, "lacks scaler"),
        ({k: v for k, v in state.items() if k != "rng"}, "lacks rng"),
        ({k: v for k, v in state.items() if k != "loader"}, "lacks loader"),
        ({k: v for k, v in state.items() if k not in ("rng", "step")}, "lacks rng, step"),
        (state | {"ema": {}}, "has ema, which this TrainState was not given"),
        (state["model"], "lacks model, optimizer, .* and has 0.weight"),
        (state | {"step": "2"}, "step is no int"),
        ([state], "is a list"),
    ):
        with pytest.raises(Invalid, match=reason):
            run.ts.restore(wrong)  # type: ignore[arg-type]
    assert (run.weights(), run.ts.step) == (weights, step)


def test_a_part_that_refuses_its_state_is_named() -> None:
    run = Run()
    state = plain(run.ts.capture(0))
    for part, wrong, reason in (
        ("model", {"0.weight": torch.zeros(16, 16)}, "model does not take its state: .*Missing key"),
        ("model", {**state["model"], "more": torch.zeros(1)}, "model does not take its state: .*Unexpected key"),
        ("model", 3, "model does not take its state"),
        ("optimizer", {"state": {}, "param_groups": []}, "optimizer does not take its state"),
        ("loader", {}, "loader does not take its state: KeyError"),
        ("rng", {}, "rng does not hold"),
        ("rng", state["rng"] | {"torch": torch.zeros(3)}, "rng does not hold"),
        ("rng", state["rng"] | {"python": {"version": 2, "keys": np.zeros(3), "gauss": None}}, "rng does not hold"),
    ):
        with pytest.raises(Invalid, match=reason) as caught:
            run.ts.restore(state | {part: wrong})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"loader": torch.utils.data.DataLoader(torch.arange(3))}, "loader is a torch DataLoader.*StatefulDataLoader"),
        ({"model": torch.zeros(3)}, "model is a Tensor without state_dict"),
        ({"optimizer": [O.SGD([torch.zeros(1)])]}, "optimizer is a list without state_dict"),
        ({"generator": torch.Generator()}, "generator is a Generator without"),
        ({"step": nn.Linear(1, 1)}, "step is kept by TrainState itself"),
        ({"rng": nn.Linear(1, 1)}, "rng is kept by TrainState itself"),
    ],
)
def test_a_part_without_a_state_is_refused_at_once(parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        TrainState(**parts)


@pytest.mark.parametrize("step", [-1, True, 1.0, None, "3"])
def test_a_step_is_a_number_of_steps(step: Any) -> None:
    with pytest.raises(Invalid, match="step is"):
        TrainState().capture(step)
