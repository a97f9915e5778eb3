"""Where the command begins, as `cas` and as `python -m cas.cli`."""

from __future__ import annotations

import signal
import sys


def start() -> int:
    """Run the command; an interrupt that comes while its modules are imported ends it as any other does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    from .main import INTERRUPTED, main

    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return main()
    except KeyboardInterrupt:
        print("cas: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(start())
