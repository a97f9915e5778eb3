"""`cas completion`, and what the completion of revisions offers.

Completion is asked for at every press of a key: it prints nothing but its offers, and where it finds none, nothing.
"""

from __future__ import annotations

import re

import click
from click.shell_completion import ShellComplete, get_completion_class

import cas

from . import places
from .options import example
from .output import say

_PLAIN = re.compile(r"[\w./,+=%-]+")
SHELLS = ("bash", "zsh", "fish")


def complete_revision(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The branches and tags that begin so, as click's `shell_complete` wants them.

    Shells insert an offer as it is: a name in which one would find a command or a variable is not offered.
    """
    try:
        place = context.params.get("place") or context.find_root().params.get("place") or None
        with cas.open(places.find(place)) as store:
            names = [name for refs in store.refs().values() for name in refs]
    except (cas.CasError, OSError):  # no store here, or none that can be read: no offers
        return []
    return sorted({name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)})


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
