"""`cas commit`: checkpoints that exist as files come into the store, and out again byte for byte."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import COMMAND, environment, objects, ok, refused, run
from safetensors.torch import load_file, save_file

import cas


def weights(seed: int, count: int = 3) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {f"layer.{number}.weight": torch.randn(200, 300, generator=made) for number in range(count)}


def trainer_checkpoint(folder: Path, step: int, seed: int) -> Path:
    """What a Trainer writes: weights, optimizer, random state, arguments as a pickle with classes, and JSON."""
    folder.mkdir(parents=True)
    save_file(weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    torch.save({"state": {0: {"exp_avg": torch.ones(3), "step": step}}}, folder / "optimizer.pt")
    torch.save(argparse.Namespace(lr=1e-3), folder / "training_args.bin")
    history = [{"loss": 2.5, "step": 1, "epoch": 0.1}, {"loss": 1 / step, "step": step}, {"eval_loss": 0.5}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    (folder / "config.json").write_text('{"model_type": "none"}')
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with cas.open(tmp_path / ".cas", create=True):
        pass
    return tmp_path


def log(folder: Path) -> list[dict[str, Any]]:
    return objects(ok(folder, "log", "--json"))[::-1]


def contents(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def test_a_safetensors_file_comes_in_and_out(folder: Path) -> None:
    save_file(weights(1), folder / "m.safetensors", metadata={"format": "pt", "note": "kept"})
    said = ok(folder, "commit", "m.safetensors", "-m", "the first")
    assert "m.safetensors: 720 kB in 1 file, 721 kB new" in said
    ok(folder, "checkout", "main", "-o", "out")
    loaded = load_file(folder / "out/model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(1).items())
    ok(folder, "checkout", "main", "--as-imported", "-o", "back")
    assert contents(folder / "back") == {"m.safetensors": (folder / "m.safetensors").read_bytes()}
    assert log(folder)[0]["message"] == "the first"


def test_the_same_weights_from_different_containers_share_their_blocks(folder: Path) -> None:
    held = weights(1)
    save_file(held, folder / "a.safetensors")
    torch.save(held, folder / "b.pt")
    torch.save({"model_state_dict": held, "step": 5}, folder / "c.pth")
    torch.save({"model": held, "args": argparse.Namespace()}, folder / "d.ckpt")
    done = objects(ok(folder, "commit", "a.safetensors", "b.pt", "c.pth", "d.ckpt", "--json"))
    assert [each["path"] for each in done] == ["c.pth", "a.safetensors", "b.pt", "d.ckpt"]
    assert done[0]["new"] > 720_000
    assert all(each["new"] < 8_000 for each in done[1:])
    assert [each["tensors"] for each in done] == [3, 3, 3, 0]


def test_a_pile_comes_in_by_steps_and_a_second_time_not_at_all(folder: Path) -> None:
    for step in (1000, 500, 20):
        trainer_checkpoint(folder / f"run/checkpoint-{step}", step, step)
    torch.save({"model": weights(20), "global_step": 30}, folder / "run/noname.pt")
    torch.save(weights(500), folder / "run/epoch=3-step=600.ckpt")
    (folder / "run/train.log").write_text("...")
    said = ok(folder, "commit", "run")
    assert "left out, no checkpoints: run/train.log" in said
    assert "training_args.bin is kept as bytes: it needs argparse.Namespace" in said
    commits = log(folder)
    assert [commit["step"] for commit in commits] == [20, 30, 500, 600, 1000]
    assert commits[0]["metrics"] == {"loss": 0.05, "eval_loss": 0.5}
    assert commits[1]["new"] < 8_000
    assert commits[3]["new"] < 8_000
    again = objects(ok(folder, "commit", "run", "--json"))
    assert [(each["status"], each["id"]) for each in again] == [("skipped", commit["id"]) for commit in commits]
    assert len(log(folder)) == 5


def test_a_copy_with_other_times_is_found_to_be_in_by_what_it_holds(folder: Path) -> None:
    trainer_checkpoint(folder / "checkpoint-5", 5, 1)
    ok(folder, "commit", "checkpoint-5")
    for path in (folder / "checkpoint-5").iterdir():
        os.utime(path, (1, 1))
    assert objects(ok(folder, "commit", "checkpoint-5", "--json"))[0]["status"] == "skipped"
    torch.save({"state": {}}, folder / "checkpoint-5/optimizer.pt")
    assert objects(ok(folder, "commit", "checkpoint-5", "--json"))[0]["status"] == "committed"
    assert len(log(folder)) == 2


def test_a_directory_comes_back_byte_for_byte_and_as_weights_with_its_side_files(folder: Path) -> None:
    top = trainer_checkpoint(folder / "checkpoint-7", 7, 1)
    (top / "sub").mkdir()
    (top / "sub/extra.json").write_text("{}")
    (top / "empty.txt").write_text("")
    ok(folder, "commit", "checkpoint-7")
    ok(folder, "checkout", "main", "--as-imported", "-o", "back")
    assert contents(folder / "back") == contents(top)
    ok(folder, "checkout", "main", "-o", "out")
    sides = {"config.json", "trainer_state.json", "sub/extra.json", "empty.txt", "model.safetensors"}
    assert contents(folder / "out").keys() == sides


def test_shards_with_an_index_are_one_model(folder: Path) -> None:
    held = weights(3, 4)
    names = list(held)
    (folder / "hf").mkdir()
    for number, part in enumerate((names[:2], names[2:]), 1):
        save_file({name: held[name] for name in part}, folder / f"hf/model-0000{number}-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "?")}
    (folder / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf/config.json").write_text("{}")
    ok(folder, "commit", "hf")
    ok(folder, "checkout", "main", "-o", "out")
    assert load_file(folder / "out/model.safetensors").keys() == held.keys()
    ok(folder, "checkout", "main", "--as-imported", "-o", "back")
    assert contents(folder / "back") == contents(folder / "hf")
    (folder / "hf/model-00001-of-00002.safetensors").unlink()
    said = refused(folder, 2, "commit", "hf")
    assert "model.safetensors consists of 2 shards and 1 are missing" in said


def test_shards_of_one_layout_come_in_as_what_they_are(folder: Path) -> None:
    """Their tensors have one shape and begin at one place of their files."""
    (folder / "hf").mkdir()
    held = {"a": torch.ones(300, 300), "b": torch.zeros(300, 300)}
    for number, (name, tensor) in enumerate(held.items(), 1):
        torch.save({name: tensor}, folder / f"hf/pytorch_model-0000{number}-of-00002.bin")
    (folder / "hf/config.json").write_text("{}")
    ok(folder, "commit", "hf")
    with cas.open(folder / ".cas") as store:
        loaded = store.load("main")["model"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in held.items())


@pytest.mark.parametrize("fault", ["cut", "twice"])
def test_a_set_of_shards_of_which_one_cannot_be_taken_in_is_kept_as_bytes_whole(folder: Path, fault: str) -> None:
    """Else the weights that are left would look like the whole model."""
    for number in (1, 2):
        names = ["a", "b"] if fault == "twice" else [f"{number}"]
        held = {name: torch.full((3,), float(number)) for name in names}
        save_file(held, folder / f"model-0000{number}-of-00002.safetensors")
    if fault == "cut":
        path = folder / "model-00002-of-00002.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    (done,) = objects(ok(folder, "commit", ".", "--json"))
    assert (done["tensors"], done["files"]) == (0, 2)
    assert any("kept as bytes" in note for note in done["notes"])
    assert "holds no tensors" in refused(folder, 2, "checkout", "main", "-o", "out")
    ok(folder, "checkout", "main", "--as-imported", "-o", "back")
    assert contents(folder / "back") == {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def test_a_dry_run_stores_nothing_and_says_what_it_would(folder: Path) -> None:
    trainer_checkpoint(folder / "run/checkpoint-9", 9, 1)
    (folder / "run/junk.bin").write_bytes(b"junk")
    before = contents(folder / ".cas")
    said = ok(folder, "commit", "run", "--dry-run")
    assert "would store step 9 run/checkpoint-9: " in said
    assert "junk.bin is kept as bytes: " in said
    assert "2 checkpoints" in said
    assert "nothing was stored" in said
    planned = objects(ok(folder, "commit", "run", "--dry-run", "--json"))
    assert [(each["status"], each["step"], each["id"]) for each in planned] == [
        ("planned", 9, None),
        ("planned", None, None),
    ]
    after = contents(folder / ".cas")
    assert {n: d for n, d in after.items() if "index" not in n} == {n: d for n, d in before.items() if "index" not in n}


def test_branches_go_on_from_their_tips(folder: Path) -> None:
    for number in (1, 2):
        save_file(weights(number), folder / f"{number}.safetensors")
        ok(folder, "commit", f"{number}.safetensors", "-b", "lora", "--step", number)
    commits = objects(ok(folder, "log", "lora", "--json"))
    assert [commit["step"] for commit in commits] == [2, 1]
    assert commits[0]["parents"] == [commits[1]["id"]]


def test_an_unknown_kind_of_file_that_is_named_is_kept(folder: Path) -> None:
    (folder / "notes.xyz").write_bytes(os.urandom(100_000))
    ok(folder, "commit", "notes.xyz")
    ok(folder, "checkout", "main", "--as-imported", "-o", "back")
    assert contents(folder / "back") == {"notes.xyz": (folder / "notes.xyz").read_bytes()}


def test_a_link_that_leads_out_is_refused_and_followed_when_told(folder: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    save_file(weights(1), outside)
    (folder / "run").mkdir()
    (folder / "run/m.safetensors").symlink_to(outside)
    assert "run/m.safetensors is a link that leads out of " in refused(folder, 2, "commit", "run")
    ok(folder, "commit", "run", "--follow")
    (folder / "run/loop").symlink_to(folder / "run")
    ok(folder, "commit", "run", "--follow")
    assert len(log(folder)) == 1


def test_links_of_a_hub_cache_are_read(folder: Path) -> None:
    snapshot = folder / "hub/models--a--b/snapshots/abc"
    blobs = folder / "hub/models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(weights(1), blobs / "1234")
    (blobs / "5678").write_text("{}")
    (snapshot / "model.safetensors").symlink_to(blobs / "1234")
    (snapshot / "config.json").symlink_to("../../blobs/5678")
    ok(folder, "commit", snapshot)
    ok(folder, "checkout", "main", "-o", "out")
    assert contents(folder / "out").keys() == {"config.json", "model.safetensors"}


def test_a_file_by_several_names_comes_in_once(folder: Path) -> None:
    save_file(weights(1), folder / "step_5.safetensors")
    (folder / "latest.safetensors").symlink_to("step_5.safetensors")
    for arguments in (["."], ["step_5.safetensors", "./step_5.safetensors", "latest.safetensors", "."]):
        planned = objects(ok(folder, "commit", *arguments, "--dry-run", "--json"))
        assert [(Path(each["path"]).name, each["step"]) for each in planned] == [("step_5.safetensors", 5)]


def test_links_that_lead_nowhere_are_left_out_unless_they_were_weights(folder: Path) -> None:
    save_file(weights(1), folder / "m.safetensors")
    (folder / "latest").symlink_to("checkpoint-9")
    (folder / "loop").symlink_to("loop")
    assert "left out, no checkpoints: .cas, latest, loop" in ok(folder, "commit", ".", "--dry-run")
    (folder / "gone.safetensors").symlink_to("blobs/1234")
    assert "gone.safetensors is a link that leads nowhere" in refused(folder, 2, "commit", ".")


@pytest.mark.parametrize("name", ["a\nb.safetensors", "\x1b[31m.safetensors", os.fsdecode(b"\xff.safetensors")])
def test_a_name_that_no_store_takes_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    save_file(weights(1, 1), folder / "m.safetensors")
    (folder / "m.safetensors").rename(folder / name)
    said = refused(folder, 2, "commit", folder / name)
    assert "has a name that no store takes; rename it" in said
    assert "\x1b" not in said
    assert refs(folder) == {}


def refs(folder: Path) -> dict[str, str]:
    with cas.open(folder / ".cas") as store:
        return store.refs()["branches"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 11, "nothing is not there"),
        (["empty"], 2, "there are no checkpoints in empty"),
        (["a.pt", "b.pt", "--step", "3"], 2, "--step is for a single checkpoint"),
        (["a.pt", "-b", "bad:name"], 2, "bad:name"),
        ([], 2, "missing argument"),
        ([""], 2, "a PATH is empty"),
        (["pipe"], 2, "pipe is not a regular file"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(folder: Path, arguments: list[str], code: int, said: str) -> None:
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    for name in ("a.pt", "b.pt"):
        torch.save({"w": torch.ones(3)}, folder / name)
    assert said in refused(folder, code, "commit", *arguments)
    assert refs(folder) == {}


def test_stores_and_hidden_folders_in_a_pile_are_not_taken(folder: Path) -> None:
    torch.save({"w": torch.ones(3)}, folder / "a.pt")
    (folder / ".git").mkdir()
    torch.save({"w": torch.zeros(3)}, folder / ".git/b.pt")
    done = objects(ok(folder, "commit", ".", "--json"))
    assert [each["path"] for each in done] == ["a.pt"]


def test_a_file_larger_than_the_memory_that_is_allowed_streams(folder: Path) -> None:
    """1 GiB of sparse file, with a limit of what the process may have in anonymous memory."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
    with open(folder / "m.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 30))
    limited = ["prlimit", f"--data={400 << 20}", *COMMAND, "commit", "m.safetensors"]
    done = subprocess.run(limited, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert log(folder)[0]["new"] < 5 << 20


def stored(folder: Path) -> set[Path]:
    """The packs that there are, and what is being written."""
    return {path for name in ("packs", "tmp") for path in (folder / ".cas" / name).rglob("*")}


def test_an_interrupt_leaves_the_branch_as_it_was(folder: Path) -> None:
    big = torch.frombuffer(bytearray(os.urandom(1 << 20)), dtype=torch.float32).repeat(64).view(64, -1)
    save_file({f"w{n}": big + n for n in range(8)}, folder / "big.safetensors")
    save_file(weights(1), folder / "m.safetensors")
    ok(folder, "commit", "m.safetensors")
    command = ["env", "--default-signal=INT", *COMMAND, "commit", "big.safetensors"]
    for _ in range(2):
        held = stored(folder)
        child = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while stored(folder) == held and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
        assert (child.returncode, said.decode().strip()) in ((130, "cas: interrupted"), (0, ""))
    assert run(folder, "fsck", "--data").returncode == 0
    assert len(log(folder)) in (1, 2)


# -- as changes of what is there ------------------------------------------------------------------------------------


def tuned(held: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {name: tensor * (1 + 1e-4 * torch.randn(tensor.shape, generator=made)) for name, tensor in held.items()}


def took(folder: Path, *arguments: str) -> int:
    """The bytes that one commit stored."""
    (done,) = objects(ok(folder, "commit", *arguments, "--json"))
    stored: int = done["stored"]
    return stored


def test_tensors_are_stored_as_changes_of_the_parents_unless_told_not_to(folder: Path) -> None:
    held = weights(1)
    for number in range(3):
        save_file(held, folder / f"{number}.safetensors")
        held = tuned(held, 10 + number)
    whole = took(folder, "0.safetensors")
    assert took(folder, "1.safetensors") < 0.7 * whole
    assert took(folder, "2.safetensors", "--no-delta") > 0.95 * whole
    ok(folder, "checkout", "main~1", "--as-imported", "-o", "back")
    assert contents(folder / "back") == {"1.safetensors": (folder / "1.safetensors").read_bytes()}


def test_a_base_is_used_wherever_it_is_in_the_history(folder: Path) -> None:
    """It is no tip, so that nothing but its name leads there."""
    held = weights(1)
    for number, each in enumerate([held, weights(2), tuned(held, 3), tuned(held, 4)]):
        save_file(each, folder / f"{number}.safetensors")
    whole = took(folder, "0.safetensors", "--no-delta")
    ok(folder, "commit", "1.safetensors", "--no-delta")
    assert took(folder, "2.safetensors", "-b", "tuned", "--base", "main~1") < 0.7 * whole
    ok(folder, "branch", "-d", "tuned")
    ok(folder, "gc", "--grace", "0", "--expire", "now")
    assert took(folder, "3.safetensors", "-b", "alone") > 0.85 * whole
    ok(folder, "fsck", "--data")


def test_a_base_that_is_of_no_use_is_said_to_be(folder: Path) -> None:
    (folder / "hf").mkdir()
    save_file(weights(1), folder / "m.safetensors")
    save_file(tuned(weights(1), 2), folder / "hf/model.safetensors")
    (folder / "hf/config.json").write_text("{}")
    ok(folder, "commit", "m.safetensors")
    note = "--base is of no use: no tensor has path, shape and dtype of one in main"
    for more in (["--dry-run"], []):
        assert note in ok(folder, "commit", "hf", "-b", "hf", "--base", "main", *more)
    half = {name: tensor.half() for name, tensor in weights(1).items()}
    save_file(half, folder / "half.safetensors")
    assert note in ok(folder, "commit", "half.safetensors", "-b", "half", "--base", "main")
    save_file(tuned(weights(1), 3), folder / "t.safetensors")
    assert "--base" not in ok(folder, "commit", "t.safetensors", "-b", "t", "--base", "main")


def test_a_base_that_is_not_there_is_refused_before_anything_is_stored(folder: Path) -> None:
    save_file(weights(1), folder / "0.safetensors")
    save_file(weights(2), folder / "1.safetensors")
    ok(folder, "commit", "0.safetensors", "1.safetensors")
    ok(folder, "prune", "main", "--keep-last", "1", "--yes")
    before, held = stored(folder), refs(folder)
    save_file(weights(3), folder / "2.safetensors")
    said = refused(folder, 11, "commit", "2.safetensors", "-b", "b", "--base", "nowhere")
    assert "no branch, tag or commit is called nowhere" in said
    said = refused(folder, 11, "commit", "2.safetensors", "-b", "b", "--base", "main~1", "--dry-run")
    pruned = log(folder)[0]["id"][:8]
    assert said == f"--base main~1 is commit {pruned}, whose state was pruned; name one that is there"
    assert (stored(folder), refs(folder)) == (before, held)


@pytest.mark.parametrize("other", [["--no-delta"], ["--codec", "raw"], ["--codec", "zstd"]])
def test_a_base_and_what_leaves_no_room_for_it_exclude_each_other(folder: Path, other: list[str]) -> None:
    save_file(weights(1), folder / "m.safetensors")
    ok(folder, "commit", "m.safetensors")
    said = refused(folder, 2, "commit", "m.safetensors", "-b", "b", "--base", "main", *other)
    assert said.startswith(f"--base and {' '.join(other)} exclude each other")
