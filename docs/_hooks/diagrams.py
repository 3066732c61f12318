"""Mermaid diagrams become pictures when the site is built: readers need no script, and a faulty one stops the build."""

from __future__ import annotations

import functools
import re
from typing import Any

import mermaidx  # type: ignore[import-untyped]
from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let ``mermaid`` blocks be drawn by :func:`draw`."""
    superfences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    superfences["custom_fences"] = [{"name": "mermaid", "class": "diagram", "format": draw}]
    return config


def draw(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """Return the diagram as inline SVG. ``_assets/site.css`` has its colours, light and dark."""
    return f'<div class="{css_class}">{_svg(source)}</div>'


_drawn: dict[str, str] = {}


@functools.cache
def _svg(source: str) -> str:
    number = len(_drawn)
    svg = mermaidx.render(source, config={"flowchart": {"wrappingWidth": 280}}).svg()
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    return svg.replace("my-svg", f"diagram-{number}")
