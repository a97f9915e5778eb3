"""Steps of checkpoints from names and contents, as trainers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cas.cli.steps import epoch_from_name, from_name, from_state, from_trainer


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("runs/checkpoint-500", 500, None),
        ("step_0001000.pt", 1000, None),
        ("epoch=3-step=120.ckpt", 120, 3),
        ("global_step100", 100, None),
        ("global-step-7/model.pt", None, None),
        ("model_iter20.pth", 20, None),
        ("checkpoint-5-step-9.pt", 9, None),
        ("STEP7.PT", 7, None),
        ("epoch_12.pth", None, 12),
        ("split_2.safetensors", None, None),
        ("model-8bit4.safetensors", None, None),
        ("deep3.pt", None, None),
        ("model-00001-of-00002.safetensors", None, None),
        ("step-" + "9" * 40, None, None),
        ("step٣.pt", None, None),
    ],
)
def test_the_step_and_epoch_that_a_name_says(name: str, step: int | None, epoch: int | None) -> None:
    assert (from_name(name), epoch_from_name(name)) == (step, epoch)


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"global_step": 5, "step": 3}, 5),
        ({"iteration": 4}, 4),
        ({"step": True}, None),
        ({"step": 1.5}, None),
        ({"step": -1, "it": 2}, 2),
        ({"step": 2**70}, None),
        ([1], None),
    ],
)
def test_the_step_at_the_top_of_a_state(state: Any, step: int | None) -> None:
    assert from_state(state) == step


def test_a_trainers_last_metrics_are_kept_and_times_are_not() -> None:
    history = [
        {"loss": 2.0, "step": 1},
        {"loss": 1.0, "grad_norm": float("nan")},
        {"eval_loss": 0.5, "eval_runtime": 9.0},
    ]
    data = json.dumps({"global_step": 7, "log_history": history}).encode()
    assert from_trainer(data) == (7, {"loss": 1.0, "eval_loss": 0.5})


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"[" * 100_000, b'{"global_step": -1, "log_history": [1, {"a": "b"}]}']
)
def test_what_is_no_trainers_state_says_nothing(data: bytes) -> None:
    assert from_trainer(data) == (None, {})
