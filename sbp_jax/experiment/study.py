"""One seed of an experiment: its corpus, base model, synthesizers and arms, each made once.

Arms share initialisation, steps, batch and held-out documents, and differ in what they read:

    repetition       D_pretrain, over and over; it is the base model too
    sbp              D_pretrain, and what a synthesizer wrote that was tuned on related pairs
    oracle           as many tokens of different documents
    random_pairs     as sbp, tuned on pairs whose d1 is drawn at random
    from_scratch     as sbp, tuned from random parameters, for as many tokens
    unconditional    D_pretrain, and what the base model writes by itself
    shuffled_seeds   as sbp, reading seeds whose tokens are dealt out anew among all of them
    ideal            D_pretrain, and what a perfect synthesizer writes (of a concept world)
    augmentation     D_pretrain, and its rows with some of the tokens read as others
    second_round     as sbp, with the synthesizer tuned from the sbp arm's model
    repetition_charged  as repetition, for as many more tokens as sbp and its base cost in all
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from sbp_jax import artifacts
from sbp_jax.data.rows import document_piece, pair_piece, prompt, split
from sbp_jax.errors import UserError
from sbp_jax.experiment.corpora import Corpus, Splits
from sbp_jax.experiment.design import BASE, CORPUS, PAIRS, SYNTHESIZER, Design
from sbp_jax.experiment.fitting import Fit, Rows, Settings, Trainer, pack_rows
from sbp_jax.experiment.memory import Memory
from sbp_jax.experiment.pairing import Pairing, find_pairs
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.parallel.mesh import Layout
from sbp_jax.synthesize.sampler import Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan, Request, document_keys
from sbp_jax.train.optimizer import OptimizerConfig

ARMS = ("repetition", "sbp", "oracle")
CONTROLS = (
    "random_pairs",
    "from_scratch",
    "unconditional",
    "shuffled_seeds",
    "ideal",
    "augmentation",
)
FURTHER = ("second_round", "repetition_charged")
# Which synthesizer writes for an arm; that of `unconditional` is the base model.
SYNTHESIZERS = {
    "sbp": "related",
    "random_pairs": "random",
    "from_scratch": "scratch",
    "shuffled_seeds": "related",
    "second_round": "second",
}
# On which fields of the design an arm hangs, where not on all.
READ = {
    "repetition": BASE,
    "oracle": BASE,
    "ideal": (*BASE, "share"),
    "augmentation": (*BASE, "share", "augmentation"),
}
FORWARD_SHARE = 1 / 3  # of a training step's operations: a forward pass, and twice that backward
SNAPSHOTS = 20  # of the base model, evenly over its training
SAMPLES_PER_SEED = 1 << 20
SHARD = 64


class SynthesizerSettings(NamedTuple):
    """What is chosen for each synthesizer alike, by its loss of pairs with dev documents.

    Attributes:
      start: at which share of its training the base model is taken.
      fit: of the tuning.
    """

    start: float
    fit: Settings


@dataclasses.dataclass
class Choices:
    """Settings chosen so far.

    Attributes:
      arms: by name.
      synthesizers: by kind: `related`, `random`, `scratch`, `second`.
    """

    arms: dict[str, Settings] = dataclasses.field(default_factory=dict)
    synthesizers: dict[str, SynthesizerSettings] = dataclasses.field(default_factory=dict)


class Written(NamedTuple):
    """A synthetic document and where it comes from.

    Attributes:
      id: of the seed's id and the sample's number.
      seed_id: of D_pretrain.
      sample: which of the seed's.
      key: hexadecimal key data, from which it can be sampled again.
      finish_reason: as `Sample` has it.
      tokens: without EOS.
    """

    id: str
    seed_id: str
    sample: int
    key: str
    finish_reason: str
    tokens: list[int]


class Study:
    """One seed of an experiment.

    Args:
      run: names the experiment.
      corpus: of all seeds.
      design: of the experiment.
      optimizer: what `Settings` does not say of it.
      seed: of the world, the initialisation, the order of rows and the sampler's keys.
      layout: over the devices.
      compute: how a step is computed.
      evaluations: of the development loss in each training.
      memory: where what is made is kept.
      programs: what has been compiled for other studies of the same layout.
    """

    def __init__(
        self,
        run: artifacts.Run,
        corpus: Corpus,
        design: Design,
        optimizer: OptimizerConfig,
        seed: int,
        layout: Layout,
        compute: ComputeConfig,
        evaluations: int,
        memory: Memory,
        programs: dict[Any, Any] | None = None,
    ):
        self.run, self.seed, self.memory, self.layout = run, seed, memory, layout
        self.splits: Splits = corpus.splits(run, seed)
        self.design = design.changed({"model.vocab_size": self.splits.vocab_size})
        self.trainer = Trainer(
            self.design.model,
            layout,
            compute,
            design.batch_size,
            evaluations,
            optimizer,
            {} if programs is None else programs,
        )
        self.tuner = dataclasses.replace(self.trainer, batch_size=design.tune_batch_size)
        self.real = self._packed("real", (text.tokens for text in self.splits.train))
        self.dev = self._packed("dev", (text.tokens for text in self.splits.dev))
        self.heldout = self._packed("heldout", (text.tokens for text in self.splits.heldout))
        self.steps = max(
            1, round(self.design.passes * self.real.source.rows / self.design.batch_size)
        )

    @property
    def tokens(self) -> int:
        """That an arm is trained on, padding counted."""
        return self.steps * self.design.batch_size * self.design.row_length

    def arm(self, name: str, choices: Choices, settings: Settings | None = None) -> Fit:
        """An arm, trained with its chosen settings, or with others.

        Args:
          name: of `ARMS`, `CONTROLS` or `FURTHER`.
          choices: the arm's own, and those that the text it reads was made with.
          settings: instead of its own.

        Raises:
          UserError: the corpus cannot give what the arm reads.
        """
        settings = settings or choices.arms[name]
        return self.memory.fit(
            self._name(
                "arms", name, READ.get(name, CORPUS), settings, self._made_with(name, choices)
            ),
            lambda: self._train(name, choices, settings),
        )

    def _made_with(self, name: str, choices: Choices) -> list[Any]:
        """The choices on which the text of an arm hangs."""
        if name == "repetition_charged":
            name = "sbp"
        if name == "unconditional":
            return [choices.arms["repetition"]]
        kind = SYNTHESIZERS.get(name)
        if kind is None:
            return []
        found = [choices.arms["repetition"], choices.synthesizers[kind]]
        if kind == "second":
            found += [choices.arms["sbp"], *self._made_with("sbp", choices)]
        return found

    def _name(self, folder: str, name: str, fields: Sequence[str], *identity: Any) -> str:
        """Of what hangs on some fields of the design, and on what else identifies it."""
        digest = artifacts.digest(artifacts.plain([self.design.part(fields), *identity]))[:12]
        return f"seed_{self.seed}/{folder}/{name}-{digest}"

    def _train(self, name: str, choices: Choices, settings: Settings) -> Fit:
        logging.info("seed %d: %s, %s", self.seed, name, settings)
        steps, keep = self.steps, []
        if name == "repetition_charged":
            per_step = self.design.batch_size * self.design.row_length
            steps += round(sum(self.charge(choices).values()) / per_step)
        if name == "repetition":
            keep = [round(steps * (i + 1) / SNAPSHOTS) for i in range(SNAPSHOTS)]
        return self.trainer.fit(
            self.sources(name, choices),
            steps,
            settings,
            self.seed,
            self.dev,
            {"heldout": self.heldout, "train": self.real},
            keep=keep,
        )

    def sources(self, name: str, choices: Choices) -> list[tuple[Rows, float]]:
        """What an arm reads, with shares.

        Raises:
          UserError: the arm is unknown, or of a concept world and this is none.
        """
        if name not in (*ARMS, *CONTROLS, *FURTHER):
            raise UserError(
                f"experiment: no arm is named {name!r}: expected some of "
                f"{[*ARMS, *CONTROLS, *FURTHER]}"
            )
        share = self.design.share
        if name.startswith("repetition") or (share == 0 and name != "oracle"):
            return [(self.real, 1.0)]
        rows = self.steps * self.design.batch_size
        if name == "oracle":
            count = self._documents_for(rows)
            texts = self.splits.oracle(count)
            return [(self._packed("oracle", (text.tokens for text in texts)), 1.0)]
        wanted = math.ceil(share * rows) + 1
        if name == "augmentation":
            other = self._augmented(wanted)
        else:
            other = self._packed(name, (w.tokens for w in self.corpus(name, choices)))
        return [(self.real, 1 - share), (other, share)]

    def corpus(self, name: str, choices: Choices) -> list[Written]:
        """The documents that are written for an arm, with their lineage; empty ones are left out.

        As many as fill the arm's share of rows, by the mean length of D_pretrain; what they lack is
        written in further parts.
        """
        wanted = math.ceil(self.design.share * self.steps * self.design.batch_size) + 1
        first, written = self._documents_for(wanted), list[Written]()
        start, count = 0, first
        while True:
            written += self._part(name, choices, start, count)
            full = [one for one in written if one.tokens]
            if self._packed(name, (w.tokens for w in full)).source.rows >= wanted:
                return full
            if start > 20 * first:
                raise UserError(f"{name}: {start} samples do not fill {wanted} rows")
            start, count = start + count, max(first // 8, SHARD)

    def _part(self, name: str, choices: Choices, start: int, count: int) -> list[Written]:
        kept = self.memory.record(
            self._name("corpora", f"{name}-{start}", CORPUS, count, self._made_with(name, choices)),
            lambda: self._write(name, choices, range(start, start + count)),
        )
        return [Written(*fields) for fields in kept]

    def _write(self, name: str, choices: Choices, indices: range) -> list[Written]:
        train, world = self.splits.train, self.splits.world
        plan = Plan(
            seed_ids=[text.id for text in train],
            seed=self.seed,
            documents_per_shard=SHARD,
            samples_per_seed=SAMPLES_PER_SEED,
        )
        drawn = [plan.document(index) for index in indices]
        ids = [train[seed].id for seed, _ in drawn]
        samples = [sample for _, sample in drawn]
        keys = document_keys(self.seed, ids, samples)
        if name == "ideal":
            if world is None or self.splits.about is None:
                raise UserError("experiment: the arm `ideal` is of a concept world: leave it out")
            about = [self.splits.about[seed] for seed, _ in drawn]
            written = [
                ("stop", document.tokens)
                for document in world.restatements(about, 1 + indices.start)
            ]
        else:
            seeds = self._seeds(name)
            prompts = [seeds[seed] for seed, _ in drawn]
            written = self.sample(self._writer(name, choices), prompts, keys)
        return [
            Written(f"{seed_id}-{sample}", seed_id, sample, key.tobytes().hex(), reason, tokens)
            for seed_id, sample, key, (reason, tokens) in zip(
                ids, samples, keys.astype(">u4"), written, strict=True
            )
        ]

    def _seeds(self, name: str) -> list[list[int]]:
        """What is read before each seed's samples."""
        s, tokens = self.splits, [text.tokens for text in self.splits.train]
        if name == "unconditional":
            return [[s.bos]] * len(tokens)
        if name == "shuffled_seeds":
            dealt = np.random.default_rng([self.seed, 1]).permutation(np.concatenate(tokens))
            ends = np.cumsum([len(one) for one in tokens])[:-1]
            tokens = [one.tolist() for one in np.split(dealt, ends)]
        return [prompt(one, self.design.seed_length, s.bos, s.eos) for one in tokens]

    def _writer(self, name: str, choices: Choices) -> Any:
        """Parameters of the model that writes an arm's text."""
        if name == "unconditional":
            return self.arm("repetition", choices).parameters
        return self.synthesizer(SYNTHESIZERS[name], choices).parameters

    def sample(
        self, parameters: Any, prompts: Sequence[list[int]], keys: np.ndarray
    ) -> list[tuple[str, list[int]]]:
        """For each prompt, with its key data uint32 [n, 2]: why its document ended, and its tokens.

        EOS is not among them.
        """
        d, s = self.design, self.splits
        longest = max(map(len, prompts))
        config = SamplerConfig(
            prompt_length=longest,
            max_length=d.target_length,
            temperature=d.temperature,
            top_p=d.top_p,
            eos=s.eos,
            never=s.never,
            slots=d.slots,
            prefill_rows=max(1, d.slots // 4),
            chunk=min(128, max(16, longest)),
        )
        programs, key = self.trainer.programs, ("sample", d.model, config)
        if key in programs:
            sampler = programs[key].of(parameters)
        else:
            sampler = Sampler(d.model, parameters, config, list(self.layout.mesh.devices.flat))
        programs[key] = sampler
        found: list[tuple[str, list[int]]] = [("", [])] * len(prompts)
        requests = (
            Request(index, given, key)
            for index, (given, key) in enumerate(zip(prompts, keys, strict=True))
        )
        for sample in sampler.sample(requests):
            tokens = sample.tokens.tolist()
            body = tokens[:-1] if sample.finish_reason == "stop" else tokens
            found[sample.request.index] = (sample.finish_reason, body)
        return found

    def synthesizer(
        self, kind: str, choices: Choices, settings: SynthesizerSettings | None = None
    ) -> Fit:
        """A synthesizer, tuned with its chosen settings, or with others.

        Its losses are those of dev documents after the seeds that they are related to (`related`),
        and after seeds drawn at random (`random`).
        """
        settings = settings or choices.synthesizers[kind]
        before: list[Any] = [choices.arms["repetition"]]
        if kind == "second":
            before += [choices.arms["sbp"], *self._made_with("sbp", choices)]
        return self.memory.fit(
            self._name("synthesizers", kind, SYNTHESIZER, settings, before),
            lambda: self._tune(kind, choices, settings),
        )

    def _tune(self, kind: str, choices: Choices, settings: SynthesizerSettings) -> Fit:
        logging.info("seed %d: synthesizer %s, %s", self.seed, kind, settings)
        pairing = self.pairing(choices)
        rng = np.random.default_rng([self.seed, 2])
        others = rng.integers(len(self.splits.train), size=len(pairing.train)).tolist()
        pairs = pairing.train
        if kind == "random":
            pairs = [(o, target) for o, (_, target) in zip(others, pairs, strict=True)]
        start = None
        if kind == "second":
            start = self.arm("sbp", choices).parameters
        elif kind != "scratch":
            start = self.base(choices, settings.start)
        dev = {name: self._dev_pairs(choices, name) for name in ("related", "random")}
        aim = "random" if kind == "random" else "related"
        return self.tuner.fit(
            [(self._pair_rows("pairs", pairs, self.splits.train), 1.0)],
            self.design.tune_steps,
            settings.fit,
            self.seed,
            dev[aim],
            dev,
            start=start,
        )

    def base(self, choices: Choices, share: float) -> Any:
        """Parameters of the base model after a share of its training."""
        kept = self.arm("repetition", choices).kept
        return kept[min(kept, key=lambda step: abs(step - share * self.steps))]

    def pairing(self, choices: Choices) -> Pairing:
        """Related documents."""
        kept = self.memory.record(
            self._name("pairs", "pairs", PAIRS, choices.arms["repetition"]),
            lambda: find_pairs(
                self.run, self.splits, self.design, self.base(choices, 1.0), self.layout
            ),
        )
        train, dev, statistics = kept
        if not train or not dev:
            raise UserError(
                f"Design.alpha = {self.design.alpha}: {len(train)} pairs of D_pretrain and "
                f"{len(dev)} with dev documents lie above it: lower it"
            )
        return Pairing(
            [(seed, target) for seed, target in train],
            [(seed, target) for seed, target in dev],
            statistics,
        )

    def _dev_pairs(self, choices: Choices, kind: str) -> Rows:
        """Dev documents after a seed each: related to it, or drawn at random."""
        rng = np.random.default_rng([self.seed, 3])
        seeds: dict[int, list[int]] = {}
        for seed, target in self.pairing(choices).dev:
            seeds.setdefault(target, []).append(seed)
        pairs = [(int(rng.choice(found)), target) for target, found in sorted(seeds.items())]
        if kind == "random":
            drawn = rng.integers(len(self.splits.train), size=len(pairs)).tolist()
            pairs = [(seed, target) for seed, (_, target) in zip(drawn, pairs, strict=True)]
        return self._pair_rows(kind, pairs, self.splits.dev)

    def _pair_rows(self, name: str, pairs: Sequence[tuple[int, int]], targets: Sequence) -> Rows:
        d, s = self.design, self.splits
        pieces = (
            pair_piece(
                s.train[seed].tokens,
                targets[target].tokens,
                s.bos,
                s.eos,
                d.seed_length,
                d.target_length,
            )
            for seed, target in pairs
        )
        return pack_rows(name, pieces, d.pair_length, s.vocab_size)

    def charge(self, choices: Choices) -> dict[str, float]:
        """What the sbp arm costs beside its own training, in tokens of training.

        Sampling is a forward pass of what is read and what is written.
        """
        written = self.corpus("sbp", choices)
        lengths = {text.id: len(text.tokens) for text in self.splits.train}
        most = self.design.seed_length
        read = sum(2 + min(lengths[one.seed_id], most) for one in written)
        sampled = sum(len(one.tokens) + 1 for one in written)
        tuned = self.design.tune_steps * self.design.tune_batch_size * self.design.pair_length
        return {
            "base": float(self.tokens),
            "tuning": float(tuned),
            "synthesis": FORWARD_SHARE * (read + sampled),
        }

    def _augmented(self, wanted: int) -> Rows:
        """Rows of D_pretrain, of which some inputs are other tokens; targets stay as they are."""
        rng = np.random.default_rng([self.seed, 4])
        real = self.real
        count = real.source.rows
        chosen = np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])
        rows = type(real.rows)(*(x[chosen[:wanted]] for x in real.rows))
        replaced = rng.random(rows.inputs.shape) < self.design.augmentation
        replaced &= (rows.segment_ids > 0) & (rows.positions > 0)
        known = np.unique(real.rows.targets[real.rows.segment_ids > 0])
        rows = rows._replace(
            inputs=np.where(replaced, rng.choice(known, rows.inputs.shape), rows.inputs)
        )
        source = dataclasses.replace(
            real.source, name="augmentation", rows=wanted, synthetic=True, repeat=False
        )
        return Rows(source, rows)

    def _documents_for(self, rows: int) -> int:
        """About so many documents fill so many rows."""
        per_row = self.real.source.documents / self.real.source.rows
        return math.ceil(rows * per_row * 1.02) + 1

    def _packed(self, name: str, tokens: Any) -> Rows:
        """Documents in rows; real ones may be read again."""
        s, length = self.splits, self.design.row_length
        pieces = (
            part for one in tokens for part in split(document_piece(one, s.bos, s.eos), length)
        )
        synthetic = name not in ("real", "dev", "heldout", "oracle")
        return pack_rows(name, pieces, length, s.vocab_size, synthetic=synthetic)
