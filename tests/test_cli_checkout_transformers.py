"""`from_pretrained` reads what `cas checkout` writes, of training commits and of weights that came from elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import commit, in_process

import cas

transformers = pytest.importorskip("transformers")


def gpt2(**options: Any) -> Any:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=16, **options)
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    return transformers.BertForMaskedLM(config)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return tmp_path


def train(place: Path, model: Any) -> None:
    """One step, committed as a training loop does it."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    model.config.save_pretrained(place / "side")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    commit(place, state, files={"config.json": place / "side" / "config.json"})


def assert_loads(folder: Path, model: Any, caplog: pytest.LogCaptureFixture, dtype: torch.dtype = torch.float32) -> Any:
    """`from_pretrained` gives this model's parameters in `dtype`, tied where they were, and has nothing to say."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again, said = type(model).from_pretrained(folder, output_loading_info=True)
    assert [record.message for record in caplog.records if record.name.startswith("transformers")] == []
    assert not any(said.values()), said
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor.to(dtype)), name
    assert len(list(again.parameters())) == len(list(model.parameters()))
    return again


MODELS = {"gpt2": gpt2, "untied": lambda: gpt2(tie_word_embeddings=False), "llama": llama, "bert": bert}


@pytest.mark.parametrize("form", [["safetensors"], ["torch"]])
@pytest.mark.parametrize("cut", [[], ["--max-shard-size", "20kB"]])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_commit(
    name: str, cut: list[str], form: list[str], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODELS[name]()
    train(place, model)
    in_process("checkout", "-o", "out", "--format", *form, *cut)
    assert_loads(place / "out", model, caplog)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_model_gets_the_dtype_that_was_asked_for(dtype: str, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = llama()
    model.config.dtype = torch.float32
    train(place, model)
    assert '"dtype": "float32"' in (place / "side" / "config.json").read_text()
    in_process("checkout", "-o", "out", "--dtype", dtype)
    wanted = getattr(torch, dtype)
    assert assert_loads(place / "out", model, caplog, wanted).dtype is wanted


def test_a_wrapped_model_is_renamed(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = gpt2()
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    model.config.save_pretrained(place / "side")
    commit(place, {"module": wrapped}, files={"config.json": place / "side" / "config.json"})
    in_process("checkout", "-o", "out", "--rename", "_orig_mod.=")
    assert_loads(place / "out", model, caplog)


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_an_import(shards: str, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = gpt2()
    model.save_pretrained(place / "came", max_shard_size=shards)
    with cas.open(place / ".cas", create=True):
        pass
    in_process("commit", "came")
    in_process("checkout", "-o", "out")
    assert_loads(place / "out", model, caplog)
    in_process("checkout", "--as-imported", "-o", "again")
    assert {path.name: path.read_bytes() for path in (place / "again").iterdir()} == {
        path.name: path.read_bytes() for path in (place / "came").iterdir()
    }
