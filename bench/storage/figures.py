"""What the storage figures should be, and what they are. Left out is what was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .loads import WHOLE
from .peers import OURS
from .results import Results

REPACK = OURS[1]
AFTER_FIRST = {"dense full": 0.72, "dense fp32": 0.65, "dense bf16": 0.24, "sparse 1 %": 0.03}
"""Stored over raw of all checkpoints but the first, at most, as section 3 of the design has it on another model."""
UNDER_ZIPNN = {"dense bf16": 0.75, "dense fp32": 0.97}
"""Of what ZipNN's delta takes, at most."""


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    target: str
    met: bool
    beside: str = ""


def figures(results: Results) -> list[Figure]:
    """By repack, but for the speeds, which are those of the codec at a commit."""
    return [*_ratios(results), *_against_peers(results), *_loads(results), *_speeds(results)]


def _at_most(what: str, value: float, most: float, beside: str = "") -> Figure:
    return Figure(what, value, f"at most {most:g}", value <= most, beside)


def _ratios(results: Results) -> Iterator[Figure]:
    ours = {name: peers[REPACK] for name, peers in results.outcomes.items() if REPACK in peers}
    for name, most in AFTER_FIRST.items():
        if name in ours and ours[name].stored:
            yield _at_most(f"{name}, after the first", results.workloads[name].after_first(ours[name]), most)
    if "lora" in ours and ours["lora"].stored:
        share = ours["lora"].final / results.workloads["lora"].distinct
        yield _at_most("lora, over one base and all adapters", share, 1.02)
    if "sweep" in ours and ours["sweep"].stored:
        yield _at_most("sweep", results.workloads["sweep"].over_raw(ours["sweep"]), 0.35)


def _against_peers(results: Results) -> Iterator[Figure]:
    """Peers that were stopped, or that gave back other bytes, are no peers."""
    for name, outcomes in results.outcomes.items():
        count = len(results.workloads[name].raw)
        whole = {peer: one for peer, one in outcomes.items() if len(one.stored) == count and one.exact}
        peers = {peer: one.final for peer, one in whole.items() if peer not in OURS}
        if REPACK not in whole or not peers:
            continue
        best = min(peers, key=lambda peer: peers[peer])
        ours = whole[REPACK].final
        yield _at_most(f"{name}, over the best peer", ours / peers[best], 1.01, best)
        if name in UNDER_ZIPNN and "ZipNN delta" in peers:
            yield _at_most(f"{name}, over ZipNN delta", ours / peers["ZipNN delta"], UNDER_ZIPNN[name])


def _loads(results: Results) -> Iterator[Figure]:
    """In CPU time over that of a load of whole blocks."""
    held = {one.way: one.seconds for one in results.loads}
    if not held:
        return
    whole, newest = held[WHOLE], held["committed"][0] / held[WHOLE][0]
    yield _at_most("load of what was committed last, over whole", newest, 2)
    for way in ("repack small", "repack smallest"):
        worst = max(one / other / (1 + depth) for depth, (one, other) in enumerate(zip(held[way], whole, strict=True)))
        yield _at_most(f"load at depth d after {way}, over (1 + d) times whole", worst, 1)


def _speeds(results: Results) -> Iterator[Figure]:
    """Of the codec without sorting against ZipNN's delta, both on one thread."""
    held = {(coded.part, coded.method): coded for coded in results.codecs}
    for part in ("weights", "weights, bf16"):
        ours, theirs = held.get((part, "delta")), held.get((part, "ZipNN delta"))
        if ours is None or theirs is None:
            continue
        for way, least in (("encode", 1.5), ("decode", 1.0)):
            speed = getattr(ours, way) / getattr(theirs, way)
            beside = f"{getattr(ours, way) / 1e6:.0f} and {getattr(theirs, way) / 1e6:.0f} MB/s"
            yield Figure(f"{way}, {part}, over ZipNN delta", speed, f"at least {least:g}", speed >= least, beside)
