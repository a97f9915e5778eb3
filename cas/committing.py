"""Making one commit: what is to be stored, and the write order from blocks to the published record.

    1. blocks into packs, packs durable      2. lists, layouts, trees, the commit close the last pack, durable
    3. publish log/<seq + 1>                 4. only now is the commit acknowledged

A crash or an error before 3 leaves the old root whole and at worst packs that nothing names; nothing is cleaned up.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from . import objects
from .backend import Backend
from .block import Kind, ObjectId
from .branches import Base
from .catalog import Catalog
from .codecs import CODEC_NAMES, CodecName
from .commits import Commit, Stats, commit_of
from .deltas import Deltas
from .errors import Invalid
from .files import FileRange, KnownFile
from .grid import covers
from .log import user
from .nodes import INLINE_TEXT, MAX_BYTES, Node, Tag, pack
from .objects import Origin, Sizes, encode_commit, encode_tree, seal
from .packing import Counters
from .paths import format_path, is_file_name
from .state import Container, Leaf, Walk, tree_node
from .tensors import Source
from .writer import ObjectWriter, WriterSettings

MAX_META = 1 << 20


class CommitOptions(TypedDict, total=False):
    """What `commit` and `commit_async` take beside the state.

    branch: `main` unless given. step, message, meta, metrics: kept in the commit and shown by `log`; metrics are
    numbers or 0-dim tensors by name, meta small plain values. files: paths by the name they have on checkout.
    origin: the files that the state was read from, by name, each as its consecutive pieces; a piece that is also the
    source of a tensor of the state is stored once.
    parent: a revision that must be the branch's tip, instead of what this Store last loaded there.
    codec: `auto` compresses while the disk is behind; `raw`, `zstd`, `planes` always do the same.
    delta: `parent`, blocks of tensors are stored as their change from the parent's where that is smaller, which takes
    longer; `none`, they are not. Left out, it is `none` for `commit` and `parent` for `commit_async`. With codec `raw`
    or `zstd` nothing is.
    base: a revision whose blocks are taken where the parent has none, so that a fine-tune lies near its base; with it
    delta is `parent` unless said otherwise.
    keep_base: `commit_async` keeps in memory what it stored whole, so that later ones need not read it to store their
    changes: that takes the memory of one more copy of the state.
    allow_pickle: pickle what is neither tensor nor plain value; loading then needs it too.
    unless_in: a revision; where a commit of its history has the same state, files, origin and step, that one is
    returned and the branch stays.
    progress: called with a number of bytes, from any thread, whenever so many more were stored or found to be.
    group: the torch.distributed group all of whose ranks make this call together, each with what it holds of the
    state; None for this process alone. Needed where the job has several processes. What the commit says beside the
    state (step, message, metrics, meta, files, parent, unless_in) is then what rank 0 gives.
    replicas: `equal`, what several ranks hold must not differ; `first`, the lowest rank's is taken without a look at
    the others'.
    timeout: seconds that ranks wait for one another, at each step.
    when_busy: what `commit_async` does while the one before is still in flight: `wait` for it, `skip` this one and
    return None, or `raise`. With a group rank 0 decides for all.
    """

    branch: str
    step: int | None
    metrics: Mapping[str, Any] | None
    message: str
    meta: Mapping[str, Any] | None
    files: Mapping[str, str | os.PathLike[str]] | None
    origin: Mapping[str, Sequence[Source]] | None
    parent: str | None
    codec: CodecName
    delta: DeltaName
    base: str | None
    keep_base: bool
    allow_pickle: bool
    unless_in: str | None
    progress: Callable[[int], None] | None
    group: Any
    replicas: Literal["equal", "first"]
    timeout: float
    when_busy: Literal["wait", "skip", "raise"]


DeltaName = Literal["parent", "none"]
TIMEOUT = 1800.0
"""Seconds, as torch.distributed gives the ranks of a gloo group."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "codec": CODEC_NAMES,
    "delta": ("none", "parent"),
    "replicas": ("equal", "first"),
    "when_busy": ("wait", "skip", "raise"),
}


@dataclass(slots=True)
class Request:
    """All that a commit will say, checked, before anything is stored. `skeleton` is the state's."""

    branch: str
    step: int | None
    message: str
    metrics: Node
    meta: Node
    files: list[tuple[str, Leaf]]
    origin: list[tuple[str, list[Leaf]]]
    skeleton: Any
    leaves: list[Leaf]
    codec: CodecName
    delta: DeltaName
    unless_in: str | None
    progress: Callable[[int], None] | None
    started: float

    @property
    def side_leaves(self) -> list[Leaf]:
        """What is stored beside the state."""
        pieces = [leaf for _, leaves in self.origin for leaf in leaves]
        return [leaf for _, leaf in self.files] + pieces


def check_options(options: CommitOptions) -> None:
    unknown = options.keys() - CommitOptions.__annotations__.keys()
    if unknown:
        raise Invalid(f"commit takes no {sorted(unknown)[0]}=; it takes {', '.join(CommitOptions.__annotations__)}")
    for name, choices in _CHOICES.items():
        chosen = options.get(name, choices[0])
        if chosen not in choices:
            raise Invalid(f"{name} is one of {', '.join(choices)}, not {chosen!r}")
    check_timeout(options.get("timeout", TIMEOUT))


def sound_timeout(timeout: Any) -> float:
    """`timeout`, or the usual one where it is no number: the other ranks are to hear of that, not to wait."""
    try:
        check_timeout(timeout)
    except Invalid:
        return TIMEOUT
    return float(timeout)


def check_timeout(timeout: Any) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 1e7:
        raise Invalid(f"timeout is a positive number of seconds, not {timeout!r:.60}")


def request(state: Any, options: CommitOptions, started: float, rank: int = 0) -> Request:
    """The checked request; errors name the argument or the path in the state. `rank` is this process's in its job."""
    message = options.get("message", "")
    if type(message) is not str or any("\ud800" <= char <= "\udfff" for char in message):
        raise Invalid(f"message is a text of valid Unicode, not {message!r:.60}")
    skeleton, leaves = state_skeleton(state, options.get("allow_pickle", False), rank)
    return Request(
        branch=options.get("branch", "main"),
        step=step_of(options.get("step")),
        message=message,
        metrics=metrics_node(_mapping("metrics", options.get("metrics"))),
        meta=meta_node(_mapping("meta", options.get("meta"))),
        files=files_of(_mapping("files", options.get("files"))),
        origin=origin_of(_mapping("origin", options.get("origin")), leaves),
        skeleton=skeleton,
        leaves=leaves,
        codec=options.get("codec", "auto"),
        delta=options.get("delta", "none" if options.get("base") is None else "parent"),
        unless_in=options.get("unless_in"),
        progress=options.get("progress"),
        started=started,
    )


def _mapping(name: str, given: Any) -> Mapping[Any, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise Invalid(f"{name} is a dict, not {given!r:.60}")
    return given or {}


def state_skeleton(state: Any, allow_pickle: bool, rank: int = 0) -> tuple[Any, list[Leaf]]:
    """The state's skeleton and leaves; errors name the path."""
    walk = Walk(allow_pickle, rank)
    return walk.visit(state), walk.leaves


def files_of(files: Mapping[Any, str | os.PathLike[str]]) -> list[tuple[str, Leaf]]:
    """Side files as leaves, by the relative name that they will have on checkout."""
    _check_names(files, "files=")
    return [(name, Leaf.of_bytes((name,), KnownFile.at(path).whole(), Tag.BYTES)) for name, path in files.items()]


def origin_of(origin: Mapping[Any, Sequence[Source]], leaves: list[Leaf]) -> list[tuple[str, list[Leaf]]]:
    """The pieces of the files that a state was read from, as leaves tied to those of the state where they can be."""
    _check_names(origin, "origin=")
    tensors = [leaf for leaf in leaves if leaf.tensor is not None and leaf.tied_to is None]
    by_source = {id(shard.source): leaf for leaf in tensors for shard in leaf.shards}

    def piece(name: str, source: Source) -> Leaf:
        same = by_source.get(id(source))
        if same is None:
            cell = source.cell if isinstance(source, FileRange) else 0
            return Leaf.of_bytes((name,), source, Tag.BYTES, cell)
        return Leaf((name,), same.shards, same.tensor, tied_to=same)

    return [(name, [piece(name, source) for source in pieces if source.nbytes]) for name, pieces in origin.items()]


def _check_names(files: Mapping[Any, Any], where: str) -> None:
    for name in files:
        if not isinstance(name, str) or not is_file_name(name):
            raise Invalid(f"{name!r} in {where} is no safe file name; use a relative name without ..")
    folders = {name[:at] for name in files for at in range(len(name)) if name[at] == "/"}
    for name in folders & files.keys():
        raise Invalid(f"{name!r} in {where} is a file and a directory at once; rename one")


def metrics_node(metrics: Mapping[str, Any]) -> Node:
    """Metrics as a dict node: numbers, or 0-dim tensors that become numbers."""
    return [Tag.DICT, [[_metric_name(name), _number(name, value)] for name, value in metrics.items()]]


def _metric_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise Invalid(f"a metric is called by a printable text, not {name!r}")
    return name


def _number(name: str, value: Any) -> int | float:
    if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Invalid(f"metric {name} is {value!r:.60}; give a number or a 0-dim tensor")
    whole = int(value) if isinstance(value, numbers.Integral) else None
    if whole is not None and abs(whole) <= MAX_BYTES:
        return whole
    try:
        return float(value)
    except OverflowError as error:
        raise Invalid(f"metric {name} is too large for a number of 64 bits; give its logarithm") from error


def meta_node(meta: Mapping[str, Any]) -> Node:
    """Metadata as a dict node; only small plain values, since every `log` reads them."""
    skeleton, leaves = state_skeleton(dict(meta), False)
    if leaves:
        raise Invalid(
            f"meta= holds a tensor or over {INLINE_TEXT} bytes at {leaves[0].path[-1]!r}; put it in the state"
        )
    node = _inline(skeleton)
    if len(pack(node)) > MAX_META:
        raise Invalid(f"meta= takes {len(pack(node))} bytes, every log reads it; keep it below {MAX_META}")
    return node


def _inline(skeleton: Any) -> Node:
    if not isinstance(skeleton, Container):
        if type(skeleton) is list and skeleton[0] == Tag.FOREIGN:
            raise Invalid(f"meta= holds a {skeleton[2]} of {skeleton[1]}; put it in the state or give its text")
        return skeleton
    nodes = [_inline(child) for child in skeleton.children]
    pairs = nodes if skeleton.keys is None else [list(pair) for pair in zip(skeleton.keys, nodes, strict=True)]
    return [skeleton.tag, pairs]


def step_of(step: Any) -> int | None:
    if step is None:
        return None
    try:
        number = operator.index(step.item() if hasattr(step, "item") else step)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Invalid(f"step is a whole number, not {step!r:.60}") from error
    if isinstance(step, bool) or abs(number) > MAX_BYTES:
        raise Invalid("step is a whole number of 64 bits; give a smaller one")  # it may be too long to be printed
    return number


def write(
    request: Request, base: Base, backend: Backend, catalog: Catalog, settings: WriterSettings, deltas: Deltas | None
) -> tuple[ObjectId, objects.Commit, Stored]:
    """Steps 1 and 2 by this process alone: all objects durable; nothing is published."""
    leaves = request.leaves
    with ObjectWriter(backend, catalog, request.codec, settings, request.progress, deltas=deltas) as writer:
        blocks = writer.store(leaves)
        raw = sum(leaf.nbytes for leaf in leaves if leaf.tied_to is None)
        return seal_commit(request, base, request.skeleton, Stored(raw, blocks), writer)


@dataclass(slots=True)
class Stored:
    """What a commit took: bytes of its state and files, its blocks, and what of it was new."""

    raw: int
    blocks: int
    new: Counters = field(default_factory=Counters)


def seal_commit(
    request: Request, base: Base, skeleton: Any, stored: Stored, writer: ObjectWriter
) -> tuple[ObjectId, objects.Commit, Stored]:
    """Store what stands beside the state, the trees and the commit, and make all of it durable.

    The leaves of `skeleton` are stored; `stored` says what that took, here without what `writer` counted.
    """
    side = request.side_leaves
    stored.blocks += writer.store(side)
    stored.raw += sum(leaf.nbytes for leaf in side if leaf.tied_to is None)
    tree = writer.put(Kind.TREE, encode_tree(tree_node(skeleton, writer.put)))
    stored.new.add(writer.counters)
    commit = objects.Commit(
        tree=tree,
        parents=base.parents,
        time=max(0, time.time_ns() // 1000),
        author=f"{user()}@{socket.gethostname()}",
        message=request.message,
        step=request.step,
        metrics=request.metrics,
        meta=request.meta,
        files=[Tag.DICT, [[name, leaf.node()] for name, leaf in request.files]],
        origin=_stored_origin(request, writer),
        sizes=Sizes(stored.raw, stored.new.new_raw, stored.new.new_stored),
    )
    name = writer.put(Kind.COMMIT, encode_commit(commit))
    writer.finish()
    return name, commit, stored


def check_held_whole(leaves: list[Leaf]) -> None:
    """`Invalid` if this process does not hold all of some tensor."""
    for leaf in leaves:
        if leaf.tensor is not None and len(leaf.shards) != 1 and not covers(leaf.shape, [s.box for s in leaf.shards]):
            raise Invalid(not_whole(leaf))
        if len(leaf.shards) == 1 and leaf.shards[0].box.shape != leaf.shape:
            raise Invalid(not_whole(leaf))


def not_whole(leaf: Leaf) -> str:
    return (
        f"state path {format_path(leaf.path)} is sharded over several ranks, of which this is one; commit with group= "
        "the torch.distributed group of all of them"
    )


def _stored_origin(request: Request, writer: ObjectWriter) -> Origin | None:
    if not request.origin:
        return None
    files = [[name, seal(Tag.LIST, [leaf.node() for leaf in pieces], writer.put)] for name, pieces in request.origin]
    node = seal(Tag.DICT, files, writer.put)
    nbytes = sum(leaf.nbytes for _, pieces in request.origin for leaf in pieces)
    return Origin(writer.put(Kind.TREE, encode_tree(node)), nbytes)


def result(name: ObjectId, commit: objects.Commit, request: Request, stored: Stored) -> Commit:
    """What the caller of `commit` gets."""
    sizes, seconds = commit.sizes, time.perf_counter() - request.started
    stats = Stats(sizes.raw, sizes.new_raw, sizes.new_stored, stored.blocks, stored.new.new_blocks, seconds)
    return commit_of(name, commit, request.branch, stats)
