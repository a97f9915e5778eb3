"""The results as a page of the documentation, with its pictures: `docs/storage.md` and `docs/img/`."""

from __future__ import annotations

from pathlib import Path

from . import plots, report
from .results import Results

HEAD = """# What checkpoints take on disk

cas beside what else people use, on checkpoints that were really trained. Written by
`make bench-storage ARGS=--publish`, which trains the models once (about ten minutes on two cores) and then measures;
`ARGS="--only lora --peers restic"` does a part of it anew and keeps the rest. All numbers are in
`bench/out/storage/storage.json`.

The model is a byte-level transformer of 3.8 million parameters, trained with AdamW on the standard library's sources
until its loss flattens as the learning rate falls to nothing. The fine-tune is that model on other text at a learning
rate of 5e-5. It is small, so that anyone can run this: what repeats per tensor (names, tables, block lists) weighs more
here than in a large model, and differences between one step and the next depend on the model. The figures below were
set on a BERT of 22 million parameters; the codecs' table says how far this model is from it."""

PEERS = """## How each was driven

- **cas commit**: `store.commit(state, delta="parent")`, codec `auto`, from memory; a fine-tune of a sweep begins a
  branch at the base. In *layouts* `cas commit` takes in the files, and ranks that hold rows commit together. In
  *rotation* `prune` keeps the best 3 and `gc` collects after every commit.
- **cas repack**: the same, then `store.repack(level="smallest")` and `gc`, once at the end. In the pictures it is a
  point at the end. The first commit alone is repacked as well, so that `after the first` compares like with like.
- **torch.save**: a file each, fsynced.
- **zstd -1**, **zstd -19**: the command with `-T0` on these files.
- **DCP + zstd**: `torch.distributed.checkpoint` with its extension `ZStandard`, whose level cannot be set, in one
  process; ranks that hold rows save together.
- **ZipNN**: the library on the bytes of each safetensors file, told the dtype, all threads.
- **ZipNN delta**: the same against the file of the checkpoint that training went on from (sweep: of the base). It takes
  a base of the same length only; else the file is stored without. A restore goes through the whole chain. In *rotation*
  the base is the first checkpoint, which then has to stay.
- **restic**: `--compression max`, smaller here than `auto`; the size of its chunks, about 1 MiB, cannot be set.
- **borg**: `--compression zstd,3` (1 and 10 give the same to 0.1 %), chunks of about 64 KiB
  (`--chunker-params buzhash,10,23,16,4095`) in place of 2 MiB, which finds nothing in files of this size.
- **Xet**: `hf-xet` uploads to an endpoint `local://FOLDER` in place of the server: the same chunks, compression and
  containers. What counts are its xorbs and shards. It deletes nothing.

A command that is not on PATH and a library that is not installed are named as missing; nothing is estimated."""


def write(results: Results, root: Path) -> None:
    """The page and its pictures under `root`, the folder of the documentation."""
    (root / "img").mkdir(parents=True, exist_ok=True)
    plots.draw(results, root / "img")
    (root / "storage.md").write_text(as_page(results))


def as_page(results: Results) -> str:
    parts = [HEAD]
    for title, table in (
        ("Figures", report.figures_table(results)),
        ("The codecs alone", report.codecs_table(results)),
        ("What a load takes", report.loads_table(results)),
        ("All workloads, stored over raw", report.all_table(results)),
    ):
        parts += [f"## {title}\n\n{table}"] if table else []
    parts.append("## Each workload")
    for name in report.measured(results):
        parts.append(f"### {name}\n\n![{name}](img/storage-{plots.slug(name)}.png)\n\n{report.workload(name, results)}")
    parts += [PEERS, f"## How it was measured\n\n{report.how(results)}"]
    return "\n\n".join(parts) + "\n"
