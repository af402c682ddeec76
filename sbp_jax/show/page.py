"""Examples as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from sbp_jax.show.examples import Example


def render(title: str, examples: Sequence[Example]) -> str:
    """The page; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sbp_jax.show", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(title=title, examples=examples)
