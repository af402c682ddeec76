"""The page of `sbp corpus-report`: one HTML file that needs nothing else."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

TEMPLATE = pathlib.Path(__file__).with_name("corpus.html")


def render(name: str, report: Mapping[str, Any]) -> str:
    """The page; all text is escaped.

    Args:
      name: of the run.
      report: what `report.json` holds.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        whole=lambda value: f"{round(value):,}",
        decimal=lambda value: f"{value:.3f}".replace("-", "−"),
        percent=lambda value: f"{100 * value:.1f}%",
    )
    most = max(max(kind["token_counts"]) for kind in report["kinds"])
    return environment.get_template(TEMPLATE.name).render(
        name=name, report=report, kinds=report["kinds"], most=max(most, 1)
    )
