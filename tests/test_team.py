"""Ranks that talk to each other: messages, deadlines, and who is named when somebody is missing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from team_jobs import hosted, job
from team_worker import TIMEOUT, around, enter

from cas.errors import CasError, Invalid
from cas.team import Call, LostRank
from cas.torch.team import TorchTeam

SHORT = 1.0


class Ranks:
    """Simulated ranks, each a thread with a team of its own; they are called rank 10, 11 and so on."""

    def __init__(self, store: dist.Store, size: int) -> None:
        self.store, self.size = store, size
        self.teams = [TorchTeam(store, rank, tuple(range(10, 10 + size)), "test") for rank in range(size)]

    def all(self, job: Callable[[TorchTeam], object], but: tuple[int, ...] = ()) -> dict[int, Any]:
        """What `job` returned or raised, by rank, of all ranks `but` these."""
        results: dict[int, Any] = {}

        def work(rank: int) -> None:
            try:
                results[rank] = job(self.teams[rank])
            except CasError as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size) if rank not in but]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return dict(sorted(results.items()))

    def fail(self, job: Callable[[TorchTeam], object], but: tuple[int, ...] = ()) -> str:
        """The one message with which `job` fails on all ranks `but` these."""
        results = self.all(job, but)
        assert len(results) == self.size - len(but)
        assert all(isinstance(error, LostRank) for error in results.values()), results
        (text,) = {str(error) for error in results.values()}
        return text


def each(ranks: Iterable[int], result: object) -> dict[int, object]:
    return {rank: result for rank in ranks}  # noqa: C420


def begin(team: TorchTeam, timeout: float = 10.0) -> Call:
    call = team.call(timeout)
    enter(call)
    return call


def meet(team: TorchTeam) -> list[str]:
    return enter(team.call(SHORT))


def talk(team: TorchTeam) -> bool:
    return around(begin(team, SHORT), 100)


@pytest.fixture(params=["tcp", "memory"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return Ranks(hosted() if request.param == "tcp" else dist.HashStore(), 4)


@pytest.fixture
def four() -> Ranks:
    return Ranks(hosted(), 4)


def test_the_door_brings_everything_to_rank_0_and_back(ranks: Ranks) -> None:
    def job(team: TorchTeam) -> tuple[list[bytes], bytes, bytes]:
        door = team.call(10).door
        given = door.gather(bytes([team.rank]) * team.rank)
        return given, door.scatter([bytes([rank + 10]) for rank in range(4)]), door.scatter([b""] * 4)

    results = ranks.all(job)
    assert results[0][0] == [b"", b"\1", b"\2\2", b"\3\3\3"]
    assert [given for given, _, _ in results.values()][1:] == [[], [], []]
    assert [(answer, empty) for _, answer, empty in results.values()] == [
        (bytes([rank + 10]), b"") for rank in range(4)
    ]


def test_the_door_takes_megabytes(four: Ranks) -> None:
    big = b"\0\xff" * (4 << 20)
    results = four.all(lambda team: team.call(10).door.gather(big if team.rank == 3 else b""))
    assert results[0] == [b"", b"", b"", big]


def test_a_hundred_calls_leave_nothing_in_the_store(ranks: Ranks) -> None:
    def job(team: TorchTeam) -> int:
        return sum(meet(team) == ["0", "1", "2", "3"] for _ in range(100))

    before = ranks.store.num_keys()
    assert ranks.all(job) == each(range(4), 100)
    assert ranks.store.num_keys() <= before + 1  # the number of the newest call


@pytest.mark.parametrize("size", [0, 1, 8 << 20])
def test_the_line_brings_everything_to_rank_0_and_back(four: Ranks, size: int) -> None:
    assert four.all(lambda team: around(begin(team), size)) == each(range(4), True)


def test_the_line_stays_connected_and_leaves_nothing_in_the_store(four: Ranks) -> None:
    assert all(four.all(talk).values())
    before = four.store.num_keys()
    assert all(four.all(lambda team: [talk(team) for _ in range(50)] == [True] * 50).values())
    assert four.store.num_keys() == before


def test_any_two_ranks_talk_through_the_line(four: Ranks) -> None:
    def job(team: TorchTeam) -> bytes:
        line = begin(team).line
        line.gather(b"")  # which connects them all
        if team.rank in (1, 2):
            line.send(b"from %d" % team.rank, team.rank + 1)
        return line.receive(team.rank - 1) if team.rank in (2, 3) else b""

    assert four.all(job) == {0: b"", 1: b"", 2: b"from 1", 3: b"from 2"}


def test_one_rank_alone_is_a_team() -> None:
    assert Ranks(dist.HashStore(), 1).all(talk) == {0: True}


def test_the_next_call_goes_through_the_door_while_the_line_is_busy(four: Ranks) -> None:
    def job(team: TorchTeam) -> tuple[list[bool], bool]:
        first = begin(team)
        done: list[bool] = []
        background = threading.Thread(target=lambda: done.extend(around(first, 1 << 20) for _ in range(20)))
        background.start()
        second = begin(team)
        met = all(enter(second, str(n)) == [f"{rank}{n}" for rank in range(4)] for n in range(20))
        background.join()
        return done, met and around(second, 10)

    assert four.all(job) == each(range(4), ([True] * 20, True))


def test_the_line_opens_with_the_handshake() -> None:
    with pytest.raises(Invalid, match="make them first"):
        Ranks(dist.HashStore(), 2).teams[0].call(SHORT).line.receive(1)


def test_a_rank_that_never_comes_is_named_on_the_others_and_learns_it_when_it_comes(ranks: Ranks) -> None:
    assert all(ranks.all(meet).values())
    start = time.monotonic()
    text = ranks.fail(meet, but=(2,))
    assert text.startswith("rank 12 did not come within 1 s; ")
    assert time.monotonic() - start < SHORT + 5
    start = time.monotonic()
    (late,) = ranks.all(meet, but=(0, 1, 3)).values()
    assert str(late) == text
    assert time.monotonic() - start < 5
    assert ranks.all(meet) == each(range(4), ["0", "1", "2", "3"])
    assert all(ranks.all(talk).values())


def test_all_that_are_missing_are_named(four: Ranks) -> None:
    assert four.fail(meet, but=(1, 3)).startswith("rank 11, rank 13 did not come within 1 s; ")


@pytest.mark.slow
def test_a_coordinator_that_never_comes_is_named_and_learns_it_when_it_comes(four: Ranks) -> None:
    text = four.fail(meet, but=(0,))
    assert text.startswith("rank 10 did not come within 1 s; ")
    (late,) = four.all(meet, but=(1, 2, 3)).values()
    assert str(late) == text
    assert four.all(meet) == each(range(4), ["0", "1", "2", "3"])


@pytest.mark.slow
def test_a_coordinator_that_comes_late_is_not_taken_for_the_missing_rank(four: Ranks) -> None:
    """The others' deadline and what they wait beyond it end before the coordinator's own."""

    def job(team: TorchTeam) -> list[str]:
        if team.rank == 0:
            time.sleep(6)
        return enter(team.call(7))

    assert four.fail(job, but=(3,)).startswith("rank 13 did not come within 7 s; ")


def test_failures_leave_a_few_keys_only(four: Ranks) -> None:
    assert all(four.all(meet).values())
    before = four.store.num_keys()
    for _ in range(10):
        four.fail(meet, but=(2,))
    four.all(meet)
    assert four.store.num_keys() <= before + 8


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_rank_that_does_not_come_to_the_line_is_named_and_the_next_call_works(four: Ranks, missing: int) -> None:
    def job(team: TorchTeam) -> object:
        call = begin(team, SHORT)
        return "elsewhere" if team.rank == missing else around(call, 100)

    for connected in (False, True):
        results = four.all(job)
        assert results.pop(missing) == "elsewhere"
        assert {str(error).partition(";")[0] for error in results.values()} == {
            f"rank {10 + missing} did not come within 1 s"
        }, connected
        assert four.all(talk) == each(range(4), True)


def test_who_is_waited_for_by_a_rank_that_others_wait_for_is_the_one_named(four: Ranks) -> None:
    def job(team: TorchTeam) -> object:
        call = begin(team, SHORT)
        if team.rank == 3:
            return None
        if team.rank == 2:
            call.line.receive(3)
        return around(call, 100)

    assert all(four.all(talk).values())
    results = four.all(job)
    assert {str(results[rank]).partition(";")[0] for rank in range(3)} == {"rank 13 did not come within 1 s"}
    assert four.all(talk) == each(range(4), True)


def test_the_coordinator_delivers_to_all_that_it_can_reach(four: Ranks) -> None:
    def job(team: TorchTeam) -> object:
        line = begin(team, SHORT).line
        return None if team.rank == 1 else line.scatter([bytes([rank]) for rank in range(4)])

    assert all(four.all(talk).values())
    results = four.all(job)
    assert str(results[0]).startswith("rank 11 did not come within 1 s; ")
    assert (results[2], results[3]) == (b"\2", b"\3")
    assert four.all(talk) == each(range(4), True)


HOST = """
import torch.distributed as dist, time
from datetime import timedelta
store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_store_that_stops_or_dies_is_an_error_that_comes_in_time() -> None:
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        port = int(host.stdout.readline())
        client = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=30), wait_for_workers=False)
        ranks = Ranks(client, 2)
        assert all(ranks.all(talk).values())
        host.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert "rendezvous store does not answer" in ranks.fail(meet)
        assert time.monotonic() - start < 20
        host.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        ranks.all(meet)  # rank 1 has asked one question less
        host.kill()
        start = time.monotonic()
        assert "rendezvous store does not answer" in ranks.fail(meet)
        assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_job_of_processes_with_groups_of_all_kinds() -> None:
    with job("healthy", 4) as running:
        running.until("again", {0, 1, 2, 3})
        assert [process.wait(30) for process in running.processes] == [0, 0, 0, 0]
    everyone = range(4)
    assert running.result("world") == each(everyone, ["0!", "1!", "2!", "3!"])
    assert running.result("sizes") == each(everyone, [True, True, True])
    assert running.result("same team") == each(everyone, True)
    stranger = "Invalid: this rank is not in the group; only the group's own ranks may call"
    assert running.result("pair") == {0: stranger, 1: ["0", "1"], 2: stranger, 3: ["0", "1"]}
    assert running.result("pair names") == each((1, 3), ["rank 1", "rank 3"])
    assert running.result("pair line") == each((1, 3), True)
    assert running.result("alone")[1].startswith("LostRank: rank 3 did not come within 0.5 s; ")
    for name, text in [
        ("no group", "Invalid: group= is object, not a process group; "),
        ("not initialised", "Invalid: group= needs torch.distributed: "),
        ("old world", "Invalid: the process group was destroyed; "),
    ]:
        assert all(result.startswith(text) for result in running.result(name).values()), name
    (late,) = set(running.result("late").values())
    assert late.startswith("LostRank: rank 3 did not come within 1 s; ")
    assert running.result("again") == each(everyone, [["0", "1", "2", "3"], True])
    assert not [line for text in running.errors for line in text.splitlines() if "Traceback" in line or "rror" in line]


@pytest.mark.slow
def test_processes_that_are_stopped_or_killed_are_named_and_the_others_go_on() -> None:
    with job("stop_and_kill", 4) as running:
        for name in ("stopped at the door", "stopped at the line"):
            running.until(name, {0, 1, 3})
            running.processes[2].send_signal(signal.SIGCONT)
            running.until(name, {2})
        running.until("two", {1, 3})
        assert [running.processes[rank].wait(30) for rank in (1, 3)] == [0, 0]
    assert running.result("whole") == each(range(4), True)
    for name in ("stopped at the door", "stopped at the line"):
        (text,) = set(running.result(name).values())
        assert text.startswith("LostRank: rank 2 did not come within 4 s; ")
        assert running.slowest(name) < TIMEOUT + 2
    assert running.result("after stops") == each(range(4), True)
    for name, ranks, dead in [("killed while sending", {0, 1, 3}, 2), ("coordinator killed", {1, 3}, 0)]:
        assert running.result(name).keys() == ranks
        (text,) = set(running.result(name).values())
        assert text == f"LostRank: rank {dead} is gone: its connection closed; see how that process ended"
        assert running.slowest(name) < 10, "far below the deadline of 60 s"
    assert running.result("three") == each((0, 1, 3), True)
    assert running.result("two") == each((1, 3), True)


@pytest.mark.slow
def test_an_interrupt_ends_a_wait_at_once_and_the_next_call_works() -> None:
    with job("interrupted", 2) as running:
        running.until("next", {0, 1})
        assert [process.wait(30) for process in running.processes] == [0, 0]
    for name in ("door", "line"):
        assert running.result(name) == {0: "interrupted"}
        assert running.slowest(name) < 2
    assert running.result("next") == {0: True, 1: True}
