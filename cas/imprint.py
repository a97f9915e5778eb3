"""Whether a derived file is byte for byte the one that was left here.

The imprint holds size, BLAKE3, inode and time of change. The last two say that the file was made on this machine: in a
store that came from elsewhere, and may be hostile, none fits.
"""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

_MAX = 256


def take(file: Path, flag: Path) -> None:
    """Leave the imprint of `file` in `flag`."""
    temporary = flag.with_name(f"{flag.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(_imprint(file))
    os.replace(temporary, flag)


def fits(file: Path, flag: Path) -> bool:
    """Whether `flag` holds the imprint of `file` as it is now; also False where one of them cannot be read."""
    try:
        if not flag.is_file() or not file.is_file():
            return False
        with flag.open("rb") as held:
            return held.read(_MAX) == _imprint(file)
    except OSError:
        return False


def _imprint(file: Path) -> bytes:
    # One thread: those of BLAKE3 do not survive a fork, and a child would wait for them for ever.
    digest, status = blake3().update_mmap(file).hexdigest(), file.stat()
    return f"{status.st_size} {digest} {status.st_ino} {status.st_ctime_ns}\n".encode()
