"""The page on the command line, made of the commands themselves each time the site is built."""

from __future__ import annotations

import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "command-line.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    command = [sys.executable, "-m", "typer", "memcore.cli", "utils", "docs", "--name", "memcore"]
    made = subprocess.run([*command, "--title", "Command line"], capture_output=True, text=True, check=True).stdout
    # Nobody copies the prompt.
    files.append(File.generated(config, PAGE, content=made.replace("```console\n$ ", "```text\n")))
    return files
