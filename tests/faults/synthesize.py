"""Kills processes that write a corpus, at random, and compares what they leave: `make faults`.

    python tests/faults/synthesize.py [--kills=200] [--workers=4] [--seed=0]

Four processes run `sbp synthesize` on one run directory. One after another is ended by SIGKILL at a
random moment, most of them while they hold shards or write the end, and started again at once. A
corpus that is finished is compared, and another begun until there were so many kills. Each must be,
byte for byte, what one undisturbed process writes: then nothing is lost and nothing there twice.
So must those of one to four processes with 1, 2, 4 and 8 virtual devices each.
Exit code 1 if any differs or a process fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from sbp_jax import artifacts

GIN = """
train.rows = 'rows/real'
train.model = @DecoderConfig()
train.optimizer = @OptimizerConfig()
train.steps = 30
train.batch_size = 8
DecoderConfig.vocab_size = 320
DecoderConfig.width = 16
DecoderConfig.layers = 2
DecoderConfig.heads = 4
DecoderConfig.kv_heads = 2
DecoderConfig.head_size = 8
DecoderConfig.hidden = 32
DecoderConfig.dtype = 'float32'
OptimizerConfig.learning_rate = 3e-2
synthesize.tokens = 8000
synthesize.seed_length = 10
synthesize.max_length = 24
synthesize.slots = 8
synthesize.prefill_rows = 4
synthesize.documents_per_shard = 8
synthesize.lease_seconds = 2.0
synthesize.any_checkpoint = True
FilterConfig.min_words = 3
"""
MEAN_SECONDS_BETWEEN_KILLS = 0.5
SHARE_AT_WORK = 0.8  # of kills that wait for a worker which holds something
MOST_KILLS = 40  # of one corpus: the end of one that is killed again and again never comes
LONGEST_SECONDS = 600
DEVICES = (1, 2, 4, 8)
TESTS = pathlib.Path(__file__).parent.parent


def work(directory: str, scope: str, log: str, devices: int) -> None:
    """A worker: what `sbp synthesize` is, in a process of its own."""
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from sbp_jax import cli

    flags = arguments("synthesize", directory, scope)
    sys.exit(cli.main([*flags, f"--gin.synthesize.cpu_devices={devices}"]))


def arguments(stage: str, directory: str, scope: str) -> list[str]:
    return [stage, f"--scope={scope}", f"--run_dir={directory}", f"--gin_file={directory}/run.gin"]


def content(directory: pathlib.Path) -> dict[str, bytes | str]:
    """Every file but those that tell when it was made and under what name, and the counts."""
    files: dict[str, bytes | str] = {
        path.name: path.read_bytes() if path.is_file() else "a folder"
        for path in directory.iterdir()
        if path.name not in (artifacts.MANIFEST, artifacts.OPERATIVE_CONFIG)
    }
    return {**files, "counts": str(artifacts.read_manifest(directory).counts)}


def holds(directory: pathlib.Path, pid: int) -> bool:
    """Whether a worker's last beat names shards that it has claimed."""
    for path in directory.glob(f"*-{pid}-*.json"):
        with contextlib.suppress(FileNotFoundError):
            return bool(json.loads(path.read_text())["held"])
    return False


def corpus_under_fire(
    directory: pathlib.Path,
    scope: str,
    workers: int,
    kills: int,
    rng: random.Random,
    devices: int = 1,
) -> tuple[int, int, list[str]]:
    """Writes a corpus with at most so many kills.

    Returns:
      How many there were, how many of these met a worker that held shards, and what failed.
    """
    log = directory / f"{scope}.log"
    context = multiprocessing.get_context("forkserver")

    def start():
        given = str(directory), scope, str(log), devices
        process = context.Process(target=work, args=given)
        process.start()
        return process

    alive = [start() for _ in range(workers)]
    progress = artifacts.partial_directory(directory / scope) / "progress"
    done, met, failed = 0, 0, []
    aimed = False
    deadline = time.monotonic() + LONGEST_SECONDS
    while alive and time.monotonic() < deadline:
        time.sleep(rng.expovariate(1 / MEAN_SECONDS_BETWEEN_KILLS))
        for process in [process for process in alive if process.exitcode is not None]:
            alive.remove(process)
            if process.exitcode:
                failed.append(f"a worker ended by itself with {process.exitcode}")
        if alive and done < kills and not artifacts.is_finished(directory / scope):
            at_work = [process for process in alive if holds(progress, process.pid)]
            if aimed and not at_work:
                continue
            victim = rng.choice(at_work if aimed else alive)
            aimed = rng.random() < SHARE_AT_WORK  # the next
            victim.kill()
            victim.join()
            if victim.exitcode == -signal.SIGKILL:
                done, met = done + 1, met + (victim in at_work)
                alive[alive.index(victim)] = start()
    for process in alive:
        process.kill()
        failed.append(f"a worker was not done after {LONGEST_SECONDS} s")
    if failed:
        failed.append(f"{log} ends:\n" + "".join(log.read_text().splitlines(True)[-40:]))
    return done, met, failed


def differences(directory: pathlib.Path, wanted: dict[str, bytes | str]) -> list[str]:
    """In what a corpus differs from the one that was wanted."""
    found = content(directory)
    names = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    told = f"{directory.name} differs from what one process writes: {', '.join(names)}"
    return [told] if names else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"  # of semaphores that the killed leave
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    with tempfile.TemporaryDirectory(prefix="sbp-jax-faults-") as name:
        directory = pathlib.Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory / "compiled")
        (directory / "run.gin").write_text(GIN)
        make = "import sys, made_rows; made_rows.write_text_run(sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, name], check=True)
        for stage, scope in (("train", "tune"), ("synthesize", "undisturbed")):
            command = [sys.executable, "-m", "sbp_jax.cli", *arguments(stage, name, scope)]
            subprocess.run([*command, "--verbosity=warning"], check=True)
        wanted = content(directory / "undisturbed")
        # A worker is forked from a process that has imported what it needs: kills meet work, not
        # the start of Python.
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["sbp_jax.cli", "sbp_jax.synthesize.stage"]
        )
        for devices in DEVICES:
            for workers in range(1, flags.workers + 1):
                scope = f"devices_{devices}_processes_{workers}"
                _, _, failed = corpus_under_fire(directory, scope, workers, 0, rng, devices)
                if failed := failed or differences(directory / scope, wanted):
                    print("\n".join(failed), file=sys.stderr)
                    return 1
                print(f"{devices} devices in each of {workers} processes: the same", flush=True)
        kills, met, corpora, started = 0, 0, 0, time.monotonic()
        while kills < flags.kills:
            scope = f"killed_{corpora}"
            most = min(MOST_KILLS, flags.kills - kills)
            more, at_work, failed = corpus_under_fire(directory, scope, flags.workers, most, rng)
            kills, met, corpora = kills + more, met + at_work, corpora + 1
            failed = failed or differences(directory / scope, wanted)
            print(f"{scope}: {more} kills, {kills} of {flags.kills} together", flush=True)
            if failed:
                print("\n".join(failed), file=sys.stderr)
                return 1
        counts = artifacts.read_manifest(directory / "undisturbed").counts
        print(
            f"{kills} kills over {flags.workers} processes, {met} while they held shards, in "
            f"{time.monotonic() - started:.0f} s: {corpora} corpora of {counts['documents']} "
            f"documents and {counts['tokens']} tokens, each byte for byte what one undisturbed "
            "process writes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
