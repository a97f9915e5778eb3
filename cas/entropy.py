"""Entropy coding of bytes: two zstd settings, the choice between them, and a decoder that trusts nothing.

A stored frame (normative) is exactly one Zstandard frame. It starts with the magic number 28 B5 2F FD;
declares its content size, which is not zero; has bits 0, 1, 3 and 4 of its descriptor (byte 4) zero; needs
a window of at most 4 MiB, no dictionary and no checksum (the block's BLAKE3 judges the content); is shorter
than its content; and ends where the stored bytes end.
Codec `zstd` stores a block as one such frame.

TUNED turns match finding almost off, which leaves a Huffman coder: on the exponents of weights it is twice
as fast as level 1 and packs better. LEVEL1 wins where bytes repeat: optimizer moments, text, ids.
"""

from __future__ import annotations

from enum import Enum
from typing import cast

import zstandard

from .backend import Buffer
from .errors import Corrupt

MAX_WINDOW = 4 << 20
SAMPLE = 32 << 10
_UNUSED = 0x1B
"""The bits of a frame's descriptor that zstd reserves (3) and ignores (4), and those of a dictionary's id (0, 1)."""
_STRETCHES = 4


class Setting(Enum):
    """How a run of bytes is coded. Only the encoder cares: both zstd settings give the same kind of frame."""

    RAW = 0
    TUNED = 1
    LEVEL1 = 2


def sample(raw: Buffer, width: int = 1) -> bytes:
    """About 32 KiB of `raw`, from a few places, in whole elements: what `plan` and `choose` want to see."""
    view = memoryview(raw).cast("B")
    if len(view) <= SAMPLE:
        return bytes(view)
    stretch = SAMPLE // _STRETCHES
    last = len(view) - stretch
    starts = [last * i // (_STRETCHES - 1) // width * width for i in range(_STRETCHES)]
    return b"".join(view[start : start + stretch] for start in starts)


class Coder:
    """The zstd contexts of one thread. Not thread-safe; they cost about 1 MB and are made to be kept."""

    def __init__(self) -> None:
        tuned = zstandard.ZstdCompressionParameters(
            window_log=17,
            hash_log=6,
            min_match=7,
            strategy=zstandard.STRATEGY_FAST,
            write_content_size=1,
            write_checksum=0,
            write_dict_id=0,
        )
        self._compressors = {
            Setting.TUNED: zstandard.ZstdCompressor(compression_params=tuned),
            Setting.LEVEL1: zstandard.ZstdCompressor(
                level=1, write_content_size=True, write_checksum=False, write_dict_id=False
            ),
        }
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def deflate(self, raw: Buffer, setting: Setting) -> bytes | None:
        """The frame of `raw`; None when it would not be shorter than `raw`, and always for RAW."""
        if setting is Setting.RAW or not len(raw):
            return None
        frame = self._compressors[setting].compress(cast(bytes, raw))
        return frame if len(frame) < len(raw) else None

    def inflate(self, stored: Buffer, length: int) -> bytes:
        """The content of one stored frame, exactly `length` bytes; anything else is `Corrupt`.

        Allocates `length` bytes and a constant, whatever the frame declares.
        """
        # python-zstandard reads skippable frames as empty and allocates what is declared: look first.
        if bytes(stored[:4]) != zstandard.FRAME_HEADER:
            raise Corrupt("a stored zstd frame does not start with its magic number; fetch the block again")
        if len(stored) > 4 and stored[4] & _UNUSED:
            raise Corrupt("a stored zstd frame sets a bit that has no meaning; fetch the block again")
        frame = cast(bytes, stored)
        try:
            declared = zstandard.get_frame_parameters(frame)
            if declared.content_size != length or length == 0:
                raise Corrupt(f"a zstd frame does not declare {length} bytes; fetch the block again")
            if declared.window_size > MAX_WINDOW or declared.has_checksum or declared.dict_id:
                raise Corrupt("a zstd frame asks for what the format excludes; fetch the block again")
            content = self._decompressor.decompress(frame, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a stored zstd frame does not decode ({error}); fetch the block again") from error
        if len(content) != length:
            raise Corrupt(f"a zstd frame holds {len(content)} bytes, not {length}; fetch the block again")
        return content

    def choose(self, piece: Buffer) -> tuple[Setting, int]:
        """The setting that suits bytes like `piece`, and the bytes that it stores `piece` in.

        Coding must save 2 % to be worth its time, and LEVEL1, at half the speed, 5 % more than TUNED.
        """
        tuned = _size(self.deflate(piece, Setting.TUNED), piece)
        level1 = _size(self.deflate(piece, Setting.LEVEL1), piece)
        setting, size = (Setting.LEVEL1, level1) if level1 < 0.95 * tuned else (Setting.TUNED, tuned)
        return (setting, size) if size < 0.98 * len(piece) else (Setting.RAW, len(piece))

    def encode_zstd(self, raw: Buffer) -> bytes | None:
        """Codec `zstd`: `raw` as one frame in the better setting; None when it would not be shorter."""
        if len(raw) > SAMPLE:
            return self.deflate(raw, self.choose(sample(raw))[0])
        frames = [self.deflate(raw, setting) for setting in (Setting.TUNED, Setting.LEVEL1)]
        return min((frame for frame in frames if frame is not None), key=len, default=None)

    def decode_zstd(self, stored: Buffer, out: memoryview) -> None:
        """Fill `out`, as long as the raw block, from what `encode_zstd` gave; `Corrupt` if that fails."""
        if len(stored) >= out.nbytes:
            raise Corrupt("a compressed block is not shorter than its raw bytes; fetch it again")
        out.cast("B")[:] = self.inflate(stored, out.nbytes)


def _size(frame: bytes | None, piece: Buffer) -> int:
    return len(piece) if frame is None else len(frame)
