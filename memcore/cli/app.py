"""The application: its commands, and how errors are shown."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import memcore
from memcore.cli import ask, chat, demo, doctor, evaluate, ingest, logs, memory, plan, plugins, train
from memcore.cli.output import errors
from memcore.errors import MemcoreError

DEBUG = "MEMCORE_DEBUG"


class _Group(TyperGroup):
    """Shows memcore's own errors as one line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MemcoreError as error:
            if ctx.params.get("debug"):
                raise
            errors.print(f"error: {error}", style="bold red", soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
)
app.command("demo")(demo.demo)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("ingest")(ingest.ingest)
app.command("plan")(plan.plan)
app.command("plugins")(plugins.plugins)
app.command("doctor")(doctor.doctor)
app.add_typer(memory.app, name="memory")
app.add_typer(evaluate.app, name="eval")
app.command("train")(train.train)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memcore {memcore.__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", envvar=DEBUG, help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    log_level: Annotated[
        logs.Level, typer.Option("--log-level", envvar=logs.LEVEL, help="What of the log to show on stderr.")
    ] = logs.Level.WARNING,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens: --log-level info.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only: --log-level error.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", envvar=logs.JSON, help="Show the log as JSON, a line each.")
    ] = False,
) -> None:
    """Long-term memory for Hugging Face decoder models."""
    if not debug:
        # Progress is shown by the commands themselves.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet contradict each other")
    level = logs.Level.INFO if verbose else logs.Level.ERROR if quiet else log_level
    context.with_resource(logs.shown_log(level, as_json=log_json))
