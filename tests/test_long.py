"""The bookkeeping of the long proofs."""

from __future__ import annotations

from pathlib import Path

import pytest
from long import PROOFS, TOTALS, Total, table, totals, write


def test_the_totals_of_the_project_are_those_of_the_proofs() -> None:
    assert set(totals(TOTALS.read_text())) == {proof.name for proof in PROOFS}


def test_every_proof_names_tests_that_exist() -> None:
    named = {argument for proof in PROOFS for argument in proof.tests if argument.endswith(".py")}
    assert named <= {path.name for path in Path(__file__).parent.glob("test_*.py")}


def test_totals_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("long.TOTALS", tmp_path / "FAULTS.md")
    held = {proof.name: Total(1000 * number, number, "2026-01-01") for number, proof in enumerate(PROOFS)}
    (tmp_path / "FAULTS.md").write_text(f"before\n\n{table({})}\n\nafter\n")
    write(held)
    text = (tmp_path / "FAULTS.md").read_text()
    assert totals(text) == held
    assert text.startswith("before\n\n| proof |")
    assert text.endswith("|\n\nafter\n")
