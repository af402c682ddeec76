"""Which host works on what: claims in shared storage, with a lease.

Hosts have nothing in common but a folder. A claim on a thing is the file
`claims/THING.GENERATION`, which names the worker that created it and is never changed: creating
it is claiming, and of several that try at once one succeeds (`storage.create`). A worker shows
that it lives by a *beat*: a thread rewrites `progress/WORKER.json` four times a lease, with a
count and the things that it holds. A claim lapses

- when its worker has left, as its last beat says, or
- when for a whole lease, by the clock of who looks on, its worker's file has told nothing new of
  it: the worker is dead, or has let go of the thing.

So no time is written down and no two hosts' clocks are compared. A lapsed claim is taken over by
creating the next generation, which again one of several does.

What is promised: of two workers that live, and whose beats reach the storage within a lease, never
both hold a thing. One that stands still for longer than a lease loses it and does not know.
What is claimed here is therefore work whose result does not depend on who does it: two that
write one shard write the same bytes, and a lost claim costs time, never correctness.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.synthesize import storage

CLAIMS = "claims"
PROGRESS = "progress"
BEATS_PER_LEASE = 4
RECENT_SECONDS = 300.0

type Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a worker tells of itself.

    Attributes:
      worker: its name; another process, or the same after a restart, is another worker.
      host: where it runs.
      beats: counts up.
      held: things it has claimed and not let go.
      left: whether it has ended.
      lease_seconds: after which silence its claims lapse.
      seconds: since it began.
      tokens: accepted ones, in shards that it has written itself.
      recent_seconds: at most the last five minutes of these.
      recent_tokens: written in them.
      shards: finished ones that it knows of, whoever wrote them.
      accepted: tokens in these.
      goal: shards that the corpus is expected to need.
    """

    worker: str
    host: str
    beats: int = 0
    held: tuple[str, ...] = ()
    left: bool = False
    lease_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    recent_seconds: float = 0.0
    recent_tokens: int = 0
    shards: int = 0
    accepted: int = 0
    goal: int = 0


def read_beat(path: epath.Path) -> Beat | None:
    """The last beat in a worker's file; None if there is none yet."""
    content = storage.read(path)
    try:
        fields = json.loads(content) if content else None
        return Beat(**{**fields, "held": tuple(fields["held"])}) if fields else None
    except (ValueError, TypeError, KeyError):
        logging.warning("%s is damaged: nothing is known of this worker", path)
        return None


class Worker:
    """This process as the others see it: use as a context manager; it beats until that is left.

    Args:
      directory: of the work; gets the folders `claims` and `progress`.
      lease_seconds: see the module.
      clock: monotonic seconds.

    Raises:
      FileNotFoundError: there is no such directory.
    """

    def __init__(self, directory: epath.Path, lease_seconds: float, clock: Clock = time.monotonic):
        self.directory, self.clock = directory, clock
        self.lease_seconds = lease_seconds
        for folder in (CLAIMS, PROGRESS):
            (directory / folder).mkdir(exist_ok=True)
        host = socket.gethostname()
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.path = directory / PROGRESS / f"{self.name}.json"
        self.held: frozenset[str] = frozenset()
        self._last = Beat(self.name, host, lease_seconds=lease_seconds)
        self._started = clock()
        self._history = collections.deque([(self._started, 0)])
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> Worker:
        storage.patiently(f"writing {self.path}", self.beat)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        """Lets go of everything, at once."""
        self._ended.set()
        self._thread.join()
        self.held = frozenset()
        self._try_to_beat(left=True)

    @property
    def tokens(self) -> int:
        """Accepted ones, in shards that it has written itself."""
        return self._last.tokens

    def tell(self, **facts: Any) -> None:
        """Sets fields of the next beat: `tokens`, `shards`, `accepted`, `goal`."""
        with self._lock:
            self._last = dataclasses.replace(self._last, **facts)

    def beat(self, left: bool = False) -> None:
        """Tells that the worker lives, or that it has left."""
        with self._lock:
            now = self.clock()
            self._history.append((now, self._last.tokens))
            while now - self._history[0][0] > RECENT_SECONDS:
                self._history.popleft()
            since, tokens = self._history[0]
            self._last = dataclasses.replace(
                self._last,
                beats=self._last.beats + 1,
                held=tuple(sorted(self.held)),  # a set that is replaced, never changed
                left=left,
                seconds=now - self._started,
                recent_seconds=now - since,
                recent_tokens=self._last.tokens - tokens,
            )
            content = json.dumps(dataclasses.asdict(self._last))
        artifacts.write_atomic(self.path, content)

    def _run(self) -> None:
        while not self._ended.wait(self.lease_seconds / BEATS_PER_LEASE):
            self._try_to_beat()

    def _try_to_beat(self, left: bool = False) -> None:
        """The next beat is soon: one that fails is not repeated."""
        try:
            # Where a bucket has no folders, writing would bring back one that was renamed.
            if self.path.exists():
                self.beat(left)
        except FileNotFoundError:
            pass  # renamed just now: the stage is finished
        except OSError as error:
            logging.warning("writing %s failed: %s", self.path, error)


@dataclasses.dataclass
class _Claim:
    """Another's claim, or one of this worker's, as it was last seen.

    Attributes:
      generation: of the thing's claims, the last.
      owner: the worker; empty until it has written its name, between which it may have died.
      pulse: what the owner's file told of it.
      since: when it told that first.
    """

    generation: int
    owner: str
    pulse: int | None
    since: float


class Claims:
    """What a worker claims, and what it sees of the others.

    Args:
      worker: this process.
    """

    def __init__(self, worker: Worker):
        self.worker = worker
        self._seen: dict[str, _Claim] = {}
        self._beats: dict[str, tuple[float, Beat | None]] = {}

    @property
    def look_seconds(self) -> float:
        """How often it is worth looking for what others have done."""
        return self.worker.lease_seconds / (2 * BEATS_PER_LEASE)

    def take(self, thing: str) -> bool:
        """Claims a thing unless another worker holds it; whether this one has it now.

        Args:
          thing: a name, as of a file.

        Raises:
          FileNotFoundError: the directory is gone, as when the stage has been committed.
        """
        if thing in self.worker.held:
            return True
        seen = self._seen.get(thing)
        while seen is None or self._lapsed(thing, seen):
            generation = 0 if seen is None else seen.generation + 1
            if self._create(thing, generation):
                return True
            seen = self._seen[thing] = self._last(thing, generation)
        return False

    def let_go(self, thing: str) -> None:
        """Of a thing that is done, or shall be another's."""
        self.worker.held -= {thing}

    def holds(self, thing: str) -> bool:
        """Whether nobody has taken over a thing that this worker has claimed."""
        if thing not in self.worker.held:
            return False
        return not self._path(thing, self._seen[thing].generation + 1).exists()

    def _create(self, thing: str, generation: int) -> bool:
        path, name = self._path(thing, generation), self.worker.name
        # Held before it is created: no beat in between shall tell that it was let go.
        self.worker.held |= {thing}
        taken = False
        try:
            taken = storage.patiently(f"creating {path}", lambda: storage.create(path, name))
        finally:
            if not taken:
                self.let_go(thing)
        if taken:
            self._seen[thing] = _Claim(generation, name, None, self.worker.clock())
            if generation:
                logging.info("takes over %s, which nobody works on any more", path.stem)
        return taken

    def _path(self, thing: str, generation: int) -> epath.Path:
        return self.worker.directory / CLAIMS / f"{thing}.{generation}"

    def _last(self, thing: str, generation: int) -> _Claim:
        """The claim of the last generation, of which `generation` is there."""
        while self._path(thing, generation + 1).exists():
            generation += 1
        owner = self._owner(thing, generation)
        return _Claim(generation, owner, self._pulse(thing, owner), self.worker.clock())

    def _owner(self, thing: str, generation: int) -> str:
        return (storage.read(self._path(thing, generation)) or b"").decode()

    def _lapsed(self, thing: str, claim: _Claim) -> bool:
        if not claim.owner and (owner := self._owner(thing, claim.generation)):
            claim.owner, claim.since = owner, self.worker.clock()
        if claim.owner == self.worker.name:
            return True  # and it is not held any more
        if (beat := self._beat(claim.owner)) is not None and beat.left:
            return True
        pulse, read_at = self._pulse(thing, claim.owner), self._beats[claim.owner][0]
        if pulse != claim.pulse:
            claim.pulse, claim.since = pulse, read_at
        return read_at - claim.since >= self.worker.lease_seconds

    def _pulse(self, thing: str, owner: str) -> int | None:
        """Changes for as long as the owner lives and holds the thing."""
        beat = self._beat(owner)
        return beat.beats if beat is not None and thing in beat.held else None

    def _beat(self, owner: str) -> Beat | None:
        """A worker's last beat, read once for all things that it holds."""
        now = self.worker.clock()
        read_at, beat = self._beats.get(owner, (None, None))
        if read_at is None or now - read_at >= self.look_seconds / 2:
            path = self.worker.directory / PROGRESS / f"{owner}.json"
            beat = read_beat(path) if owner else None
            self._beats[owner] = now, beat
        return beat
