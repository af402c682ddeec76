"""A checkpoint as lm-evaluation-harness asks it: log-likelihoods on the mesh, texts by the sampler.

Needs the extra `eval`. Every process of a job answers the same requests in step: the batch lies
over all devices, and no process has results of its own.

What is asked is cut, windowed and stopped as by the harness' own `HFLM`, so that scores compare. A
model that was not trained here reads texts as `transformers` gives them to it, with or without BOS.
One that was trained here has seen a BOS before every document, so every context starts from it; it
has never predicted one, so in the perplexity of a text none is counted, as `HFLM` would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sbp_jax.data.rows import Piece
from sbp_jax.data.vocabularies import Vocabulary
from sbp_jax.errors import UserError
from sbp_jax.evaluate.completions import Decoding, complete
from sbp_jax.evaluate.piece_losses import make_place, make_row_scores, rows_of
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel.mesh import Layout
from sbp_jax.progress import progress

SHORTEST = 32  # tokens, of the rows of the first compiled program
# What a task may ask of decoding beside what `Decoding` has, because it asks for nothing.
HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}

# A request as the harness hands it over: its texts (None for a part of one), context, continuation.
type Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(TemplateLM):
    """A decoder with its vocabulary.

    Args:
      model: the decoder.
      parameters: of it, laid out as `train.step.parameter_shardings` has it.
      vocabulary: that it was trained with.
      layout: of rows and parameters over the devices.
      length: the most tokens that the model reads; contexts are cut to it on the left.
      batch_size: rows at a time; scores do not depend on it.
      bos_first: whether every text starts from BOS whatever the tokenizer does, as for a model that
        was trained here.
      replica: gives the parameters on the first local device, which must have room for them, for
        the sampler; called where a task asks for texts.
    """

    def __init__(
        self,
        model: DecoderConfig,
        parameters: Any,
        vocabulary: Vocabulary,
        layout: Layout,
        *,
        length: int,
        batch_size: int,
        bos_first: bool,
        replica: Callable[[], Any],
    ):
        super().__init__()
        self.model, self.parameters, self.vocabulary = model, parameters, vocabulary
        self.max_length, self.batch_size = length, batch_size
        self.bos_first, self.replica = bos_first, replica
        self.place = make_place(layout, batch_size)
        self.row_scores = make_row_scores(model, layout)

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eos

    @property
    def prefix_token_id(self) -> int:
        """What is read before a text without context: BOS, or EOS where there is no BOS."""
        return self.vocabulary.bos

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where a task does not say, as `HFLM` has it."""
        return 256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text; from BOS on where texts start from it, unless it is said otherwise."""
        if add_special_tokens is None:
            add_special_tokens = self.bos_first or self.vocabulary.adds_bos
        tokens = self.vocabulary.encode(string)
        return [self.vocabulary.bos, *tokens] if add_special_tokens else tokens

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation): its log-likelihood in nats, and whether it is greedy."""
        return super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The same of tokens, longest first, in rows of a few lengths."""
        pieces = [self._piece(*request) for request in requests]
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].targets))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pieces)
        starts = range(0, len(order), self.batch_size)
        for start in progress(starts, desc="log-likelihoods", unit=" batches"):
            some = order[start : start + self.batch_size]
            length = row_length(len(pieces[some[0]].targets), self.max_length)
            batch = rows_of([pieces[i] for i in some], self.batch_size, length, self.model)
            scores = jax.device_get(self.row_scores(self.parameters, self.place(batch)))
            for place, index in enumerate(some):
                answer = -float(scores.nats_B[place]), bool(scores.greedy_B[place])
                found[index] = answer
                texts = requests[index][0]
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _piece(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> Piece:
        """A row's tokens, with loss on the continuation; too long a context is cut on the left."""
        what = repr(texts[1][:40]) if texts else "a part of a text"
        if not continuation:
            raise UserError(
                f"a task's continuation {what} has no token of its own behind its context: let it "
                "begin where a word does, or leave out the task"
            )
        if len(continuation) > self.max_length:
            raise UserError(
                f"a task's continuation {what} has {len(continuation)} tokens, and the model reads "
                f"{self.max_length}: set evaluate.task_length, or leave out the task"
            )
        tokens = np.asarray([*context, *continuation][-(self.max_length + 1) :], np.int32)
        return Piece(tokens[1:], int(tokens[0]), loss_from=len(tokens) - 1 - len(continuation))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each text the log-likelihood in nats, of all its tokens once, in windows of L."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], False if self.bos_first else None)
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model goes on with after each context, up to the first of the task's stops."""
        found = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        parameters = self.replica()
        slots = max(1, self.batch_size // jax.device_count())
        for indices in alike.values():
            decoding, stops = self._decoding(requests[indices[0]].args[1])
            room = self.max_length - decoding.max_tokens

            def text(tokens: list[int]) -> str:
                return self.vocabulary.decode(tokens)

            def is_ended(tokens: list[int], stops: list[str] = stops) -> bool:
                written = text(tokens)
                return any(stop in written for stop in stops)

            contexts = [self.tok_encode(requests[i].args[0])[-room:] for i in indices]
            answers = complete(
                self.model,
                parameters,
                [context or [self.prefix_token_id] for context in contexts],
                decoding,
                eos=self.vocabulary.eos,
                is_ended=is_ended,
                slots=slots,
            )
            for index, tokens in zip(indices, answers, strict=True):
                answer = postprocess_generated_text(text(tokens), stops, None)
                found[index] = answer
                self.cache_hook.add_partial("generate_until", requests[index].args, answer)
        return found

    def _decoding(self, settings: dict[str, Any]) -> tuple[Decoding, list[str]]:
        """What a task's `generation_kwargs` ask for, and the texts that end an answer.

        Raises:
          UserError: they ask for what the sampler does not have, or leave no room for a context.
        """
        asked = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        stops = handle_stop_sequences(
            asked.pop("until"), eos=self.vocabulary.piece(self.vocabulary.eos)
        )
        temperature = float(asked.pop("temperature", 0.0) or 0.0)
        decoding = Decoding(
            max_tokens=asked.pop("max_gen_toks"),
            temperature=temperature if asked.pop("do_sample") else 0.0,
            top_k=asked.pop("top_k", None) or None,  # 0 is no limit
            top_p=asked.pop("top_p", None) or 1.0,
        )
        for name, value in asked.items():
            if value is not None and HARMLESS.get(name) != value:
                raise UserError(
                    f"a task's generation_kwargs ask for {name} = {value!r}, which the sampler "
                    "does not have: change the task's YAML file, or leave it out"
                )
        if not 0 < decoding.max_tokens < self.max_length:
            raise UserError(
                f"a task asks for answers of {decoding.max_tokens} tokens, and the model reads "
                f"{self.max_length} with their context: set evaluate.task_length, or leave it out"
            )
        return decoding, [stop for stop in stops if stop]


def row_length(size: int, most: int) -> int:
    """The length of the rows that tokens are padded to: two lengths an octave, up to `most`."""
    length = SHORTEST
    while length < size:
        length = length * 3 // 2 if length & (length - 1) == 0 else length // 3 * 4
    return min(length, most)
