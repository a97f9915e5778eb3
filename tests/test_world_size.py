"""A job of several processes must say that it means one of them: real processes, a real gloo group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RANK = """
import sys, torch, cas
rank, place = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{place}/init", rank=rank, world_size=2)
store = cas.open(f"{place}/store", create=True)
state = {"w": torch.arange(10) + rank}
for call in (store.commit, store.commit_async, store.load, store.view):
    try:
        call(state, branch=f"rank{rank}") if "commit" in call.__name__ else call("main")
    except cas.Invalid as error:
        assert "2 processes" in str(error) and "group=None" in str(error), error
    else:
        raise AssertionError(call)
assert not store.refs()["branches"]
torch.distributed.barrier()
store.commit(state, branch=f"rank{rank}", group=None)
assert torch.equal(store.load(f"rank{rank}", group=None)["w"], state["w"])
torch.distributed.barrier()
assert set(store.refs()["branches"]) == {"rank0", "rank1"}
"""


def test_two_ranks_without_group_are_invalid_at_once_and_with_none_each_commits_alone(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
