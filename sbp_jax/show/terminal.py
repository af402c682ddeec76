"""Examples for a terminal: neighbouring tokens in two shades, those without loss dim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sbp_jax.show.examples import Example, Token

BOLD, DIM, RESET = "\033[1m", "\033[2m", "\033[0m"
SHADES = ("\033[48;5;254;38;5;16m", "\033[48;5;252;38;5;16m")
QUIET = ("\033[38;5;245m", "\033[38;5;242m")
SPECIAL = "\033[38;5;161m"


def render(examples: Sequence[Example], coloured: bool) -> str:
    """The examples as text; without colours, tokens without loss stand in ⟦ ⟧."""
    blocks = []
    for example in examples:
        facts = " · ".join(f"{name} {value}" for name, value in example.facts.items())
        lines = [_styled(f"━━ {example.title}", BOLD, coloured)]
        if facts:
            lines.append(_styled(f"   {facts}", DIM, coloured))
        for part in example.parts:
            lines.append(_styled(f"── {part.title}", DIM, coloured))
            lines.append("".join(_coloured(part.tokens) if coloured else _plain(part.tokens)))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _styled(text: str, style: str, coloured: bool) -> str:
    return f"{style}{text}{RESET}" if coloured else text


def _coloured(tokens: Sequence[Token]) -> Iterable[str]:
    for number, token in enumerate(tokens):
        style = (SHADES if token.loss else QUIET)[number % 2] + (SPECIAL if token.special else "")
        # A shade that runs over the end of a line colours the rest of it.
        for text in token.text.replace("\n", "⏎\n").splitlines(keepends=True) or [""]:
            line = text.removesuffix("\n")
            yield f"{style}{line}{RESET}" + ("\n" if line != text else "")


def _plain(tokens: Sequence[Token]) -> Iterable[str]:
    before = True
    for token in tokens:
        if token.loss != before:
            yield "⟧" if token.loss else "⟦"
        yield token.text
        before = token.loss
    if not before:
        yield "⟧"
