"""``memcore eval``: what memory is worth on a user's model and texts, beside what one would use without it."""

from __future__ import annotations

import typer

from memcore.cli.evaluate.icl import icl
from memcore.cli.evaluate.passkey import passkey
from memcore.cli.evaluate.ppl import ppl
from memcore.cli.evaluate.qa import qa

app = typer.Typer(no_args_is_help=True, help="Measure what memory is worth: results as JSON, a table and a picture.")
app.command()(ppl)
app.command()(passkey)
app.command()(icl)
app.command()(qa)

__all__ = ["app"]
