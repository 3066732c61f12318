"""Mermaid diagrams become pictures when the site is built: readers need no script, and a faulty one stops the build."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import mermaidx  # type: ignore[import-untyped]
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let ``mermaid`` blocks be drawn by :func:`draw`."""
    superfences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    superfences["custom_fences"] = [{"name": "mermaid", "class": "diagram", "format": draw}]
    return config


def draw(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """Return the diagram as inline SVG. ``_assets/site.css`` has its colours, light and dark."""
    return f'<div class="{css_class}">{_svg(source)}</div>'


READABLE = 0.65
"""How small a diagram may become on a narrow screen; from there on it scrolls."""

_numbers = itertools.count()


@functools.cache
def _svg(source: str) -> str:
    svg = mermaidx.render(source, config={"flowchart": {"wrappingWidth": 280}}).svg()
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    width = re.search(r"max-width: ([\d.]+)px;", svg)
    if width is None:
        raise PluginError(f"a diagram was drawn without a width:\n{source}")
    svg = svg.replace(width[0], f"{width[0]} min-width: {READABLE * float(width[1]):.0f}px;")
    # Of several on a page each needs names of its own.
    return svg.replace("my-svg", f"diagram-{next(_numbers)}")
