"""What the figures say in words: the headline, and how far a run of this size can be believed."""

from __future__ import annotations

import dataclasses

from sbp_jax.report.results import ORACLE, REPETITION, SBP, Arm, Results

# Held-out losses of runs that differed in nothing but the seed lay about this far apart, in nats
# per token, in trials with models of under a million parameters.
SEED_NOISE = 0.01

# Below this many parameters the page says what a small run cannot show.
SMALL_PARAMETERS = 100_000_000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A headline and the sentences under it."""

    title: str
    sentences: tuple[str, ...]


def verdict(results: Results) -> Verdict:
    """The outcome of a run, as it is: a loss is called a loss."""
    gain, possible = results.gain(SBP), results.gain(ORACLE)
    sentences = [_against_repetition(SBP, "SBP", gain), _against_repetition(ORACLE, "The oracle", possible)]
    share = results.oracle_gain_recovered
    if gain is None:
        title = f"Held-out loss of {_number_of_arms(len(results.arms))}"
    elif share is not None:
        title = _title_with_share(gain, share)
        if gain < 0:
            sentences.append(
                f"As a share of the oracle’s gain that is {percent(share)}: nothing was recovered."
            )
    else:
        title = _title_without_share(gain)
    if possible is not None and possible <= 0 and gain is not None:
        sentences.append(
            "Without a gain of the oracle there is nothing that SBP could recover a share of: "
            "the share is undefined."
        )
    if gain is not None and abs(gain) < SEED_NOISE:
        sentences.append(
            f"Differences of about {SEED_NOISE} nats per token lie within seed noise at this "
            "scale: this run does not tell SBP and repetition apart."
        )
    if share is not None and possible is not None and possible < SEED_NOISE:
        sentences.append(
            "The oracle’s own gain lies within seed noise, so the share of it means little."
        )
    return Verdict(title, tuple(s for s in sentences if s))


def limits(results: Results) -> tuple[str, ...]:
    """What the run can and cannot show, a paragraph each."""
    largest = max(results.arms, key=lambda arm: arm.parameters)
    paragraphs = [
        f"Each arm is one model of {short(largest.parameters)} parameters, trained once, with one "
        f"seed, on {_tokens(results)}. It shows that the stages work together on this text and how "
        "the arms came out this one time. It does not show how much of a difference is chance: "
        f"at this scale differences of about {SEED_NOISE} nats per token lie within seed noise, "
        "and only several seeds an arm would settle them.",
        "A comparison is fair only where the settings of all arms, dropout and learning rate "
        "above all, were tuned alike, over the same range, on the development set. An untuned "
        "repetition arm makes any other look good. The settings that each arm was trained with "
        "are listed below.",
    ]
    if largest.parameters < SMALL_PARAMETERS:
        paragraphs.append(
            "The method was published for models of three billion parameters and more, trained "
            "on hundreds of billions of tokens. Tens of thousands of documents at most, and a "
            "model this small, are far from that: its synthetic text is mostly poor, and earlier "
            "trials on real text of this size recovered a share near zero. A small or negative "
            "share here says nothing against the method at scale, and a large one nothing for it."
        )
    return tuple(paragraphs)


def cautions(results: Results) -> tuple[str, ...]:
    """Reasons why the arms of this run cannot be compared as they stand; none in a sound run."""
    found = []
    if not results.equal_tokens:
        figures = ", ".join(f"{arm.name} {arm.train_tokens:,}" for arm in results.arms)
        found.append(f"The arms were not trained on equally many tokens ({figures}).")
    if not results.same_heldout:
        figures = ", ".join(f"{arm.name} {arm.heldout_tokens:,}" for arm in results.arms)
        found.append(f"The arms were not scored on the same held-out text (tokens: {figures}).")
    for arm in results.arms:
        for source in arm.sources:
            if source.synthetic and source.passes > 1:
                found.append(
                    f"{arm.name} read the synthetic text of {source.name} {source.passes:.2f} "
                    "times; each document should be seen at most once."
                )
    return tuple(found)


def lines(results: Results) -> list[str]:
    """The outcome for a terminal: a line for each arm, then the headline."""
    rows = [
        f"{arm.name:<12} held-out loss {arm.heldout_loss:.4f} nats per token, "
        f"{arm.heldout_bits_per_byte:.4f} bits per byte"
        for arm in results.arms
    ]
    share = results.oracle_gain_recovered
    recovered = "undefined" if share is None else percent(share)
    return [*rows, f"share of the oracle's gain recovered: {recovered}"]


def percent(share: float) -> str:
    """0.384 to 38%; small shares keep a decimal."""
    digits = 0 if abs(share) >= 0.1 else 1
    return f"{100 * share:.{digits}f}%".replace("-", "−")


def short(count: float) -> str:
    """A count in three figures or so: 4.28M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}" if abs(count) < 1000 * size else f"{count / size:.0f}{unit}"
    return f"{count:g}"


def _title_with_share(gain: float, share: float) -> str:
    if gain < 0:
        return "SBP did worse than repetition"
    if gain == 0:
        return "SBP made no difference"
    return f"SBP recovered {percent(share)} of the oracle’s gain over repetition"


def _title_without_share(gain: float) -> str:
    if gain < 0:
        return "SBP did worse than repetition"
    if gain == 0:
        return "SBP made no difference"
    return f"SBP gained {gain:.4f} nats per token over repetition"


def _against_repetition(name: str, subject: str, gain: float | None) -> str:
    if gain is None:
        return ""
    if gain == 0:
        return f"{subject} has the same held-out loss as {REPETITION}."
    direction = "below" if gain > 0 else "above"
    return f"{subject}’s held-out loss is {abs(gain):.4f} nats per token {direction} repetition’s."


def _number_of_arms(count: int) -> str:
    words = {1: "one arm", 2: "two arms", 3: "three arms"}
    return words.get(count, f"{count} arms")


def _tokens(results: Results) -> str:
    tokens = sorted({short(arm.train_tokens) for arm in results.arms})
    return f"{' to '.join((tokens[0], tokens[-1]) if len(tokens) > 1 else tokens)} tokens"


__all__ = ["SEED_NOISE", "Arm", "Verdict", "cautions", "limits", "lines", "percent", "short", "verdict"]
