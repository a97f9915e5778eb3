"""`cas fsck`."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import click

import cas
from cas.errors import Invalid

from . import places
from .options import Options, example, json_option, open_store, storage_option, store_option
from .output import clean, listed, paint, plural, say, say_json
from .progress import Progress

_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")


@click.command(
    short_help="Check the store, and repair it.",
    epilog=example("cas fsck", "cas fsck --sample 5%", "cas fsck --data --repair --from s3://bucket/run"),
)
@click.option("--data", is_flag=True, help="Read and verify every stored byte as well.")
@click.option("--sample", metavar="PERCENT", help="Read this part of them, such as 5%: the next part in each run.")
@click.option("--repair", is_flag=True, help="Write what is bad anew from good copies; nothing is changed in place.")
@click.option("--from", "source", metavar="STORE", help="Take what --repair needs from this remote, URL or path.")
@json_option
@storage_option("the store, or of that of --from where it is given")
@store_option
def fsck(
    data: bool,
    sample: str | None,
    repair: bool,
    source: str | None,
    as_json: bool,
    options: Options,
    place: str | None,
) -> int:
    """Check the store: log, packs, refs, and all that commits name. Changes nothing without --repair.

    Reading that was cut off goes on where it stopped. What was found bad is told of until it is gone. Repair gives up
    bad packs, which the next `cas gc` deletes, and says what is lost.

    Ends with 1 if there is an error or a warning. JSON: name, severity (error, warning or info), message, commits,
    paths; no line where all is well.
    """
    part = None if sample is None else _part(sample)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(place, options if source is None else None))
        other = places.other(source, store.remotes()) if source is not None else None
        with _progress() as progress:
            findings = store.fsck(
                data, sample=part, repair=repair, source=other, storage_options=options or None, progress=progress
            )
    for finding in findings:
        if as_json:
            say_json(asdict(finding))
        else:
            _say_finding(finding)
    counts: Counter[str] = Counter(finding.severity for finding in findings)
    if not as_json:
        _say_summary(findings, counts, data)
    return 1 if counts["error"] or counts["warning"] else 0


def _part(text: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    part = 0.0 if match is None else float(match.group(1)) / 100
    if not 0 < part <= 1:
        raise Invalid(f"a sample is a percentage of the stored bytes such as 5%, not {text!r}")
    return part


class _Reader:
    """Draws how far reading is, from when its size is known."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._progress: Progress | None = None

    def __call__(self, nbytes: int, total: int) -> None:
        if self._progress is None:
            self._progress = self._stack.enter_context(Progress(total, "fsck"))
        self._progress.advance(nbytes)


@contextlib.contextmanager
def _progress() -> Iterator[_Reader]:
    with contextlib.ExitStack() as stack:
        yield _Reader(stack)


def _say_finding(finding: cas.Finding) -> None:
    say(f"{paint(finding.severity, _COLOURS[finding.severity])} {clean(finding.name)}: {clean(finding.message)}")
    if finding.paths:
        say(f"    paths    {clean(listed(finding.paths))}")
    if finding.commits:
        say(f"    commits  {clean(listed([name[:8] for name in finding.commits]))}")


def _say_summary(findings: list[cas.Finding], counts: Counter[str], data: bool) -> None:
    names = Counter(finding.name for finding in findings)
    found = [plural(counts[kind], kind) for kind in ("error", "warning") if counts[kind]]
    lost = [f"{plural(names['lost'], 'object')} lost"] if names["lost"] else []
    repaired = ["repaired"] if names["repaired"] or names["index-rebuilt"] else []
    well = "all is well" if data else "all is well; --data also reads every stored byte"
    say(", ".join([*repaired, *lost, *found]) if found else "; ".join([*repaired, well]))
