"""``memcore plugins``: what is installed and what it offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memcore.cli.failures import FAILED
from memcore.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from memcore.component_check import Kind
    from memcore.plugins import Offer


def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Load every component too, and fail if a plugin or component is broken.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List plugins and what they offer.

    That is backends, embedders, eviction policies and adapters, and why one cannot be used here.
    """
    import attrs
    from rich.table import Table

    from memcore.component_check import KINDS
    from memcore.plugins import registry

    found = registry()
    offers = [(kind, offer) for kind in KINDS for offer in found.components(kind).values()]
    problems = {(kind, offer.component.name): _problem(kind, offer) if check else "" for kind, offer in offers}
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
                        "available": not offer.missing() and not problems[kind, offer.component.name],
                        "missing": offer.missing(),
                        "problem": problems[kind, offer.component.name],
                    }
                    for kind, offer in offers
                ],
            }
        )
    else:
        table = Table("plugin", "from", "status", title="Plugins", title_justify="left")
        for report in found.reports:
            status = "\n".join([report.status, *report.error])
            table.add_row(report.name, f"{report.distribution} {report.version}", status)
        console.print(table)
        table = Table("kind", "name", "plugin", "what it is", title="Components", title_justify="left")
        for kind, offer in offers:
            reason = offer.missing() or problems[kind, offer.component.name]
            summary = f"{offer.component.summary}\nnot available: {reason}" if reason else offer.component.summary
            table.add_row(kind.replace("_", " "), offer.component.name, offer.plugin, summary)
        console.print(table)
    if check and (any(problems.values()) or any(report.error for report in found.reports)):
        raise typer.Exit(FAILED)


def _problem(kind: Kind, offer: Offer) -> str:
    """Load a component and return what is wrong with it; empty if nothing is, or a package it needs is missing."""
    from memcore.errors import PluginError
    from memcore.plugins import registry

    if offer.missing():
        return ""
    try:
        registry().load_component(kind, offer.component.name)
    except PluginError as error:
        return str(error)
    return ""
