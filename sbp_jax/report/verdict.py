"""What the figures say in words: the headline, and how far a run of this size can be believed."""

from __future__ import annotations

import dataclasses

from sbp_jax.report.results import ORACLE, SBP, Results

# Held-out losses of runs that differed in nothing but the trainer's seed lay no further apart than
# this, in nats per token: three seeds of each of two arms of gin/experiments/pydocs.gin, a model of
# under a million parameters, spread over 0.006 and 0.007.
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
    share, noise = results.oracle_gain_recovered, seed_noise(results)
    sentences = [
        _against_repetition("SBP", gain),
        _against_repetition("The oracle", possible),
    ]
    if gain is None:
        return Verdict(
            f"Held-out loss of {_number_of_arms(len(results.arms))}",
            tuple(sentence for sentence in sentences if sentence),
        )
    if share is not None and gain < 0:
        sentences.append(
            f"As a share of the oracle’s gain that is {percent(share)}: nothing was recovered."
        )
    if possible is not None and possible <= 0:
        sentences.append(
            "Without a gain of the oracle there is nothing that SBP could recover a share of: "
            "the share is undefined."
        )
    title = _title(gain, share)
    if noise is not None and 0 < abs(gain) < noise:
        title += ", within seed noise"
        sentences.append(
            f"Differences of about {noise} nats per token lie within seed noise at this "
            "scale: this run does not tell SBP and repetition apart."
        )
    if noise is not None and possible is not None and 0 < possible < noise:
        sentences.append(
            "The oracle’s own gain lies within seed noise, so the share of it means little."
        )
    return Verdict(title, tuple(sentence for sentence in sentences if sentence))


def seed_noise(results: Results) -> float | None:
    """How far apart seeds alone put held-out losses; None at a size where that is not known."""
    return SEED_NOISE if is_small(results) else None


def is_small(results: Results) -> bool:
    """Whether the run's models are far smaller than any that the method was published for."""
    return max(arm.parameters for arm in results.arms) < SMALL_PARAMETERS


def limits(results: Results) -> tuple[str, ...]:
    """What the run can and cannot show, a paragraph each."""
    noise = seed_noise(results)
    chance = (
        "how far seeds alone would put them apart was not measured at this size, "
        if noise is None
        else f"differences of about {noise} nats per token lie within seed noise at this scale, "
    )
    paragraphs = [
        f"Each arm is one model of {_range(results, 'parameters')} parameters, trained once, with "
        f"one seed, on {_range(results, 'train_tokens')} tokens. It shows that the stages work "
        "together on this text and how the arms came out this one time. It does not show how much "
        f"of that is chance: {chance}and only several seeds an arm would settle it.",
        "A comparison is fair only where the settings of all arms, dropout and learning rate "
        "above all, were tuned alike, over the same range, on the development set. An untuned "
        "repetition arm makes any other look good. The settings in which the arms differ are "
        "listed below.",
    ]
    if is_small(results):
        paragraphs.append(
            "The method was published for models of three billion parameters and more, trained "
            "on hundreds of billions of tokens. Tens of thousands of documents at most, and a "
            "model this small, are far from that: what such a model writes tends to be poor. "
            "With other text, or another seed, the share may be another. A small or "
            "negative share here says nothing against the method at scale, and a large one "
            "nothing for it."
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


def percent(share: float) -> str:
    """0.384 to 38%; small shares keep a decimal."""
    digits = 0 if abs(share) >= 0.1 else 1
    return f"{100 * share:.{digits}f}%".replace("-", "−")


def short(count: float) -> str:
    """A count in three figures: 4.28M."""
    rounded = float(f"{count:.3g}")
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:g}{unit}"
    return f"{rounded:g}"


def _title(gain: float, share: float | None) -> str:
    if gain < 0:
        return "SBP did worse than repetition"
    if gain == 0:
        return "SBP made no difference"
    if share is None:
        return f"SBP gained {gain:.4f} nats per token over repetition"
    return f"SBP recovered {percent(share)} of the oracle’s gain over repetition"


def _against_repetition(subject: str, gain: float | None) -> str:
    if gain is None:
        return ""
    if gain == 0:
        return f"{subject} has the same held-out loss as repetition."
    direction = "below" if gain > 0 else "above"
    return f"{subject}’s held-out loss is {abs(gain):.4f} nats per token {direction} repetition’s."


def _number_of_arms(count: int) -> str:
    words = {1: "one arm", 2: "two arms", 3: "three arms"}
    return words.get(count, f"{count} arms")


def _range(results: Results, figure: str) -> str:
    values = [getattr(arm, figure) for arm in results.arms]
    low, high = short(min(values)), short(max(values))
    return low if low == high else f"{low} to {high}"
