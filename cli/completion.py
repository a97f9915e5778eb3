"""`cas completion`, and what the completion of revisions and remotes offers.

Completion is asked for at every press of a key: it prints nothing but its offers, and where it finds none, nothing.
A store on another machine is not asked: that may take as long as its network does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import click
from click.shell_completion import ShellComplete, get_completion_class

import cas

from . import places
from .options import example
from .output import say

_PLAIN = re.compile(r"[\w./,+=%-]+")
SHELLS = ("bash", "zsh", "fish")


def complete_revision(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The branches, tags and tracking branches that begin so, as click's `shell_complete` wants them.

    Shells insert an offer as it is: a name in which one would find a command or a variable is not offered.
    """
    return _offered(context, incomplete, lambda store: [name for refs in store.refs().values() for name in refs])


def complete_remote(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The remotes that begin so."""
    return _offered(context, incomplete, lambda store: store.remotes())


def _offered(context: click.Context, incomplete: str, read: Callable[[cas.Store], Iterable[str]]) -> list[str]:
    try:
        place = places.find(context.params.get("place") or context.find_root().params.get("place") or None)
        if places.is_url(place):
            return []
        with cas.open(place) as store:
            names = set(read(store))
    except (cas.CasError, OSError):  # no store here, or none that can be read: no offers
        return []
    return sorted(name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name))


@click.command(
    short_help="Completion for a shell.",
    epilog=example(
        'cas completion bash >> ~/.bashrc  # or: eval "$(cas completion bash)"',
        "cas completion zsh >> ~/.zshrc",
        "cas completion fish > ~/.config/fish/completions/cas.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options and revisions."""
    root = click.get_current_context().find_root().command
    maker = get_completion_class(shell)
    assert maker is not None, "click knows these shells"
    say(ShellComplete.source(maker(root, {}, "cas", "_CAS_COMPLETE")))  # its own warns where bash is not installed
