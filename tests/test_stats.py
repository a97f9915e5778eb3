"""What a store says that it holds."""

from __future__ import annotations

import numpy as np

import cas
from cas import Store


def test_stats_count_what_was_stored(store: Store) -> None:
    random = np.random.default_rng(0).integers(0, 256, 600_000, np.uint8)
    store.commit({"random": random, "zeros": np.zeros(1 << 18, np.uint8)}, codec="zstd")
    store.commit({"random": random, "text": "x" * 100_000}, codec="zstd", branch="side")
    store.tag("v1", "main")
    stats = store.stats()
    assert (stats.commits, stats.branches, stats.tags, stats.packs) == (2, 2, 1, 2)
    assert stats.blocks == 3 + 1 + 1  # the cells of `random`, the zeros, the text
    assert stats.raw > 600_000 + (1 << 18) + 100_000 > stats.stored > 600_000
    assert stats.codecs["zstd"] >= 2
    assert sum(stats.codecs.values()) == stats.blocks + 2 + 2 + 2  # and 2 commits, 2 trees, a layout and a list


def test_disk_is_what_the_files_take(store: Store) -> None:
    store.commit({"w": np.arange(1000)})
    store.close()
    with cas.open(store.path) as again:
        disk = again.stats().disk
        assert disk == sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())


def test_an_empty_store_holds_nothing(store: Store) -> None:
    stats = store.stats()
    assert (stats.packs, stats.commits, stats.blocks, stats.raw, stats.stored, stats.codecs) == (0, 0, 0, 0, 0, {})


def test_a_commit_counts_what_was_new(store: Store) -> None:
    w = np.random.default_rng(0).random(100_000)
    first = store.commit({"w": w}, codec="raw")
    assert first.stats is not None
    assert (first.raw, first.stats.blocks, first.stats.new_blocks) == (800_000, 4, 4)
    assert 800_000 < first.new < 801_000
    assert first.stored == first.new
    second = store.commit({"w": w, "v": w[:10]}, codec="raw")
    assert second.stats is not None
    assert (second.raw, second.stats.blocks, second.stats.new_blocks) == (800_080, 5, 1)
