"""Texts that a checkpoint goes on with: the sampler's own steps, ended by what has been written.

The sampler ends a document at EOS or at a number of tokens; what ends an answer is a text, such as
a blank line, which any tokens may spell. So an answer is sampled some tokens at a time, and what
has its end by then is not gone on with. Two programs are compiled for all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sbp_jax.errors import Stopped
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.progress import progress
from sbp_jax.synthesize.sampler import Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Request, document_keys

TOGETHER = 64  # tokens between two looks at what an answer says
PREFILL_ROWS = 4
PROMPTS = (
    64  # tokens, of which the longest prompt is taken for a multiple: alike tasks share programs
)
# In place of 0, by which logits cannot be divided: it parts those that float32 can tell apart.
COLD = 1e-3


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a token is chosen, and how many there are.

    Attributes:
      max_tokens: of an answer, at least 1.
      temperature: 0 for the most probable token.
      top_k: see `synthesize.sampling.sample`.
      top_p: see `synthesize.sampling.sample`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0


def complete(
    model: DecoderConfig,
    parameters: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    eos: int,
    is_ended: Callable[[list[int]], bool],
    slots: int,
) -> list[list[int]]:
    """What follows each prompt, as tokens without EOS; each process samples a part of them.

    Args:
      model: the decoder.
      parameters: nested dict of arrays on the first local device, as `load_parameters` gives them.
      prompts: tokens, at least one each.
      decoding: how.
      eos: ends an answer.
      is_ended: whether the tokens of an answer so far hold its end; there may be more behind it.
      slots: prompts that a device has at work.

    Raises:
      Stopped: the model's logits are not numbers.
    """
    together = min(decoding.max_tokens, TOGETHER)
    rounds = -(-decoding.max_tokens // together)
    greedy = decoding.temperature == 0
    longest = max(map(len, prompts)) + (rounds - 1) * together
    sampler = Sampler(
        model,
        parameters,
        SamplerConfig(
            prompt_length=-(-longest // PROMPTS) * PROMPTS,
            max_length=together,
            temperature=COLD if greedy else decoding.temperature,
            top_k=1 if greedy else decoding.top_k,
            top_p=decoding.top_p,
            eos=eos,
            never=(),
            slots=slots,
            prefill_rows=min(slots, PREFILL_ROWS),
        ),
    )
    written: list[list[int]] = [[] for _ in prompts]
    waiting = list(range(jax.process_index(), len(prompts), jax.process_count()))
    with progress(desc="answers", unit=" answers", total=len(waiting)) as bar:
        for number in range(rounds):
            keys = document_keys(0, [str(i) for i in waiting], [number] * len(waiting))
            requests = [
                Request(i, prompts[i] + written[i], key)
                for i, key in zip(waiting, keys, strict=True)
            ]
            waiting = []
            for sample in sampler.sample(requests):
                index = sample.request.index
                if sample.finish_reason == "nan":
                    raise Stopped("the model's logits are not numbers: evaluate another checkpoint")
                written[index] += [token for token in sample.tokens.tolist() if token != eos]
                if sample.finish_reason == "stop" or is_ended(written[index]):
                    bar.update()
                else:
                    waiting.append(index)
            waiting.sort()
            if not waiting:
                break
        bar.update(len(waiting))
    return _of_all_processes([tokens[: decoding.max_tokens] for tokens in written])


def _of_all_processes(written: list[list[int]]) -> list[list[int]]:
    """What any process has written, each at other places."""
    if jax.process_count() == 1:
        return written
    longest = int(np.max(multihost_utils.process_allgather(np.array(max(map(len, written))))))
    table = np.full((len(written), longest), -1, np.int32)
    for row, tokens in enumerate(written):
        table[row, : len(tokens)] = tokens
    every = np.max(multihost_utils.process_allgather(table), axis=0)
    return [row[row >= 0].tolist() for row in every]
