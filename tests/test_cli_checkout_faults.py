"""`cas checkout` where it may write, and that it writes all of it or nothing, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkouts import WEIGHTS, assert_same, big_store, commit, left_in
from cli_process import COMMAND, array, environment, make_store, ok, refused, run

import cas
from cas.cli.folder import NewFolder
from cas.cli.planned import check_names
from cas.errors import Exists, Invalid


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_store(tmp_path / ".cas")
    return tmp_path


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
    assert "file is a file" in refused(place, 2, "checkout", "-o", "file/below")
    assert "-o names no directory" in refused(place, 2, "checkout", "-o", "", "--force")
    assert left_in(place) == ["file"]


@pytest.mark.parametrize("out", [".cas", ".cas/out", ".cas/packs/a/b"])
def test_nothing_is_written_into_a_store(out: str, place: Path) -> None:
    before = sorted(path for path in (place / ".cas").rglob("*") if path.is_dir())
    (place / "link").symlink_to(place / out)
    for name in (out, "link", "link/below"):
        assert "lies inside a store" in refused(place, 2, "checkout", "-o", name, "--force")
    assert sorted(path for path in (place / ".cas").rglob("*") if path.is_dir()) == before


def test_what_a_killed_checkout_left_is_in_nobodys_way(place: Path) -> None:
    (place / "out" / ".cas-checkout-0123").mkdir(parents=True)
    ok(place, "checkout", "-o", "out")


def test_new_files_have_the_usual_rights(place: Path) -> None:
    ok(place, "checkout", "-o", "out")
    mask = os.umask(0)
    os.umask(mask)
    assert (place / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (place / "out" / WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    "name",
    ["../out", "/abs", "a/../../b", "a\x1b[2J", "a\nb", "", "a//b", ".", WEIGHTS, f"{WEIGHTS}/x", ".git/hooks/x"],
)
def test_names_of_a_hostile_store_stay_in_the_directory(name: str) -> None:
    with pytest.raises(Invalid, match="side file"):
        check_names([WEIGHTS], ["config.json", name])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"]])
def test_a_hostile_name_that_is_taken_is_refused(names: list[str]) -> None:
    with pytest.raises(Invalid, match="side file"):
        check_names([WEIGHTS], names)


def test_a_side_file_with_the_name_of_the_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "side").write_text("mine")
    commit(tmp_path, {"w": array(3)}, files={WEIGHTS: tmp_path / "side"})
    assert "side file called model.safetensors" in refused(tmp_path, 2, "checkout", "-o", "out")
    assert left_in(tmp_path) == ["side"]


def write(folder: NewFolder, name: str, data: bytes) -> None:
    with folder.create(name) as file:
        file.write(data)


class Cut(Exception):
    """Stands for whatever ends a checkout early."""


@pytest.mark.parametrize("inside", [False, True])
def test_an_error_at_any_moment_leaves_nothing(inside: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if inside:
        out.mkdir(parents=True)
    with pytest.raises(Cut), NewFolder(out, False) as folder:
        write(folder, "first", b"1")
        assert not inside or left_in(out)[0].startswith(".cas-checkout-")
        assert inside or not out.exists()
        raise Cut
    assert left_in(tmp_path) == (["a"] if inside else [])
    assert not inside or left_in(out) == []


def test_a_directory_that_another_made_meanwhile_is_kept(tmp_path: Path) -> None:
    told = pytest.raises(Exists, match=r"another process made .*/out meanwhile")
    with told, NewFolder(tmp_path / "out", False) as folder:
        write(folder, "ours", b"1")
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
        write(folder, "deep/config", b"2")
        write(folder, "weights", b"1")
    assert moved == ["config", "weights"]
    assert (tmp_path / "deep" / "config").read_bytes() == b"2"


@pytest.mark.parametrize("form", [[], ["--format", "torch"], ["--max-shard-size", "50MB", "--dtype", "bfloat16"]])
def test_an_interrupt_leaves_nothing_visible(form: list[str], tmp_path: Path) -> None:
    big_store(tmp_path, 200)
    for _ in range(5):
        code, said = stopped_checkout(tmp_path, signal.SIGINT, form)
        if code != 0:
            break
        shutil.rmtree(tmp_path / "main-step1")  # it was whole before the signal came
    assert code == 130
    assert said.strip() == "cas: interrupted"
    assert left_in(tmp_path) == []


def test_what_a_killed_run_left_goes_with_the_next_one(tmp_path: Path) -> None:
    big_store(tmp_path, 200)
    for _ in range(5):
        if stopped_checkout(tmp_path, signal.SIGKILL, [])[0] == -signal.SIGKILL:
            break
        shutil.rmtree(tmp_path / "main-step1")
    (left,) = left_in(tmp_path)
    assert left.startswith(".cas-checkout-")
    (tmp_path / ".cas-checkout-0123456789abcdef.mine").mkdir()
    ok(tmp_path, "checkout", "-o", "out")
    assert left_in(tmp_path) == [".cas-checkout-0123456789abcdef.mine", "out"]


def test_a_run_that_lives_keeps_its_files_from_others(tmp_path: Path) -> None:
    with NewFolder(tmp_path / "one", False) as one:
        write(one, "a", b"1")
        with NewFolder(tmp_path / "two", False) as two:
            write(two, "b", b"2")
    assert [(tmp_path / name).read_bytes() for name in ("one/a", "two/b")] == [b"1", b"2"]
    assert left_in(tmp_path) == ["one", "two"]


def test_links_called_like_leftovers_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (tmp_path / ".cas-checkout-0123456789abcdef").symlink_to("mine")
    with NewFolder(tmp_path / "out", False) as folder:
        write(folder, "a", b"1")
    assert left_in(tmp_path / "mine") == ["kept"]


def stopped_checkout(tmp_path: Path, sent: signal.Signals, options: list[str]) -> tuple[int, str]:
    """Send a signal once the checkout has begun to write; its exit code and what it said."""
    with subprocess.Popen(
        [*COMMAND, "checkout", *options],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL) if sent is signal.SIGINT else None,  # noqa: PLW1509 - a runner in the background ignores it
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


@pytest.mark.parametrize("moment", ["writing", "publishing"])
def test_an_interrupt_while_files_are_moved_waits_until_all_are_there(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a directory that is there files are moved one by one."""
    monkeypatch.setattr("cas.cli.folder.sync_directory", lambda _: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if moment == "writing":
            with pytest.raises(KeyboardInterrupt), NewFolder(tmp_path, False) as folder:
                write(folder, "a", b"1")
                os.kill(os.getpid(), signal.SIGINT)
        else:
            with NewFolder(tmp_path, False) as folder:
                write(folder, "a", b"1")
                write(folder, "b", b"2")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left_in(tmp_path) == ([] if moment == "writing" else ["a", "b"])


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


def damage(place: Path) -> None:
    (pack,) = (path for path in (place / ".cas" / "packs").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)


def test_a_damaged_block_is_never_exported(tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"w": array(1 << 20)}}, codec="raw")
    damage(tmp_path)
    assert "model/w" in refused(tmp_path, 13, "checkout")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("form", [["--format", "torch"], ["--format", "dcp"], ["--dtype", "float16"]])
def test_a_damaged_block_is_never_exported_in_any_form(form: list[str], tmp_path: Path) -> None:
    commit(tmp_path, {"model": {"w": array(1 << 20)}}, codec="raw")
    damage(tmp_path)
    assert "model/w" in refused(tmp_path, 13, "checkout", *form)
    assert left_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "torch", "dcp", "bfloat16"])
def test_memory_does_not_grow_with_the_state(form: str, tmp_path: Path) -> None:
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
        "code = main(['checkout', '-o', 'out', '--json', *sys.argv[1:]])\n"
        "print(peak)\n"
        "sys.exit(code)\n"
    )
    options = ["--dtype", form] if form == "bfloat16" else ["--format", form]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    report, peak = done.stdout.splitlines()
    assert sum(json.loads(report)["files"].values()) >= (5e8 if form == "bfloat16" else 1e9)
    assert int(peak) < 512 << 10
    run(tmp_path, "fsck")
