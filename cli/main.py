"""The entry point: the group of all commands, and from whatever happens to an exit code.

    0 ok                         2 usage, Invalid    10 no store     12 ref conflict    130 interrupted
    1 findings or differences    3 any other error   11 not found    13 corrupt

Errors are one sentence on stderr. A closed pipe (`cas log | head -1`) ends silently with 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TextIO

import click

from cas.errors import CasError

from .options import storage_option
from .output import clean

INTERRUPTED = 130
_USAGE = 2
_OTHER = 3


class _Warnings(logging.Handler):
    """Shows what `cas` warns of on stderr, a sentence each."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
            print(f"cas: warning: {clean(record.getMessage())}", file=sys.stderr, flush=True)


_warnings = _Warnings(logging.WARNING)


class _PipeClosed(Exception):
    """Nobody reads on. Not an OSError: click would make an exit with code 1 of that."""


COMMANDS = {
    "init": "upkeep",
    "commit": "commit",
    "log": "history",
    "show": "listing",
    "ls": "listing",
    "cat": "cat",
    "diff": "diff",
    "checkout": "export",
    "branch": "refs",
    "tag": "refs",
    "reset": "rewinding",
    "undo": "rewinding",
    "plot": "plot",
    "stats": "upkeep",
    "remote": "remote",
    "clone": "clone",
    "fetch": "fetch",
    "pull": "pull",
    "push": "push",
    "prune": "freeing",
    "repack": "repack",
    "gc": "freeing",
    "fsck": "fsck",
    "completion": "completion",
}
"""Each command and the module that it is in, which is imported for that command alone."""


class _Group(click.Group):
    """The commands, in the order above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"{__package__}.{COMMANDS[cmd_name]}"), cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosed from error


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "place", metavar="PATH", envvar="CAS_STORE", help="The store. Else CAS_STORE, else upwards.")
@storage_option("the store")
@click.version_option(package_name="cas-checkpoints", prog_name="cas")
@click.pass_context
def cas(context: click.Context, place: str | None, options: dict[str, Any]) -> None:
    """Checkpoints in a content-addressed store.

    The store is --store, CAS_STORE, or the first found upwards from the current directory: a directory with
    cas.json, a .cas/ store, or a .cas file that holds a path or URL. A URL is such as s3://bucket/run.

    A revision REV is a branch, a tag, 4 or more digits of an id, or steps from one: main~2, main@{1},
    main@step:1000, main@min:loss. Without one it is main, else the only branch.

    Exit codes: 0 ok, 1 findings or differences, 2 usage, 3 other errors, 10 no store, 11 not found, 12 ref conflict,
    13 corrupt, 130 interrupted.

    \b
    Example:
      cas init
      cas log main -n 5
      cas checkout main -o weights/
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; never raises."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name must not fail for want of an encoding
    logging.getLogger("cas").addHandler(_warnings)  # once: a handler is added to a logger only if it is not there
    try:
        return _run(arguments)
    except _PipeClosed:
        _drop(sys.stdout)
        return 0
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(": ".join(filter(None, ("interrupted", str(error)))), INTERRUPTED)
    except click.ClickException as error:
        return _fail(_usage(error), _USAGE)
    except CasError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(_os_error(error), _OTHER)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # wrapped by a class that was being made in an import
            return _fail("interrupted", INTERRUPTED)
        if os.environ.get("CAS_DEBUG"):
            traceback.print_exc()
        text = f"this is a defect, please report it with what CAS_DEBUG=1 prints: {type(error).__name__}: {error}"
        return _fail(text, _OTHER)


def _run(arguments: Sequence[str] | None) -> int:
    code = cas.main(arguments, prog_name="cas", standalone_mode=False)
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise _PipeClosed from error
    return code or 0


def _fail(text: str, code: int) -> int:
    try:
        sys.stdout.flush()
        print(f"cas: {clean(text)}", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stdout)
        _drop(sys.stderr)
    return code


def _drop(stream: TextIO) -> None:
    """Send what is left in the buffer nowhere: the interpreter would fail on it once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")  # that of a choice has several lines
    context = getattr(error, "ctx", None)
    return f"{message[:1].lower()}{message[1:]}; see `{context.command_path if context else 'cas'} --help`"


def _os_error(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{error.strerror or error}" + (f": {' -> '.join(names)}" if names else "")
