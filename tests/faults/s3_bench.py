"""One operation on stores in a bucket, every request that it makes, each fault at each, and what must hold then.

What is in the bucket is judged by a copy on the local disk, taken request by request with another client: neither the
backend under test nor what it keeps in memory has a say.
"""

from __future__ import annotations

import os
import re
import shutil
import traceback
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cas
from cas.errors import CasError

from .operations import snapshot
from .proxy import FOREVER, Fault, FaultProxy, Request
from .s3_operations import Operation, Place
from .stores import errors

EVERY_REQUEST = bool(os.environ.get("CAS_TEST_EVERY_CALL"))
PATIENCE = 20.0
"""Seconds for which a request is tried again while a fault strikes once; a fault for good has a fraction of one."""

READS, WRITES = ("get", "head", "list", "list-uploads", "list-parts"), ("put", "put-record", "complete-upload")
PARTS = ("create-upload", "upload-part")


@dataclass(frozen=True)
class Trouble:
    """A kind of fault, how often it strikes, and the operations of requests at which it makes sense.

    `then` is the fault of every request that follows. `fatal_at` are operations whose call may fail though the fault
    strikes once only. `per` is how finely points are told apart: by the kind of request ("operation"), and by what file
    it is about ("request"), where the first of each is tried; and by the answer ("answer"), the first and the last.
    """

    kind: str
    at: tuple[str, ...]
    times: float = 1
    then: str = ""
    fatal_at: tuple[str, ...] = ()
    per: str = "answer"

    @property
    def lasts(self) -> bool:
        return self.times > 1 or bool(self.then)


EVERYWHERE = (*READS, *WRITES, *PARTS, "delete", "abort-upload")
CHANGING = (*WRITES, *PARTS, "delete")
TROUBLES = {
    "503": Trouble("503", EVERYWHERE, per="request"),
    "503-for-good": Trouble("503", EVERYWHERE, FOREVER, per="request"),
    "503-from-here-on": Trouble("503", EVERYWHERE, then="503"),
    "500": Trouble("500", EVERYWHERE, per="operation"),
    "timeout": Trouble("timeout", EVERYWHERE, per="request"),
    "reset": Trouble("reset", EVERYWHERE, per="request"),
    "landed": Trouble("landed", CHANGING),
    "landed-at-last": Trouble("landed", CHANGING, then="503"),
    "403-from-here-on": Trouble("403", CHANGING, then="403", per="request"),
    "409": Trouble("409", WRITES, per="request"),
    "412": Trouble("412", WRITES),
    "slow": Trouble("slow", EVERYWHERE, per="operation"),
    "cut": Trouble("cut", ("get", "list"), per="request"),
    "corrupt": Trouble("corrupt", ("get",)),
    "corrupt-for-good": Trouble("corrupt", ("get",), FOREVER, per="request"),
    "list-partial": Trouble("list-partial", ("list",)),
    "list-partial-for-good": Trouble("list-partial", ("list",), FOREVER, per="request"),
    "list-lossy": Trouble("list-lossy", ("list",), per="request"),
    "list-duplicate": Trouble("list-duplicate", ("list",)),
    "list-duplicate-for-good": Trouble("list-duplicate", ("list",), FOREVER, per="request"),
    "lost-upload": Trouble(
        "lost-upload", ("upload-part", "complete-upload"), fatal_at=("upload-part", "complete-upload")
    ),
}


@dataclass(frozen=True)
class Point:
    """The request number `nth`, from 1, of its operation, and number `index` of all; `on` is the kind of its file.

    `status` is what the server answers when nothing is wrong.
    """

    operation: str
    nth: int
    index: int
    on: str
    status: int

    def __str__(self) -> str:
        return f"{self.operation}:{self.nth} ({self.on})"


@dataclass
class Report:
    """How many runs there were, in how many the fault struck, what callers saw raised, and what is wrong."""

    runs: int = 0
    struck: int = 0
    errors: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class Notes:
    """What a run told of itself."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, kind: str, text: str = "") -> None:
        self.lines.append((kind, text))

    def of(self, kind: str) -> list[str]:
        return [text for held, text in self.lines if held == kind]


class Bench:
    """`operation` on a template of its own in `bucket`, of which every run gets a copy. `folder` is for local files."""

    def __init__(self, operation: Operation, proxy: FaultProxy, direct: Any, bucket: str, folder: Path) -> None:
        self.operation = operation
        self.report = Report()
        self._proxy = proxy
        self._direct = direct
        self._bucket = bucket
        self._folder = folder
        self._runs = 0
        folder.mkdir()
        self._fetched: dict[tuple[str, str], bytes] = {}
        self._template = self._place("template")
        operation.prepare(self._template)
        place = self._renewed()
        self.before = self._snapshots(place)
        self._of_template = dict(self._fetched)
        proxy.requests.clear()
        operation.run(place, _ignore)
        self.points = points_of(proxy.requests, _prefix(place))
        self.after = self._snapshots(place)
        self.measured = self._measure(self._copied)
        self._discard(place)

    # -- the stores of a run ------------------------------------------------------------------------------------

    def _place(self, name: str, **config: Any) -> Place:
        options = {**self._proxy.options, "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, **config}}
        return Place(f"s3://{self._bucket}/{self.operation.name}/{name}", options, self._folder / name)

    def _renewed(self, **config: Any) -> Place:
        """Fresh copies of the template's stores; no index is kept."""
        self._runs += 1
        place = self._place(f"run-{self._runs}", **config)
        place.folder.mkdir()
        for entry in self._listed(self._template):
            source = {"Bucket": self._bucket, "Key": entry["Key"]}
            key = entry["Key"].replace(_prefix(self._template), _prefix(place))
            self._direct.copy_object(Bucket=self._bucket, Key=key, CopySource=source)
        if self._template.local.exists():
            shutil.copytree(self._template.local, place.local)
        return place

    def _discard(self, place: Place) -> None:
        keys = [{"Key": entry["Key"]} for entry in self._listed(place)]
        if keys:
            self._direct.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
        shutil.rmtree(place.folder)
        self._fetched = dict(self._of_template)  # what this run made is in no other

    def _listed(self, place: Place) -> list[dict[str, Any]]:
        pages = self._direct.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=_prefix(place))
        return [entry for page in pages for entry in page.get("Contents", ())]

    # -- judging ------------------------------------------------------------------------------------------------

    @property
    def _copied(self) -> Path:
        return self._folder / "copied"

    def _copy(self, place: Place) -> Path:
        """The store in the bucket as it is now, in a local folder; what was fetched once is not asked for again."""
        shutil.rmtree(self._copied, ignore_errors=True)
        self._copied.mkdir()
        for entry in self._listed(place):
            name = entry["Key"].removeprefix(_prefix(place))
            known = (name, entry["ETag"])
            if known not in self._fetched:
                answer = self._direct.get_object(Bucket=self._bucket, Key=entry["Key"])
                self._fetched[known] = answer["Body"].read()
            path = self._copied / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._fetched[known])
        return self._copied

    def _snapshots(self, place: Place) -> dict[str, Any]:
        """Refs and states of both stores, all of whose bytes are read."""
        found: dict[str, Any] = {}
        for where, path in (("there", self._copy(place)), ("here", place.local)):
            if (path / "cas.json").exists():
                with cas.open(path) as store:
                    found |= {f"{where} {key}": value for key, value in snapshot(store).items()}
                    findings = errors(store.fsck(data=True))
                    assert not findings, f"fsck of the store {where}: {findings[0]}"
        return found

    def _verify(self, place: Place, notes: Notes) -> bool:
        """Whether the end is reached already."""
        found = self._snapshots(place)
        for key in self.before | self.after | found:
            old, new = self.before.get(key), self.after.get(key)
            assert found.get(key) in (old, new), f"{key} is {found.get(key)}, neither {old} as before nor {new}"
        for key in notes.of("done"):
            assert found.get(key) == self.after.get(key), f"{key} was acknowledged and is {found.get(key)}"
        for key in set(notes.of("refused")) - set(notes.of("done")):
            assert found.get(key) == self.before.get(key), f"{key} was refused and is {found.get(key)}"
        assert found == self.after or not notes.of("finished"), f"it finished with {found}, not {self.after}"
        return bool(found == self.after)

    def _verify_again(self, place: Place, is_done: bool) -> None:
        """Without a fault the operation does what was left of it, with the index that the fault left."""
        self._proxy.requests.clear()
        self.operation.run(place, _ignore)
        only_reads = all(request.method in ("GET", "HEAD") for request in self._proxy.requests)
        if not (is_done and only_reads):  # else there is nothing else to see
            found = self._snapshots(place)
            assert found == self.after, f"the next run led to {found}, not {self.after}"
        measured = self._measure(self._copied)
        assert measured == self.measured, f"the next run led to {measured}, not {self.measured}"

    def _measure(self, path: Path) -> object:
        with cas.open(path) as store:
            return self.operation.measure(store)

    # -- faults -------------------------------------------------------------------------------------------------

    def run(self, trouble: Trouble) -> Report:
        """Every chosen point under the fault."""
        self.report = Report()
        for point in chosen([point for point in self.points if point.operation in self.operation.at], trouble):
            self.strike(trouble, point)
        return self.report

    def strike(self, trouble: Trouble, point: Point) -> None:
        """One run; what is wrong becomes a line of the report."""
        place = self._renewed(read_timeout=0.6) if trouble.kind == "timeout" else self._renewed()
        self._proxy.requests.clear()
        fault = Fault(trouble.kind, at=point.operation, nth=point.nth, times=trouble.times)
        self._proxy.faults[:] = [fault]
        if trouble.then:
            self._proxy.faults.append(Fault(trouble.then, at="any", nth=point.index + 1, times=FOREVER))
        notes = Notes()
        with patch("cas.retries.PATIENCE", 0.3 if trouble.lasts else PATIENCE):
            self._run(place, notes)
        self._proxy.faults.clear()
        self.report.runs += 1
        self.report.struck += bool(fault.hits)
        try:
            self._check(trouble, point, notes)
            self._verify_again(place, self._verify(place, notes))
        except Exception as error:
            what = error if isinstance(error, AssertionError) else traceback.format_exc()
            self.report.failures.append(f"{self.operation.name}, {trouble} at {point}: {what}; {notes.of('error')}")
        finally:
            self._discard(place)

    def _run(self, place: Place, notes: Notes) -> None:
        try:
            self.operation.run(place, notes.add)
            notes.add("finished")
        except (CasError, OSError) as error:
            notes.add("error", f"{type(error).__name__}: {error}")
        except Exception:
            notes.add("bug", traceback.format_exc())

    def _check(self, trouble: Trouble, point: Point, notes: Notes) -> None:
        """What the caller was told."""
        assert not notes.of("bug"), notes.of("bug")[0]
        raised = notes.of("error")
        self.report.errors += raised
        assert raised or notes.of("finished"), "it neither finished nor raised"
        if not trouble.lasts:
            assert notes.of("finished"), f"the fault struck once, and the call went on failing: {raised}"
            assert not raised or point.operation in trouble.fatal_at, f"a fault that struck once was felt: {raised}"
        for error in raised:
            check_sentence(error, self._proxy.server.secret, self._proxy.server.key)
            assert re.search("s3://|log record|packs/|lists/|block ", error), f"it does not say what failed: {error}"


def check_sentence(text: str, *secrets: str) -> None:
    """One sentence, without a secret and without what only a programmer reads."""
    assert "\n" not in text, f"more than a sentence: {text}"
    assert len(text) < 600, f"too long: {text}"
    for bad in (
        "Traceback",
        "None",
        "botocore",
        "urllib3",
        "ClientError",
        "object at 0x",
        "An error occurred",
        *secrets,
    ):
        assert bad not in text, f"it says {bad}: {text}"


def points_of(requests: list[Request], prefix: str) -> list[Point]:
    counts: defaultdict[str, int] = defaultdict(int)
    found = []
    for index, request in enumerate(requests, 1):
        counts[request.operation] += 1
        key = (request.key or request.query.get("prefix", [""])[0]).removeprefix(prefix)
        found.append(Point(request.operation, counts[request.operation], index, key.split("/")[0], request.status))
    return found


def chosen(points: list[Point], trouble: Trouble) -> list[Point]:
    """Those at which the fault makes sense, or some of each class."""
    fitting = [point for point in points if point.operation in trouble.at]
    if EVERY_REQUEST:
        return fitting
    classes: defaultdict[tuple[object, ...], list[Point]] = defaultdict(list)
    length = ("operation", "request", "answer").index(trouble.per) + 1
    for point in fitting:
        classes[(point.operation, point.on, point.status)[:length]].append(point)
    picked = {alike[0] for alike in classes.values()}
    if trouble.per == "answer":
        picked |= {alike[-1] for alike in classes.values()}
    return [point for point in fitting if point in picked]


def _prefix(place: Place) -> str:
    return place.url.split("/", 3)[3] + "/"


def _ignore(kind: str, text: str) -> None:
    """For runs without a fault."""
