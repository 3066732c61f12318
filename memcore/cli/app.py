"""The application: its commands, and how errors are shown."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import memcore
from memcore.cli import (
    ask,
    chat,
    demo,
    doctor,
    evaluate,
    failures,
    ingest,
    inspect,
    logs,
    memory,
    memory_stats,
    plan,
    plugins,
    serve,
    train,
    verbosity,
)
from memcore.cli.output import warnings_in_a_line

DEBUG = "MEMCORE_DEBUG"

_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # typer has it from click or, later, of its own


class _Group(TyperGroup):
    """Ends a command that fails with one line, or with JSON, and an exit code; a bug keeps its traceback."""

    _as_json = False

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        verbosity.take_behind_commands(self)

    def main(self, args: Any = None, *more: Any, standalone_mode: bool = True, **named: Any) -> Any:
        self._as_json = "--json" in (sys.argv[1:] if args is None else args)
        named["standalone_mode"] = standalone_mode and not self._as_json
        if named["standalone_mode"] or not standalone_mode:
            return super().main(args, *more, **named)
        try:
            code = super().main(args, *more, **named)
        except _USAGE_ERROR as error:
            failures.show("UsageError", error.format_message(), as_json=True)
            code = error.exit_code
        except typer.Abort:
            failures.show("Aborted", "nothing was done", as_json=True)
            code = failures.FAILED
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (failures.Interrupted, KeyboardInterrupt) as error:
            message = str(error) or "nothing more was done"
            failures.show("Interrupted", message, as_json=self._as_json, style="yellow", label="interrupted: ")
            raise typer.Exit(failures.INTERRUPTED) from error
        except Exception as error:
            told = failures.told(error)
            if told is None or ctx.params.get("debug"):
                raise
            failures.show(type(error).__name__, told, as_json=self._as_json)
            raise typer.Exit(failures.FAILED) from error


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("demo")(demo.demo)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("ingest")(ingest.ingest)
app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("plugins")(plugins.plugins)
app.command("doctor")(doctor.doctor)
memory.app.command("stats")(memory_stats.stats)
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
        # Progress is shown by the commands themselves, or by the hub where they let it.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        context.with_resource(warnings_in_a_line())
    for stream in (sys.stdout, sys.stderr):
        # Windows writes to pipes in an encoding that lacks most characters; a model may say any.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if verbose:
        verbosity.choose(context, "verbose")
    if quiet:
        verbosity.choose(context, "quiet")
        verbosity.hide_notes(context)
    level = logs.Level.INFO if verbose else logs.Level.ERROR if quiet else log_level
    context.with_resource(logs.shown_log(level, as_json=log_json))
