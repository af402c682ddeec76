"""The shipped models on TPU slices, as the TPU compiler sees them; writes docs/slices.md.

    .venv/bin/python benchmarks/tpu.py [--only=TEXT,…] [--check]

Compiles the trainer's step of each case with `sbp plan`, and the sampler's programs for one chip,
in processes of their own. What it found is kept in benchmarks/tpu.json, and the page made of that.
--only takes the cases whose names hold one of the texts, with commas between them. --check writes
nothing: it compiles again the models of the paper's size on their own slices, and fails where a
count of collectives differs, or memory by more than 5%.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
KEPT = HERE / "tpu.json"
PAGE = HERE.parent / "docs/slices.md"
TOLERANCE = 0.05  # of memory


class Case(NamedTuple):
    """A model of gin/models/ on a slice, and the file of gin/hardware/ given after it, if any."""

    model: str
    topology: str
    hardware: str = ""
    slices: int = 1

    @property
    def name(self) -> str:
        """As `sbp_3b on 2 × v5p:4x4x4`."""
        times = "" if self.slices == 1 else f"{self.slices} × "
        return f"{self.model} on {times}{self.topology}"

    @property
    def files(self) -> list[str]:
        """The gin files."""
        hardware = [f"hardware/{self.hardware}.gin"] if self.hardware else []
        return [f"models/{self.model}.gin", *hardware]


CASES = (
    Case("sbp_100m", "v5e:2x2"),
    Case("sbp_100m", "v6e:2x2"),
    Case("qwen3_0_6b", "v5e:4x4", "small_chips"),
    Case("qwen3_0_6b", "v6e:4x4", "small_chips"),
    Case("sbp_3b", "v4:4x4x4", "small_chips"),
    Case("sbp_3b", "v5e:16x16", "small_chips"),
    Case("sbp_3b", "v6e:16x16", "small_chips"),
    Case("sbp_3b", "v5p:4x4x4"),
    Case("sbp_3b", "v5p:4x4x4", slices=2),
    Case("sbp_6b", "v6e:16x16", "small_chips"),
    Case("sbp_6b", "v5p:8x8x8"),
    Case("llama3_8b", "v6e:16x16", "small_chips"),
    Case("llama3_8b", "v5p:4x4x8"),
)


class Sampling(NamedTuple):
    """The sampler of a model of gin/models/ on one chip of a slice, its weights and cache alike."""

    model: str
    topology: str
    slots: int
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """As `sampling sbp_3b on v5e:2x2, 40 slots, int8`."""
        return f"sampling {self.model} on {self.topology}, {self.slots} slots, {self.dtype}"


# As many slots as fit beside the weights, in steps of eight; and the count of an older figure.
SAMPLINGS = (
    Sampling("sbp_3b", "v5e:2x2", 40),
    Sampling("sbp_3b", "v5e:2x2", 112, "int8"),
    Sampling("sbp_3b", "v6e:2x2", 120),
    Sampling("sbp_3b", "v6e:2x2", 256, "int8"),
    Sampling("sbp_3b", "v5p:2x2x1", 256),
    Sampling("sbp_3b", "v5p:2x2x1", 416),
    Sampling("sbp_3b", "v5p:2x2x1", 416, "int8"),
)
PROMPT, SAMPLED = 1024, 1024  # tokens
CORPUS = 75e9  # tokens, the smaller of the paper's
CHECKED = ("sbp_3b on v5p:4x4x4", "sbp_6b on v5p:8x8x8")


def plan(case: Case) -> dict:
    """What `sbp plan --json` prints, and how long it took."""
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sbp_jax.cli",
            "plan",
            *(f"--gin_file={file}" for file in case.files),
            f"--topology={case.topology}",
            f"--slices={case.slices}",
            "--json",
        ],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{case.name}: sbp plan ended with {done.returncode}")
    found = json.loads(done.stdout)
    found["planned_in_seconds"] = round(time.monotonic() - started)
    return found


def sampling(case: Sampling) -> dict:
    """The sampler's two programs; to be run in a process of its own."""
    sys.path.insert(0, str(HERE.parent))
    from sbp_jax.cli import configure
    from sbp_jax.model.decoder import DecoderConfig
    from sbp_jax.plan import programs, stage, topology
    from sbp_jax.synthesize.sampler import SamplerConfig

    assert stage.PlanConfig  # gin knows what it configures when it has been imported
    configure([str(HERE.parent / f"gin/models/{case.model}.gin")], [])
    dtype = None if case.dtype == "bfloat16" else case.dtype
    model = DecoderConfig()
    config = SamplerConfig(
        prompt_length=PROMPT,
        max_length=SAMPLED,
        temperature=1.0,
        top_p=0.9,
        eos=1,
        never=(0,),
        slots=case.slots,
        prefill_rows=4,
        weight_dtype=dtype,
        cache_dtype=dtype,
    )
    found = programs.compile_sampler(model, config, topology.parse(case.topology))
    prefill, decode = found["prefill"], found["decode"]
    shape = f"{model.kv_heads},{case.slots},{config.cache_length},{model.head_size}"
    written = re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", decode.hlo)
    itemsize = 2 if dtype is None else 1
    cache = 2 * model.layers * model.kv_heads * case.slots * config.cache_length * model.head_size
    seconds = (
        decode.seconds
        and prefill.seconds
        and (SAMPLED * decode.seconds / case.slots + prefill.seconds / config.prefill_rows)
    )
    return {
        "fits": prefill.fits and decode.fits,
        "bytes_per_chip": max(prefill.bytes_per_chip, decode.bytes_per_chip),
        "hbm_bytes": decode.hbm_bytes,
        "step_seconds": decode.seconds,
        "kernel_seconds": decode.kernel_seconds,
        "prefill_seconds": prefill.seconds,
        "bound_seconds": decode.bound_seconds,
        "cache_bytes": cache * itemsize,
        "temporary_bytes": decode.temporary_bytes,
        "operations_on_the_cache": collections.Counter(written),
        "tokens_per_s_chip": seconds and SAMPLED / seconds,
    }


def sampling_page(kept: dict[str, dict]) -> list[str]:
    """The part of the page that tells of the sampler."""
    lines = [
        "",
        "## Sampling, on one chip",
        "",
        f"Documents of {SAMPLED} tokens after seeds of {PROMPT}, every slot as long as that. A",
        "step gives each slot a token. JAX's paged attention carries no estimate: it is taken to",
        "move the cache at 80% of the bandwidth. The bound is to read all weights and the cache",
        "once at the full bandwidth. Temporaries are a step's, beside the cache. A rate counts the",
        "reading of a prompt for each document, and none is shared.",
        "",
        "| model | chip | weights and cache | slots | GiB | of | temporaries | step, ms | of bound "
        f"| tokens/s a chip | chip-hours for {CORPUS / 1e9:.0f}·10⁹ tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in SAMPLINGS:
        if (found := kept.get(case.name)) is None:
            lines += ["", f"Not compiled yet: {case.name}."]
            continue
        cells = [
            case.model,
            case.topology.split(":")[0],
            case.dtype,
            str(case.slots),
            f"{found['bytes_per_chip'] / 2**30:.1f}",
            f"{found['hbm_bytes'] / 2**30:.0f}",
        ]
        if found["step_seconds"] is None or not found["fits"]:
            cells += ["**does not fit**", *[""] * 4]
        else:
            rate = found["tokens_per_s_chip"]
            cells += [
                f"{found['temporary_bytes'] / found['cache_bytes']:.1%}",
                f"{1e3 * found['step_seconds']:.1f}",
                f"{found['step_seconds'] / found['bound_seconds']:.2f}",
                f"{rate:,.0f}",
                f"{CORPUS / rate / 3600:,.0f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(kept: dict[str, dict]) -> str:
    """The Markdown of docs/slices.md."""
    lines = [
        "# The shipped models on TPU slices",
        "",
        "Made by `.venv/bin/python benchmarks/tpu.py`: **estimates of the TPU compiler**, no TPU",
        "was measured. Attention kernels, for which it gives no estimate, are taken to reach half",
        "of the chip's peak, and all that moves between chips to hide behind the rest. Weights",
        "and optimizer state are split over all chips of a slice; rows of 4096 tokens.",
        "",
        "| model | slice | chips | gin files | rows a step | GiB a chip | of | fits | step, s "
        "| MFU | chip-hours for 10⁹ tokens | GB a chip gathered | reduced |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    absent: list[str] = []
    for case in CASES:
        if (found := kept.get(case.name)) is None:
            absent.append(case.name)
            continue
        train = found["programs"]["pretrain"]
        moved = train["collectives"]
        cells = [
            case.model,
            found["topology"],
            str(found["chips"]),
            " ".join(f"`{file}`" for file in case.files),
            f"{found['batch_size']:,}",
            f"{train['bytes_per_chip'] / 2**30:.1f}",
            f"{train['hbm_bytes'] / 2**30:.0f}",
            "yes" if train["fits"] else "**no**",
        ]
        if train["step_seconds"] is None:
            cells += [""] * 5
        else:
            rate = found["batch_size"] * found["length"] / train["step_seconds"]
            reduced = sum(
                moved.get(kind, {"bytes": 0})["bytes"] for kind in ("all-reduce", "reduce-scatter")
            )
            cells += [
                f"{train['step_seconds']:.2f}",
                f"{100 * train['mfu']:.0f}%",
                f"{found['chips'] * 1e9 / rate / 3600:.1f}",
                f"{moved.get('all-gather', {'bytes': 0})['bytes'] / 1e9:.1f}",
                f"{reduced / 1e9:.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Not compiled yet: {', '.join(absent)}."]
    return "\n".join([*lines, *sampling_page(kept), ""])


def differences(kept: dict, found: dict) -> list[str]:
    """What a compiled step no longer has in common with the one that was kept."""
    result = []
    for program in kept["programs"]:
        before, now = kept["programs"][program], found["programs"][program]
        if abs(now["bytes_per_chip"] / before["bytes_per_chip"] - 1) > TOLERANCE:
            sizes = f"{now['bytes_per_chip']:,}, kept {before['bytes_per_chip']:,}"
            result.append(f"{program}: bytes a chip {sizes}")
        counts = [
            {kind: moved["count"] for kind, moved in side["collectives"].items()}
            for side in (before, now)
        ]
        if counts[0] != counts[1]:
            result.append(f"{program}: collectives {counts[1]}, kept {counts[0]}")
    return result


def main() -> None:
    """Compiles, and writes or compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known = [case for case in CASES if case.name in CHECKED] if flags.check else CASES
    wanted = flags.only.split(",")
    cases = [case for case in known if any(text in case.name for text in wanted)]
    samplings = [case for case in SAMPLINGS if any(text in case.name for text in wanted)]
    samplings = [] if flags.check else samplings
    if not cases and not samplings:
        parser.error(f"--only={flags.only}: expected part of {[case.name for case in known]}")
    failed = False
    for sampled in samplings:
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            kept[sampled.name] = pool.submit(sampling, sampled).result()
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        print(f"{sampled.name}: {1e3 * (kept[sampled.name]['step_seconds'] or 0):.1f} ms a step")
    for case in cases:
        found = plan(case)
        train = found["programs"]["pretrain"]
        print(
            f"{case.name}: {train['bytes_per_chip'] / 2**30:.1f} GiB a chip, "
            f"{train['compiler_cycles'] or 0:,} cycles, planned in {found['planned_in_seconds']} s",
            flush=True,
        )
        if flags.check:
            for difference in differences(kept[case.name], found):
                failed = True
                print(f"{case.name}: {difference}", file=sys.stderr)
            continue
        kept[case.name] = found
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    if not flags.check:
        PAGE.write_text(page(kept))
    sys.exit(failed)


if __name__ == "__main__":
    main()
