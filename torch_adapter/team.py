"""The ranks of a torch.distributed group, as the core's `Team`."""

from __future__ import annotations

import socket
import threading
import zlib
from collections import deque
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed import distributed_c10d

from cas.errors import Invalid

from .door import Client, Door, Seat, Verdict, number_of_call
from .line import Entry, Line, Wire


class TorchCall:
    def __init__(self, team: TorchTeam, number: int, timeout: float) -> None:
        self._seat, self.timeout = team.seat, timeout
        self.rank, self.size, self.ranks = team.rank, team.size, team.seat.ranks
        self.node = socket.gethostname()
        verdict = Verdict(number, None if team.rank else team.verdicts)
        self.door = Entry(Door(team.seat, team.door_client, verdict, number, timeout), team.wire)
        self.line = Line(team.seat, team.wire, team.line_client, self.door, verdict, number, timeout)

    def name(self, rank: int) -> str:
        return self._seat.name(rank)


class TorchTeam:
    """Ranks that share a store, under a prefix that no other team of this store has ever had.

    `ranks` are their numbers in the whole job.
    """

    def __init__(self, store: Store, rank: int, ranks: tuple[int, ...], prefix: str) -> None:
        self.seat = Seat(rank, ranks)
        self.rank, self.size = rank, len(ranks)
        self.door_client, self.line_client = Client(store, prefix), Client(store, prefix)
        self.wire = Wire(self.seat)
        self.verdicts = deque[str]()
        self._calls = 0

    def call(self, timeout: float) -> TorchCall:
        number = self._calls + 1
        self._calls = self.door_client.run(lambda store: number_of_call(store, number, timeout), timeout)
        return TorchCall(self, self._calls, timeout)


_lock = threading.Lock()
_teams: WeakKeyDictionary[dist.ProcessGroup, TorchTeam] = WeakKeyDictionary()
_prefixes: dict[str, int] = {}  # how often a team of this process has had the prefix, before the number


def team_of(group: object) -> TorchTeam:
    """The team of a group that this rank belongs to: one for as long as the group lives."""
    if not dist.is_available() or not dist.is_initialized():
        raise Invalid("group= needs torch.distributed: call init_process_group first, or pass group=None")
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise Invalid("this rank is not in the group; only the group's own ranks may call")
    if not isinstance(group, dist.ProcessGroup):
        raise Invalid(f"group= is {type(group).__name__}, not a process group; pass dist.group.WORLD or a new_group()")
    with _lock:
        if group not in distributed_c10d._world.pg_map:
            raise Invalid("the process group was destroyed; pass one of the groups that there are now")
        if group not in _teams:
            _teams[group] = _new(group)
        return _teams[group]


def _new(group: dist.ProcessGroup) -> TorchTeam:
    """Names of groups come again after torch.distributed was destroyed and initialised, and its store may be the old
    one: what an earlier team has left there must not be taken for a message. All of a group's ranks count alike.
    """
    ranks = tuple(dist.get_process_group_ranks(group))
    prefix = f"cas/{group.group_name}/{zlib.crc32(repr(ranks).encode()):08x}"
    _prefixes[prefix] = _prefixes.get(prefix, 0) + 1
    store = distributed_c10d._get_default_store()
    return TorchTeam(store, dist.get_rank(group), ranks, f"{prefix}/{_prefixes[prefix]}")
