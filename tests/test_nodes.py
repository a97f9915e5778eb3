"""Canonical bytes of trees: one encoding for each value, and everything else is refused."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import Corrupt
from cas.nodes import MAX_DEPTH, Tag, int_node, int_of, pack, unpack
from cas.objects import decode_tree, encode_tree

ID = bytes(range(32))
W = [Tag.TENSOR, "numpy", "float32", [2, 3], ID, None]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-(1 << 300), 1 << 300).map(int_node),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from([W, [Tag.REF, ID], [Tag.PARTS, Tag.DICT, [ID]], [Tag.TEXT, 70_000, ID], [Tag.BYTES, 0, None]]),
    st.sampled_from([[Tag.SCALAR, "int16", b"ab"], [Tag.FOREIGN, "torch", "dtype", "float32"], [Tag.PICKLE, 9, [ID]]]),
)
keys = st.one_of(st.text(max_size=6), st.integers(-(1 << 63), (1 << 63) - 1))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.dictionaries(keys, inner, max_size=20).map(lambda d: [list(pair) for pair in d.items()])
    keyed = st.tuples(st.sampled_from([Tag.DICT, Tag.ORDERED, Tag.COUNTER]), pairs).map(list)
    listed = st.tuples(st.sampled_from([Tag.LIST, Tag.TUPLE]), st.lists(inner, max_size=20)).map(list)
    parts = st.one_of(pairs.map(lambda entries: [Tag.DICT, entries]), st.just([Tag.REF, ID]))
    composite = parts.map(lambda held: [Tag.COMPOSITE, "torch", "a kind", held])
    return st.one_of(keyed, listed, composite)


nodes = st.recursive(leaves, containers, max_leaves=40)


@given(nodes)
def test_what_is_encoded_decodes_and_encodes_to_the_same_bytes(node: Any) -> None:
    data = encode_tree(node)
    assert encode_tree(decode_tree(data)) == data


INTEGERS = [0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1]
INTEGERS += [-1, -32, -33, -128, -129, -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)]
WIDER = [(0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"), (0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")]


@pytest.mark.parametrize("number", INTEGERS)
def test_every_other_form_of_an_integer_is_corrupt(number: int) -> None:
    right = pack(number)
    assert decode_tree(b"\x92\x01" + right) == number
    forms = []
    for code, form in WIDER:
        try:
            forms.append(bytes([code]) + struct.pack(form, number))
        except struct.error:
            continue
    others = [form for form in forms if form != right]
    assert others or right[0] in (0xCF, 0xD3)  # no form is wider than these
    for form in others:
        with pytest.raises(Corrupt):
            decode_tree(b"\x92\x01" + form)


OTHER_FORMS: dict[str, bytes] = {
    "float32": b"\xca" + struct.pack(">f", 1.5),
    "map": b"\x81\xa1a\x01",
    "empty map": b"\x80",
    "map with a key twice": b"\x82\xa1a\x01\xa1a\x01",
    "ext": b"\xd4\x05\x00",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "str in str8": b"\xd9\x01a",
    "str in str16": b"\xda\x00\x01a",
    "str in str32": b"\xdb\x00\x00\x00\x01a",
    "bin in bin16": b"\xc5\x00\x01a",
    "bin in bin32": b"\xc6\x00\x00\x00\x01a",
    "array in array16": b"\xdc\x00\x02\x02\x90",
    "array in array32": b"\xdd\x00\x00\x00\x02\x02\x90",
    "inner array in array16": b"\x92\x02\xdc\x00\x00",
    "never used": b"\xc1",
    "str that is no UTF-8": b"\xa1\xff",
    "str with a surrogate": b"\xa3\xed\xa0\x80",
    "two values": b"\x01\x01",
    "nothing": b"",
    "cut short": b"\x92\x02\x91",
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge bin": b"\xc6\xff\xff\xff\xff",
    "uint over 63 bits": b"\xcf\x80" + bytes(7),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_another_form_of_a_value_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt):
        decode_tree(b"\x92\x01" + OTHER_FORMS[name])


@given(nodes, st.binary(min_size=1, max_size=4))
def test_bytes_after_the_value_are_corrupt(node: Any, extra: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_tree(encode_tree(node) + extra)


@given(nodes)
def test_every_truncation_is_corrupt(node: Any) -> None:
    data = encode_tree(node)
    for length in {0, 1, len(data) // 2, len(data) - 1}:
        with pytest.raises(Corrupt):
            decode_tree(data[:length])


@given(nodes, st.data())
def test_any_changed_byte_is_another_canonical_value_or_corrupt(node: Any, data: st.DataObject) -> None:
    changed = bytearray(encode_tree(node))
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        value = decode_tree(bytes(changed))
    except Corrupt:
        return
    assert encode_tree(value) == changed


@given(st.binary(max_size=60))
def test_any_bytes_decode_canonically_or_are_corrupt(data: bytes) -> None:
    try:
        value = unpack(data, "it")
    except Corrupt:
        return
    assert pack(value) == data


@pytest.mark.parametrize("data", [b"\x92\x02\xc0", b"\x93\x01\xc0\xc0", b"\x91\x01", b"\x90", b"\xc0", b"\x92\xc3\xc0"])
def test_another_version_or_length_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_tree(data)


BAD_NODES: dict[str, Any] = {
    "no tag": [],
    "tag 15": [15, []],
    "tag -1": [-1, []],
    "bool as tag": [True, []],
    "text as tag": ["a", []],
    "dict without entries": [Tag.DICT],
    "dict with more": [Tag.DICT, [], 1],
    "dict of no list": [Tag.DICT, None],
    "entry of one": [Tag.DICT, [["a"]]],
    "entry of three": [Tag.DICT, [["a", 1, 2]]],
    "entry is no list": [Tag.DICT, ["ab"]],
    "bool key": [Tag.DICT, [[True, 1]]],
    "nil key": [Tag.DICT, [[None, 1]]],
    "float key": [Tag.DICT, [[1.0, 1]]],
    "bytes key": [Tag.DICT, [[b"a", 1]]],
    "key twice": [Tag.DICT, [["a", 1], ["a", 1]]],
    "int key twice": [Tag.COUNTER, [[1, 1], [1, 2]]],
    "list of no list": [Tag.LIST, "ab"],
    "bad node inside": [Tag.LIST, [[Tag.DICT, [["a", [99]]]]]],
    "ref without id": [Tag.REF],
    "ref to a short id": [Tag.REF, ID[:31]],
    "ref to a text": [Tag.REF, "a" * 32],
    "parts of nothing": [Tag.PARTS, Tag.DICT, []],
    "parts of a tensor": [Tag.PARTS, Tag.TENSOR, [ID]],
    "parts of parts": [Tag.PARTS, Tag.PARTS, [ID]],
    "parts with a bad id": [Tag.PARTS, Tag.DICT, [ID, b""]],
    "tensor cut short": W[:5],
    "tensor of an unknown dtype": [Tag.TENSOR, "numpy", "float33", [2], ID, None],
    "tensor of dtype nil": [Tag.TENSOR, "numpy", None, [2], ID, None],
    "tensor of framework 3": [Tag.TENSOR, 3, "float32", [2], ID, None],
    "tensor of a negative size": [Tag.TENSOR, "numpy", "float32", [-2], ID, None],
    "tensor of a bool size": [Tag.TENSOR, "numpy", "float32", [True], ID, None],
    "tensor that overflows": [Tag.TENSOR, "numpy", "float32", [1 << 40, 1 << 40], ID, None],
    "empty tensor that overflows": [Tag.TENSOR, "numpy", "float32", [1 << 40, 1 << 40, 0], None, None],
    "tensor of 65 dimensions": [Tag.TENSOR, "numpy", "float32", [1] * 65, ID, None],
    "tensor without content": [Tag.TENSOR, "numpy", "float32", [2], None, None],
    "empty tensor with content": [Tag.TENSOR, "numpy", "float32", [0], ID, None],
    "tensor with a text as content": [Tag.TENSOR, "numpy", "float32", [2], "a" * 32, None],
    "tensor with two layouts": [Tag.TENSOR, "numpy", "float32", [2], [ID, ID], None],
    "tensor with no layout": [Tag.TENSOR, "numpy", "float32", [2], [], None],
    "tensor with a negative tie": [Tag.TENSOR, "numpy", "float32", [2], ID, -1],
    "tensor with a huge tie": [Tag.TENSOR, "numpy", "float32", [2], ID, 1 << 32],
    "tensor with a bool tie": [Tag.TENSOR, "numpy", "float32", [2], ID, False],
    "text of a negative length": [Tag.TEXT, -1, ID],
    "text without content": [Tag.TEXT, 3, None],
    "bytes with content for nothing": [Tag.BYTES, 0, ID],
    "pickle of bool length": [Tag.PICKLE, True, ID],
    "big int with a leading zero": [Tag.BIGINT, False, b"\0" + b"\xff" * 9],
    "big int that fits": [Tag.BIGINT, False, b"\x7f" + b"\xff" * 7],
    "negative big int that fits": [Tag.BIGINT, True, b"\x80" + bytes(7)],
    "empty big int": [Tag.BIGINT, False, b""],
    "big int with sign 1": [Tag.BIGINT, 1, b"\xff" * 9],
    "big int of 9 MiB": [Tag.BIGINT, False, b"\xff" * (9 << 20)],
    "scalar of another length": [Tag.SCALAR, "int16", b"a"],
    "scalar of an unknown dtype": [Tag.SCALAR, "int17", b"ab"],
    "foreign of three": [Tag.FOREIGN, "torch", "dtype"],
    "foreign of bytes": [Tag.FOREIGN, "torch", "dtype", b"float32"],
    "composite without parts": [Tag.COMPOSITE, "torch", "sparse_coo"],
    "composite with more": [Tag.COMPOSITE, "torch", "sparse_coo", [Tag.DICT, []], None],
    "composite of framework 3": [Tag.COMPOSITE, 3, "sparse_coo", [Tag.DICT, []]],
    "composite of kind nil": [Tag.COMPOSITE, "torch", None, [Tag.DICT, []]],
    "composite of a list": [Tag.COMPOSITE, "torch", "sparse_coo", [Tag.LIST, []]],
    "composite of an ordered dict": [Tag.COMPOSITE, "torch", "sparse_coo", [Tag.ORDERED, []]],
    "composite of tensor": [Tag.COMPOSITE, "torch", "sparse_coo", W],
    "composite of itself": [Tag.COMPOSITE, "torch", "a", [Tag.COMPOSITE, "torch", "b", [Tag.DICT, []]]],
    "composite of a value": [Tag.COMPOSITE, "torch", "sparse_coo", 5],
    "composite of nothing": [Tag.COMPOSITE, "torch", "sparse_coo", []],
    "composite of a bad part": [Tag.COMPOSITE, "torch", "a", [Tag.DICT, [["b", [99]]]]],
    "composite with a part twice": [Tag.COMPOSITE, "torch", "a", [Tag.DICT, [["b", 1], ["b", 1]]]],
}


@pytest.mark.parametrize("name", BAD_NODES)
def test_a_node_outside_the_grammar_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt, match=r"not written by this format|canonical|MessagePack"):
        decode_tree(encode_tree(BAD_NODES[name]))


def test_the_edges_of_a_big_int_are_right() -> None:
    for value in ((1 << 63) - 1, -(1 << 63)):
        assert int_node(value) == value
    for value in (1 << 63, -(1 << 63) - 1, 1 << 64, -(1 << 64), 255 << 64):
        node = int_node(value)
        assert node[0] == Tag.BIGINT
        assert int_of(decode_tree(encode_tree(node))) == value


def test_nesting_is_bounded() -> None:
    node: Any = W
    for _ in range(MAX_DEPTH):
        node = [Tag.LIST, [node]]
    assert decode_tree(encode_tree(node)) == node
    for deeper in ([Tag.LIST, [node]], [Tag.COMPOSITE, "torch", "a kind", [Tag.DICT, [["a", node]]]]):
        with pytest.raises(Corrupt, match="nested too deep"):
            decode_tree(encode_tree(deeper))


@pytest.mark.parametrize("depth", [200, 5000, 1_000_000])
def test_any_depth_of_bytes_is_corrupt_and_no_crash(depth: int) -> None:
    with pytest.raises(Corrupt):
        decode_tree(b"\x92\x01" + b"\x92\x02\x91" * depth + b"\xc0")


PINNED = {
    "nil": (None, "c0"),
    "booleans": ([Tag.LIST, [False, True]], "920292c2c3"),
    "integers": ([Tag.LIST, [0, 127, 128, -32, -33, 65536]], "920296007fcc80e0d0dfce00010000"),
    "64 bits": ([Tag.LIST, [(1 << 63) - 1, -(1 << 63)]], "920292cf7fffffffffffffffd38000000000000000"),
    "big": ([Tag.BIGINT, True, b"\x01" + bytes(8)], "930bc3c409010000000000000000"),
    "floats": ([Tag.TUPLE, [-0.0, 0.1]], "920392cb8000000000000000cb3fb999999999999a"),
    "text": ("ä", "a2c3a4"),
    "bytes": (b"\0", "c40100"),
    "dict": ([Tag.DICT, [["b", 1], [-7, None]]], "92019292a1620192f9c0"),
    "ordered": ([Tag.ORDERED, []], "920490"),
    "counter": ([Tag.COUNTER, [["a", 2]]], "92059192a16102"),
    "scalar": ([Tag.SCALAR, "float16", b"\0<"], "930ca7666c6f61743136c402003c"),
    "foreign": ([Tag.FOREIGN, "torch", "dtype", "bfloat16"], "940da5746f726368a56474797065a862666c6f61743136"),
    "composite": (
        [Tag.COMPOSITE, "torch", "sparse_coo", [Tag.DICT, [["a", 1]]]],
        "940ea5746f726368aa7370617273655f636f6f92019192a16101",
    ),
    "composite elsewhere": (
        [Tag.COMPOSITE, "torch", "enum", [Tag.REF, ID]],
        "940ea5746f726368a4656e756d9200c420" + ID.hex(),
    ),
    "ref": ([Tag.REF, ID], "9200c420" + ID.hex()),
    "parts": ([Tag.PARTS, Tag.LIST, [ID]], "93060291c420" + ID.hex()),
    "text in blocks": ([Tag.TEXT, 65537, [ID]], "9308ce0001000191c420" + ID.hex()),
    "pickle": ([Tag.PICKLE, 3, ID], "930a03c420" + ID.hex()),
    "tensor": (W, "9607a56e756d7079a7666c6f6174333292" + "0203c420" + ID.hex() + "c0"),
    "tied": ([*W[:5], 4], "9607a56e756d7079a7666c6f6174333292" + "0203c420" + ID.hex() + "04"),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_nodes(name: str) -> None:
    node, data = PINNED[name]
    assert pack(node).hex() == data
    assert decode_tree(encode_tree(node)) == node


def test_the_bits_of_a_nan_survive() -> None:
    for bits in ("7ff8000000000000", "fff8000000000001", "7ff8deadbeef0001"):
        data = b"\x92\x01\xcb" + bytes.fromhex(bits)
        assert encode_tree(decode_tree(data)) == data


def test_msgspec_still_encodes_as_the_format_says() -> None:
    assert msgspec.msgpack.encode([1 << 31, "a" * 32, b"a" * 256, [0] * 16])[:6].hex() == "94ce80000000"
