"""The sampler: prompts to documents on every local device, slots refilled while others go on.

`jax.pmap` runs one independent replica a device; nothing is exchanged between them. A replica has
S slots, each at work on one document. Two compiled programs of fixed shapes are all there is:
*prefill* reads up to R prompts into free slots, a chunk of positions at a time as far as the
longest of them goes, and copies prompts from slots where they were read before; *decode* samples a
block of steps in all slots.

What is promised: a document's tokens are a function of its prompt, its key, the parameters and
the two compiled programs. No operation mixes rows, so which device, slot or prefill row it falls
to, whether its prompt was read or copied, what its neighbours are and when its slot was refilled
change no bit of it. The corpus is
therefore bit-identical for any number of devices and processes of one kind, and any interruption.

What is not: another number of slots or prefill rows is another program, whose matrix products may
round otherwise in the last bit. A document then stays the same unless a random number falls within
that rounding of the border between two tokens: in float32 about once in a million tokens. The same
holds for another kind of device. With an int8 cache another number of prefill rows, or another
chunk, may also move a scale that lies on the border of two, and with it every document.

S slots of a device, R prompts of a prefill, P prompt length, M cache length, T tokens of a
document, X devices.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sbp_jax.errors import UserError
from sbp_jax.model.decoder import (
    Cache,
    Decoder,
    DecoderConfig,
    Unstacked,
    empty_cache,
    initialise,
    structure,
)
from sbp_jax.model.int8 import Int8, narrow
from sbp_jax.synthesize import attention, decode, int8_cache, loops, sampling
from sbp_jax.synthesize.loops import Loops
from sbp_jax.synthesize.schedule import Filling, Request, Slots

# Chips whose two cores act as one device.
TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
RUNNING, STOP, LENGTH, REPETITION, NOT_A_NUMBER = range(5)
FINISH_REASONS = {
    STOP: "stop",
    LENGTH: "length",
    REPETITION: "repetition",
    NOT_A_NUMBER: "nan",
}


class State(NamedTuple):
    """What a replica carries from block to block.

    Attributes:
      cache: keys and values of M positions.
      last_S: int32, the token to be read next.
      position_S: int32, its position.
      keys_S2: uint32, key data of the documents.
      count_S: int32, tokens sampled so far.
      finish_S: int32, 0 while the document goes on, then why it ended; free slots too have ended.
      tokens_ST: int32, what was sampled.
      log_probability_S: float32, its sum.
      loops: where loops are looked for.
    """

    cache: Cache
    last_S: jax.Array
    position_S: jax.Array
    keys_S2: jax.Array
    count_S: jax.Array
    finish_S: jax.Array
    tokens_ST: jax.Array
    log_probability_S: jax.Array
    loops: Loops | None


class Weights(NamedTuple):
    """What a replica reads and never writes.

    Attributes:
      parameters: of `Unstacked`, matrices in the dtype that they are multiplied in or `Int8`.
      scales: of an int8 cache; None for one in the model's dtype.
    """

    parameters: nnx.State
    scales: int8_cache.Scales | None = None


# NumPy on the host, JAX on devices.
type Array = Any


class Prompts(NamedTuple):
    """Up to R prompts to be read and as many to be copied, for one replica.

    Attributes:
      tokens_RP: int32, anything behind a prompt's end.
      length_R: int32, at least 1.
      slot_R: int32, where each goes; S for no prompt.
      last_E: int32, the last token of all E = 2R prompts, first those that are read.
      length_E: int32, their lengths.
      slot_E: int32, where each goes.
      source_E: int32, where those that are copied are; the others' own slot.
      keys_E2: uint32, key data.
    """

    tokens_RP: Array
    length_R: Array
    slot_R: Array
    last_E: Array
    length_E: Array
    slot_E: Array
    source_E: Array
    keys_E2: Array


class Sample(NamedTuple):
    """One document as it was sampled.

    Attributes:
      request: what was asked for.
      tokens: int32 [n], with EOS where it ended by itself.
      finish_reason: `stop`, `length` (cut at the limit), `repetition` (cut in a loop) or `nan` (the
        model's logits were not numbers; the last token is meaningless).
      log_probability: of all tokens together, under the model at temperature 1, nothing left out.
    """

    request: Request
    tokens: np.ndarray
    finish_reason: str
    log_probability: float


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """What the two compiled programs depend on, beside the model.

    Attributes:
      prompt_length: P, of the longest prompt.
      max_length: T, most tokens sampled for a document, EOS among them.
      temperature: see `sampling.sample`.
      top_p: see `sampling.sample`.
      eos: ends a document.
      never: ids that are not sampled.
      slots: S.
      prefill_rows: R.
      block: decode steps between two looks at which slots have ended.
      chunk: positions of a prompt that are read at a time.
      top_k: see `sampling.sample`.
      min_length: see `sampling.sample`.
      stop_repeats: a document ends when its last `stop_repeats` · `stop_period` tokens repeat it
        with one period of at most `stop_period`; None: no loop is looked for.
      stop_period: the longest.
      weight_dtype: `int8`, or None for the model's own.
      cache_dtype: of keys and values, likewise.

    Raises:
      UserError: a dtype is another.
    """

    prompt_length: int
    max_length: int
    temperature: float
    top_p: float
    eos: int
    never: tuple[int, ...]
    slots: int
    prefill_rows: int
    block: int = 8
    chunk: int = 128
    top_k: int | None = None
    min_length: int = 0
    stop_repeats: int | None = None
    stop_period: int = 32
    weight_dtype: str | None = None
    cache_dtype: str | None = None

    def __post_init__(self):
        for name in ("weight_dtype", "cache_dtype"):
            if (dtype := getattr(self, name)) not in (None, "int8"):
                raise UserError(f"synthesize.{name} = {dtype!r}: expected 'int8' or None")

    @property
    def read_length(self) -> int:
        """Of a prompt's own cache: of all its tokens but the last, in whole chunks."""
        return -(-max(1, self.prompt_length - 1) // self.chunk) * self.chunk

    @property
    def cache_length(self) -> int:
        """M, in whole pages."""
        longest = max(self.prompt_length + self.max_length, self.read_length)
        return -(-longest // attention.PAGE) * attention.PAGE


@dataclasses.dataclass
class Meter:
    """How well the devices were used.

    Attributes:
      tokens: sampled while there were requests left.
      places: that the slots had for them.
      waiting: seconds in which the devices had nothing to do but wait for the host.
      seconds: of all.
    """

    tokens: int = 0
    places: int = 0
    waiting: float = 0.0
    seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the slots' steps that wrote a token, until the requests ran out."""
        return self.tokens / self.places if self.places else 1.0

    @property
    def host_share(self) -> float:
        """Share of the time in which the devices waited for the host."""
        return self.waiting / self.seconds if self.seconds else 0.0


class Programs:
    """What one replica computes, pure functions of weights and state.

    Args:
      model: its shape.
      config: of the sampler.
      device: that it is for.
    """

    def __init__(self, model: DecoderConfig, config: SamplerConfig, device: jax.Device):
        self.model, self.config = model, config
        self.cores = 2 if device.device_kind in TWO_CORES else 1
        self.graph, _ = nnx.split(
            nnx.eval_shape(lambda: Unstacked(initialise(model, jax.random.key(0))))
        )
        self.allowed_V = np.ones(model.vocab_size, bool)
        self.allowed_V[list(config.never)] = False

    def empty(self) -> State:
        """No slot holds a document."""
        c = self.config
        integers = jnp.zeros(c.slots, jnp.int32)
        return State(
            cache=empty_cache(self.model, c.slots, c.cache_length, c.cache_dtype),
            last_S=integers,
            position_S=integers,
            keys_S2=jnp.zeros((c.slots, 2), jnp.uint32),
            count_S=integers,
            finish_S=integers + STOP,
            tokens_ST=jnp.zeros((c.slots, c.max_length), jnp.int32),
            log_probability_S=jnp.zeros(c.slots, jnp.float32),
            loops=None if c.stop_repeats is None else loops.none(c.slots, c.stop_period),
        )

    def build(self, weights: Weights) -> Unstacked:
        """The model of these weights."""
        return nnx.merge(self.graph, weights.parameters)

    def prefill(self, weights: Weights, state: State, prompts: Prompts) -> State:
        """Reads prompts into their slots, then copies others; what nobody wants costs nothing.

        All but the last token of a prompt, which the first decode step reads.
        """
        slots = self.config.slots
        read, copied = prompts.slot_R < slots, prompts.source_E != prompts.slot_E
        cache = jax.lax.cond(
            jnp.any(read),
            lambda cache: decode.fill(
                cache,
                self.read(weights, prompts.tokens_RP, prompts.length_R, prompts.slot_R < slots),
                prompts.slot_R,
                weights.scales,
            ),
            lambda cache: cache,
            state.cache,
        )
        cache = jax.lax.cond(
            jnp.any(copied),
            lambda cache: decode.copy(
                cache,
                self.config.read_length,
                prompts.source_E[self.config.prefill_rows :],
                jnp.where(copied, prompts.slot_E, slots)[self.config.prefill_rows :],
            ),
            lambda cache: cache,
            cache,
        )

        def put(old_S, new_E):
            return old_S.at[prompts.slot_E].set(new_E, mode="drop")

        return state._replace(
            cache=cache,
            last_S=put(state.last_S, prompts.last_E),
            position_S=put(state.position_S, prompts.length_E - 1),
            keys_S2=put(state.keys_S2, prompts.keys_E2),
            count_S=put(state.count_S, 0),
            finish_S=put(state.finish_S, RUNNING),
            log_probability_S=put(state.log_probability_S, 0.0),
        )

    def read(
        self, weights: Weights, tokens_RP: jax.Array, length_R: jax.Array, wanted_R: jax.Array
    ) -> Cache:
        """Reads prompts in chunks, as far as the longest wanted, into a cache of their own."""
        c, model = self.config, self.build(weights)
        rows = len(length_R)
        tokens_RP = jnp.pad(tokens_RP, ((0, 0), (0, max(0, c.read_length - tokens_RP.shape[1]))))
        longest = jnp.max(jnp.where(wanted_R, length_R, 1)) - 1
        zeros_R = jnp.zeros(rows, jnp.int32)

        def step(carry):
            start, fresh = carry
            tokens_RC = jax.lax.dynamic_slice_in_dim(tokens_RP, start, c.chunk, axis=1)
            _, fresh = model.extend(fresh, tokens_RC, zeros_R + start, zeros_R)
            return start + c.chunk, fresh

        fresh = empty_cache(self.model, rows, c.read_length)
        return jax.lax.while_loop(lambda carry: carry[0] < longest, step, (0, fresh))[1]

    def ranges(
        self, weights: Weights, tokens_RP: jax.Array, length_R: jax.Array
    ) -> int8_cache.Scales:
        """How large keys and values become in some prompts, as `int8_cache.ranges`."""
        read = self.read(weights, tokens_RP, length_R, length_R > 1)
        return int8_cache.ranges(read, length_R - 1)

    def decode(self, weights: Weights, state: State) -> State:
        """Up to `block` steps; fewer when every slot has ended."""

        def unfinished(carry):
            step, state = carry
            return (step < self.config.block) & jnp.any(state.finish_S == RUNNING)

        def body(carry):
            step, state = carry
            return step + 1, self.step(weights, state)

        return jax.lax.while_loop(unfinished, body, (0, state))[1]

    def step(self, weights: Weights, state: State) -> State:
        """One token more in every slot that has not ended."""
        c, model = self.config, self.build(weights)
        running_S = state.finish_S == RUNNING
        logits_SV, cache = decode.decode(
            model,
            state.cache,
            state.last_S,
            state.position_S,
            running_S,
            self.cores,
            weights.scales,
        )
        sampled = sampling.sample(
            logits_SV,
            jax.random.wrap_key_data(state.keys_S2, impl="threefry2x32"),
            state.count_S,
            temperature=c.temperature,
            top_k=c.top_k,
            top_p=c.top_p,
            allowed_V=self.allowed_V,
            eos=c.eos,
            min_length=c.min_length,
        )
        count_S = state.count_S + running_S
        finish_S = jnp.where(count_S >= c.max_length, LENGTH, RUNNING)
        followed = None
        if state.loops is not None and c.stop_repeats is not None:
            followed = loops.follow(state.loops, sampled.tokens_S, state.count_S == 0)
            in_loop_S = loops.repeated(followed) >= c.stop_repeats * c.stop_period
            finish_S = jnp.where(in_loop_S, REPETITION, finish_S)
        finish_S = jnp.where(sampled.tokens_S == c.eos, STOP, finish_S)
        finish_S = jnp.where(sampled.finite_S, finish_S, NOT_A_NUMBER)
        # A slot that has ended writes behind the end of its row, where nothing is kept.
        place_S = jnp.where(running_S, state.count_S, c.max_length)
        slots_S = jnp.arange(c.slots)
        return State(
            cache=cache,
            last_S=jnp.where(running_S, sampled.tokens_S, state.last_S),
            position_S=state.position_S + running_S,
            keys_S2=state.keys_S2,
            count_S=count_S,
            finish_S=jnp.where(running_S, finish_S, state.finish_S),
            tokens_ST=state.tokens_ST.at[slots_S, place_S].set(sampled.tokens_S, mode="drop"),
            log_probability_S=state.log_probability_S
            + jnp.where(running_S, sampled.log_probabilities_S, 0),
            loops=followed,
        )


class Sampler:
    """Replicas of one model on some local devices.

    Args:
      model: its shape.
      parameters: nested dict of arrays, as `load_parameters` returns it.
      config: of the sampler.
      devices: by default all local ones.
      calibration: prompts on which the scales of an int8 cache are found. Documents depend on it.

    Raises:
      ValueError: the cache is int8, and there is no prompt of two tokens or more for that.
    """

    def __init__(
        self,
        model: DecoderConfig,
        parameters: Any,
        config: SamplerConfig,
        devices: Sequence[jax.Device] | None = None,
        calibration: Sequence[list[int]] = (),
    ):
        self.config = config
        self.meter = Meter()
        self.devices = list(devices or jax.local_devices())
        self.programs = programs = Programs(model, config, self.devices[0])
        self.weights = self._laid_out(parameters, calibration)
        each = np.zeros(len(self.devices))
        self.start = lambda: jax.pmap(lambda _: programs.empty(), devices=self.devices)(each)
        self.prefill = jax.pmap(programs.prefill, devices=self.devices, donate_argnums=1)
        self.decode = jax.pmap(programs.decode, devices=self.devices, donate_argnums=1)

    def of(self, parameters: Any, calibration: Sequence[list[int]] = ()) -> Sampler:
        """A sampler of other parameters with the programs that are compiled already."""
        other = copy.copy(self)
        other.meter, other.weights = Meter(), self._laid_out(parameters, calibration)
        return other

    def _laid_out(self, parameters: Any, calibration: Sequence[list[int]]) -> Weights:
        """The parameters, on every device, as they are decoded with."""
        weights = decoding_weights(self.programs.model, parameters, self.config.weight_dtype)
        if self.config.cache_dtype is not None:
            weights = weights._replace(scales=self._calibrate(self.programs, weights, calibration))
        each = np.zeros(len(self.devices))
        copied = jax.pmap(lambda _, w: w, in_axes=(0, None), devices=self.devices)
        return copied(each, weights)

    def _calibrate(
        self, programs: Programs, weights: Weights, prompts: Sequence[list[int]]
    ) -> int8_cache.Scales:
        """Scales of the cache, from some prompts; a prompt's last token is not read."""
        c, ranges = self.config, jax.jit(programs.ranges)
        prompts = [prompt[: c.prompt_length] for prompt in prompts if len(prompt) > 1]
        if not prompts:
            raise ValueError("an int8 cache needs prompts of two tokens or more for calibration")
        found = []
        with jax.default_device(self.devices[0]):
            for start in range(0, len(prompts), c.prefill_rows):
                tokens = np.zeros((c.prefill_rows, c.prompt_length), np.int32)
                length = np.ones(c.prefill_rows, np.int32)
                for row, prompt in enumerate(prompts[start : start + c.prefill_rows]):
                    tokens[row, : len(prompt)], length[row] = prompt, len(prompt)
                found.append(ranges(weights, tokens, length))
        return int8_cache.scales(found)

    def sample(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Writes a document for each request; which comes first depends on when they end.

        Requests are taken as slots become free. While the devices decode a block, the caller works
        on the documents that ended in the block before. Closing the generator leaves off what has
        not ended.

        Raises:
          ValueError: a prompt is empty or longer than P.
        """
        c, pending, meter = self.config, iter(requests), Meter()
        self.meter = meter
        slots = Slots(len(self.devices), c.slots, c.prefill_rows)
        state = self.start()
        counts = np.zeros((len(self.devices), c.slots), np.int32)
        samples: list[Sample] = []
        started = idle = time.perf_counter()
        while True:
            for filling in slots.refill(pending):
                state = self.prefill(self.weights, state, self._prompts(filling))
                for device, groups in enumerate(filling):
                    counts[device, [one.slot for group in groups for one in group]] = 0
            if not slots.busy:
                break
            state = self.decode(self.weights, state)
            meter.waiting += time.perf_counter() - idle
            yield from samples
            finish, new = jax.device_get((state.finish_S, state.count_S))
            idle = time.perf_counter()
            if not slots.exhausted:
                meter.tokens += int((new - counts).sum())
                meter.places += counts.size * c.block
            counts = new.copy()
            samples = self._take(state, slots.release(finish != RUNNING))
            meter.seconds = time.perf_counter() - started
        yield from samples

    def _prompts(self, filling: Filling) -> Prompts:
        """The arrays of a prefill, with a leading dimension X."""
        c = self.config
        devices, rows = len(self.devices), c.prefill_rows
        tokens = np.zeros((devices, rows, c.prompt_length), np.int32)
        last, length, slot, source = np.zeros((4, devices, 2 * rows), np.int32)
        length += 1
        slot += c.slots
        source += c.slots
        keys = np.zeros((devices, 2 * rows, 2), np.uint32)
        for device, (read, copied) in enumerate(filling):
            places = [*enumerate(read), *enumerate(copied, rows)]
            for place, one in places:
                size = len(one.request.prompt)
                if not 1 <= size <= c.prompt_length:
                    raise ValueError(f"a prompt of {size} tokens, expected 1 to {c.prompt_length}")
                if place < rows:
                    tokens[device, place, :size] = one.request.prompt
                last[device, place] = one.request.prompt[-1]
                length[device, place] = size
                slot[device, place], source[device, place] = one.slot, one.source
                keys[device, place] = one.request.key
        return Prompts(
            tokens_RP=tokens,
            length_R=length[:, :rows],
            slot_R=slot[:, :rows],
            last_E=last,
            length_E=length,
            slot_E=slot,
            source_E=source,
            keys_E2=keys,
        )

    def _take(self, state: State, ended: list[tuple[int, int, Request]]) -> list[Sample]:
        """Fetches documents that have ended, before their slots are filled again."""
        if not ended:
            return []
        count, finish, tokens, log_probability = jax.device_get(
            (state.count_S, state.finish_S, state.tokens_ST, state.log_probability_S)
        )
        return [
            Sample(
                request,
                tokens[device, slot, : count[device, slot]].copy(),
                FINISH_REASONS[int(finish[device, slot])],
                float(log_probability[device, slot]),
            )
            for device, slot, request in ended
        ]


def decoding_weights(
    config: DecoderConfig, parameters: Any, weight_dtype: str | None = None
) -> Weights:
    """Layers taken apart, and every matrix in the dtype that it is multiplied in, or int8.

    The norms' scales stay in float32, in which they are used.
    """
    graph, abstract = structure(config)
    nnx.replace_by_pure_dict(abstract, parameters)
    decoder = nnx.merge(graph, abstract)
    assert isinstance(decoder, Decoder)
    _, state = nnx.split(Unstacked(decoder))
    if weight_dtype is not None:
        state = narrow(state)

    def cast(leaf):
        return leaf if isinstance(leaf, Int8) or leaf.ndim == 1 else leaf.astype(config.dtype)

    return Weights(jax.tree.map(cast, state, is_leaf=lambda leaf: isinstance(leaf, Int8)))
