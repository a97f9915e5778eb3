"""All peers by name, and which versions of their tools run here."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from .ours import Commits, Repacked
from .peer import Peer
from .plain_files import Dcp, TorchSave, ZipNN, ZipNNDelta, Zstd1, Zstd19
from .tools import Borg, Restic, Xet

KINDS: tuple[type[Peer], ...] = (
    Commits,
    Repacked,
    TorchSave,
    Zstd1,
    Zstd19,
    Dcp,
    ZipNN,
    ZipNNDelta,
    Restic,
    Borg,
    Xet,
)
PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in KINDS}
OURS = (Commits.name, Repacked.name)
COMMANDS = {"zstd": "--version", "restic": "version", "borg": "--version"}
MODULES = ("zipnn", "hf-xet", "zstandard")


def versions() -> dict[str, str]:
    """Of the tools that the peers are, as they name themselves; those that are missing say so."""
    return {name: _said(name, option) for name, option in COMMANDS.items()} | {name: _found(name) for name in MODULES}


def _said(command: str, option: str) -> str:
    if shutil.which(command) is None:
        return "missing"
    done = subprocess.run([command, option], capture_output=True, text=True, check=True)
    return next((word for word in done.stdout.replace(",", " ").split() if word.strip("v")[:1].isdigit()), "unknown")


def _found(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:
        return "missing"
