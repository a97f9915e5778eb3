"""One rank of a job of torch.distributed, for test_team.py: `team_worker.py PLAN RANK SIZE PORT` runs a plan.

The store is hosted by the test, so that any rank may die. What happened goes to standard output as lines of JSON,
`[name, seconds, result or error]`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from cas.errors import CasError
from cas.team import Call, Channel
from cas.torch.team import team_of

MIB = 1 << 20
TIMEOUT = 4.0


def report(name: str, job: Callable[[], object]) -> None:
    start = time.monotonic()
    try:
        result = job()
    except CasError as error:
        result = f"{type(error).__name__}: {error}"
    print(json.dumps([name, round(time.monotonic() - start, 2), result]), flush=True)


def enter(call: Call, text: str = "") -> list[str]:
    """The entry handshake: everyone's rank and text, as rank 0 tells it to all."""
    parts = call.door.gather(f"{call.rank}{text}".encode())
    return json.loads(call.door.scatter([json.dumps([part.decode() for part in parts]).encode()] * len(parts)))


def around(call: Call, size: int) -> bool:
    """Whether messages of `size` bytes come through the line, both ways, as they were sent."""
    parts = call.line.gather(bytes([call.rank]) * size)
    whole = all(part == bytes([rank]) * size for rank, part in enumerate(parts))
    answer = call.line.scatter([bytes([rank + 100]) * size for rank in range(len(parts))])
    return whole and answer == bytes([call.rank + 100]) * size


def begin(group: dist.ProcessGroup, text: str = "", timeout: float = TIMEOUT) -> Call:
    call = team_of(group).call(timeout)
    enter(call, text)
    return call


def join(store: dist.Store, rank: int, size: int) -> dist.ProcessGroup:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=30))
    return dist.group.WORLD


def forget(store: dist.Store, rank: int, size: int) -> None:
    """Once all are here, the store forgets torch's own keys, which would mislead torch itself; ours stay."""
    here = [f"here/{rank}" for rank in range(size)]
    store.set(here[rank], "")
    if rank == 0:
        store.wait(here)
        for key in store.list_keys():
            if "cas/" not in key:
                store.delete_key(key)
        store.set("forgotten", "")
    store.wait(["forgotten"])


def healthy(store: dist.Store, rank: int, size: int) -> None:
    """Every kind of group and message, then torch.distributed anew on the same store, then two ways to end."""
    world = join(store, rank, size)
    report("world", lambda: enter(team_of(world).call(TIMEOUT), "!"))
    report("sizes", lambda: [around(begin(world), length) for length in (0, 1, 8 * MIB)])
    report("same team", lambda: team_of(world) is team_of(dist.group.WORLD))
    pair = dist.new_group([1, 3])
    report("pair", lambda: enter(team_of(pair).call(TIMEOUT)))
    if rank in (1, 3):
        report("pair names", lambda: [begin(pair).name(0), begin(pair).name(1)])
        report("pair line", lambda: around(begin(pair), 1000))
        if rank == 1:
            report("alone", lambda: enter(team_of(pair).call(0.5)))
    every = dist.new_group(range(size))
    time.sleep(2 * (rank == 3))
    report("late", lambda: enter(team_of(every).call(1)))
    report("no group", lambda: team_of(object()))
    dist.destroy_process_group()
    report("not initialised", lambda: team_of(world))
    forget(store, rank, size)
    again = join(store, rank, size)
    report("old world", lambda: team_of(world))
    every = dist.new_group([1, 3]) and dist.new_group(range(size))
    report("again", lambda: [enter(team_of(again).call(TIMEOUT)), around(begin(every), 1000)])
    if rank % 2:
        dist.destroy_process_group()


def wait_for_two(store: dist.Store, rank: int, name: str) -> None:
    """Let rank 2 hear of the call that it is late to; else it takes part in the next one at once."""
    if rank == 2:
        store.set(name, "")
    store.wait([name])


def stop_and_kill(store: dist.Store, rank: int, size: int) -> None:
    """Rank 2 is stopped, then dies while it sends, then rank 0 dies; who is left goes on in a group of their own."""
    world = join(store, rank, size)
    report("whole", lambda: around(begin(world), 1000))
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)  # the test wakes it when the others have given up
    report("stopped at the door", lambda: enter(team_of(world).call(TIMEOUT)))
    wait_for_two(store, rank, "door")
    call = begin(world)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    report("stopped at the line", lambda: around(call, 1000))
    wait_for_two(store, rank, "line")
    report("after stops", lambda: around(begin(world, timeout=30), 1000))
    call = begin(world, timeout=60)
    if rank == 2:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    report("killed while sending", lambda: around(call, 256 * MIB if rank == 2 else 1000))
    three = dist.new_group([0, 1, 3], use_local_synchronization=True)
    call = begin(three, timeout=60)
    report("three", lambda: around(call, 1000))
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    report("coordinator killed", lambda: around(call, 1000))
    two = dist.new_group([1, 3], use_local_synchronization=True)
    report("two", lambda: around(begin(two), 1000))


def interrupted(store: dist.Store, rank: int, size: int) -> None:
    """Rank 0 waits at the door, then at the line, for a rank 1 that is not coming; Ctrl-C ends both."""
    world = join(store, rank, size)
    call = begin(world, timeout=60)
    call.line.gather(b"")

    def wait(channel: Channel) -> str:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            channel.gather(b"")
        except KeyboardInterrupt:
            return "interrupted"
        return "missed"

    if rank == 0:
        report("door", lambda: wait(call.door))
        report("line", lambda: wait(call.line))
        store.set("interrupted", "")
    store.wait(["interrupted"])
    report("next", lambda: around(begin(world), 1000))


PLANS = {plan.__name__: plan for plan in (healthy, stop_and_kill, interrupted)}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    plan, port = PLANS[sys.argv[1]], int(sys.argv[4])
    client = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=30), wait_for_workers=False)
    plan(client, int(sys.argv[2]), int(sys.argv[3]))
