"""Which documents are written, under which key, and in which slot: plain host logic.

The plan gives every document an index. Seeds are drawn in the order of `draws`, and each draw is a
run of indices: samples of one seed that are written together. Work shards are runs of indices.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sbp_jax.synthesize.draws import ProportionalDraws, UniformDraws

SHARDS_REMEMBERED = 1024  # whose documents are at work, or soon will be


@dataclasses.dataclass(frozen=True)
class Request:
    """A document to be written.

    Attributes:
      index: its place in the plan.
      prompt: tokens, at least one.
      key: uint32 [2], key data.
    """

    index: int
    prompt: list[int]
    key: np.ndarray


@dataclasses.dataclass
class Plan:
    """The documents of a corpus in order, as a pure function of these values.

    Attributes:
      seed_ids: ids of the N seed documents.
      seed: of the order of draws and of all keys.
      documents_per_shard: how many documents are committed together, a multiple of
        `samples_together`.
      samples_per_seed: most documents of a seed.
      weights: float64 [N], in proportion to which seeds are drawn; None for uniformly.
      samples_together: how many samples of a seed follow one another, those of one draw.
    """

    seed_ids: Sequence[str]
    seed: int
    documents_per_shard: int
    samples_per_seed: int
    weights: np.ndarray | None = None
    samples_together: int = 1

    @property
    def documents(self) -> int:
        """How many there are."""
        return self._draws.count * self.samples_together

    @property
    def shards(self) -> int:
        """How many work shards they make."""
        return -(-self.documents // self.documents_per_shard)

    def shard(self, number: int) -> range:
        """Indices of a shard's documents."""
        start = number * self.documents_per_shard
        return range(start, min(start + self.documents_per_shard, self.documents))

    def document(self, index: int) -> tuple[int, int]:
        """Which seed a document is written from, and which of its samples it is."""
        number, place = divmod(index, self.documents_per_shard)
        return self._of_shard(number)[place]

    @functools.cached_property
    def _draws(self) -> UniformDraws | ProportionalDraws:
        times = self.samples_per_seed // self.samples_together
        if self.weights is None:
            return UniformDraws(len(self.seed_ids), self.seed, times)
        return ProportionalDraws(self.weights, self.seed, times)

    @functools.cached_property
    def _of_shard(self) -> Callable[[int], list[tuple[int, int]]]:
        """Gives seeds and samples of a shard's documents."""

        @functools.lru_cache(SHARDS_REMEMBERED)
        def of_shard(number: int) -> list[tuple[int, int]]:
            draws, place = np.divmod(np.array(self.shard(number)), self.samples_together)
            seeds, before = self._draws.draw(draws)
            samples = before * self.samples_together + place
            return list(zip(seeds.tolist(), samples.tolist(), strict=True))

        return of_shard


def document_keys(seed: int, seed_ids: Sequence[str], samples: Sequence[int]) -> np.ndarray:
    """Key data of documents: the run's seed, the seed document's id and the sample folded in.

    Args:
      seed: of the run.
      seed_ids: of n documents.
      samples: their sample indices.

    Returns:
      uint32 [n, 2].
    """
    hashes = [hashlib.sha256(seed_id.encode()).digest()[:8] for seed_id in seed_ids]
    words_n2 = np.frombuffer(b"".join(hashes), "<u4").reshape(-1, 2)
    return np.asarray(_fold(seed, words_n2, np.asarray(samples, np.uint32)))


@jax.jit
def _fold(seed: int, words_n2: jax.Array, samples_n: jax.Array) -> jax.Array:
    def fold(words, sample):
        key = jax.random.key(seed, impl="threefry2x32")
        for word in (*words, sample):
            key = jax.random.fold_in(key, word)
        return jax.random.key_data(key)

    return jax.vmap(fold)(jnp.asarray(words_n2), samples_n)


@dataclasses.dataclass(frozen=True)
class Filled:
    """A slot and what goes there.

    Attributes:
      slot: of its device.
      request: what is to be written.
      source: the slot that holds its prompt; its own if the prompt is to be read.
    """

    slot: int
    request: Request
    source: int


# What one prefill does: of each device the prompts that are read and those that are not.
Filling = list[tuple[list[Filled], list[Filled]]]


class Slots:
    """The occupants of all slots: continuous batching.

    A slot whose document has ended is given the next one while the others go on. A slot keeps its
    prompt until it is filled with another, and who wants the same is given a copy.

    Args:
      devices: X.
      slots: S, of each device.
      rows: R, most prompts that one prefill reads on a device, and most that it copies; at most S.
    """

    def __init__(self, devices: int, slots: int, rows: int):
        self.rows = rows
        self.occupants: list[list[Request | None]] = [[None] * slots for _ in range(devices)]
        self.prompts: list[list[tuple[int, ...]]] = [[()] * slots for _ in range(devices)]
        self.holders: list[dict[tuple[int, ...], int]] = [{} for _ in range(devices)]
        self.ahead: Request | None = None  # taken from the requests, and nowhere yet
        self.exhausted = False  # whether there are no more requests

    @property
    def busy(self) -> int:
        """How many slots hold a document."""
        return sum(request is not None for row in self.occupants for request in row)

    def refill(self, requests: Iterator[Request]) -> list[Filling]:
        """Takes requests for devices with R free slots or more, in turns.

        A device waits until it has R, so that only the last prefill is part padding. It takes
        those of one prompt together.

        Returns:
          The prefills to run, in order.
        """
        fillings: list[Filling] = []
        while True:
            filling: Filling = [([], []) for _ in self.occupants]
            free = [
                [slot for slot, request in enumerate(row) if request is None]
                for row in self.occupants
            ]
            able = [device for device, slots in enumerate(free) if len(slots) >= self.rows]
            while able:
                able = [d for d in able if self._take(d, free[d], filling[d], requests)]
            if not any(read or copied for read, copied in filling):
                return fillings
            fillings.append(filling)

    def _take(
        self,
        device: int,
        free: list[int],
        filling: tuple[list[Filled], list[Filled]],
        requests: Iterator[Request],
    ) -> bool:
        """Takes a request, and those of its prompt that follow; False where there is no room."""
        taken: tuple[int, ...] | None = None
        while True:
            if self.ahead is None:
                self.ahead = next(requests, None)
                self.exhausted = self.ahead is None
            if self.ahead is None or not free:
                return False
            prompt = tuple(self.ahead.prompt)
            if taken is not None and prompt != taken:
                return True
            source = self.holders[device].get(prompt)
            group = filling[0] if source is None else filling[1]
            if len(group) == self.rows:
                return False
            # Where the prompt lies in a free slot nothing has to be copied.
            slot = source if source in free else free[0]
            assert slot is not None
            free.remove(slot)
            group.append(Filled(slot, self.ahead, slot if source is None else source))
            if slot != source:
                before = self.prompts[device][slot]
                if self.holders[device].get(before) == slot:
                    del self.holders[device][before]
                self.prompts[device][slot] = prompt
                self.holders[device].setdefault(prompt, slot)
            self.occupants[device][slot] = self.ahead
            self.ahead, taken = None, prompt

    def release(self, ended: np.ndarray) -> list[tuple[int, int, Request]]:
        """Frees the slots whose documents have ended.

        Args:
          ended: bool [X, S]; free slots may be anything.

        Returns:
          Device, slot and request of each document that has ended.
        """
        released = []
        for device, slot in np.argwhere(ended).tolist():
            request = self.occupants[device][slot]
            if request is not None:
                self.occupants[device][slot] = None
                released.append((device, slot, request))
        return released
