"""Pages that stand elsewhere in the repository, where somebody who reads the sources looks for them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "security.md": "SECURITY.md",
}

LINK = re.compile(r"(?<!!)(\[[^\]]+\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, with links that lead to the same files from the folder of the others."""
    docs = Path(config.docs_dir)
    for page, source in PAGES.items():

        def rewritten(link: re.Match[str], folder: str = posixpath.dirname(source)) -> str:
            target = posixpath.normpath(posixpath.join(folder, link[2]))
            return f"{link[1]}{posixpath.relpath(target, docs.name)}{link[3]}"

        content = (docs.parent / source).read_text("utf-8")
        files.append(File.generated(config, page, content=LINK.sub(rewritten, content)))
    return files
