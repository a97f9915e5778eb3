"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from cas.crew import default_threads

PACKAGES = ("torch", "safetensors", "numpy", "cas-checkpoints")


def usual_environment() -> dict[str, str]:
    """The environment of a command as people run it: Python keeps what it compiles."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def machine(folder: Path) -> dict[str, str]:
    """The machine, the file system that holds `folder`, and the versions that matter."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": str(os.cpu_count()),
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "file system": _file_system(folder),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "threads": f"{default_threads()} for cas, {torch.get_num_threads()} for torch",
    }


def sentence(found: dict[str, str]) -> str:
    """The machine in one line."""
    bare = ("cpu", "file system", "kernel")
    shown = {"cores": "{} cores", "memory": "{} of memory", "threads": "threads: {}"}
    return ", ".join(
        value if name in bare else shown.get(name, f"{name} {{}}").format(value) for name, value in found.items()
    )


def _first(file: str, key: str) -> str:
    lines = Path(file).read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")


def _file_system(folder: Path) -> str:
    listed = subprocess.run(["df", "--output=fstype", folder], check=True, capture_output=True, text=True)
    return listed.stdout.split()[-1]
