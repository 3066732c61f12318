"""Pass-keys found with memory, exact and by the hnswlib graph, and with full attention: ``memcore eval passkey``.

    python benchmarks/passkey.py --tokens 8000 --tokens 32000

The hnswlib backend is made to search its graph at any size (``exact_below=0``), or short documents would only show its
exact scan again. Everything else that ``memcore eval passkey`` takes can be given, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memcore.cli import app

GRAPH = ["--set", "backend=hnswlib", "--set", "backend_options.exact_below=0"]
WAYS = ["--way", "memory:exact", "--way", "memory:hnswlib", "--way", "full"]


def main(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Hub id or folder; the demo model if left out.")] = "",
    dtype: Annotated[str, typer.Option(help="Weights and activations.")] = "bfloat16",
    output: Annotated[Path | None, typer.Option(help="Folder for the results; passkey-MODEL if left out.")] = None,
) -> None:
    """Count the pass-keys found at every depth and length; all other options go to `memcore eval passkey`."""
    if not model:
        from memcore.demo.weights import demo_model_path

        model = str(demo_model_path())
    folder = output or Path(f"passkey-{Path(model).name}")
    defaults = []
    for option, values in {"--tokens": ["--tokens", "8000"], "--way": [*WAYS, *GRAPH]}.items():
        if not any(given.partition("=")[0] == option for given in context.args):
            defaults += values
    app(["eval", "passkey", model, "--dtype", dtype, "--output", str(folder), *defaults, *context.args])


if __name__ == "__main__":
    command = typer.Typer(add_completion=False)
    command.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    command()
