"""Paths as people write them, and patterns over them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.paths import Path, Patterns, format_key, format_path

PATHS: dict[str, Path] = {
    ".": (),
    "model/wte.weight": ("model", "wte.weight"),
    "optim/state/[0]/step": ("optim", "state", 0, "step"),
    "[-3]": (-3,),
    "a%2Fb": ("a/b",),
    "50%25": ("50%",),
    "%5B0]": ("[0]",),
    "a[0]": ("a[0]",),
    "%": ("",),
    "%/%": ("", ""),
    "%0A%00%1B[31m": ("\n\0\x1b[31m",),
    "%E2%80%AEtxt": ("\u202etxt",),
    "%C2%9B": ("\x9b",),
    "ünï": ("ünï",),
}


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_written_so(text: str) -> None:
    assert format_path(PATHS[text]) == text


paths = st.lists(st.one_of(st.text(max_size=5), st.integers(-(1 << 63), (1 << 63) - 1)), max_size=4).map(tuple)


@given(paths, paths)
def test_different_paths_are_written_differently(one: Path, two: Path) -> None:
    assert (format_path(one) == format_path(two)) == (one == two or {one, two} == {(), (".",)})


@given(st.text(max_size=8))
def test_a_key_never_holds_a_slash_or_a_control_character(key: str) -> None:
    text = format_key(key)
    assert text
    assert not re.search(r"[/\x00-\x1f\x7f-\x9f\u202a-\u202e]", text)


@given(paths)
def test_a_path_without_stars_matches_itself_and_what_lies_below(path: Path) -> None:
    text = format_path(path)
    if "*" not in text:
        patterns = Patterns(text)
        assert patterns.match(path)
        assert patterns.match((*path, "below", 3))


YES = [
    ("model", "model"), ("model", "model/a/b"), ("*", "model"), ("*/w", "model/w"), ("m*l/w", "model/w"),
    ("**", "a/b/c"), ("**/w", "w"), ("**/w", "a/b/w"), ("a/**/w", "a/w"), ("a/**/w", "a/b/c/w"),
    ("a/**", "a/b/c"), ("a/*", "a/[0]"), ("*.weight", "wte.weight"), ("**/*.bias", "h/[3]/ln.bias"), ("a.b", "a.b/c"),
]  # fmt: skip
NO = [
    ("model", "model2"), ("model", "a/model"), ("*", "a/b"), ("*/w", "w"), ("*/w", "a/b/w"), ("a.b", "axb"),
    ("**/w", "a/w/b"), ("**/w", "aw"), ("a/**/w", "a/bw"), ("a/*", "a"), ("a/**", "a"), ("(a|b)", "a"),
    ("a+", "aa"), ("[ab]", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "text"), YES)
def test_a_pattern_matches(pattern: str, text: str) -> None:
    assert Patterns(pattern).match(levels(text))
    assert all(Patterns(pattern).may_match_below(levels(text)[:depth]) for depth in range(text.count("/") + 2))


@pytest.mark.parametrize(("pattern", "text"), NO)
def test_a_pattern_does_not_match(pattern: str, text: str) -> None:
    assert not Patterns(pattern).match(levels(text))


@pytest.mark.parametrize(("pattern", "text"), [("a/b", "b"), ("a/*/c", "b"), ("a/b/**", "a/c"), ("a", "b/c")])
def test_nothing_below_another_stem_can_match(pattern: str, text: str) -> None:
    assert not Patterns(pattern).may_match_below(levels(text))


def levels(text: str) -> Path:
    return tuple(int(level[1:-1]) if level.startswith("[") else level for level in text.split("/"))
