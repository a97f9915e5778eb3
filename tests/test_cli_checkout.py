"""`cas checkout`: what it takes out of a state, what it writes, and that it writes all of it or nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cli_process import COMMAND, array, environment, make_store, objects, ok, refused, run, training_state

import cas
from cas.cli.export import WEIGHTS
from cas.cli.folder import NewFolder
from cas.cli.safetensors import header, ordered
from cas.cli.selection import select
from cas.dtypes import DTYPES
from cas.errors import Invalid, Unsupported
from cas.extent import Extent, ShardBlocks, extent_of
from cas.grid import Box
from cas.leaves import Leaf, TensorLeaf, ValueLeaf, slabs
from cas.nodes import EMPTY, TensorEntry

Arrays = Mapping[str, np.ndarray[Any, Any]]


def assert_same(file: Path, expected: Arrays) -> None:
    """The safetensors library reads exactly these arrays."""
    found = safetensors.numpy.load_file(file)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].tobytes() == value.tobytes()


def commit(place: Path, state: Any, **options: Any) -> None:
    with cas.open(place / ".cas", create=True) as store:
        store.commit(state, **options)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in (".cas", "side-config.json"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    return tmp_path


# -- what is taken ------------------------------------------------------------------------------------------------


def test_the_model_without_its_prefix_and_the_side_files(place: Path) -> None:
    said = ok(place, "checkout")
    model = training_state(20)["model"]
    out = place / "main-step20"
    assert_same(out / WEIGHTS, {"wte.weight": model["wte.weight"], "head.bias": model["head"]["bias"]})
    assert (out / "config.json").read_text() == '{"layers": 2}'
    assert left_in(place) == ["main-step20"]
    assert sorted(os.listdir(out)) == ["config.json", WEIGHTS]
    for part in ("2 tensors", "config.json", "left out", "--all", "optimizer (8.19 kB)", "step", "note (100 kB)"):
        assert part in said


def test_json_says_what_was_written(place: Path) -> None:
    (done,) = objects(ok(place, "checkout", "main~1", "-o", "out", "--json"))
    assert done["files"] == {name: (place / "out" / name).stat().st_size for name in (WEIGHTS, "config.json")}
    assert (done["out"], done["tensors"]) == ("out", 2)
    assert done["left_out"] == [
        {"path": "optimizer", "kind": "tensors", "bytes": 8192},
        {"path": "step", "kind": "int", "bytes": 0},
        {"path": "note", "kind": "str", "bytes": 100_000},
    ]


def test_a_prefix_takes_any_subtree_or_one_tensor(place: Path) -> None:
    ok(place, "checkout", "main", "optimizer/state/[0]", "-o", "moments")
    moments = training_state(20)["optimizer"]["state"][0]
    assert_same(place / "moments" / WEIGHTS, {"exp_avg": moments["exp_avg"]})
    ok(place, "checkout", "main", "model/head/bias", "-o", "one")
    assert_same(place / "one" / WEIGHTS, {"bias": training_state(20)["model"]["head"]["bias"]})


def test_a_prefix_is_a_path_with_escapes(tmp_path: Path) -> None:
    commit(tmp_path, {"a/b": {"w": array(3)}, "a": {"b": {"w": array(4)}}})
    ok(tmp_path, "checkout", "main", "a%2Fb", "-o", "escaped")
    ok(tmp_path, "checkout", "main", "a/b/", "-o", "plain")
    assert_same(tmp_path / "escaped" / WEIGHTS, {"w": array(3)})
    assert_same(tmp_path / "plain" / WEIGHTS, {"w": array(4)})


def test_all_takes_every_tensor(place: Path) -> None:
    said = ok(place, "checkout", "--all", "-o", "out")
    state = training_state(20)
    expected = {
        "model.wte.weight": state["model"]["wte.weight"],
        "model.head.bias": state["model"]["head"]["bias"],
        "optimizer.state.0.exp_avg": state["optimizer"]["state"][0]["exp_avg"],
    }
    assert_same(place / "out" / WEIGHTS, expected)
    assert "left out: optimizer/state/[0]/step, optimizer/lr, step, note (100 kB)" in said


@pytest.mark.parametrize("name", ["model", "module", "model_state_dict", "state_dict"])
def test_the_names_of_models(name: str, tmp_path: Path) -> None:
    commit(tmp_path, {"other": {"x": array(3)}, name: {"w": array(2)}})
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, {"w": array(2)})


def test_a_flat_state_is_taken_whole(tmp_path: Path) -> None:
    commit(tmp_path, {"wte.weight": array(2, 3), "model": array(1), "lr": 0.1, "config": {"layers": 2}})
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, {"wte.weight": array(2, 3), "model": array(1)})


@pytest.mark.parametrize("names", [("a", "b"), ("model", "module")])
def test_a_state_of_unclear_form_is_refused_with_its_subtrees(names: tuple[str, str], tmp_path: Path) -> None:
    commit(tmp_path, {names[0]: {"w": array(1000)}, names[1]: {"w": array(500)}})
    said = refused(tmp_path, 2, "checkout")
    assert f"{names[0]} (4.00 kB)" in said
    assert f"{names[1]} (2.00 kB)" in said
    assert "--all" in said


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"a.b": array(1), "a": {"b": array(1)}}})
    assert "model/a.b and model/a/b" in refused(tmp_path, 2, "checkout")
    assert left_in(tmp_path) == []


def test_a_state_without_tensors_is_refused(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {}, "step": 3})
    refused(tmp_path, 2, "checkout")
    refused(tmp_path, 2, "checkout", "--all")


def test_tied_tensors_are_written_under_both_names(tmp_path: Path) -> None:
    shared = array(300, 300)
    commit(tmp_path, {"model": {"wte": shared, "head": shared}})
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, {"wte": shared, "head": shared})


def leaf(*path: str | int, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> TensorLeaf:
    return TensorLeaf(path, TensorEntry("numpy", dtype, shape, EMPTY, None))


def test_what_is_left_out_is_named_where_it_forks_off() -> None:
    leaves: list[Leaf] = [
        leaf("a", "b", "w"),
        ValueLeaf(("a", "b", "n"), "int", 0, 1),
        leaf("a", "c", "x"),
        leaf("a", "c", "y"),
        ValueLeaf(("d", 0), "str", 9, None),
        ValueLeaf(("d", 1), "str", 9, None),
        leaf("e"),
    ]
    chosen = select(leaves, ("a", "b"), False)
    assert list(chosen.tensors) == ["w"]
    assert [(part.path, part.kind, part.nbytes) for part in chosen.left_out] == [
        ("a/b/n", "int", 0),
        ("a/c", "tensors", 16),
        ("d", "values", 18),
        ("e", "tensor", 8),
    ]


# -- what is written ----------------------------------------------------------------------------------------------


def test_sizes_around_blocks_and_buffers(tmp_path: Path) -> None:
    """Empty, 0-dim, one block, many blocks, more than the buffer, widths mixed; every byte as the library has it."""
    arrays = {
        "empty": array(0, 5),
        "scalar": np.array(3.5),
        "bytes": array(7, dtype="int8"),
        "block": array(1 << 20),
        "large": array(9_000_001),
        "odd": array(777, 13, 3, dtype="float16"),
        "": array(2, dtype="int64"),
        "ünï\u2028\x00": array(2, dtype="uint16"),
    }
    commit(tmp_path, arrays, codec="planes")
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, arrays)


def test_twenty_thousand_small_tensors(tmp_path: Path) -> None:
    arrays = {f"layer.{number:05}": np.full(5, number, np.float32) for number in range(20_000)}
    commit(tmp_path, arrays)
    ok(tmp_path, "checkout", "-o", "out")
    assert_same(tmp_path / "out" / WEIGHTS, arrays)


def test_every_dtype_is_written_or_refused_by_its_path() -> None:
    for name in DTYPES:
        tensor = {"a": leaf("model", "a", dtype=name)}
        if name in ("complex32", "complex128"):
            with pytest.raises(Unsupported, match=rf"model/a is {name}"):
                header(tensor)
        else:
            header(tensor)


def test_a_dtype_that_safetensors_lacks_is_one_sentence(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"w": array(2), "spectrum": array(2, dtype="complex128")}})
    assert "model/spectrum is complex128" in refused(tmp_path, 3, "checkout")
    assert left_in(tmp_path) == []


def test_every_dtype_of_torch_comes_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensors = {}
    for name in DTYPES.keys() - {"complex32", "complex128"}:
        dtype = getattr(torch, name)
        tensors[name] = torch.arange(24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(2, 3, 4)
    commit(tmp_path, {"model": tensors})
    ok(tmp_path, "checkout", "-o", "out")
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    commit(tmp_path, {"model": {"w": torch.ones(3)}, "device": torch.device("cpu"), "dtype": torch.bfloat16})
    for command in (["show"], ["checkout", "-o", "out"]):
        code = (
            f"import sys; from cas.cli.main import main; c = main({command!r}); sys.exit(c or 'torch' in sys.modules)"
        )
        assert (
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False).returncode == 0
        )


def test_the_header_is_that_of_the_format() -> None:
    tensors = ordered({"b": leaf("b", dtype="int8", shape=(3,)), "a": leaf("a"), "z": leaf("z", dtype="float64")})
    assert list(tensors) == ["z", "a", "b"]
    data = header(tensors)
    text = (
        b'{"__metadata__":{"format":"pt"},"z":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},"b":{"dtype":"I8","shape":[3],"data_offsets":[24,27]}}'
    )
    assert int.from_bytes(data[:8], "little") == len(data) - 8
    assert len(data) % 8 == 0
    assert data[8:].rstrip(b" ") == text


def test_the_name_that_safetensors_keeps_is_refused() -> None:
    with pytest.raises(Invalid, match="keeps for itself"):
        header({"__metadata__": leaf("__metadata__")})


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 1, 9), (5, 1, 2)])
@pytest.mark.parametrize("limit", [1, 2, 5, 8, 1000])
def test_slabs_follow_the_row_major_order(shape: tuple[int, ...], limit: int) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape)
    parts = []
    for box in slabs(shape, limit):
        assert box.size <= limit
        parts.append(whole[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))].reshape(-1))
    assert np.array_equal(np.concatenate(parts), whole.reshape(-1))


def test_a_stream_is_cut_into_pieces_of_the_size_asked_for(tmp_path: Path) -> None:
    arrays = {"a": array(3_000_000), "b": array(5), "c": array(2_000_000)}
    with cas.open(tmp_path / ".cas", create=True) as store:
        store.commit(arrays)
        leaves = store.leaves()
        tensors = [leaf for leaf in leaves if isinstance(leaf, TensorLeaf)]
        pieces = [bytes(piece) for piece in leaves.stream(tensors, 4 << 20)]
    assert all(len(piece) <= 4 << 20 for piece in pieces)
    assert b"".join(pieces) == b"".join(value.tobytes() for value in arrays.values())


# -- where, and all or nothing ------------------------------------------------------------------------------------


def test_the_default_directory(place: Path) -> None:
    with cas.open(place / ".cas") as store:
        store.branch("runs/a", "main~1")
        tip = store.resolve("main").id
        store.tag("v1")
        store.branch("none")
        store.commit({"w": array(1)}, branch="none")
    for rev, name in {"runs/a": "runs-a-step10", tip[:6]: f"{tip[:8]}-step20", "v1": None, "none": "none"}.items():
        if name is None:
            assert "not empty" in refused(place, 3, "checkout", rev)  # the commit that the id named before
        else:
            ok(place, "checkout", rev)
            assert (place / name / WEIGHTS).is_file()


def test_a_directory_that_is_not_empty_is_refused_without_force(place: Path) -> None:
    out = place / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    (out / WEIGHTS).write_text("old")
    assert "--force" in refused(place, 3, "checkout", "-o", "out")
    assert ((out / WEIGHTS).read_text(), left_in(out)) == ("old", ["mine", WEIGHTS])
    ok(place, "checkout", "-o", "out", "--force")
    assert left_in(out) == ["config.json", "mine", WEIGHTS]
    assert (out / "mine").read_text() == "keep"
    assert_same(out / WEIGHTS, {"wte.weight": array(64, 32, seed=20), "head.bias": array(32, seed=21)})


def test_an_empty_directory_the_current_one_and_a_link_are_filled(place: Path) -> None:
    for name in ("empty", "here", "target"):
        (place / name).mkdir()
    (place / "link").symlink_to("target")
    ok(place, "checkout", "-o", "empty")
    ok(place / "here", "checkout", "-o", ".")
    ok(place, "checkout", "-o", "link")
    for name in ("empty", "here", "target"):
        assert left_in(place / name) == ["config.json", WEIGHTS]


def test_missing_directories_above_are_made(place: Path) -> None:
    ok(place, "checkout", "-o", "a/b/c")
    assert left_in(place / "a" / "b" / "c") == ["config.json", WEIGHTS]
    assert left_in(place) == ["a"]


def test_a_file_in_the_way_is_refused(place: Path) -> None:
    (place / "file").touch()
    refused(place, 2, "checkout", "-o", "file")
    refused(place, 3, "checkout", "-o", "file/below")
    assert left_in(place) == ["file"]


def test_what_a_killed_checkout_left_is_in_nobodys_way(place: Path) -> None:
    (place / "out" / ".cas-checkout-0123").mkdir(parents=True)
    ok(place, "checkout", "-o", "out")


def test_new_files_have_the_usual_rights(place: Path) -> None:
    ok(place, "checkout", "-o", "out")
    mask = os.umask(0)
    os.umask(mask)
    assert (place / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (place / "out" / WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../b", "a\x1b[2J", "", "a//b", ".", WEIGHTS, f"{WEIGHTS}/x"])
def test_side_files_of_a_hostile_store_stay_in_the_directory(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from cas.cli.main import main

    resolve = cas.Store.resolve
    monkeypatch.setattr(cas.Store, "resolve", lambda self, rev=None: replace(resolve(self, rev), files=(name,)))
    monkeypatch.chdir(place)
    assert main(["checkout"]) == 2
    assert "side file" in capsys.readouterr().err
    assert left_in(place) == []


class Cut(Exception):
    """Stands for whatever ends a checkout early."""


@pytest.mark.parametrize("inside", [False, True])
def test_an_error_at_any_moment_leaves_nothing(inside: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if inside:
        out.mkdir(parents=True)
    with pytest.raises(Cut), NewFolder(out, False) as folder:
        folder.write("first", [b"1"])
        assert not inside or left_in(out)[0].startswith(".cas-checkout-")
        assert inside or not out.exists()
        raise Cut
    assert left_in(tmp_path) == (["a"] if inside else [])
    assert not inside or left_in(out) == []


def test_a_directory_that_another_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OSError), NewFolder(tmp_path / "out", False) as folder:
        folder.write("ours", [b"1"])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert left_in(tmp_path) == ["out"]
    assert left_in(tmp_path / "out") == ["theirs"]


def test_the_weights_come_last_into_a_directory_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with NewFolder(tmp_path, False) as folder:
        folder.write("weights", [b"1"])
        folder.write("deep/config", [b"2"])
    assert moved == ["config", "weights"]
    assert (tmp_path / "deep" / "config").read_bytes() == b"2"


def big_store(place: Path, megabytes: int) -> None:
    rows = megabytes * 250_000
    commit(place, {"model": {f"w{number}": array(rows // 4, seed=number) for number in range(4)}}, step=1)


@pytest.mark.parametrize("sent", [signal.SIGINT])
def test_an_interrupt_leaves_nothing_visible(sent: signal.Signals, tmp_path: Path) -> None:
    big_store(tmp_path, 400)
    for _ in range(5):
        code, said = interrupted_checkout(tmp_path, sent)
        if code != 0:
            break
        shutil.rmtree(tmp_path / "main-step1")  # it was whole before the signal came
    assert code == 130
    assert "Traceback" not in said
    assert left_in(tmp_path) == []


def interrupted_checkout(tmp_path: Path, sent: signal.Signals) -> tuple[int, str]:
    """Send a signal once the checkout has begun to write; its exit code and what it said."""
    with subprocess.Popen(
        [*COMMAND, "checkout"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # noqa: PLW1509 - a runner in the background ignores it
    ) as child:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".cas-checkout-*/*")) and time.monotonic() < deadline:
            if child.poll() is not None:
                break
            time.sleep(0.001)
        time.sleep(0.02)
        child.send_signal(sent)
        assert child.stderr is not None
        said = child.stderr.read().decode()
    return child.returncode, said


def test_a_full_disk_leaves_nothing_visible(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails in the same place."""
    big_store(tmp_path, 48)
    ok(tmp_path, "log")
    limit = 24 << 20
    done = subprocess.run(
        [*COMMAND, "checkout"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 3
    assert done.stderr == f"cas: File too large: {tmp_path / 'main-step1' / WEIGHTS}\n"
    assert left_in(tmp_path) == []


def test_a_damaged_block_is_never_exported(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"w": array(1 << 20)}}, codec="raw")
    (pack,) = (path for path in (tmp_path / ".cas" / "packs").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert "model/w" in refused(tmp_path, 13, "checkout")
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_state(tmp_path: Path) -> None:
    big_store(tmp_path, 1000)
    code = (
        "import sys, threading, time; from cas.cli.main import main\n"
        "peak = 0\n"
        "def watch():\n"
        "    global peak\n"
        "    while True:\n"
        "        with open('/proc/self/status') as f:\n"
        "            peak = max(peak, *(int(l.split()[1]) for l in f if l.startswith('RssAnon')))\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "code = main(['checkout', '-o', 'out', '--json'])\n"
        "print(peak)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    report, peak = done.stdout.splitlines()
    assert json.loads(report)["files"][WEIGHTS] > 1e9
    assert int(peak) < 512 << 10
    run(tmp_path, "fsck")


def test_a_tensor_in_interleaved_shards_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What many ranks will write: two shards that split the second dimension."""
    whole = array(600, 400)
    commit(tmp_path, {"left": whole[:, :300].copy(), "right": whole[:, 300:].copy()})
    with cas.open(tmp_path / ".cas") as store:
        leaves = store.leaves()
        shards = []
        for found, start in zip(leaves, (0, 300), strict=True):
            assert isinstance(found, TensorLeaf)
            (held,) = extent_of(found.entry.content, found.shape, 4, leaves.objects).shards
            shards.append(ShardBlocks(Box((0, start), found.shape), held.edges, held.ids))
        monkeypatch.setattr("cas.leaves.extent_of", lambda *_: Extent(whole.shape, 4, tuple(shards)))
        pieces = leaves.stream([leaf("w", shape=whole.shape)], 100_000)
        assert b"".join(map(bytes, pieces)) == whole.tobytes()
