"""A damaged copy of an object costs nothing while another pack holds a good one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

import cas


def packs(path: Path) -> list[Path]:
    return [file for file in (path / "packs").rglob("*") if file.is_file()]


def damage_blocks(file: Path) -> None:
    """Invert the stored bytes of the blocks, which come first in a pack; its table stays as it is."""
    data = bytearray(file.read_bytes())
    data[64:8064] = bytes(255 - byte for byte in data[64:8064])
    file.write_bytes(data)


def test_a_load_takes_the_good_copy_of_a_block_from_another_pack(tmp_path: Path) -> None:
    state = {"w": np.arange(2000, dtype=np.float32)}  # 8,000 bytes: one block, the first thing in its pack
    for name in ("ours", "other"):
        with cas.open(tmp_path / name, create=True) as store:
            store.commit(state, codec="raw")
    (ours,), (other,) = packs(tmp_path / "ours"), packs(tmp_path / "other")
    damage_blocks(ours)
    with cas.open(tmp_path / "ours") as store:
        try:
            store.load("main")
        except cas.Corrupt as error:
            assert "w in commit" in str(error)
        else:
            raise AssertionError("the damage was not seen")
    place = tmp_path / "ours" / other.relative_to(tmp_path / "other")
    place.parent.mkdir(exist_ok=True)
    shutil.copy(other, place)
    for _ in range(2):
        with cas.open(tmp_path / "ours") as store:
            assert np.array_equal(store.load("main")["w"], state["w"])
            (bad,) = [found for found in store.fsck(data=True) if found.severity != "info"]
            assert (bad.name, bad.commits, bad.paths) == ("row-corrupt", (store.resolve("main").id,), ("w",))
