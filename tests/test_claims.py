"""Hosts that come and go write one corpus: claims, leases, failing storage, progress."""

from __future__ import annotations

import collections
import errno
import json
import os
import random
import threading
import time
import types

import gin
import numpy as np
import pytest
from etils import epath

from sbp_jax import artifacts, cli
from sbp_jax.errors import Stopped, UserError
from sbp_jax.synthesize import claims, commit, shards, stage, storage
from sbp_jax.synthesize.claims import Claims, Worker
from sbp_jax.synthesize.ledger import Ledger
from sbp_jax.synthesize.sampler import Sample
from sbp_jax.synthesize.schedule import Plan
from sbp_jax.synthesize.work import Work

LEASE = 8.0


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self, now: float = 0.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def host(directory, clock) -> Claims:
    """A worker without its thread: it beats when a test says so."""
    worker = Worker(directory, LEASE, clock)
    worker.beat()
    return Claims(worker)


def in_threads(functions) -> None:
    """Runs functions at once; raises what one of them raised."""
    errors, barrier = [], threading.Barrier(len(functions))

    def run(function):
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_each_thing_is_one_workers(directory):
    taken = collections.defaultdict(list)

    def work():
        with Worker(directory, 60.0) as worker:
            claimed = Claims(worker)
            order = list(range(60))
            random.Random(worker.name).shuffle(order)
            for number in order:
                if claimed.take(str(number)):
                    taken[number].append(worker.name)
            everybody_has_tried.wait()

    everybody_has_tried = threading.Barrier(6)
    in_threads([work] * 6)
    assert sorted(taken) == list(range(60))
    assert all(len(workers) == 1 for workers in taken.values())


@pytest.mark.parametrize("skew", [0.0, 1e6, -1e6])
def test_a_dead_workers_claim_is_taken_over_after_the_lease(directory, monkeypatch, skew):
    """And no sooner, whatever the hosts' clocks say: they agree neither on the day nor the pace."""
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + skew * random.random())
    here, there = Clock(), Clock(5e5 - skew)
    first, second = host(directory, here), host(directory, there)
    assert first.take("7")
    for _ in range(40):  # ten leases
        assert not second.take("7")
        here.now += LEASE / 4
        there.now += LEASE / 4
        first.worker.beat()
    assert first.holds("7")
    assert not second.take("7")  # sees the last beat
    there.now += LEASE - 0.1
    assert not second.take("7")
    there.now += 0.1 + second.look_seconds
    assert second.take("7")
    assert not first.holds("7")
    assert second.holds("7")
    third = host(directory, there)
    assert not third.take("7")


def test_many_deaths_are_waited_for_once(directory):
    clock = Clock()
    for _ in range(3):
        one = host(directory, clock)
        one.take("7")
        clock.now += LEASE
        assert one.take("7")
    late = host(directory, clock)
    assert not late.take("7")
    clock.now += LEASE
    assert late.take("7")


def test_one_of_many_takes_over(directory):
    first, clocks = host(directory, Clock()), [Clock() for _ in range(8)]
    first.take("7")
    others = [host(directory, clock) for clock in clocks]
    assert not any(other.take("7") for other in others)
    for clock in clocks:
        clock.now += 2 * LEASE
    taken = []
    in_threads([lambda other=other: taken.append(other.take("7")) for other in others])
    assert sum(taken) == 1


def test_who_leaves_or_lets_go_is_followed(directory):
    clock = Clock()
    first, second = host(directory, clock), host(directory, clock)
    first.take("7")
    first.take("8")
    assert not second.take("7")
    first.worker.beat(left=True)
    clock.now += second.look_seconds
    assert second.take("7")  # at once
    # A thing that was let go and is not done, as a shard that was damaged, needs the lease.
    third = host(directory, clock)
    second.let_go("7")
    assert not third.take("7")
    for _ in range(5):
        clock.now += LEASE / 4
        second.worker.beat()
    assert third.take("7")
    assert not second.take("7")


def test_a_claim_whose_name_comes_late(directory):
    """A file is created, then written into: its worker may be slow, or die in between."""
    clock = Clock()
    first, second = host(directory, clock), host(directory, clock)
    for thing in "78":
        (directory / "claims" / f"{thing}.0").write_text("")
        assert not first.take(thing)
    (directory / "claims" / "8.0").write_text(second.worker.name)
    second.worker.held |= {"8"}
    clock.now += LEASE
    second.worker.beat()
    assert first.take("7")
    assert not first.take("8")


def test_a_worker_beats_until_it_leaves(directory):
    with Worker(directory, 0.04) as worker:
        first = claims.read_beat(worker.path)
        deadline = time.monotonic() + 10
        while claims.read_beat(worker.path).beats < first.beats + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    last = claims.read_beat(worker.path)
    assert not first.left
    assert last.left
    time.sleep(0.05)
    assert claims.read_beat(worker.path) == last


@pytest.mark.parametrize("installed", [True, False])
def test_in_a_bucket_one_creates(monkeypatch, installed):
    """By the bucket's own condition where its package is there, else by reading again."""
    files = {}

    class Bucket:
        def pipe_file(self, url, content, mode):
            if mode == "create" and url in files:
                raise FileExistsError(url)
            files[url] = content

    class Path:
        def __init__(self, sees: bool):
            self.sees = sees

        def __fspath__(self):
            return "gs://bucket/claims/7.0"

        def exists(self):
            return self.sees and "gs://bucket/claims/7.0" in files

        def write_text(self, text):
            files["gs://bucket/claims/7.0"] = text.encode()

        def read_text(self):
            return files["gs://bucket/claims/7.0"].decode()

    def filesystem(protocol):
        assert protocol == "gs"
        if not installed:
            raise ImportError("gcsfs")
        return Bucket()

    monkeypatch.setattr(storage.fsspec, "filesystem", filesystem)
    late = []
    if not installed:  # neither sees the other's file: the one that wrote last has it

        def meanwhile(_):
            if not late:
                late.append(None)
                late[0] = storage.create(Path(False), "other")

        monkeypatch.setattr(storage.time, "sleep", meanwhile)
    first = storage.create(Path(True), "one")
    assert first == installed
    assert late == ([] if installed else [True])
    assert not storage.create(Path(True), "third")


# Storage that fails.


@pytest.fixture
def pauses(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", found.append)
    return found


def test_what_fails_now_and_then_is_tried_again(pauses):
    answers = [OSError(errno.EIO, "input/output"), OSError(errno.ESTALE, "stale"), "content"]

    def read():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert storage.patiently("reading", read) == "content"
    assert len(pauses) == 2
    assert pauses[1] > pauses[0] / 1.5
    assert not answers


def test_what_fails_for_good_stops(pauses):
    def write():
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(Stopped, match="writing x has failed 6 times") as stopped:
        storage.patiently("writing x", write)
    assert "\n" not in stopped.value.message
    assert stopped.value.exit_code == 1
    assert len(pauses) == 5
    assert 10 < sum(pauses) < 60


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EACCES, errno.EEXIST])
def test_an_answer_is_not_asked_for_again(pauses, number):
    def write():
        raise OSError(number, "no")

    with pytest.raises(OSError, match="no"):
        storage.patiently("writing", write)
    assert not pauses


# A corpus of made-up records, by any number of workers.

PLAN = Plan([f"id{i}" for i in range(10)], 0, documents_per_shard=4, samples_per_seed=30)
MOST = 20
TOKENS = 900


class FakeSampler:
    """Gives each request its document: as many tokens as its index says, some of them none."""

    config = types.SimpleNamespace(max_length=MOST)

    def __init__(self, reason="stop", pause: float = 0.0):
        self.reason, self.pause = reason, pause
        self.starts = 0

    def sample(self, requests):
        self.starts += 1
        slots: collections.deque = collections.deque()
        while True:
            while len(slots) < 6 and (request := next(requests, None)) is not None:
                slots.append(request)
            if not slots:
                return
            if self.pause:
                time.sleep(self.pause)
            request = slots.popleft()
            tokens = np.zeros(1 + request.index * 7 % MOST, np.int32)
            yield Sample(request, tokens, self.reason, -1.0)


def worker_of(directory, sampler=None) -> Work:
    """A `Work` with no text in it."""
    seeds = types.SimpleNamespace(prompts=[[1]] * len(PLAN.seed_ids))
    work = Work(directory, seeds, PLAN, sampler or FakeSampler(), None, None)
    work._record = lambda sample: shards.Record(
        id="{}-{}".format(*PLAN.document(sample.request.index)),
        text="",
        seed_id="",
        sample_index=0,
        key=sample.request.key.tobytes().hex(),
        finish_reason=sample.finish_reason,
        tokens=len(sample.tokens),
        mean_log_probability=0.0,
        repetition=0.0,
        compression=0.0,
        language="",
        seed_copy=0.0,
        corpus_copy=None,
        alike=None,
        rejected_by="not_a_number" if sample.finish_reason == "nan" else None,
    )
    return work


def write_shards(directory, sampler=None, lease=60.0, most_nan=0.01) -> int:
    work = worker_of(directory, sampler)
    with Worker(directory, lease) as worker:
        return work.until(TOKENS, Claims(worker), most_nan)


def content(directory, kept: int) -> list[bytes]:
    return [shards.path(directory / shards.FOLDER, n).read_bytes() for n in range(kept)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one undisturbed worker writes."""
    directory = epath.Path(tmp_path_factory.mktemp("alone"))
    kept = write_shards(directory)
    return content(directory, kept)


def test_a_corpus_is_the_shortest_run_and_little_more_is_written(directory):
    kept = write_shards(directory)
    folder = directory / shards.FOLDER
    sizes = [shards.accepted_tokens(shards.read(folder, n)) for n in range(kept)]
    assert sum(sizes) >= TOKENS > sum(sizes[:-1])
    assert len(shards.present(folder)) - kept <= 1
    # Who comes afterwards reads what is finished, and claims nothing.
    claimed = set((directory / claims.CLAIMS).iterdir())
    assert write_shards(directory) == kept
    assert set((directory / claims.CLAIMS).iterdir()) == claimed


def test_workers_write_each_shard_once_and_what_one_does(directory, alone, monkeypatch):
    real, written = shards.write, []

    def write(folder, number, records):
        written.append((number, threading.get_ident()))
        real(folder, number, records)

    monkeypatch.setattr(shards, "write", write)
    kept = []
    in_threads([lambda: kept.append(write_shards(directory, FakeSampler(pause=0.002), 2.0))] * 4)
    assert kept == [len(alone)] * 4
    assert content(directory, len(alone)) == alone
    numbers = [number for number, _ in written]
    assert len(set(numbers)) == len(numbers)
    assert len({thread for _, thread in written}) == 4
    # Of four workers each may be at most with one or two when the tokens are there.
    assert len(numbers) - len(alone) <= 6


def test_the_shards_of_who_dies_are_written_by_another(directory, alone):
    dead = host(directory, time.monotonic)  # never beats again
    assert dead.take("000000")
    assert dead.take("000002")
    sampler = FakeSampler()
    assert write_shards(directory, sampler, lease=1.5) == len(alone)
    assert content(directory, len(alone)) == alone
    assert sampler.starts <= 4  # devices rest while there is nothing to be had


def test_the_goal_grows_with_what_is_finished(directory):
    clock = Clock()
    ledger = Ledger(
        directory,
        host(directory, clock),
        tokens=1000,
        shards_planned=1000,
        most=100,
        most_nan=1.0,
    )
    record = types.SimpleNamespace(tokens=50, rejected_by=None, finish_reason="stop")
    goals = [ledger.goal]
    order = []
    while ledger.kept is None:
        order.append(ledger.next())
        ledger.add(order[-1], [record])
        goals.append(ledger.goal)
    assert goals[0] == 10  # of the fullest
    assert goals == sorted(goals)
    assert order == list(range(20))
    assert ledger.kept == 20
    assert ledger.next() is None


def test_storage_that_fails_now_and_then_changes_nothing(directory, alone, monkeypatch):
    """Every third writing, reading and claiming fails."""
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 1e-4)
    calls = collections.Counter()

    def failing(name, real):
        def call(*arguments):
            calls[name] += 1
            if calls[name] % 3 == 0:
                raise OSError(errno.EIO, f"{name} failed")
            return real(*arguments)

        return call

    monkeypatch.setattr(artifacts, "write_atomic", failing("write", artifacts.write_atomic))
    monkeypatch.setattr(storage, "create", failing("create", storage.create))
    path = type(directory)
    monkeypatch.setattr(path, "read_bytes", failing("read", path.read_bytes))
    kept = write_shards(directory)
    assert min(calls[name] for name in ("write", "create", "read")) > 3
    monkeypatch.undo()
    assert content(directory, kept) == alone


def test_storage_that_fails_for_good_loses_nothing_finished(directory, alone, monkeypatch):
    real, written = artifacts.write_atomic, []

    def full(path, content):
        if len(written) == 5:
            raise OSError(errno.EIO, "gone")
        if path.parent.name == shards.FOLDER:
            written.append(path.name)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "FIRST_PAUSE_SECONDS", 1e-4)
        patch.setattr(artifacts, "write_atomic", full)
        with pytest.raises(Stopped, match=r"shard-\d+.jsonl has failed 6 times"):
            write_shards(directory, lease=0.2)
    assert len(shards.present(directory / shards.FOLDER)) == 5
    again = []
    monkeypatch.setattr(artifacts, "write_atomic", lambda p, c: (again.append(p.name), real(p, c)))
    assert write_shards(directory, lease=0.2) == len(alone)
    assert content(directory, len(alone)) == alone
    assert not set(again) & set(written)


def test_logits_that_are_no_numbers_stop_the_run(directory):
    with pytest.raises(Stopped, match=r"4 of 4 documents .*most_nan = 0.5") as stopped:
        write_shards(directory, FakeSampler("nan"), most_nan=0.5)
    assert "\n" not in stopped.value.message
    # A broken checkpoint is as broken for who comes after.
    with pytest.raises(Stopped, match="4 of 4"):
        write_shards(directory, most_nan=0.5)
    assert len(shards.present(directory / shards.FOLDER)) == 1


# The end.


def began(directory) -> artifacts.Stage:
    return artifacts.begin(
        artifacts.Run(directory, "synthetic"),
        "synthesize",
        config={"tokens": TOKENS, "documents_per_shard": 4},
        inputs={},
        code=(),
        resumable=True,
    )


def test_one_of_those_that_began_together_commits(directory):
    commits = []

    def work():
        made = began(directory)
        kept = write_shards(made.work, lease=1.0)
        with Worker(made.work, 1.0) as worker:

            def write():
                commits.append(kept)
                time.sleep(0.3)  # the others come to the end meanwhile
                return {"kept": kept}

            commit.once(made, Claims(worker), write)

    in_threads([work] * 4)
    assert len(commits) == 1
    assert began(directory).finished
    assert sorted(path.name for path in directory.iterdir()) == ["synthetic"]
    names = {path.name for path in (directory / "synthetic").iterdir()}
    assert names == {artifacts.MANIFEST, artifacts.OPERATIVE_CONFIG}


def test_who_comes_when_all_is_done_ends(directory):
    """It began before the other committed, and finds nothing where the work was."""
    made = began(directory)
    late = began(directory)
    made.commit({"tokens": 1})
    with pytest.raises(FileNotFoundError):
        Worker(late.work, LEASE)
    assert not late.work.exists()
    with pytest.raises(FileNotFoundError):
        Work(late.work, None, None, None, None, None)


def test_who_dies_at_the_end_is_followed(directory):
    made = began(directory)
    dead = host(made.work, time.monotonic)
    assert dead.take(commit.FINISH)
    with Worker(made.work, 0.2) as worker:
        commit.once(made, Claims(worker), lambda: {"tokens": 1})
    assert artifacts.read_manifest(made.out).counts == {"tokens": 1}


# What `--status` tells.


def sbp(*arguments: str) -> int:
    gin.clear_config()
    return cli.main(["synthesize", *arguments])


@pytest.fixture
def under_way(directory):
    """Three processes: one at work for an hour, one dead, one that has left."""
    made = began(directory)
    (made.work / shards.FOLDER).mkdir()
    for number in range(3):
        shards.write(made.work / shards.FOLDER, number, [])
    workers = []
    for state in ("working", "silent", "left"):
        clock = Clock()
        worker = Worker(made.work, LEASE, clock)
        claimed = Claims(worker)
        assert claimed.take(f"00000{len(workers) + 3}")
        worker.tell(tokens=100)
        clock.now = 3500.0
        worker.beat()
        worker.tell(tokens=300, shards=3, accepted=600, goal=5)
        clock.now = 3600.0
        worker.beat(left=state == "left")
        workers.append(worker)
    past = time.time() - 100
    os.utime(workers[1].path, (past, past))
    return directory / "synthetic"


def test_status_tells_of_all_hosts(under_way, directory, capsys):
    assert sbp(f"--status={under_way}", "--json", "--price=2.5") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "working"
    assert (found["tokens"], found["wanted_tokens"]) == (600, TOKENS)
    assert (found["shards"], found["goal"]) == (3, 5)
    assert found["tokens_per_second"] == pytest.approx(2.0)  # 200 in the last 100 s
    assert found["seconds_left"] == pytest.approx(150)
    assert found["dollars"] == pytest.approx(7.5)
    assert [(w["state"], w["held"]) for w in found["workers"]] == [
        ("working", ["000003"]),
        ("silent", ["000004"]),
        ("left", ["000005"]),
    ]
    assert sbp(f"--status={directory}", "--scope=synthetic") == 0
    told = capsys.readouterr().out
    assert "600 of 900 (66.7%)" in told
    assert "3 of about 5 finished" in told
    assert "writes 000003" in told
    assert "dollars" not in told


def test_status_of_what_is_finished_or_is_none(directory, capsys):
    made = began(directory)
    assert sbp(f"--status={made.out}") == 0
    assert "interrupted" in capsys.readouterr().out
    made.commit({"tokens": 950, "sampled_documents": 40})
    assert sbp(f"--status={made.out}") == 0
    assert "finished\ntokens     950 of 900 (100.0%)\nshards     10" in capsys.readouterr().out
    other = artifacts.begin(
        artifacts.Run(directory, "vocab"), "vocab", config={}, inputs={}, code=()
    )
    other.commit({})
    for path, message in (("none", "holds no corpus"), ("vocab", "made by `sbp vocab`")):
        assert sbp(f"--status={directory / path}") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--price=2"], "takes no --price"),
        (["--json"], "takes no --json"),
        (["--status=x", "--gin_file=y"], "takes no --gin_file"),
        (["--status=x", "--gin.synthesize.seed=1"], "reads no gin"),
        (["--status=x", "--scope=a", "--scope=b"], "give one --scope"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(capsys, flags, message):
    assert sbp(*flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"lease_seconds": 0.0}, {"most_nan": 1.5}])
def test_values_out_of_range_are_refused(directory, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        stage.synthesize(
            artifacts.Run(directory, "x"), tokens=1, seed_length=1, max_length=1, **changes
        )
