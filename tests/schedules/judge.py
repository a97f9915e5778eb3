"""What must hold, judged where it can break: at each record that is published and at each file that is deleted.

The judge sees every file as it is made and reads packs by itself: of the code under test it uses the codecs and the
decoders of single objects, and nothing that looks things up, walks or collects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from machine import tables
from machine.tables import Table

from cas import lists, log, objects, pack
from cas.backend import Buffer
from cas.block import ID_SIZE, Kind, ObjectId, short
from cas.codecs import Encoder
from cas.lists import What
from cas.log import Record
from cas.nodes import KEYED_TAGS, Node, Tag, tensor_of
from cas.pack import Location, PackId, Row
from cas.refs import Ref

from .memory import MemoryBackend


class Violation(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True, slots=True)
class Root:
    """A record, the commits that its refs lead to, and what these lack on purpose."""

    record: Record
    leads_to: frozenset[ObjectId]
    absent: Mapping[ObjectId, frozenset[ObjectId]]


class JudgedBackend(MemoryBackend):
    """A store in memory that breaks off with a `Violation`."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        super().__init__(url, clock)
        self.roots: list[Root] = []
        self._encoder = Encoder()
        self._places: dict[ObjectId, list[Location]] = {}
        self._packs: dict[PackId, Table] = {}
        self._needs: dict[ObjectId, frozenset[ObjectId]] = {}
        self._commits: dict[ObjectId, objects.Commit] = {}
        self._condemned: dict[bytes, list[bytes]] = {}

    def copy(self, clock: Callable[[], float]) -> JudgedBackend:
        """A store of its own that holds the same."""
        made = JudgedBackend(self.url, clock)
        made._files.update(self._files)
        made._taken.update(self._taken)
        made.roots.extend(self.roots)
        made._places.update({name: list(places) for name, places in self._places.items()})
        made._packs.update(self._packs)
        made._needs.update(self._needs)
        made._commits.update(self._commits)
        made._condemned.update(self._condemned)
        return made

    # -- every file that comes or goes --------------------------------------------------------------------------

    def create(self, name: str, data: Buffer) -> None:
        super().create(name, data)
        if name.startswith(pack.FOLDER):
            self._take_up(name)
        elif name.startswith(log.FOLDER):
            self._judge(log.decode_record(bytes(data), len(self.roots) + 1))

    def delete(self, name: str) -> None:
        known = pack.id_of(name) or lists.id_of(name)
        if known is not None and known not in self.condemned:
            raise Violation(f"{name} is deleted and no list of record {self.head} condemns it")
        if name.startswith((log.FOLDER, "cas.json")):
            raise Violation(f"{name} is deleted")
        super().delete(name)
        if name.startswith(pack.FOLDER):
            self._packs.pop(PackId(known or b""), None)

    def _take_up(self, name: str) -> None:
        """Note its rows, straight from its end: a table offset of 8 bytes, their number in 4, 36 more."""
        data, held = self._data(name), PackId(pack.id_of(name) or b"")
        start, count = int.from_bytes(data[-48:-40], "little"), int.from_bytes(data[-40:-36], "little")
        rows = [Row._make(fields) for fields in pack.ROW.iter_unpack(data[start : start + count * pack.ROW.size])]
        self._packs[held] = Table.of(rows)
        for row in rows:
            self._places.setdefault(row.id, []).append(Location(held, row))

    # -- records ------------------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The number of the newest record."""
        return len(self.roots)

    @property
    def condemned(self) -> set[bytes]:
        """The packs and lists that the root condemns."""
        return {item for _, name in self.roots[-1].record.condemned for item in self._condemned[name]}

    def _judge(self, record: Record) -> None:
        for _, name in record.condemned:
            if name not in self._condemned:
                self._condemned[name] = lists.read(self, name, What.CONDEMNED)
        before = set() if not self.roots else self.condemned
        absent: dict[ObjectId, set[ObjectId]] = {}
        for listed in record.absent:
            for item in lists.read(self, listed, What.ABSENT):
                absent.setdefault(ObjectId(item[:ID_SIZE]), set()).add(ObjectId(item[ID_SIZE:]))
        left_out = {commit: frozenset(names) for commit, names in absent.items()}
        self.roots.append(Root(record, frozenset(self._history(record.refs.values())), left_out))
        if not before <= self.condemned:
            raise Violation(f"record {record.seq} takes back what was condemned")
        if len(self.roots) > 1:
            self._check_change(self.roots[-2].record, record)
        self._check_whole()

    def _check_change(self, before: Record, after: Record) -> None:
        """A commit's first parent is what its branch named before, and most updates change one ref alone."""
        changed = {ref for ref in before.refs.keys() | after.refs.keys() if before.refs.get(ref) != after.refs.get(ref)}
        why = after.update.why
        if after.floor < before.floor or after.epoch < before.epoch:
            raise Violation(f"record {after.seq} ({why}) lowers the floor or the epoch")
        if why == "undo":
            if all(after.refs != root.record.refs for root in self.roots[before.floor - 1 : -1]):
                raise Violation(f"record {after.seq} ({why}) goes back to what no record since the floor was")
            return
        if why.startswith("prune") and not self.roots[-1].absent.keys().isdisjoint(
            set(after.refs.values()) - self.roots[-2].absent.keys()
        ):
            raise Violation(f"record {after.seq} ({why}) drops what a ref names")
        if len(changed) > (0 if why.startswith(("gc", "prune", "repack")) else 1):
            raise Violation(f"record {after.seq} ({why}) changes {changed}")
        for ref in changed:
            if ref[1] not in why.split():
                raise Violation(f"record {after.seq} ({why}) changes {ref}")
            if not why.startswith("commit"):
                continue
            if any(after.refs[ref] in root.leads_to for root in self.roots[:-1]):
                raise Violation(f"record {after.seq} ({why}) publishes a commit for the second time")
            parents = self._commits[after.refs[ref]].parents
            if parents[:1] != tuple(filter(None, [before.refs.get(ref)])):
                raise Violation(f"record {after.seq} ({why}) puts a commit on {ref} that follows another")

    def _check_whole(self) -> None:
        """All that the root and the records down to its floor name decodes from packs that stay."""
        root, condemned = self.roots[-1], self.condemned
        stays = tables.decodable(table for name, table in self._packs.items() if name not in condemned)
        recorded = (commit for old in self.roots[root.record.floor - 1 :] for commit in old.record.refs.values())
        for commit in self._history(recorded):
            missing = self._needed_by(commit, root) - stays
            if missing:
                raise Violation(
                    f"under record {root.record.seq} ({root.record.update.why}) commit {short(commit)} lacks "
                    f"{', '.join(sorted(short(name) for name in missing))}"
                )

    def orphan_packs(self) -> set[str]:
        """Packs that hold nothing which the root leads to, or which that is a change of."""
        root = self.roots[-1]
        live = set().union(*(self._needed_by(commit, root) for commit in root.leads_to))
        return {pack.name_of(name) for name in tables.orphans(self._packs, live)}

    def orphan_lists(self) -> set[str]:
        """Lists that the root does not name."""
        root = self.roots[-1].record
        named = {*root.absent, *(name for _, name in root.condemned)}
        return {info.name for info in self.list(lists.FOLDER) if lists.id_of(info.name) not in named}

    # -- what happened meanwhile --------------------------------------------------------------------------------

    def values(self, ref: Ref, since: int) -> list[ObjectId | None]:
        """What a ref named under the record `since` and all that came after it."""
        return [root.record.refs.get(ref) for root in self.roots[since - 1 :]]

    def message(self, commit: ObjectId) -> str:
        return self._commit(commit).message

    def published(self, message: str) -> bool:
        """Whether any root leads to a commit with this message."""
        return any(self.message(name) == message for root in self.roots for name in root.leads_to)

    def forgotten(self) -> list[ObjectId]:
        """The commits that older roots led to and this one does not."""
        every: set[ObjectId] = set().union(*(root.leads_to for root in self.roots))
        return sorted(every - self.roots[-1].leads_to)

    def led_to(self, commit: ObjectId, since: int, with_state: bool = True) -> bool:
        """Whether every root from `since` on leads to a commit, `with_state` also to its state."""
        return all(
            commit in root.leads_to and not (with_state and commit in root.absent) for root in self.roots[since - 1 :]
        )

    def undoable_since(self, since: int) -> bool:
        """Whether at any time there was something that undo could go back to, and no collection took it away."""
        roots = [root.record for root in self.roots]
        return roots[since - 1].floor == roots[-1].floor and all(
            any(old.refs != root.refs for old in roots[root.floor - 1 : root.seq]) for root in roots[since - 1 :]
        )

    # -- objects ------------------------------------------------------------------------------------------------

    def _history(self, tips: object) -> set[ObjectId]:
        found: set[ObjectId] = set()
        todo = list(tips)  # type: ignore[call-overload]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(self._commit(name).parents)
        return found

    def _commit(self, name: ObjectId) -> objects.Commit:
        if name not in self._commits:
            self._commits[name] = objects.decode_commit(self._bytes(name))
        return self._commits[name]

    def _needed_by(self, commit: ObjectId, root: Root) -> frozenset[ObjectId]:
        """A commit and all that its state needs under `root`, its parents left out."""
        if commit in root.absent:
            return frozenset([commit])
        if commit not in self._needs:
            self._needs[commit] = frozenset([commit]) | self._below(Kind.TREE, self._commit(commit).tree)
        return self._needs[commit]

    def _below(self, kind: Kind, name: ObjectId) -> frozenset[ObjectId]:
        if kind is Kind.BLOCK:
            return frozenset([name])
        if name not in self._needs:
            children = _children(kind, self._bytes(name))
            self._needs[name] = frozenset([name]).union(*(self._below(*child) for child in children))
        return self._needs[name]

    def _bytes(self, name: ObjectId) -> bytes:
        for place in self._places.get(name, ()):
            if place.pack in self._packs:
                row = place.row
                raw = bytearray(row.raw)
                stored = self.read(pack.name_of(place.pack), row.offset, row.stored)
                self._encoder.decode(row.coding, stored, memoryview(raw))
                return bytes(raw)
        raise Violation(f"object {short(name)} is in no pack")


def _children(kind: Kind, data: bytes) -> list[tuple[Kind, ObjectId]]:
    if kind is Kind.TREE:
        return list(_named(objects.decode_tree(data)))
    if kind is Kind.LAYOUT:
        return [(Kind.LIST, part) for shard in objects.decode_layout(data).shards for part in shard.lists]
    return [(Kind.BLOCK, block) for block in objects.decode_list(data)]


def _named(node: Node) -> Iterator[tuple[Kind, ObjectId]]:
    """What a node of the states of `clients.py` names: dicts, lists, tensors and plain values."""
    if type(node) is not list:
        return
    if node[0] == Tag.REF:
        yield Kind.TREE, ObjectId(node[1])
    elif node[0] == Tag.TENSOR:
        content = tensor_of(node).content
        if content.block is not None:
            yield Kind.BLOCK, content.block
        if content.layout is not None:
            yield Kind.LAYOUT, content.layout
    else:
        for child in node[1]:
            yield from _named(child[1] if node[0] in KEYED_TAGS else child)
