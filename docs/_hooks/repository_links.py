"""Links to files of the repository that are no page: plain text on the site, unless `repo_url` says where they are."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that lead out of the folder of the pages."""
    docs = Path(config.docs_dir)

    def rewritten(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(docs.name, posixpath.dirname(page.file.src_uri), link[2]))
        if path.startswith(f"{docs.name}/"):
            return link[0]
        if not (docs.parent / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which is not there")
        return f"[{link[1]}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else link[1]

    return LINK.sub(rewritten, markdown)
