"""Which shards are finished, how many the corpus needs, and which one to write next.

Each process keeps its own ledger of what it finds in the shared folder; nothing of it is stored.
How many shards are needed is estimated from those that are finished, whoever wrote them, so hosts
that have seen the same shards agree, and the estimate is corrected with every shard.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from sbp_jax.errors import Stopped
from sbp_jax.synthesize import shards
from sbp_jax.synthesize.claims import Claims

READERS = 16


class Tally(NamedTuple):
    """What counts of a finished shard.

    Attributes:
      documents: in it.
      accepted: tokens of those that no filter rejected.
      nan: documents that ended in logits which are no numbers.
    """

    documents: int
    accepted: int
    nan: int


def tally(records: Sequence[shards.Record]) -> Tally:
    return Tally(
        len(records),
        shards.accepted_tokens(records),
        sum(record.finish_reason == "nan" for record in records),
    )


class Ledger:
    """The shards of one corpus, as one process knows them.

    Args:
      directory: of the shards.
      claims: of this process.
      tokens: wanted.
      shards_planned: how many there are at most.
      most: tokens that a shard can hold.
      most_nan: largest share of documents without numbers, of all that are finished.
    """

    def __init__(
        self,
        directory: epath.Path,
        claims: Claims,
        *,
        tokens: int,
        shards_planned: int,
        most: int,
        most_nan: float,
    ):
        self.directory, self.claims = directory, claims
        self.tokens, self.shards_planned, self.most = tokens, shards_planned, most
        self.most_nan = most_nan
        self.finished: set[int] = set()
        self.total = Tally(0, 0, 0)  # of all that are finished
        self.kept: int | None = None  # how many make the corpus, once that is known
        self.goal = 0  # how many it will take
        self._accepted: dict[int, int] = {}  # tokens, of finished ones behind the unbroken run
        self._run, self._run_tokens = 0, 0  # the unbroken run of finished ones, from the first
        self._fresh = 0  # from here on none was tried
        self._others: set[int] = set()  # held by others when last looked at
        self._again: collections.deque[int] = collections.deque()  # of these, to be tried again
        self._looked = claims.worker.clock()
        self._settle()
        self._find(shards.present(directory))

    def add(self, number: int, records: Sequence[shards.Record]) -> None:
        """Enters a shard that this process has finished, and lets go of it.

        Raises:
          Stopped: too many documents have ended in logits that are no numbers.
        """
        self._enter(number, tally(records))
        self._settle()
        self.claims.let_go(_name(number))

    def next(self) -> int | None:
        """Claims the lowest shard that is to be had and wanted; None if there is none now."""
        if self.claims.worker.clock() - self._looked >= self.claims.look_seconds:
            self.look()
        while self.kept is None:
            # Lapsed claims first: what stands behind a missing shard does not count yet.
            if self._again:
                number = self._again.popleft()
            elif self._fresh < self.goal:
                number = self._fresh
                self._fresh += 1
            else:
                return None
            if number < self.goal and number not in self.finished and self._take(number):
                return number
        return None

    def look(self) -> None:
        """Enters what others have finished; `next` then tries again what they have not."""
        self._looked = self.claims.worker.clock()
        self._find(sorted(self._others))
        self._again = collections.deque(sorted(self._others))

    def _take(self, number: int) -> bool:
        if not self.claims.take(_name(number)):
            self._others.add(number)
            return False
        # Its owner may have finished it, and left, since it was looked for.
        self._find([number])
        if number in self.finished:
            self.claims.let_go(_name(number))
            return False
        self._others.discard(number)
        return True

    def _find(self, numbers: Sequence[int]) -> None:
        """Enters those that are there and whole; a bucket answers many questions at a time."""

        def read(number: int) -> tuple[int, Tally | None]:
            records = shards.read(self.directory, number)
            return number, None if records is None else tally(records)

        if numbers:
            with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                for number, found in pool.map(read, numbers):
                    if found is not None:
                        self._enter(number, found)
            self._settle()

    def _enter(self, number: int, found: Tally) -> None:
        if number in self.finished:
            return
        self.finished.add(number)
        self._others.discard(number)
        self.total = Tally(*map(sum, zip(self.total, found, strict=True)))
        self._accepted[number] = found.accepted
        while self.kept is None and self._run in self._accepted:
            self._run_tokens += self._accepted.pop(self._run)
            self._run += 1
            if self._run_tokens >= self.tokens or self._run == self.shards_planned:
                self.kept = self._run

    def _settle(self) -> None:
        """Draws the conclusions from what was entered."""
        documents, accepted, nan = self.total
        if nan > self.most_nan * documents:
            raise Stopped(
                f"{nan} of {documents} documents ended in logits that are not numbers, more than "
                f"synthesize.most_nan = {self.most_nan}: choose another "
                "synthesize.checkpoint_step, or see why the synthesizer is broken"
            )
        self.goal = self._goal()
        self.claims.worker.tell(shards=len(self.finished), accepted=accepted, goal=self.goal)

    def _goal(self) -> int:
        """How many shards it will take, of those that are finished as many as there are.

        An unfinished one is taken to hold the mean of the finished, and of one shard more that
        holds the most it can: so the first estimates are low, and what is written beyond the
        corpus and dropped stays little.
        """
        if self.kept is not None:
            return self.kept
        each = max(1.0, (self.most + self.total.accepted) / (1 + len(self.finished)))
        number, tokens = self._run, float(self._run_tokens)
        while tokens < self.tokens and number < self.shards_planned:
            tokens += self._accepted.get(number, each)
            number += 1
        return number


def _name(number: int) -> str:
    return f"{number:06d}"
