"""The direction of imports: every module stands in a row of ORDER and imports only from rows above its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"cas": "cas", "torch_adapter": "cas.torch", "cli": "cas.cli"}

# The core from the ground up. Modules of one row do not import each other. The folders stand above it whole.
ORDER = (
    {"errors"},
    {"backend", "buffers", "crew", "dtypes", "envelope", "findings", "flocks", "grid", "imprint", "paths"},
    {"directfile", "per_rank", "block", "reserve", "team", "verified"},
    {"tensors"},
    {"arrays", "elements", "files", "local", "entropy", "remoting", "retries", "s3_errors", "windows"},
    {"s3_client"},
    {"s3_create", "s3_listing"},
    {"s3_uploads"},
    {"network", "s3", "sshlink"},
    {"remote", "sftp"},
    {"probe", "urls"},
    {"planes", "nodes", "refs", "frameworks", "sparse", "classes"},
    {"delta"},
    {"asking", "codecs", "pack", "identity", "objects", "lists", "slot"},
    {"bases", "chains", "where"},
    {"ahead"},
    {"log"},
    {"index", "remotes", "state", "commits"},
    {"catalog", "cutting", "outline", "picking", "stage", "background"},
    {"holders", "packing", "roots", "skeletons", "ties"},
    {"absence"},
    {"branches", "fence", "moving", "plan", "revisions", "reader"},
    {"ancestry", "extent", "merging", "present", "reach", "retention", "reunion", "rowcheck", "small_writes"},
    {"sides"},
    {"closure", "damage", "loader", "needs", "partly", "salvage", "transfer", "uses"},
    {"leaves", "savings", "wanted"},
    {"counterparts", "soundness"},
    {"sync"},
    {"deltas", "refspecs", "relatives"},
    {"writer"},
    {"committing"},
    {"joint"},
    {"marking"},
    {"survey"},
    {"audit", "renewing"},
    {"inspection"},
    {"gc"},
    {"repair"},
    {"fsck", "stats", "view"},
    {"change", "pruning"},
    {"diff", "finished"},
    {"peek", "succession"},
    {"choice"},
    {"rewriting"},
    {"repack"},
    {"gathered", "opened"},
    {"healing", "others"},
    {"upkeep"},
    {"committer"},
    {"retriever"},
    {"synchronised"},
    {"store"},
    {"opening"},
    {"cloning"},
    {"__init__"},
)
RANKS = {f"cas.{name}".removesuffix(".__init__"): rank for rank, row in enumerate(ORDER) for name in row}
TORCH_RANK, CLI_RANK = len(ORDER), len(ORDER) + 1


@dataclass(frozen=True, slots=True)
class Module:
    """A source file under the `name` that it is imported by; `folder` is where it lies in the tree."""

    name: str
    folder: str
    path: Path
    tree: ast.Module

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, `target` absolute; `level` is the number of dots; `inner` is inside a function."""

    target: str
    level: int
    inner: bool
    node: ast.Import | ast.ImportFrom


@cache
def modules() -> dict[str, Module]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
            name = f"{package}.{dotted}".removesuffix(".__init__")
            found[name] = Module(name, folder, path, ast.parse(path.read_text(), str(path)))
    return found


def with_depth(node: ast.AST, inner: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below `node`, and whether it is inside a function."""
    for child in ast.iter_child_nodes(node):
        yield child, inner
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from with_depth(child, inner or function)


def resolve(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of what follows `from`."""
    if not node.level:
        return node.module or ""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *filter(None, [node.module])])


def imports(module: Module) -> Iterator[Import]:
    for node, inner in with_depth(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, 0, inner, node)
        elif isinstance(node, ast.ImportFrom):
            base = resolve(module, node)
            for alias in node.names:  # `from . import errors` names a module, `from .errors import Corrupt` does not
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in modules() else base, node.level, inner, node)


def own(target: str) -> bool:
    return target == "cas" or target.startswith("cas.")


def rank(name: str) -> int | None:
    if name.startswith("cas.cli"):
        return CLI_RANK
    if name.startswith("cas.torch"):
        return TORCH_RANK
    return RANKS.get(name)


def test_every_module_has_a_place_in_the_order() -> None:
    unplaced = [str(m.path.relative_to(ROOT)) for m in modules().values() if rank(m.name) is None]
    assert not unplaced, f"add to ORDER in {Path(__file__).name}, above all that it imports from: {unplaced}"


def test_no_module_is_placed_twice() -> None:
    assert len(RANKS) == sum(map(len, ORDER))


def test_imports_point_downwards() -> None:
    wrong = []
    for module in modules().values():
        here = rank(module.name)
        for found in imports(module):
            there = rank(found.target)
            if not own(found.target) or here is None or there is None:
                continue
            inside = here == there >= TORCH_RANK  # within a folder above the core only a cycle is wrong
            if not (there < here or inside):
                wrong.append(f"{module.at(found.node)} {module.name} imports {found.target}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_imports_form_no_cycle() -> None:
    graph = {m.name: {i.target for i in imports(m) if own(i.target)} - {m.name} for m in modules().values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_name_modules_that_exist() -> None:
    missing = [
        f"{m.at(i.node)} {i.target}"
        for m in modules().values()
        for i in imports(m)
        if own(i.target) and i.target not in modules()
    ]
    assert not missing, "\n".join(missing)


def test_own_modules_are_imported_inside_functions_only_in_the_command() -> None:
    """And there only what costs torch, or a module of the command that does."""
    wrong = []
    for module in modules().values():
        for found in (i for i in imports(module) if own(i.target) and i.inner):
            lazy = module.folder == "cli" and found.target.startswith(("cas.torch", "cas.cli."))
            if not lazy:
                wrong.append(f"{module.at(found.node)} {found.target}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_a_folder_imports_itself_relatively_and_the_others_by_their_mapped_names() -> None:
    wrong = []
    for module in modules().values():
        package = FOLDERS[module.folder]
        for found in imports(module):
            foreign = found.target.startswith("cas.torch") or found.target.startswith("cas.cli")
            sibling = own(found.target) and (
                not foreign if package == "cas" else (found.target + ".").startswith(package + ".")
            )
            if own(found.target) and sibling != bool(found.level):
                wrong.append(f"{module.at(found.node)} {found.target}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_nothing_imports_a_folder_by_its_name_in_the_tree() -> None:
    """From the root of the checkout `cli` and `torch_adapter` would import: second copies of the real modules."""
    wrong = []
    for path in (p for top in (*FOLDERS, "bench", "tests") for p in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] in ("cli", "torch_adapter") for name in names):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong, wrong


def test_the_core_never_imports_torch() -> None:
    wrong = [
        f"{m.at(i.node)} {i.target}"
        for m in modules().values()
        for i in imports(m)
        if m.folder == "cas" and i.target.split(".")[0] in ("torch", "safetensors")
    ]
    assert not wrong, "\n".join(dict.fromkeys(wrong))


@pytest.mark.parametrize("folder", ["cas", "torch_adapter"])
def test_only_the_command_reads_the_environment(folder: str) -> None:
    forbidden = {"environ", "environb", "getenv", "getenvb"}
    wrong = []
    for module in (m for m in modules().values() if m.folder == folder):
        for node in ast.walk(module.tree):
            attribute = isinstance(node, ast.Attribute) and node.attr in forbidden
            name = isinstance(node, ast.ImportFrom) and any(a.name in forbidden for a in node.names)
            if attribute or name:
                wrong.append(module.at(node))  # type: ignore[arg-type]
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def loaded_by(statement: str, cwd: Path) -> tuple[set[str], float]:
    """The top-level modules in a fresh interpreter after `statement`, and the seconds it took."""
    code = f"import sys, time; t = time.time(); {statement}; print(time.time() - t, *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    seconds, *names = run.stdout.split()
    return {name.split(".")[0] for name in names}, float(seconds)


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import cas", {"torch", "safetensors", "fsspec", "s3fs", "rich", "click"}),
        ("import cas, cas.cli, cas.cli.main", {"torch", "safetensors", "fsspec", "s3fs", "rich"}),
    ],
)
def test_importing_loads_nothing_heavy(
    statement: str, unwanted: set[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    names, seconds = loaded_by(statement, tmp_path)
    record_property("seconds", seconds)
    print(f"{statement}: {seconds:.3f} s")
    assert not names & unwanted
    assert seconds < 5, "an import this slow loads something that it should not"
