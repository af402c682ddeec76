"""The `sbp` command: stage names, gin flags, exit codes.

    sbp STAGE --gin_file=FILE… [--gin.NAME=VALUE…] [--scope=SCOPE… [--like=SCOPE]] [--run_dir=DIR]
    sbp cache … --runner=RUNNER [-- OPTION…]
    sbp show TASK|ARTEFACT [--run_dir=DIR] [--html=FILE]
    sbp pair … --inspect=FILE
    sbp evaluate … --tasks=NAME[,NAME…]
    sbp results [ARTEFACT…] [--into=FILE] [--name=EXPERIMENT] [--machine=WORDS] [--replace]
    sbp synthesize --status=DIR [--scope=SCOPE] [--price=DOLLARS] [--json]

Exit codes: 0 the stage is finished, 1 it failed, 2 the user made a mistake, 3 what was planned does
not fit, 130 interrupted, 143 ended by SIGTERM and saved. After any the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import gc
import importlib
import os
import pathlib
import re
import sys
import tokenize
import traceback
from collections.abc import Sequence
from typing import NoReturn

import absl.flags
import gin
import jax
from absl import logging
from etils import epath

from sbp_jax import artifacts, bootstrap
from sbp_jax.errors import Stopped, UserError
from sbp_jax.parallel import processes

# The stages: the function that runs each, as module:function. None of these modules imports
# TensorFlow or SeqIO at its top, so that gin can know all of them in every process.
STAGES = {
    "vocab": "sbp_jax.data.vocab:vocab",
    "cache": "sbp_jax.data.cache:cache",
    "train": "sbp_jax.train.stage:train",
    "embed": "sbp_jax.pair.embed:embed",
    "pair": "sbp_jax.pair.stage:pair",
    "synthesize": "sbp_jax.synthesize.stage:synthesize",
    "evaluate": "sbp_jax.evaluate.stage:evaluate",
    "conditioning": "sbp_jax.evaluate.conditioning:conditioning",
    "corpus-report": "sbp_jax.evaluate.corpus_report:corpus_report",
    "report": "sbp_jax.report.stage:report",
    "bootstrap": "sbp_jax.bootstrap:bootstrap",
    "plan": "sbp_jax.plan.stage:plan",
    "experiment": "sbp_jax.experiment.stage:experiment",
    "results": "sbp_jax.experiment.results:results",
    "show": "sbp_jax.show.stage:show",
    "import-hf": "sbp_jax.exchange:import_hf",
    "export-hf": "sbp_jax.exchange:export_hf",
    "export-corpus": "sbp_jax.synthesize.export:export_corpus",
}
# What the system says of a place that was named by mistake.
MISPLACED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
OF_A_PATH = ("import-hf", "export-hf", "export-corpus", "show")
OF_ANY_PATHS = ("results",)
# Flags that belong to some stages only.
OF_STAGES = {
    "topology": ("plan",),
    "slices": ("plan",),
    "json": ("plan", "synthesize"),
    "hlo": ("plan",),
    "html": ("show",),
    "format": ("export-corpus",),
    "inspect": ("pair",),
    "tasks": ("evaluate",),
    "status": ("synthesize",),
    "price": ("synthesize",),
    "into": ("results",),
    "name": ("results",),
    "machine": ("results",),
    "replace": ("results",),
    "runner": ("cache", "bootstrap"),
    "runner_option": ("cache", "bootstrap"),
}
# What leaves no artefact in a run, and the flags that are about one.
WITHOUT_A_RUN = ("plan", "export-hf", "export-corpus", "results", "show")
OF_A_RUN = {"scope", "like", "run_dir", "coordinator", "num_processes", "process_id"}
OF_GIN = {"gin_file", "gin_search_path"}
# What stands beside --status, and what stands beside nothing else.
OF_STATUS = {"stage", "status", "scope", "price", "json", "verbosity"}
ONLY_OF_STATUS = {"price", "json"}
# What the processes of a job may run together; of the others each would write the same files.
OF_SEVERAL_PROCESSES = ("train", "embed", "synthesize", "evaluate", "conditioning")
RUN_DIR_MACRO = "RUN_DIR"
OURS = ("sbp_jax", "tasks")
SHIPPED_GIN = pathlib.Path(__file__).parent.parent / "gin"  # of the checkout that is installed


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sbp: {message}: `sbp --help` tells what there is\n")


def parser() -> Parser:
    """The command line, but for `--gin.NAME=VALUE`, whose names only gin knows."""
    result = Parser(
        prog="sbp",
        description="Synthetic Bootstrapped Pretraining: one stage of a run, or all of them.",
        epilog="--gin.NAME=VALUE sets one value over the files, e.g. "
        "--gin.pretrain/train.steps=100 (text in quotes: --gin.cache.task=\"'my_tasks:my_task'\").",
        allow_abbrev=False,
    )
    result.add_argument("stage", help="one of: " + ", ".join(STAGES))
    result.add_argument(
        "paths",
        nargs="*",
        metavar="path",
        help="import-hf: folder of a Hugging Face model; export-hf: train artefact; export-corpus: "
        "artefact of synthesize; show: a task (module:attribute) or an artefact's folder; results: "
        "artefacts of experiment",
    )
    result.add_argument(
        "--gin_file", action="append", default=[], help="may be given several times"
    )
    result.add_argument(
        "--gin_search_path",
        action="append",
        default=[],
        help="where gin files and their includes are looked for, after the current folder and gin/ "
        "in it, and before the project's own gin/",
    )
    result.add_argument(
        "--scope",
        action="append",
        help="gin scope, and the artefact's place in the run directory; of several, each in turn",
    )
    result.add_argument(
        "--like",
        metavar="SCOPE",
        help="take the settings of this gin scope, so that a stage can be done again elsewhere: "
        "--scope=tune_2 --like=tune",
    )
    result.add_argument("--run_dir", help=f"the run's directory (in gin: {RUN_DIR_MACRO})")
    result.add_argument("--coordinator", help="HOST:PORT of process 0, or auto (Cloud TPU, Slurm)")
    result.add_argument("--num_processes", type=int)
    result.add_argument("--process_id", type=int)
    result.add_argument(
        "--runner",
        help="cache: Apache Beam's, e.g. DataflowRunner; what stands behind -- are its options",
    )
    result.add_argument("--html", metavar="FILE", help="show: write a page instead")
    result.add_argument(
        "--format", help="export-corpus: jsonl.zst (as it is by default) or parquet"
    )
    result.add_argument(
        "--inspect",
        metavar="FILE",
        help="pair: write a page about what is near instead, which needs no pair.alpha",
    )
    result.add_argument(
        "--tasks",
        metavar="NAMES",
        help="evaluate: tasks of lm-evaluation-harness, e.g. arc_easy,sciq (in gin: "
        "evaluate.tasks)",
    )
    result.add_argument(
        "--into", metavar="FILE", help="results: the JSON file, docs/results.json by default"
    )
    result.add_argument("--name", help="results: of the experiment, where its artefact has none")
    result.add_argument("--machine", help="results: that it ran on, where its artefact has none")
    result.add_argument(
        "--replace",
        action="store_true",
        help="results: take out what an experiment of that name has left with other settings",
    )
    result.add_argument("--topology", help="plan: a TPU slice, e.g. v5p:4x4x4")
    result.add_argument("--slices", type=int, help="plan: how many of them")
    result.add_argument(
        "--json", action="store_true", help="plan, synthesize --status: print one JSON object"
    )
    result.add_argument("--hlo", metavar="DIR", help="plan: keep the compiled programs' HLO there")
    result.add_argument(
        "--status",
        metavar="DIR",
        help="synthesize: tell how far the corpus in DIR is, over all hosts; with --scope, DIR is "
        "the run's",
    )
    result.add_argument(
        "--price", type=float, help="synthesize --status: of a host and hour, in dollars"
    )
    result.add_argument(
        "--verbosity", default="info", choices=["debug", "info", "warning", "error"]
    )
    return result


def command() -> int:
    """What the shell runs: `main`, without the seconds that looking for garbage takes.

    TensorFlow makes millions of objects that stay: collecting as often as Python does by default is
    a sixth of its import, and two seconds when the process ends.
    """
    gc.set_threshold(100_000)
    exit_code = main()
    gc.freeze()
    return exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, options = arguments[:end], arguments[end + 1 :]
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    # Paths may stand before and behind flags.
    flags = parser().parse_intermixed_args([a for a in arguments if not a.startswith("--gin.")])
    flags.path = " ".join(flags.paths) or None
    flags.runner_option = options
    _start_logging(flags.verbosity)
    try:
        return _run(flags, bindings)
    except KeyboardInterrupt:
        print("sbp: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        return _explain(error, flags.stage, debug=flags.verbosity == "debug")


def _run(flags: argparse.Namespace, bindings: Sequence[str]) -> int:
    if flags.stage not in STAGES:
        raise UserError(f"unknown stage {flags.stage!r}{_instead(flags.stage, list(STAGES))}")
    like = [("like", flags.like)] if flags.like is not None else []
    for flag, scope in [*(("scope", scope) for scope in flags.scope or ()), *like]:
        if not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", scope):
            raise UserError(
                f"--{flag}={scope}: expected names of letters, digits and _, with / between them"
            )
    _check_arguments(flags)
    if flags.status:
        if bindings:
            raise UserError("--status reads no gin: leave out --gin.NAME=VALUE")
        scope = flags.scope[0] if flags.scope else None
        return _load("sbp_jax.synthesize.status:status")(
            flags.status, scope, flags.price, flags.json
        )
    if flags.stage == "results":
        if bindings:
            raise UserError("reads no gin: leave out --gin.NAME=VALUE")
        _load(STAGES["results"])(
            flags.paths, flags.into, flags.name, flags.machine, replace=flags.replace
        )
        return 0
    sys.path.insert(0, os.getcwd())  # the user's own task modules lie where the command is run
    functions = {name: _load(target) for name, target in STAGES.items()}
    if flags.stage == "show" and ":" in flags.path:
        with contextlib.suppress(ImportError):  # of which `show` itself tells
            importlib.import_module(flags.path.partition(":")[0])  # whose settings gin then knows
    if flags.runner:
        bindings = [*bindings, f"cache.runner = {flags.runner!r}"]
    if flags.runner_option:
        bindings = [*bindings, f"cache.runner_options = {tuple(flags.runner_option)!r}"]
    if flags.tasks is not None:  # of the scopes themselves, over what files say of these
        scopes = [flags.like] if flags.like else flags.scope or [flags.stage]
        tasks = [f"{scope}/evaluate.tasks = {flags.tasks!r}" for scope in scopes]
        bindings = [*bindings, *tasks]
    configure(flags.gin_file, bindings, flags.gin_search_path, run_dir=flags.run_dir)
    if flags.stage == "plan":
        slices = 1 if flags.slices is None else flags.slices
        return functions["plan"](flags.topology, slices, flags.json, flags.hlo)
    if flags.stage == "export-hf":
        functions["export-hf"](flags.path)
        return 0
    if flags.stage == "export-corpus":
        functions["export-corpus"](flags.path, *([flags.format] if flags.format else []))
        return 0
    if flags.stage == "show":
        functions["show"](flags.path, flags.html, flags.run_dir)
        return 0
    if flags.stage == "bootstrap" and flags.coordinator:
        raise UserError(
            "bootstrap runs on one host: on several, launch its stages one by one with --scope"
        )
    processes.keep_compiled_programs()
    processes.start(flags.coordinator, flags.num_processes, flags.process_id)
    if flags.stage not in OF_SEVERAL_PROCESSES and jax.process_count() > 1:
        raise UserError(
            f"runs in one process, and this job has {jax.process_count()}: start it on one host, "
            "without --coordinator"
        )
    for number, scope in enumerate(flags.scope or [flags.stage.replace("-", "_")]):
        if number:  # gin knows again what the files say alone, not what an earlier scope has used
            configure(flags.gin_file, bindings, flags.gin_search_path, run_dir=flags.run_dir)
        run = artifacts.Run(run_directory(), scope, _arguments(flags, bindings))
        with gin.config_scope(flags.like or scope):
            given = flags.path or flags.inspect
            functions[flags.stage](run, *([given] if given else []))
    return 0


def _check_arguments(flags: argparse.Namespace) -> None:
    """Refuses what the stage would not look at, and names what it needs."""
    number = 1 if flags.stage in OF_A_PATH else 0
    if flags.stage not in OF_ANY_PATHS and len(flags.paths) != number:
        takes = f"takes {'one' if number else 'no'} path, and got {flags.path}"
        wanted = takes if flags.paths else "needs a path"
        raise UserError(f"{wanted}: `sbp --help` tells what there is")
    given = {
        name
        for name, value in vars(flags).items()
        if value is not None and value is not False and value != []
    }
    unused = given & (OF_A_RUN if flags.stage in WITHOUT_A_RUN else set())
    unused |= given & OF_GIN if flags.stage == "results" else set()
    unused -= {"run_dir"} if flags.stage == "show" else set()  # where @artefacts are looked for
    unused |= {name for name in given & set(OF_STAGES) if flags.stage not in OF_STAGES[name]}
    if flags.stage == "synthesize":
        unused |= given - OF_STATUS if flags.status else given & ONLY_OF_STATUS
    if unused:
        name = min(unused)
        flag = "options behind --" if name == "runner_option" else f"--{name}"
        raise UserError(f"takes no {flag}: `sbp --help` tells what there is")
    if flags.status and len(flags.scope or ()) > 1:
        raise UserError("--status is of one corpus: give one --scope")
    if flags.like is not None and len(flags.scope or ()) != 1:
        raise UserError("--like is the settings of one artefact: give one --scope")
    if flags.inspect and len(flags.scope or ()) > 1:
        raise UserError("--inspect is one page: give one --scope")
    if flags.stage == "plan" and flags.topology is None:
        raise UserError("--topology is missing: name a TPU slice, e.g. --topology=v5p:4x4x4")


def _start_logging(verbosity: str) -> None:
    """absl's log on stderr. Other libraries' true errors are exceptions; their notes need debug."""
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()  # absl warns of logs before its own flags are parsed
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    logging.set_stderrthreshold(verbosity)
    if verbosity == "debug":
        return
    # TensorFlow calls a machine without a GPU an error. JAX has set 1, unless the user set another.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    ours = tuple(os.path.dirname(importlib.import_module(name).__file__ or "") for name in OURS)
    logging.get_absl_handler().addFilter(lambda record: record.pathname.startswith(ours))


def _arguments(flags: argparse.Namespace, bindings: Sequence[str]) -> tuple[str, ...]:
    """The flags that configure a run, as child processes of it get them."""
    return (
        *(f"--gin_file={path}" for path in flags.gin_file),
        *(f"--gin_search_path={path}" for path in flags.gin_search_path),
        *([f"--run_dir={flags.run_dir}"] if flags.run_dir else []),
        *(f"--gin.{binding}" for binding in bindings),
        f"--verbosity={flags.verbosity}",
    )


def configure(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str] = (),
    run_dir: str | None = None,
) -> None:
    """Parses gin files, in order, and single bindings over them; forgets what was bound before.

    Raises:
      UserError: a file is missing, or a name or a value in it is wrong.
    """
    logging.debug("gin files %s, bindings %s", files, bindings)
    for path in ("gin", *search_paths, str(SHIPPED_GIN)):
        gin.add_config_file_search_path(path)
    overrides = [*bindings, *([f"{RUN_DIR_MACRO} = {run_dir!r}"] if run_dir else [])]
    gin.clear_config()
    try:
        for path in files:
            gin.parse_config_file(path, print_includes_and_imports=False)
        for binding in overrides:
            gin.parse_config(binding)
        gin.finalize()
    except OSError as error:
        raise UserError(
            f"gin: {_first_line(error)} Add the folder with --gin_search_path"
        ) from error
    except (ValueError, SyntaxError, tokenize.TokenError, ImportError, AttributeError) as error:
        raise UserError(f"gin: {_one_line(error)}") from error


def run_directory() -> epath.Path:
    """The run's directory, from the gin macro RUN_DIR.

    Raises:
      UserError: it is not set.
    """
    try:
        value = gin.query_parameter(f"%{RUN_DIR_MACRO}")
    except ValueError:
        raise UserError(
            f"no run directory: give --run_dir=DIR, or set {RUN_DIR_MACRO} in a gin file"
        ) from None
    return epath.Path(value)


def _load(target: str):
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


def _explain(error: Exception, stage: str, debug: bool) -> int:
    """Prints one line about an exception; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, bootstrap.StageFailed):
        if not error.told:
            print(f"sbp {stage}: {_first_line(error)}", file=sys.stderr)  # gin appends lines
        return error.exit_code
    if isinstance(error, Stopped):
        print(f"sbp {stage}: {error.message}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, UserError):
        print(f"sbp {stage}: {error.message}", file=sys.stderr)
        return 2
    if isinstance(error, RuntimeError) and "Required bindings" in str(error):
        print(f"sbp {stage}: {_first_line(error)}: set them in gin", file=sys.stderr)
        return 2
    # gin puts another exception of the same kind, without errno, in the place of the first.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if getattr(cause, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        file = getattr(cause, "filename", None)
        where = f" writing {file}" if file else ""
        print(
            f"sbp {stage}: no space left on the device{where}: free some and run the same command "
            "again, it goes on from what is finished",
            file=sys.stderr,
        )
        return 1
    if isinstance(cause, OSError) and cause.errno in MISPLACED and cause.filename:
        print(
            f"sbp {stage}: {cause.filename}: {os.strerror(cause.errno)}: expected a place that can "
            "be read and written: name another one, or change this",
            file=sys.stderr,
        )
        return 2
    if not debug:
        traceback.print_exception(error)
    print(f"sbp {stage}: failed: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
    return 1


def _instead(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]}?" if close else f": expected one of {', '.join(known)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(command())
