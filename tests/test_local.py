"""The local backend: what it says is durable, named once, and lost only with an error."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import cas.local
from cas.backend import Unsettled
from cas.buffers import BufferPool
from cas.directfile import ALIGNMENT, DirectStream, create_root
from cas.errors import Corrupt, Exists, Invalid, NotFound, Unsupported
from cas.local import OPEN_FILES, STREAM_FROM, LocalBackend

MIB = 1 << 20
BYTES = random.Random(7).randbytes(20 * MIB + 7)
SIZES = [0, 1, 4095, 4096, 4097, STREAM_FROM - 1, STREAM_FROM, STREAM_FROM + 1]
SIZES += [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 7]
CALLS = ("open", "mkdir", "write", "pwrite", "fsync", "close", "link", "unlink")
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(tmp_path)
    yield backend
    backend.close()


def put(backend: LocalBackend, name: str, data: bytes, step: int = 100_003) -> None:
    """Write `data` as a streamed file, in pieces of `step` bytes."""
    file = backend.new_file(name, len(data))
    for start in range(0, len(data), step):
        file.write(memoryview(data)[start : start + step])
    assert file.size == len(data)
    file.publish()


def files_below(path: str | Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@contextlib.contextmanager
def failing(number: int, error: int, names: tuple[str, ...] = CALLS) -> Iterator[list[str]]:
    """Let call `number` (from 0) of the os functions `names` fail, once; yields the calls made."""
    made: list[str] = []
    unsynced: set[int] = set()
    lock = threading.Lock()

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with lock:
                fails = len(made) == number
                made.append(name)
            if name == "fsync":
                assert args[0] not in unsynced, "a descriptor is fsynced again after its fsync failed"
            if name == "close":
                unsynced.discard(args[0])
            if not fails:
                return real(*args, **options)
            if name == "close":
                real(*args)  # like the kernel: closed, and the error of an earlier write reported
            if name == "fsync":
                unsynced.add(args[0])
            raise OSError(error, os.strerror(error))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield made


# -- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "refused when switched on", "refused at the first write"])
@pytest.mark.parametrize("size", SIZES)
def test_a_streamed_file_has_exactly_its_bytes(
    store: LocalBackend, monkeypatch: pytest.MonkeyPatch, size: int, way: str
) -> None:
    if way != "direct":
        refuse_direct(monkeypatch, at_write=way == "refused at the first write")
    put(store, "packs/aa/one", BYTES[:size])
    assert (Path(store.root) / "packs/aa/one").read_bytes() == BYTES[:size]
    assert files_below(store.root) == ["packs/aa/one"]


@pytest.mark.parametrize("way", ["direct", "refused"])
def test_a_stream_filled_in_place_has_exactly_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Counts of any alignment, copies between them, and buffers that are full to the last byte."""
    if way == "refused":
        refuse_direct(monkeypatch, at_write=True)
    least, expected = 64 << 10, bytearray()
    with open(tmp_path / "file", "wb") as file:
        stream = DirectStream(file.fileno(), BufferPool(limit=2, size=least + ALIGNMENT))
        for count in (1, least, 4095, 4096, least - 1, 0, least, 12_345):
            room = stream.room(least)
            assert len(room) >= least
            room[:count] = BYTES[count : 2 * count]
            stream.advance(count)
            stream.write(memoryview(BYTES)[:count])
            expected += BYTES[count : 2 * count] + BYTES[:count]
        stream.finish()
        stream.stop()
    assert (tmp_path / "file").read_bytes() == expected


def refuse_direct(monkeypatch: pytest.MonkeyPatch, at_write: bool) -> None:
    """Behave like file systems without O_DIRECT, which say EINVAL when it is set or when it is used."""
    direct = getattr(os, "O_DIRECT", 0)
    real_fcntl, real_pwrite = fcntl.fcntl, os.pwrite

    def refusing_fcntl(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(fd, command, value)

    def refusing_pwrite(fd: int, data: memoryview, offset: int) -> int:
        if real_fcntl(fd, fcntl.F_GETFL) & direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_pwrite(fd, data, offset)

    if at_write:
        monkeypatch.setattr(os, "pwrite", refusing_pwrite)
    else:
        monkeypatch.setattr(fcntl, "fcntl", refusing_fcntl)


def test_large_writes_bypass_the_page_cache(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = getattr(os, "O_DIRECT", 0)
    if not takes_direct(store.root, direct):
        pytest.skip("this file system takes no direct writes")
    seen: list[tuple[bool, int]] = []
    real = os.pwrite

    def watching(fd: int, data: memoryview, offset: int) -> int:
        seen.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & direct), len(data)))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watching)
    put(store, "packs/aa/one", BYTES)
    tail = len(BYTES) % 4096
    assert seen == [(True, 8 * MIB), (True, 8 * MIB), (True, 4 * MIB + 7 - tail), (False, tail)]


def takes_direct(root: str, direct: int) -> bool:
    fd = os.open(f"{root}/probe", os.O_WRONLY | os.O_CREAT)
    os.unlink(f"{root}/probe")
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, direct)
    except OSError:
        return False
    finally:
        os.close(fd)
    return direct != 0


def test_short_writes_are_continued(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:70_000], offset))
    store.create("log/1", BYTES[:10_001])
    put(store, "packs/aa/one", BYTES)
    assert store.read("log/1") == BYTES[:10_001]
    assert store.read("packs/aa/one") == BYTES


@pytest.mark.parametrize("size", [100, STREAM_FROM + 5])
def test_a_disk_that_writes_nothing_is_an_error_and_no_endless_loop(
    store: LocalBackend, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        put(store, "packs/aa/one", BYTES[:size])


def test_a_small_file_costs_no_thread_and_no_large_buffer(store: LocalBackend) -> None:
    threads = threading.active_count()
    file = store.new_file("packs/aa/one", 256 * MIB)
    file.write(bytes(STREAM_FROM))
    assert not file.congested
    assert threading.active_count() == threads
    file.publish()
    assert store.pool._made == 0


def test_wide_elements_count_as_bytes(store: LocalBackend) -> None:
    wide = memoryview(bytes(range(64)) * 8192).cast("Q")
    file = store.new_file("one", 0)
    file.write(wide)
    file.write(wide[:3])
    file.publish()
    store.create("two", wide)
    assert store.read("one") == wide.tobytes() + wide[:3].tobytes()
    assert store.read("two") == wide.tobytes()


def test_the_disk_being_behind_bounds_memory(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pool = BufferPool(limit=2, size=MIB)
    disk = threading.Event()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *args: disk.wait(60) and real(*args))
    file = store.new_file("packs/aa/one", 0)
    file.write(BYTES[: 300 << 10])
    states = [file.congested]
    writer = threading.Thread(target=lambda: file.write(BYTES[300 << 10 :]))
    writer.start()
    writer.join(0.2)
    assert writer.is_alive(), "20 MiB went through 2 MiB of buffers although nothing was written"
    states.append(file.congested)
    assert states == [False, True]
    assert store.pool._made == 2
    disk.set()
    writer.join(60)
    file.publish()
    assert store.read("packs/aa/one") == BYTES
    assert (store.pool._made, len(store.pool._free)) == (2, 2)


def test_many_half_filled_streams_of_one_thread_do_not_wait_for_each_other(store: LocalBackend) -> None:
    store.pool = BufferPool(limit=2, size=MIB)

    def write_interleaved() -> None:
        files = [store.new_file(f"packs/aa/{number}", 0) for number in range(7)]
        for start in range(0, 5 * MIB, 700_000):
            for file in files:
                file.write(BYTES[start : start + 700_000])
        for file in files:
            file.publish()

    worker = threading.Thread(target=write_interleaved, daemon=True)
    worker.start()
    worker.join(120)
    assert not worker.is_alive(), "deadlock"
    assert {info.size for info in store.list("packs")} == {700_000 * 8}
    assert (store.pool._made, len(store.pool._free)) == (2, 2), "what was made beyond the limit is given back"


def test_an_abandoned_file_leaves_nothing(store: LocalBackend) -> None:
    before = descriptors(), threading.active_count()
    file = store.new_file("packs/aa/one", 0)
    file.write(BYTES)
    file.abandon()
    file.abandon()
    assert files_below(store.root) == []
    assert (descriptors(), threading.active_count()) == before
    assert len(store.pool._free) == store.pool._made
    with pytest.raises(Invalid):
        file.write(b"more")
    with pytest.raises(Invalid):
        file.publish()


def test_new_files_obey_the_umask(store: LocalBackend) -> None:
    old = os.umask(0o027)
    try:
        store.create("a", b"")
        put(store, "b", BYTES[:MIB])
        store.replace("c", b"")
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(os.stat(f"{store.root}/{name}").st_mode) for name in "abc"}
    assert modes == {0o640}


# -- the name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, STREAM_FROM + 5])
def test_a_taken_name_is_refused_and_keeps_its_content(store: LocalBackend, size: int) -> None:
    store.create("packs/aa/one", b"first")
    with pytest.raises(Exists):
        store.create("packs/aa/one", b"second")
    with pytest.raises(Exists):
        put(store, "packs/aa/one", BYTES[:size])
    assert store.read("packs/aa/one") == b"first"
    assert files_below(store.root) == ["packs/aa/one"]


def test_of_16_racing_threads_one_creates_the_file(store: LocalBackend) -> None:
    gate = threading.Barrier(16)
    winners: list[tuple[int, int]] = []

    def race(me: int) -> None:
        for turn in range(20):
            gate.wait(60)
            with contextlib.suppress(Exists):
                store.create(f"log/{turn}", b"%d" % me)
                winners.append((turn, me))

    threads = [threading.Thread(target=race, args=(me,)) for me in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, _ in winners) == list(range(20))
    assert all(store.read(f"log/{turn}") == b"%d" % me for turn, me in winners)
    assert os.listdir(f"{store.root}/tmp") == []


RACE = """
import sys, time
from cas.errors import Exists
from cas.local import LocalBackend
store, me = LocalBackend(sys.argv[1]), sys.argv[2]
store.create("ready/" + me, b"")
while not store.exists("go"):
    time.sleep(0.001)
for turn in range(40):
    try:
        store.create(f"log/{turn}", me.encode())
        print(turn)
    except Exists:
        pass
"""


def start(script: str, *args: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": str(Path(cas.local.__file__).parents[1])}
    command = [*before, sys.executable, "-c", script, *args]
    return subprocess.Popen(command, env=os.environ | path, stdout=subprocess.PIPE, text=True)


def run(script: str, *args: str, before: Sequence[str] = ()) -> str:
    process = start(script, *args, before=before)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_of_8_racing_processes_one_creates_the_file(store: LocalBackend) -> None:
    processes = [start(RACE, store.root, str(me)) for me in range(8)]
    while len(store.list("ready")) < 8:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    store.create("go", b"")
    won = {me: process.communicate(timeout=60)[0].split() for me, process in enumerate(processes)}
    assert sorted(int(turn) for turns in won.values() for turn in turns) == list(range(40))
    assert all(store.read(f"log/{turn}") == b"%d" % me for me, turns in won.items() for turn in turns)


def trace(store: LocalBackend, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> list[str]:
    """What `work` does to names and durability, in order, with paths relative to the root."""
    events: list[str] = []
    root = os.path.realpath(store.root)
    names: dict[int, str] = {}

    def logging(event: str, real: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = real(*args)
            path = os.path.relpath(path_of(*args), root)
            if event == "open":
                names[result] = f"{root}/{path}"
            else:
                events.append(f"{event} {'tmp/*' if path.startswith('tmp/') else path}")
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", logging("open", os.open, lambda path, *_: path))
        patch.setattr(os, "fsync", logging("fsync", os.fsync, lambda fd: names[fd]))
        patch.setattr(os, "mkdir", logging("mkdir", os.mkdir, lambda path: path))
        patch.setattr(os, "link", logging("link", os.link, lambda _, path: path))
        work()
    return events


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """The base names of the files that are opened meanwhile."""
    opened: list[str] = []
    real = os.open

    def watching(path: str, *args: int) -> int:
        opened.append(os.path.basename(path))
        return real(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watching)
        yield opened


@pytest.mark.parametrize("size", [10, STREAM_FROM + 5])
def test_content_is_durable_before_the_name_and_the_name_before_success(
    store: LocalBackend, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    os.mkdir(f"{store.root}/tmp")
    first = trace(store, monkeypatch, lambda: put(store, "packs/aa/one", BYTES[:size]))
    publish = ["fsync tmp/*", "link packs/aa/one", "fsync packs/aa"]
    assert first == ["mkdir packs", "fsync .", "mkdir packs/aa", "fsync packs", *publish]
    second = trace(store, monkeypatch, lambda: put(store, "packs/aa/two", BYTES[:size]))
    assert second == ["fsync tmp/*", "link packs/aa/two", "fsync packs/aa"]


def test_directories_that_another_writer_made_are_made_durable_too(
    store: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(f"{store.root}/packs/aa")
    os.mkdir(f"{store.root}/tmp")
    events = trace(store, monkeypatch, lambda: store.create("packs/aa/one", b""))
    assert events[:2] == ["fsync .", "fsync packs"]


# -- failures -----------------------------------------------------------------------------------------------


def publish_small(backend: LocalBackend) -> None:
    backend.create("packs/aa/one", BYTES[:100])


def publish_streamed(backend: LocalBackend) -> None:
    backend.pool = BufferPool(limit=2, size=256 << 10)
    put(backend, "packs/aa/one", BYTES[: MIB + 5])


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("publish", "size"), [(publish_small, 100), (publish_streamed, MIB + 5)])
def test_an_error_at_any_call_leaves_no_name_or_says_so(
    tmp_path: Path, publish: Callable[[LocalBackend], None], size: int, error: int
) -> None:
    outcomes = set()
    number = 0
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        store = LocalBackend(root)
        open_before = descriptors()
        with failing(number, error) as made:
            try:
                publish(store)
                outcome = "published"
            except Unsettled as failure:
                outcome = f"unsettled at {made[number]}"
                assert (failure.errno, failure.filename) == (error, f"{root}/packs/aa/one")
            except OSError as failure:
                outcome = f"failed at {made[number]}"
                assert (failure.errno, failure.filename) == (error, f"{root}/packs/aa/one")
                assert not (root / "packs/aa/one").exists()
                assert files_below(root) == [], "the temporary file goes"
        if number >= len(made):
            break
        outcomes.add(outcome)
        assert descriptors() == open_before
        assert store.pool._made == len(store.pool._free)
        assert "cas-writer" not in {thread.name for thread in threading.enumerate()}
        with contextlib.suppress(Exists):
            publish(store)  # the same backend goes on
        assert store.read("packs/aa/one") == BYTES[:size]
        store.close()
        number += 1
    before = {"open", "mkdir", "fsync", "close", "link", "write" if size == 100 else "pwrite"}
    unsettled = {"open", "fsync", "close"} | ({"link"} if error == errno.EIO else set())
    expected = {f"failed at {call}" for call in before} | {f"unsettled at {call}" for call in unsettled}
    if error == errno.EIO:
        expected.remove("failed at link")
    assert outcomes == expected | {"published"}, "published: where only the unlink of the old name failed"


def test_a_link_whose_reply_was_lost_counts(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link_and_fail(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # NFS: the request was sent twice

    monkeypatch.setattr(os, "link", link_and_fail)
    store.create("log/1", b"mine")
    assert store.read("log/1") == b"mine"


def test_a_background_error_comes_out_of_the_next_call(store: LocalBackend) -> None:
    store.pool = BufferPool(limit=2, size=256 << 10)
    file = store.new_file("packs/aa/one", 0)
    with failing(0, errno.EIO, ("pwrite",)):
        with pytest.raises(OSError, match="packs/aa/one") as raised:
            for start in range(0, len(BYTES), MIB):
                file.write(BYTES[start : start + MIB])
        assert raised.value.errno == errno.EIO
        with pytest.raises(OSError, match="packs/aa/one"):
            file.publish()
    assert files_below(store.root) == []


def test_a_background_error_in_the_last_buffer_comes_out_of_publish(store: LocalBackend) -> None:
    store.pool = BufferPool(limit=2, size=256 << 10)
    file = store.new_file("packs/aa/one", 0)
    with failing(1, errno.EIO, ("pwrite",)):
        file.write(BYTES[: 512 << 10])  # two whole buffers: no later write meets the error of the second
        with pytest.raises(OSError, match="packs/aa/one"):
            file.publish()
    assert files_below(store.root) == []


def test_a_foreign_temporary_file_is_kept(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(f"{store.root}/tmp")
    (Path(store.root) / "tmp" / "same").write_bytes(b"of another writer")
    monkeypatch.setattr(secrets, "token_hex", lambda length: "same")
    with pytest.raises(FileExistsError):
        store.create("log/1", b"mine")
    assert (Path(store.root) / "tmp" / "same").read_bytes() == b"of another writer"


FULL = """
import resource, sys
from cas.local import LocalBackend
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, resource.RLIM_INFINITY))
store = LocalBackend(sys.argv[1])
for size in (10_000_001, 9_999_999):
    file = store.new_file(f"packs/{size}", size)
    try:
        for _ in range(size // 100_000):
            file.write(bytes(100_000))
        file.write(bytes(size % 100_000))
        file.publish()
        print("done", size)
    except OSError as error:
        print(error.errno, error.filename)
"""


def test_a_file_over_the_process_limit_fails_and_the_next_one_is_fine(store: LocalBackend) -> None:
    lines = run(FULL, store.root).splitlines()
    assert lines == [f"{errno.EFBIG} {store.root}/packs/10000001", "done 9999999"]
    assert files_below(store.root) == ["packs/9999999"]


FULL_DISK = """
import errno, os, sys
from cas.local import LocalBackend
root, size = sys.argv[1], int(sys.argv[2])
store = LocalBackend(root)

def put(size):
    file = store.new_file("packs/one", size)
    for start in range(0, size, 100_000):
        file.write(b"x" * min(100_000, size - start))
    file.publish()

store.create("filler", bytes((10 << 20) - 60_000))
try:
    put(size)
except OSError as error:
    assert error.errno == errno.ENOSPC and error.filename == f"{root}/packs/one", error
else:
    sys.exit("the disk was not full")
assert [info.name for info in store.list("")] == ["filler"]
store.delete("filler")
put(min(size, 9 << 20))
assert store.read("packs/one") == b"x" * min(size, 9 << 20)
"""


@pytest.mark.parametrize("size", [100_000, 20 * MIB + 7])
def test_a_full_disk_leaves_no_name_and_takes_files_again_later(tmp_path: Path, size: int) -> None:
    # In a mount namespace of its own: the small disk goes with the process, however that ends.
    mount = f"mount -t tmpfs -o size=10m tmpfs {tmp_path} || exit 77"
    command = ["unshare", "-m", "sh", "-c", f'{mount}; exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    run(FULL_DISK, str(tmp_path), str(size), before=command)
    assert list(tmp_path.iterdir()) == []


CRASH = """
import os, sys
from cas.buffers import BufferPool
from cas.local import LocalBackend
root, size = sys.argv[1], int(sys.argv[2])
data = bytes(range(251)) * (size // 251)
for number in range(1000):
    os.mkdir(f"{root}/{number}")
    child = os.fork()
    if not child:
        calls = 0
        def crashing(real):
            def call(*args):
                global calls
                calls += 1
                if calls > number:
                    os._exit(9)
                return real(*args)
            return call
        for name in ("open", "mkdir", "write", "pwrite", "fsync", "close", "link", "unlink"):
            setattr(os, name, crashing(getattr(os, name)))
        store = LocalBackend(f"{root}/{number}")
        store.pool = BufferPool(limit=2, size=256 << 10)
        file = store.new_file("packs/aa/one", size)
        file.write(data)
        file.publish()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    store = LocalBackend(f"{root}/{number}")
    named = store.exists("packs/aa/one")
    assert not named or store.read("packs/aa/one") == data, number
    if not named:
        store.create("packs/aa/one", data)
    if status == 0:
        print(number)
        break
"""


@pytest.mark.parametrize("size", [251 * 10, 251 * 5000])
def test_crash_at_any_call_leaves_the_whole_file_or_no_name(tmp_path: Path, size: int) -> None:
    assert int(run(CRASH, str(tmp_path), str(size))) > 12, "so many calls were there to crash at"


def test_a_killed_writer_does_not_stand_in_the_way_of_the_next(store: LocalBackend) -> None:
    script = """
import sys
from cas.local import LocalBackend
file = LocalBackend(sys.argv[1]).new_file("packs/aa/one", 0)
file.write(bytes(20 << 20))
print("written", flush=True)
sys.stdin.read()
"""
    process = start(script, store.root)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not store.exists("packs/aa/one")
    put(store, "packs/aa/one", BYTES)
    assert store.read("packs/aa/one") == BYTES


# -- processes ----------------------------------------------------------------------------------------------


def test_the_backend_works_in_a_forked_child_whatever_the_parent_was_doing(store: LocalBackend) -> None:
    script = """
import os, sys
from cas.errors import Invalid
from cas.local import LocalBackend
store = LocalBackend(sys.argv[1])
store.create("log/1", b"one")
store.read("log/1", 0, 3)
begun = store.new_file("packs/aa/parent", 0)
begun.write(bytes(20 << 20))
with store._open_files._lock, store.pool._returned:  # as if other threads held them at the fork
    child = os.fork()
    if not child:
        assert store.read("log/1", 0, 3) == b"one"
        file = store.new_file("packs/aa/child", 0)
        file.write(b"c" * (20 << 20))
        file.publish()
        for use in (lambda: begun.write(b"x"), begun.publish):
            try:
                use()
            except Invalid:
                continue
            os._exit(1)
        begun.abandon()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
begun.publish()
"""
    run(script, store.root)
    assert store.read("packs/aa/parent") == bytes(20 * MIB)
    assert store.read("packs/aa/child") == b"c" * (20 * MIB)


def test_a_file_can_be_written_while_the_interpreter_shuts_down(store: LocalBackend) -> None:
    script = """
import atexit, sys
from cas.local import LocalBackend
store = LocalBackend(sys.argv[1])
@atexit.register
def last_commit():
    file = store.new_file("packs/aa/one", 0)
    for _ in range(20):
        file.write(bytes(1 << 20))
    file.publish()
    store.read("packs/aa/one", 0, 10)
"""
    run(script, store.root)
    assert store.read("packs/aa/one") == bytes(20 * MIB)


def test_a_stream_without_a_thread_just_writes(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    put(store, "packs/aa/one", BYTES)
    assert store.read("packs/aa/one") == BYTES


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (8, 5, b"89"),
        (10, 1, b""),
        (99, None, b""),
        (2, 0, b""),
        (0, 1 << 62, b"0123456789"),
    ],
)
def test_read_gives_the_range_as_far_as_the_file_goes(
    store: LocalBackend, start: int, length: int | None, expected: bytes
) -> None:
    store.create("log/1", b"0123456789")
    assert store.read("log/1", start, length) == expected


def test_a_hostile_length_costs_no_memory(store: LocalBackend) -> None:
    store.create("log/1", b"0123456789")
    tracemalloc.start()
    try:
        store.read("log/1", 0, 1 << 62)
        store.tail("log/1", 1 << 62)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_short_reads_are_continued(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("packs/aa/one", BYTES[:100_000])
    pread, preadv = os.pread, os.preadv

    def short(fd: int, views: list[memoryview], offset: int) -> int:
        return preadv(fd, [views[0], *[view[:7] for view in views[1:2]]], offset)

    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 999), offset))
    monkeypatch.setattr(os, "preadv", short)
    parts = [bytearray(10), bytearray(0), bytearray(40_000), bytearray(8), bytearray(30_000)]
    store.readinto("packs/aa/one", 5, [memoryview(part) for part in parts])
    assert b"".join(parts) == BYTES[5:70_023]
    assert store.read("packs/aa/one") == BYTES[:100_000]
    assert store.tail("packs/aa/one", 5000) == (BYTES[95_000:100_000], 100_000)


def test_readinto_takes_more_buffers_than_one_system_call(store: LocalBackend) -> None:
    store.create("packs/aa/one", BYTES[:100_000])
    whole = bytearray(3000 * 8)
    views = [memoryview(whole)[start : start + 8].cast("Q") for start in range(0, len(whole), 8)]
    store.readinto("packs/aa/one", 1000, views)
    assert whole == BYTES[1000:25_000]


def test_readinto_past_the_end_is_corrupt(store: LocalBackend) -> None:
    store.create("packs/aa/one", b"0123456789")
    with pytest.raises(Corrupt, match="packs/aa/one ends at byte 10"):
        store.readinto("packs/aa/one", 8, [memoryview(bytearray(2)), memoryview(bytearray(1))])


def test_tail_of_a_shorter_file_is_all_of_it(store: LocalBackend) -> None:
    store.create("packs/aa/one", b"0123456789")
    assert store.tail("packs/aa/one", 4) == (b"6789", 10)
    assert store.tail("packs/aa/one", 40) == (b"0123456789", 10)


def test_a_missing_file_is_not_found(store: LocalBackend) -> None:
    store.create("log/1", b"")
    uses: list[Callable[[str], object]] = [
        store.read,
        lambda name: store.read(name, 1, 1),
        lambda name: store.tail(name, 1),
        lambda name: store.readinto(name, 0, [memoryview(bytearray(1))]),
        store.delete,
    ]
    for name in ("log/2", "no/such/folder", "log/1/below-a-file"):
        assert not store.exists(name)
        for use in uses:
            with pytest.raises(NotFound, match=name):
                use(name)
    assert store.exists("log/1")


def test_a_failing_medium_is_not_a_missing_file(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store.create("log/1", b"content")
    for function in ("lstat", "pread", "preadv", "scandir"):
        monkeypatch.setattr(os, function, fail)
    uses: list[Callable[[], object]] = [
        lambda: store.exists("log/1"),
        lambda: store.read("log/1"),
        lambda: store.readinto("log/1", 0, [memoryview(bytearray(1))]),
        lambda: store.list("log"),
    ]
    for use in uses:
        with pytest.raises(OSError, match="Input/output error"):
            use()


def test_reading_many_ranges_opens_a_file_once(store: LocalBackend) -> None:
    store.create("packs/aa/one", BYTES[:100_000])
    with opened_files() as opened:
        for start in range(1000):
            assert store.read("packs/aa/one", start, 10) == BYTES[start : start + 10]
    assert opened == ["one"]


def test_open_files_are_bounded_and_closed(store: LocalBackend) -> None:
    before = descriptors()
    count = OPEN_FILES + 40
    for number in range(count):
        store.replace(f"packs/{number}", b"%04d" % number)

    def read_all(seed: int) -> None:
        order = random.Random(seed).choices(range(count), k=2000)
        good.append(all(store.read(f"packs/{number}", 0, 4) == b"%04d" % number for number in order))

    good: list[bool] = []
    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for thread in threads:  # while one reads a file, others push it out of the cache
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 8
    assert descriptors() == before + OPEN_FILES
    store.close()
    assert descriptors() == before


def test_a_file_in_use_stays_open(store: LocalBackend) -> None:
    for number in range(2 * OPEN_FILES):
        store.replace(str(number), b"x")
    with opened_files() as opened:
        for number in range(2 * OPEN_FILES):
            store.read("0", 0, 1)
            store.read(str(number), 0, 1)
    assert opened.count("0") == 1


def test_a_deleted_file_gives_its_space_back(store: LocalBackend) -> None:
    for name in ("packs/mine", "packs/other"):
        store.create(name, b"content")
    before = descriptors()
    for name in ("packs/mine", "packs/other"):
        store.read(name, 0, 1)
    store.delete("packs/mine")
    assert not store.exists("packs/mine")
    assert descriptors() == before + 1
    os.unlink(f"{store.root}/packs/other")  # the gc of another process
    assert store.list("packs") == []
    assert descriptors() == before


def test_a_replaced_hint_is_seen_by_all_readers(store: LocalBackend) -> None:
    other = LocalBackend(store.root)
    for text in (b"1", b"2", b"a longer one"):
        store.replace("root", text)
        assert other.read("root") == store.read("root") == text
    assert files_below(store.root) == ["root"]


def test_a_failed_replace_keeps_the_old_hint(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace("root", b"old")
    with failing(1, errno.ENOSPC, ("open", "write")), pytest.raises(OSError, match="root"):
        store.replace("root", b"new")
    assert store.read("root") == b"old"
    assert files_below(store.root) == ["root"]


# -- names and folders --------------------------------------------------------------------------------------


def test_list_gives_every_file_below_sorted_with_its_size(store: LocalBackend) -> None:
    for name, size in [("packs/b0/x", 3), ("packs/a/y", 0), ("packs/a.b", 7), ("log/1", 1)]:
        store.create(name, bytes(size))
    os.symlink("/", f"{store.root}/packs/loop")
    os.mkdir(f"{store.root}/packs/empty")
    found = store.list("packs")
    sizes = [(info.name, info.size) for info in found]
    assert sizes == [("packs/a.b", 7), ("packs/a/y", 0), ("packs/b0/x", 3)]
    assert all(abs(info.modified - time.time()) < 60 for info in found)
    assert [info.name for info in store.list("packs/a")] == ["packs/a/y"]
    assert len(store.list("")) == 4
    assert store.list("lists") == []


def test_list_leaves_out_what_vanishes(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("packs/aa/goes", "packs/aa/stays", "packs/bb/goes"):
        store.create(name, b"")
    real = os.scandir

    def vanishing(path: str) -> Any:
        with real(path) as found:
            listed = list(found)
        if path.endswith("aa"):
            os.unlink(f"{path}/goes")
        if path.endswith("packs"):
            os.unlink(f"{path}/bb/goes")
            os.rmdir(f"{path}/bb")
        return Listed(listed)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert [info.name for info in store.list("packs")] == ["packs/aa/stays"]


class Listed(list["os.DirEntry[str]"]):
    """What a scan of a folder had read before somebody deleted from it."""

    def __enter__(self) -> Listed:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "log/../../up", "log//x", "./x", "x/", "a\0b"])
def test_names_that_leave_the_store_are_refused(store: LocalBackend, name: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.read(name),
        lambda: store.readinto(name, 0, []),
        lambda: store.tail(name, 1),
        lambda: store.exists(name),
        lambda: store.create(name, b""),
        lambda: store.new_file(name, 0),
        lambda: store.replace(name, b""),
        lambda: store.delete(name),
        *([lambda: store.list(name), lambda: store.sync(name)] if name else []),  # "" is the root itself
    ]
    for use in uses:
        with pytest.raises(Invalid):
            use()


def test_negative_ranges_are_refused(store: LocalBackend) -> None:
    store.create("log/1", b"0123456789")
    for start, length in [(-1, None), (0, -1)]:
        with pytest.raises(Invalid):
            store.read("log/1", start, length)


def test_sync_makes_the_folders_names_durable(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("packs/aa/one", b"")
    assert trace(store, monkeypatch, lambda: store.sync("packs")) == ["fsync packs"]
    assert trace(store, monkeypatch, lambda: store.sync("")) == ["fsync ."]
    assert trace(store, monkeypatch, lambda: store.sync("nowhere")) == []
    with failing(0, errno.EIO, ("fsync",)), pytest.raises(OSError, match="packs"):
        store.sync("packs")
    with failing(0, errno.EINVAL, ("fsync",)) as made:
        store.sync("packs")  # a file system that has no fsync of directories
    assert made == ["fsync"]


def test_the_root_is_made_with_all_above_it(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    events = trace(store, monkeypatch, lambda: create_root(f"{store.root}/a/b/c"))
    assert events[-6:] == ["mkdir a", "fsync .", "mkdir a/b", "fsync a", "mkdir a/b/c", "fsync a/b"]


def test_a_root_that_exists_is_made_durable_as_well(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made it may have died before its fsync."""
    os.makedirs(f"{store.root}/a/b")
    events = trace(store, monkeypatch, lambda: create_root(f"{store.root}/a/b"))
    assert events[-2:] == ["fsync .", "fsync a"]


def test_a_file_is_no_root(store: LocalBackend) -> None:
    store.create("file", b"")
    with pytest.raises(FileExistsError):
        create_root(f"{store.root}/file")


def test_a_deleted_root_is_not_made_again_by_a_writer(store: LocalBackend) -> None:
    backend = LocalBackend(f"{store.root}/gone")
    with pytest.raises(FileNotFoundError):
        backend.create("log/1", b"")
    assert not store.exists("gone")


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_is_found_out(store: LocalBackend, error: int) -> None:
    store.check_links()
    with failing(0, error, ("link",)), pytest.raises(Unsupported, match="without hard links"):
        store.check_links()
    with failing(0, errno.EIO, ("link",)), pytest.raises(OSError, match="Input/output"):
        store.check_links()
    assert files_below(store.root) == []
