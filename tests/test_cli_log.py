"""`cas log --graph`, and how soon the first lines of a log stand there."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_process import COMMAND, environment, make_store, objects, ok

import cas


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Steps 0, 10, 20 on main; a branch `side` and a tag at step 10, and one more commit on `side`."""
    make_store(tmp_path / ".cas")
    with cas.open(tmp_path / ".cas") as store:
        store.tag("v1", "main~1")
        store.branch("side", "main~1")
        store.commit({"w": np.ones(3)}, branch="side", step=15, message="aside")
    return tmp_path


def test_the_graph_shows_all_branches_and_where_they_part(place: Path) -> None:
    lines = ok(place, "log", "--graph").splitlines()
    assert [line[:3].rstrip() for line in lines] == ["*", "| *", "|/", "*", "*"]
    assert [word in line for word, line in zip(("aside", "number 2", "", "v1", "step 0"), lines, strict=True)] == [
        True
    ] * 5


def test_the_graph_of_a_revision_shows_its_ancestors_alone(place: Path) -> None:
    found = objects(ok(place, "log", "side", "--graph", "--json"))
    assert [commit["step"] for commit in found] == [15, 10, 0]
    assert found == objects(ok(place, "log", "side", "--json"))


def test_json_of_the_graph_has_every_commit_before_its_parents(place: Path) -> None:
    found = objects(ok(place, "log", "--graph", "--json"))
    assert [commit["step"] for commit in found] == [15, 20, 10, 0]
    assert len(objects(ok(place, "log", "--graph", "--json", "-n", "2"))) == 2
    seen: set[str] = set()
    for commit in found:
        assert not seen & set(commit["parents"])
        seen.add(commit["id"])


def test_an_empty_store_has_no_graph(tmp_path: Path) -> None:
    cas.init(tmp_path / ".cas").close()
    done = subprocess.run(
        [*COMMAND, "log", "--graph"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no commits yet" in done.stderr) == (11, True)


# -- time ---------------------------------------------------------------------------------------------------------


def cpu_seconds(command: list[str], cwd: Path, cache: Path) -> float:
    """The CPU time, user and system, of a run."""
    env = environment(PYTHONPYCACHEPREFIX=str(cache), OPENBLAS_NUM_THREADS="1")
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_starting_the_log_costs_little_more_than_starting_numpy(place: Path) -> None:
    """The figure is 0.3 s above bare Python's; on machines that are slower, five times what numpy takes of it.

    What else the machine does only adds to the CPU time, so the least of several turns counts, and of more of them
    where that does not suffice yet.
    """
    commands = [[sys.executable, "-c", "pass"], [sys.executable, "-c", "import numpy"], [*COMMAND, "log"]]
    least = [float("inf")] * len(commands)
    for turn in range(30):
        least = [min(was, cpu_seconds(line, place, place / "cache")) for was, line in zip(least, commands, strict=True)]
        numpy, log = least[1] - least[0], least[2] - least[0]
        if turn >= 5 and log < max(0.3, 5 * numpy):
            break
    print(f"above bare Python: numpy {numpy:.3f} s, cas log {log:.3f} s")
    assert log < max(0.3, 5 * numpy)


def test_the_log_loads_nothing_that_only_other_commands_need(place: Path) -> None:
    code = "import sys; from cas.cli.main import main; main(['log']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    heavy = {
        "torch",
        "safetensors",
        "rich",
        "matplotlib",
        "gguf",
        "fsspec",
        "asyncio",
        "email",
        "http",
        "zipfile",
        "pytest",
    }
    assert not loaded & heavy
    assert not {
        name for name in loaded if name.startswith(("cas.torch", "cas.cli.export", "cas.cli.commit", "cas.cli.plot"))
    }


def test_the_first_lines_do_not_wait_for_a_long_history(tmp_path: Path) -> None:
    """With far more commits than are read ahead, the first 30 cost clearly less than all do, start-up apart."""
    count = 900
    with cas.open(tmp_path / ".cas", create=True) as store:
        for number in range(count):
            store.commit(number, step=number, codec="raw", **({"parent": "main"} if number else {}))
        read = {}
        for name, log in (("log", store.log), ("graph", store.graph)):
            times = []
            for rest in (30, count):
                with cas.open(store.path) as fresh:
                    started = os.times()
                    commits = getattr(fresh, log.__name__)()
                    for _ in range(rest):
                        next(commits)
                    ended = os.times()
                times.append(ended.user + ended.system - started.user - started.system)
            read[name] = times
    print(f"CPU seconds to 30 commits and to {count}: {read}")
    assert read["log"][0] < read["log"][1] / 2 + 0.02
    assert read["graph"][0] < read["graph"][1] / 1.2 + 0.02
