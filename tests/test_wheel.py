"""What is shipped, and that it works outside the checkout. Both archives are built from a copy of the tree."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"cas": "cas", "torch_adapter": "cas/torch", "cli": "cas/cli"}
DATA = {"cas/py.typed", "cas/FORMAT.md"}
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "out", "demo-out")

# One worker builds once for the whole file.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*command: str | Path, cwd: Path) -> str:
    """Run outside the checkout; the output of a failed command is the message of the failure."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CAS_"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sources() -> set[str]:
    """Every Python file of the three folders, relative to the checkout."""
    return {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def installed_name(source: str) -> str:
    folder, _, rest = source.partition("/")
    return f"{FOLDERS[folder]}/{rest}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source archive, and the wheel built from that archive."""
    base = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, base / "tree", ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", base / "out", base / "tree", cwd=base)
    return base / "out"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: the wheel itself, and this environment's packages behind it."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, symlinks=True)
    interpreter = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=home)
    # The .pth files of folders named in a .pth file are not read, so the editable install stays out.
    site = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "borrowed.pth").write_text("".join(f"{folder}\n" for folder in sorted(borrowed)))
    return interpreter


def test_the_wheel_holds_every_module_under_its_mapped_name_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == {installed_name(source) for source in sources()} | DATA
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_what_is_needed_to_build_and_test(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    project = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt"}
    assert sources() | tests | project | DATA <= names


def test_the_installed_package_is_not_the_checkout(python: Path, tmp_path: Path) -> None:
    code = "import cas, cas.cli, cas.torch; [print(m.__file__) for m in (cas, cas.cli, cas.torch)]"
    home = python.parent.parent
    for line in run(python, "-c", code, cwd=tmp_path).splitlines():
        assert home in Path(line).parents


def test_the_installed_command_runs_from_another_directory(python: Path, tmp_path: Path) -> None:
    text = run(python.parent / "cas", "--help", cwd=tmp_path)
    assert "Usage" in text
    assert run(python, "-m", "cas.cli", "--help", cwd=tmp_path).startswith("Usage")


STATES = {
    "numpy": "import numpy as np; make = np.arange; same = np.array_equal",
    "torch": "import torch; make = torch.arange; same = torch.equal",
}


@pytest.mark.parametrize("framework", STATES)
def test_an_installed_store_commits_and_loads_from_another_directory(
    framework: str, python: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    code = f"""
import cas
{STATES[framework]}
with cas.open("ckpt", create=True) as store:
    commit = store.commit({{"w": make(10), "step": 3}}, step=3)
with cas.open("ckpt") as store:
    state = store.load("main")
assert same(state["w"], make(10)) and type(state["w"]) is type(make(10)), state
assert state["step"] == 3
print(commit.id)
"""
    commit = run(python, "-c", code, cwd=tmp_path).strip()
    log = run(python.parent / "cas", "--store", "ckpt", "log", cwd=tmp_path)
    assert commit[:8] in log
