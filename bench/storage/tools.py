"""Peers that are stores of their own: restic, borg, and Xet's client on a local folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from .peer import Peer, disk
from .workloads import Workload


class Command(Peer):
    """A command with a repository; it is given the folder with the safetensors files of a checkpoint."""

    command: ClassVar[str]

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which(cls.command) else f"the command {cls.command} is not on PATH"

    def environment(self) -> dict[str, str]:
        raise NotImplementedError

    def run(self, *arguments: str | Path, cwd: Path) -> str:
        """The command's output; what it says of a failure is raised."""
        line = [self.command, *map(str, arguments)]
        env = {**os.environ, **self.environment()}
        done = subprocess.run(line, check=False, cwd=cwd, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr.strip()[-2000:]}")
        return done.stdout


class Restic(Command):
    """Its chunks are about 1 MiB, which cannot be set; compression `max`, which is zstd at its best level."""

    name = "restic"
    command = "restic"

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        super().__init__(workload, files, folder)
        self.snapshots: dict[int, str] = {}
        self.run("init", cwd=folder)

    def environment(self) -> dict[str, str]:
        cache = self.folder / "cache"
        return {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(self.kept), "RESTIC_CACHE_DIR": str(cache)}

    def save(self, number: int) -> None:
        said = self.run("backup", "--json", "--compression", "max", ".", cwd=self.source(number))
        self.snapshots[number] = json.loads(said.splitlines()[-1])["snapshot_id"]

    def drop(self, numbers: set[int]) -> None:
        gone = [self.snapshots[number] for number in numbers]
        self.run("forget", "--prune", "--max-unused", "0", *gone, cwd=self.folder)

    def restore(self, number: int) -> None:
        self.run("restore", self.snapshots[number], "--target", self.out, cwd=self.folder)

    def exact(self, number: int) -> bool:
        # A backup of `.` holds the folder under its whole path.
        held = self.out.joinpath(*self.source(number).resolve().parts[1:])
        if held.is_dir():
            self.out = held
        return super().exact(number)


class Borg(Command):
    """Chunks of about 64 KiB in place of 2 MiB, which is too coarse for files of this size; zstd at level 3."""

    name = "borg"
    command = "borg"
    CHUNKER = "buzhash,10,23,16,4095"

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        super().__init__(workload, files, folder)
        self.run("init", "--encryption", "none", self.kept, cwd=folder)

    def environment(self) -> dict[str, str]:
        return {"BORG_BASE_DIR": str(self.folder / "home"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def archive(self, number: int) -> str:
        return f"{self.kept}::{number}"

    def save(self, number: int) -> None:
        options = ("--compression", "zstd,3", "--chunker-params", self.CHUNKER)
        self.run("create", *options, self.archive(number), ".", cwd=self.source(number))

    def drop(self, numbers: set[int]) -> None:
        for number in numbers:
            self.run("delete", self.archive(number), cwd=self.folder)
        self.run("compact", "--threshold", "0", self.kept, cwd=self.folder)

    def restore(self, number: int) -> None:
        self.run("extract", self.archive(number), cwd=self.out)


class Xet(Peer):
    """The client of Hugging Face's Xet on a local folder in place of its server: chunks of about 64 KiB, by content.

    What counts are its xorbs and shards, without its caches. It never deletes.
    """

    name = "Xet"

    def __init__(self, workload: Workload, files: Path, folder: Path) -> None:
        super().__init__(workload, files, folder)
        # Read when the library is first used: nothing of it may leave the folder.
        os.environ |= {"HF_XET_CACHE": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        import hf_xet

        self.session = hf_xet.XetSession()
        self.held: dict[int, dict[str, Any]] = {}
        self.endpoint = f"local://{self.kept.resolve()}"

    @classmethod
    def missing(cls) -> str | None:
        return None if find_spec("hf_xet") else "hf-xet is not installed; pip install hf-xet"

    def save(self, number: int) -> None:
        commit = self.session.new_upload_commit(endpoint=self.endpoint)
        sent = {path.name: commit.start_upload_file(str(path.resolve())) for path in self.source(number).iterdir()}
        commit.wait_to_finish()
        self.held[number] = {name: one.result().xet_info for name, one in sent.items()}

    def drop(self, numbers: set[int]) -> None:
        note = "nothing is ever deleted"
        if note not in self.notes:
            self.notes.append(note)

    def restore(self, number: int) -> None:
        group = self.session.new_file_download_group(endpoint=self.endpoint)
        for name, info in self.held[number].items():
            group.start_download_file(info, str(self.out.resolve() / name))
        group.wait_to_finish()

    def stored(self) -> int:
        return disk(self.kept.glob("**/xorbs/*/"))
