"""The page on the configuration gets each field's type, default and meaning from the code: they are written once."""

from __future__ import annotations

import re

import attrs
from griffe import Docstring, DocstringSectionAttributes
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from memcore.config import MemoryConfig

PAGE = "configuration.md"
HEADING = re.compile(r"^### `(\w+)`$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put type, default and meaning below the heading of each field."""
    if page.file.src_uri != PAGE:
        return markdown
    fields = attrs.fields_dict(MemoryConfig)
    if set(HEADING.findall(markdown)) != set(fields):
        raise PluginError(f"{PAGE} must have a heading for each of {sorted(fields)}")
    meanings = _meanings()

    def described(heading: re.Match[str]) -> str:
        field = fields[heading[1]]
        default = _default(field)
        kind = str(field.type).replace("Mapping[str, object]", "mapping")
        return f"{heading[0]}\n\n`{kind}`, by default `{default}`: {meanings[field.name]}\n"

    return HEADING.sub(described, markdown)


def _default(field: attrs.Attribute[object]) -> str:
    return str({}) if isinstance(field.default, attrs.Factory) else repr(field.default)  # type: ignore[arg-type]


def _meanings() -> dict[str, str]:
    """Return what the docstring says of each field."""
    assert MemoryConfig.__doc__ is not None
    for section in Docstring(MemoryConfig.__doc__).parse("google", warnings=False):
        if isinstance(section, DocstringSectionAttributes):
            return {each.name: " ".join(each.description.split()).replace("``", "`") for each in section.value}
    raise PluginError("the docstring of MemoryConfig has no section 'Attributes'")
