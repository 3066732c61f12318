"""``memcore plugins``: what is installed and what it offers."""

from __future__ import annotations

from typing import Annotated

import typer

from memcore.cli.output import console, print_json


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List plugins and what they offer.

    That is backends, embedders, eviction policies and adapters, and why one cannot be used here.
    """
    import attrs
    from rich.table import Table

    from memcore.component_check import KINDS
    from memcore.plugins import registry

    found = registry()
    offers = [(kind, offer) for kind in KINDS for offer in found.components(kind).values()]
    if as_json:
        print_json(
            {
                "plugins": [attrs.asdict(report) for report in found.reports],
                "components": [
                    {
                        "kind": kind,
                        "name": offer.component.name,
                        "plugin": offer.plugin,
                        "summary": offer.component.summary,
                        "available": not offer.missing(),
                        "missing": offer.missing(),
                    }
                    for kind, offer in offers
                ],
            }
        )
        return
    table = Table("plugin", "from", "status", title="Plugins", title_justify="left")
    for report in found.reports:
        status = "\n".join([report.status, *report.error])
        table.add_row(report.name, f"{report.distribution} {report.version}", status)
    console.print(table)
    table = Table("kind", "name", "plugin", "what it is", title="Components", title_justify="left")
    for kind, offer in offers:
        missing = offer.missing()
        summary = f"{offer.component.summary}\nnot available: {missing}" if missing else offer.component.summary
        table.add_row(kind.replace("_", " "), offer.component.name, offer.plugin, summary)
    console.print(table)
