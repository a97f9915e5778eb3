"""Texts that people write, and small files of JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import click

import cas
from cas.cli import fsck, model_config, options, shards, steps, upkeep
from cas.errors import CasError, Invalid
from cas.paths import Patterns, format_path, parse_levels
from cas.torch import foreign

from .mutate import json_value, octets, tokens
from .targets import Parse, Target, plain, text_of


def _revision(folder: Path) -> Parse:
    store = cas.init(folder / "store", block_size=4096)
    for number in range(4):
        store.commit({"n": number}, step=10 * number, metrics={"loss": 1 / (1 + number)})
    store.tag("v1", "main~1")
    known = {held.id for held in store.log("main")}

    def parse(data: bytes) -> None:
        assert store.resolve(text_of(data)).id in known

    return parse


_STATE: tuple[tuple[str | int, ...], ...] = (
    (), ("a",), ("model", "layers.0.weight"), ("model", "", 0, "x/y", "%", "[1]"), ("a" * 60,), ("a",) * 30,
)  # fmt: skip


def _pattern(data: bytes) -> None:
    text = text_of(data)
    patterns = Patterns(text)
    for path in _STATE:
        if patterns.match(path):
            assert all(patterns.may_match_below(path[:end]) for end in range(len(path) + 1)), path
    if "*" not in text and parse_levels(text):
        assert patterns.may_match_below(())


def _path(data: bytes) -> None:
    """A path as text is found by itself as a pattern, where it holds no star."""
    keys = tuple(int(key) if key.isascii() and key.isdigit() and len(key) < 20 else key for key in _keys(data))
    text = format_path(keys)
    assert text.isprintable() or not text_of(data).isprintable()
    if "*" not in text and keys:
        assert len(parse_levels(text)) == len(keys)
        assert Patterns(text).match(keys)


def _keys(data: bytes) -> list[str]:
    try:
        return data.decode().split("\t") if data else []
    except UnicodeDecodeError as error:
        raise Invalid("a key is Unicode") from error


def _amount(data: bytes) -> None:
    """An amount that some option takes."""
    text = text_of(data)
    read: list[Callable[[str], float]] = [shards.parse_size, upkeep._bytes, fsck._part]
    read.append(lambda given: options._seconds(None, None, given))  # type: ignore[arg-type]
    amounts: list[float] = []
    for parse in read:
        try:
            amounts.append(parse(text))
        except (CasError, click.BadParameter):
            continue
    if not amounts:
        raise Invalid("no amount")
    assert all(0 <= amount < 1 << 80 for amount in amounts)


def _step(data: bytes) -> None:
    for step in (steps.from_name(text_of(data)), steps.epoch_from_name(text_of(data))):
        assert step is None or 0 <= step < 10**18


def _trainer(data: bytes) -> None:
    step, metrics = steps.from_trainer(data)
    assert step is None or 0 <= step < 1 << 62
    assert all(type(name) is str and math.isfinite(value) for name, value in metrics.items())


def _model_config(data: bytes) -> None:
    changed = model_config.with_dtype(data, "bfloat16")
    assert changed is None or model_config.with_dtype(changed, "bfloat16") is None


def _foreign(data: bytes) -> None:
    """A value of torch: kind | NUL | text."""
    kind, _, text = data.decode("utf-8", "replace").partition("\0")
    foreign.value(kind, text)


# -- all of them ----------------------------------------------------------------------------------------------------

_REVISIONS = tokens(
    "~", "@{", "}", "@step:", "@min:", "@max:", "loss", "main", "v1", "-", "9" * 20, "٣", "\udcff", "\0"
)
_STARS = tokens("*", "**", "/", "**/", "*a", "a*", "%2F", "[0]", ".", "\\", "(", "|", "\n", "\udcff", "\u2028")
_KEYS = tokens("\t", "/", "%", "[", "*", ".", "..", "\u2028", "\u200b", "\x7f", "é")
_AMOUNTS = tokens(
    "0", "9" * 15, ".", "GiB", "k", "mib", "%", "now", "min", "d", " ", "٣", "e9", "\udcff", "ı", "ſ", "K"
)
_NAMES = tokens("step", "checkpoint-", "epoch=", "/", "0" * 20, "9" * 18, "iter_", "٣", "=", "-")
_KINDS = tokens("dtype", "device", "size", "layout", "\0", ",", ":", "cuda", "cpu", "-1", "9" * 25, "float32", "٣")

TARGETS = (
    Target("revision", _revision, [octets, _REVISIONS, _REVISIONS]),
    Target("pattern", plain(_pattern), [octets, _STARS, _STARS]),
    Target("path", plain(_path), [octets, _KEYS]),
    Target("amount", plain(_amount), [octets, _AMOUNTS, _AMOUNTS]),
    Target("step", plain(_step), [octets, _NAMES, _NAMES], ()),
    Target("trainer", plain(_trainer), [octets, json_value, json_value], ()),
    Target("model_config", plain(_model_config), [octets, json_value, json_value], ()),
    Target("foreign", plain(_foreign), [octets, _KINDS, _KINDS]),
)
