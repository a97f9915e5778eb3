"""Tensors in device memory as sources of bytes.

Every copy waits for the stream that was current when the source was made, so it sees what the caller's program has
written up to then, on whatever thread the copy is begun.
"""

from __future__ import annotations

import numpy as np
import torch

from cas.tensors import Array, rows_under

from .memory import writable_bytes

# Elements travel as integers of their width: not every device computes with every dtype, but all of them move these.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class DeviceSource:
    """A strided tensor on any device; one on the host works too, only slower than an `ArraySource`."""

    __slots__ = ("_stream", "_tensor", "nbytes")
    device = "torch"

    def __init__(self, tensor: torch.Tensor) -> None:
        self.nbytes = tensor.nbytes
        same = tensor.detach().view(_INTEGERS.get(tensor.element_size(), tensor.dtype))
        self._tensor = same.view(-1) if same.is_contiguous() else same
        self._stream = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None

    def read_into(self, start: int, out: Array) -> None:
        """Copy the bytes [start, start + len(out)); only the elements under them cross to the host."""
        size = self._tensor.element_size()
        first, last = start // size, -(-(start + len(out)) // size)
        with torch.cuda.stream(self._stream):  # None changes nothing
            pieces = [piece.reshape(-1) for piece in rows_under(self._tensor, first, last)]
            host = (pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)).cpu()
        np.copyto(out, host.numpy().view(np.uint8)[start - first * size :][: len(out)])

    def copy_to(self, out: Array) -> None:
        """Begin to copy all bytes to `out`, on a stream of its own; without CUDA the copy is done on return."""
        if not self.nbytes:
            return
        target = torch.from_numpy(out).view(self._tensor.dtype).view(self._tensor.shape)
        if self._stream is None:
            target.copy_(self._tensor)
            return
        side = _side_stream(self._tensor.device)
        side.wait_stream(self._stream)
        with torch.cuda.stream(side):
            target.copy_(self._tensor, non_blocking=True)
        # If the caller drops the tensor now, its memory is not given away before the copy has read it.
        self._tensor.record_stream(side)


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    stream = _side_streams.get(device)
    if stream is None:
        made = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = _side_streams.setdefault(device, made)
    return stream


def wait_for_copies() -> None:
    for stream in list(_side_streams.values()):
        stream.synchronize()


def pinned(nbytes: int) -> Array:
    """Page-locked memory where CUDA can use it, else plain memory. The array keeps it alive."""
    if not nbytes or not torch.cuda.is_available():
        return np.empty(nbytes, np.uint8)
    return writable_bytes(torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True))
