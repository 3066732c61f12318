"""``--quiet`` and ``--verbose``, which may stand before a command and behind it."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from memcore.cli.logs import Level
from memcore.cli.output import notes
from memcore.log_event import ROOT


def hide_notes(context: typer.Context) -> None:
    """Show no progress and no notes on standard error until the command is done."""
    before, notes.quiet = notes.quiet, True
    # The root's: that of a command whose other options are wrong is never left.
    context.find_root().call_on_close(lambda: setattr(notes, "quiet", before))


def take_behind_commands(group: TyperGroup) -> None:
    """Let every command of a group, and of the groups in it, take the options."""
    wanted = [each for each in get_command(_options).params if each.name in ("quiet", "verbose")]
    groups: list[TyperGroup] = [group]
    for each in groups:
        groups += [inner for inner in each.commands.values() if isinstance(inner, TyperGroup)]
        for command in each.commands.values():
            command.params += [] if isinstance(command, TyperGroup) else wanted


def choose(context: typer.Context, name: str) -> None:
    """Note that one of the two was given, before a command or behind it; the other beside it is an error."""
    if context.meta.setdefault(__name__, name) != name:
        raise typer.BadParameter("--verbose and --quiet contradict each other")


# What stands before the command has set up the log, and puts its level back at the end.
def _quiet(context: typer.Context, given: bool) -> None:
    if given:
        choose(context, "quiet")
        logging.getLogger(ROOT).setLevel(Level.ERROR.number)
        hide_notes(context)


def _verbose(context: typer.Context, given: bool) -> None:
    if given:
        choose(context, "verbose")
        logging.getLogger(ROOT).setLevel(Level.INFO.number)


_options = typer.Typer(add_completion=False)


@_options.command()
def _behind(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=_quiet, expose_value=False, help="Show results and errors only, no progress."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", callback=_verbose, expose_value=False, help="Show what happens, in the log."),
    ] = False,
) -> None:
    """What is made here are the options, as a command line has them."""
