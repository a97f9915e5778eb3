"""The results as Markdown: figures, the codecs, all peers on all workloads, and each workload by itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.machine import sentence
from bench.results import mebibytes, seconds

from .codecs import METHODS
from .figures import figures
from .measure import Outcome
from .peers import PEERS
from .results import Facts, Results
from .workloads import WORKLOADS

HOW = (
    "Every peer gets the same checkpoints, one after the other. torch.save, DCP and cas take them from memory; zstd, "
    "ZipNN, restic, borg and Xet are given the files of each, torch.save files for zstd and safetensors files for all "
    "others, and write what they make of them. Bytes are the sizes of all files that a peer needs; those of cas "
    "without its index, which is derived, and its reserve of 1 MiB. `over raw`: over the bytes of the tensors of all "
    "checkpoints that are kept. `after the first`: the same without the first checkpoint on both sides. `distinct`: "
    "over the bytes of the tensors that differ, each counted once. Seconds are of the wall: `save` is the sum over all "
    "checkpoints, `restore` that of the newest alone. `exact`: up to nine checkpoints were restored, the first and the "
    "newest among them, and every byte compared. A peer that needs more than {limit:.0f} s to save a workload is "
    "stopped."
)


def line(outcome: Outcome, facts: Facts) -> str:
    """What a peer made of a workload, for the terminal."""
    return f"  {' | '.join(_row(outcome, facts))}"


def write(results: Results, out: Path) -> None:
    """`storage.json` and `storage.md`."""
    results.write(out)
    (out / "storage.md").write_text(as_markdown(results))


def as_markdown(results: Results) -> str:
    named = (
        ("codecs", codecs_table(results)),
        ("loads", loads_table(results)),
        ("all, stored over raw", all_table(results)),
    )
    parts = [figures_table(results), *(f"**{name}**\n\n{table}" for name, table in named if table)]
    parts += [f"**{name}**: {workload(name, results)}" for name in measured(results)]
    return "\n\n".join(part for part in (*parts, how(results)) if part) + "\n"


def figures_table(results: Results) -> str:
    """Empty if nothing was measured that has one."""
    rows = [(f.what, f"{f.value:.3f}{'' if f.met else ' (missed)'}", f.target, f.beside) for f in figures(results)]
    return table(("what", "measured", "should be", "beside"), rows) if rows else ""


def codecs_table(results: Results) -> str:
    """A row for each part of the state; empty if they were not measured."""
    held = {(coded.part, coded.method): coded for coded in results.codecs}
    methods = [method.name for method in METHODS if any(method.name == coded.method for coded in results.codecs)]
    rows = []
    for part in dict.fromkeys(coded.part for coded in results.codecs):
        cells = [held[part, method] for method in methods]
        rows.append([part, *(f"{c.ratio:.3f} ({c.encode / 1e6:.0f}, {c.decode / 1e6:.0f} MB/s)" for c in cells)])
    return table(["stored over raw (encode, decode)", *methods], rows) if rows else ""


def loads_table(results: Results) -> str:
    """A row for each way to store, a column for each checkpoint; empty if they were not measured."""
    if not results.loads:
        return ""
    whole = results.loads[0].seconds
    head = ["CPU time over that of whole blocks", "newest", *(f"{number} back" for number in range(1, len(whole)))]
    rows = [
        [held.way, *(f"{one / other:.2f}" for one, other in zip(held.seconds, whole, strict=True))]
        for held in results.loads[1:]
    ]
    return table(head, rows)


def all_table(results: Results) -> str:
    names = measured(results)
    peers = [peer for peer in PEERS if any(peer in results.outcomes[name] for name in names)]
    rows = [[peer, *(_share(results, name, peer) for name in names)] for peer in peers]
    return table(["", *names], rows) if rows else ""


def measured(results: Results) -> list[str]:
    """Workloads in their order, whichever was measured first."""
    return [name for name in WORKLOADS if name in results.outcomes]


def workload(name: str, results: Results) -> str:
    """What it is, and a row for each peer."""
    facts, outcomes = results.workloads[name], results.outcomes[name]
    head = ("", "stored", "over raw", "after the first", "distinct", "save", "restore", "exact", "")
    rows = [_row(outcomes[peer], facts) for peer in PEERS if peer in outcomes]
    return f"{facts.about}; {len(facts.raw)} checkpoints, {mebibytes(sum(facts.raw))}.\n\n{table(head, rows)}"


def how(results: Results) -> str:
    return f"{sentence(results.machine)}.\n\n{HOW.format(limit=results.limit)}"


def _share(results: Results, name: str, peer: str) -> str:
    outcome = results.outcomes[name].get(peer)
    return "–" if outcome is None else _row(outcome, results.workloads[name])[2]


def _row(outcome: Outcome, facts: Facts) -> list[str]:
    notes = "; ".join(outcome.notes)
    if len(outcome.stored) < len(facts.raw):
        return [outcome.peer, *["–"] * 7, notes]
    took = seconds(sum(outcome.save)) + (f" + {seconds(outcome.finish)}" if outcome.finished is not None else "")
    return [
        outcome.peer,
        f"{outcome.final / 2**20:.1f} MiB",
        f"{facts.over_raw(outcome):.3f}",
        "–" if facts.rotates else f"{facts.after_first(outcome):.3f}",
        "–" if facts.rotates else f"{outcome.final / facts.distinct:.3f}",
        took,
        seconds(outcome.restore[max(outcome.restore)]),
        {True: "yes", False: "NO", None: "–"}[outcome.exact],
        notes,
    ]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells, ["---"] * len(cells), *rows))
