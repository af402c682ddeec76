"""What one process does for a corpus: shards of documents are sampled, judged and stored."""

from __future__ import annotations

import collections
import errno
import functools
import time
from collections.abc import Callable, Iterator

from etils import epath

from sbp_jax.data.vocabularies import Vocabulary, well_formed
from sbp_jax.progress import progress
from sbp_jax.synthesize import claims, filters, shards
from sbp_jax.synthesize.ledger import Ledger
from sbp_jax.synthesize.sampler import Sample, Sampler
from sbp_jax.synthesize.schedule import Plan, Request, document_keys
from sbp_jax.synthesize.seeds import Seeds
from sbp_jax.text.ngram_index import NgramIndex


class Work:
    """The shards of one corpus.

    Args:
      directory: of the corpus at work.
      seeds: to write from.
      plan: of them.
      sampler: with their synthesizer.
      vocabulary: its own.
      filter: what is rejected.
      excluded: texts that no document may hold.

    Raises:
      FileNotFoundError: the directory is gone, as when another process has committed.
    """

    def __init__(
        self,
        directory: epath.Path,
        seeds: Seeds,
        plan: Plan,
        sampler: Sampler,
        vocabulary: Vocabulary,
        filter: filters.FilterConfig,
        excluded: NgramIndex | None = None,
    ):
        self.seeds, self.plan, self.sampler, self.vocabulary = seeds, plan, sampler, vocabulary
        self.filter, self.excluded = filter, excluded
        self.directory = directory / shards.FOLDER
        self.directory.mkdir(exist_ok=True)  # no parents: gone is finished, by another process

    @functools.cached_property
    def copied(self) -> NgramIndex | None:
        """Where a copy of any training document is found."""
        if self.filter.max_corpus_copy is None:
            return None
        return self.seeds.index(self.filter.corpus_copy_one_in)

    def until(self, tokens: int, claimed: claims.Claims, most_nan: float) -> int:
        """Writes shards until there are enough, whoever wrote them.

        Returns:
          How many shards, from the first, hold the tokens.

        Raises:
          Stopped: too many documents have ended in logits that are no numbers.
          FileNotFoundError: as the class.
        """
        ledger = Ledger(
            self.directory,
            claimed,
            tokens=tokens,
            shards_planned=self.plan.shards,
            most=self.plan.documents_per_shard * self.sampler.config.max_length,
            most_nan=most_nan,
        )
        requests = Requests(ledger, self.requests)
        bar = progress(desc="synthesize", unit=" tokens", total=tokens)
        while ledger.kept is None:
            if requests.ready():
                self._write(requests, ledger, claimed.worker, bar)
            else:
                # What is missing is with others: they finish it, or their claims lapse.
                time.sleep(min(1.0, claimed.look_seconds))
                ledger.look()
        bar.close()
        return ledger.kept

    def shard(self, number: int) -> list[shards.Record]:
        """A finished shard."""
        if (records := shards.read(self.directory, number)) is None:
            file = shards.path(self.directory, number)
            raise FileNotFoundError(errno.ENOENT, "was finished, and is gone or damaged", str(file))
        return records

    def requests(self, number: int) -> list[Request]:
        """The documents of a shard."""
        indices = self.plan.shard(number)
        places = [self.plan.document(index) for index in indices]
        keys = document_keys(
            self.plan.seed,
            [self.plan.seed_ids[seed] for seed, _ in places],
            [sample for _, sample in places],
        )
        return [
            Request(index, self.seeds.prompts[seed], key)
            for index, (seed, _), key in zip(indices, places, keys, strict=True)
        ]

    def _write(self, requests: Requests, ledger: Ledger, worker: claims.Worker, bar) -> None:
        """Writes shards for as long as there are any to be claimed and more are needed."""
        done: dict[int, dict[int, shards.Record]] = collections.defaultdict(dict)
        for sample in self.sampler.sample(requests):
            number = sample.request.index // self.plan.documents_per_shard
            done[number][sample.request.index] = self._record(sample)
            if len(done[number]) == len(self.plan.shard(number)):
                records = [record for _, record in sorted(done.pop(number).items())]
                shards.write(self.directory, number, records)
                worker.tell(tokens=worker.tokens + shards.accepted_tokens(records))
                ledger.add(number, records)
                bar.n = ledger.total.accepted
                bar.refresh()
            if ledger.kept is not None:
                return

    def _record(self, sample: Sample) -> shards.Record:
        seed, index = self.plan.document(sample.request.index)
        tokens = sample.tokens.tolist()
        body = tokens[:-1] if sample.finish_reason == "stop" else tokens
        text = "" if sample.finish_reason == "nan" else well_formed(self.vocabulary.decode(body))
        judged = filters.judge(
            text,
            sample.finish_reason,
            self.seeds.shingles[seed],
            self.filter,
            self.copied,
            self.excluded,
        )
        mean = sample.log_probability / len(tokens) if sample.finish_reason != "nan" else 0.0
        return shards.Record(
            id=f"{self.plan.seed_ids[seed]}-{index}",
            text=text,
            seed_id=self.plan.seed_ids[seed],
            sample_index=index,
            key=sample.request.key.astype(">u4").tobytes().hex(),
            finish_reason=sample.finish_reason,
            tokens=len(tokens),
            mean_log_probability=mean,
            **judged._asdict(),
        )


class Requests(Iterator[Request]):
    """The documents of shards that are claimed when the sampler has a slot for them.

    That there is none now is told as an iterator tells its end; asked again, there may be one,
    since the number of shards that are needed is known better with each that is finished.

    Args:
      ledger: where shards are claimed.
      of_shard: the requests of a shard.
    """

    def __init__(self, ledger: Ledger, of_shard: Callable[[int], list[Request]]):
        self.ledger, self.of_shard = ledger, of_shard
        self.waiting: collections.deque[Request] = collections.deque()

    def ready(self) -> bool:
        """Whether there is one now."""
        if not self.waiting and (number := self.ledger.next()) is not None:
            self.waiting.extend(self.of_shard(number))
        return bool(self.waiting)

    def __next__(self) -> Request:
        if not self.ready():
            raise StopIteration
        return self.waiting.popleft()
