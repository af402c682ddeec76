"""The scripts for TPU VMs against a stand-in for gcloud, whose workers are sandboxed shells."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "tpu_scripts"
COMMANDS = ("create", "setup", "launch", "status", "logs", "stop", "delete")
NAMED = ("--name=sbp", "--zone=us-east5-b", "--project=p")
WHERE = ["--zone=us-east5-b", "--project=p"]
NASTY = [
    "two words",
    "it's",
    'say "so"',
    "$(touch $HOME/was_here) `touch $HOME/was_here` $HOME ${x:-y}",
    "first\nsecond\n",
    "--gin.X='a b'",
    "--gin.cache.task=\"'tasks.pydocs:train'\"",
    "back\\slash \\n",
    "a  b   c ",
    " *?[a-z]{1,2}~!#&;|<>() ",
    "--",
    "",
    "tab\there – é",
]

# What workers have in place of the real programs.
WORKER_PROGRAMS = {
    "sudo": "exit 1",
    "uv": r"""
printf '%s\n' "$*" >>"$HOME/uv_calls"
if [[ -e $HOME/no_network && $1 == pip ]]; then exit 1; fi
if [[ $1 == venv ]]; then
  mkdir -p "${!#}/bin"
  cp "${PATH%%/bin:*}/sbp" "${!#}/bin/sbp"
fi
""",
}
SBP = r"""
printf '%s\0' "$@" >"$HOME/arguments"
env -0 >"$HOME/environment"
pwd >"$HOME/folder"
echo start >>"$HOME/starts"
echo "the first line"
case $1 in
  fail) echo "the last line" >&2; exit 7 ;;
  forever) sleep 300 ;;
  deaf) trap '' TERM; sleep 300 ;;
esac
"""


class Cloud:
    """A stand-in for Google Cloud, and a small git checkout whose scripts are run against it."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder = folder
        self.checkout = checkout
        self.root = folder / "cloud"
        program(folder / "bin/gcloud", f'exec {sys.executable} -SE {TESTS}/gcloud_stand_in.py "$@"')
        for name, text in WORKER_PROGRAMS.items():
            program(self.root / "bin" / name, text)
        program(self.root / "sbp", SBP)
        self.answer()
        self.nodes(sbp=2)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SBP_", "GIT_"))},
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "GCLOUD_STAND_IN": str(self.root),
        }

    def nodes(self, **workers: int) -> None:
        """Sets how many workers each node has."""
        names = {name.replace("_", "-"): count for name, count in workers.items()}
        (self.root / "workers.json").write_text(json.dumps(names))
        shutil.rmtree(self.root / "homes", ignore_errors=True)
        for name, count in names.items():
            for index in range(count):
                (self.root / "homes" / name / str(index)).mkdir(parents=True, exist_ok=True)

    def answer(self, *answers: dict) -> None:
        """Sets what the stand-in answers of itself."""
        (self.root / "answers.json").write_text(json.dumps(answers))

    def run(self, script: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
        """Runs one of the scripts, which must end with the given exit code."""
        done = self.shell(str(self.checkout / "tpu_scripts" / f"{script}.sh"), *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def shell(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            text=True,
            capture_output=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        """The argument vectors that gcloud was called with; forgets them."""
        path = self.root / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def own_checkout(self) -> Path:
        """A copy of the checkout, which the test may change."""
        self.checkout = Path(shutil.copytree(self.checkout, self.folder / "checkout"))
        return self.checkout

    @property
    def homes(self) -> list[Path]:
        return sorted(self.root.glob("homes/*/*"))

    @property
    def commit(self) -> str:
        return git(self.checkout, "rev-parse", "HEAD")

    def set_up(self) -> None:
        """Puts every worker where setup.sh leaves it, quickly."""
        for home in self.homes:
            root = home / "sbp"
            shutil.copytree(self.checkout / "tpu_scripts", root / "tree/tpu_scripts")
            program(root / "venv/bin/sbp", SBP)
            (root / "installed").write_text(self.commit + "\n")

    def wait_for_jobs(self) -> None:
        for home in self.homes:
            lock = str(home / "sbp/lock")
            subprocess.run(["flock", "--timeout", "20", lock, "true"], check=True)

    def end_jobs(self) -> None:
        for pid in self.root.glob("homes/*/*/sbp/jobs/*/pid"):
            if not (pid.parent / "exit_code").exists():
                try:
                    os.killpg(int(pid.read_text()), signal.SIGKILL)
                except ProcessLookupError:
                    continue


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments],
        env=environment,
        check=True,
        text=True,
        capture_output=True,
    ).stdout.strip()


def commit(checkout: Path) -> None:
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=a commit")


def eventually(path: Path) -> str:
    """The contents of a file that a job is about to write."""
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    shutil.copytree(SCRIPTS, folder / "tpu_scripts")
    (folder / "requirements.lock").write_text("jax==0.12.0.1 \\\n    --hash=sha256:00\n")
    (folder / ".python-version").write_text("3.12\n")
    (folder / "code.py").write_text("version = 1\n")
    git(folder, "init", "--quiet", "--template=")
    commit(folder)
    return folder


@pytest.fixture
def cloud(tmp_path: Path, pristine: Path) -> Iterator[Cloud]:
    result = Cloud(tmp_path, pristine)
    yield result
    result.end_jobs()


def ssh(node: str, command: str, worker: str = "all") -> list[str]:
    start = ["compute", "tpus", "tpu-vm", "ssh", node, *WHERE, "--quiet"]
    return [*start, f"--worker={worker}", f"--command={command}"]


WORKER = "bash sbp/tree/tpu_scripts/worker.sh"
COUNT = "--format=value(networkEndpoints.len())"


# ---- create, delete, status of the queued resource -----------------------------------------------


@pytest.mark.parametrize(
    ("type_", "accelerator", "runtime"),
    [
        ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
        ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-8", "v4-8", "tpu-ubuntu2204-base"),
        ("v3-8", "v3-8", "tpu-ubuntu2204-base"),
    ],
)
def test_create_derives_the_runtime_version(cloud, type_, accelerator, runtime):
    cloud.run("create", *NAMED, f"--type={type_}")
    start = ["compute", "tpus", "queued-resources", "create", "sbp", *WHERE]
    shape = [f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--node-id=sbp"]
    assert cloud.calls() == [[*start, *shape]]


def test_create_spot_multislice(cloud):
    options = ("--type=v6e-64", "--slices=4", "--spot", "--valid-until-duration=6h")
    cloud.run("create", *NAMED, *options, "--internal-ips", "--", "--network=n", "--reserved")
    start = ["compute", "tpus", "queued-resources", "create", "sbp", *WHERE]
    assert cloud.calls() == [
        [
            *start,
            "--accelerator-type=v6e-64",
            "--runtime-version=v2-alpha-tpuv6e",
            "--node-count=4",
            "--node-prefix=sbp",
            "--spot",
            "--valid-until-duration=6h",
            "--internal-ips",
            "--network=n",
            "--reserved",
        ]
    ]


def test_flags_may_come_from_the_environment(cloud):
    cloud.environment |= {"SBP_TPU_NAME": "a", "SBP_TPU_ZONE": "z", "SBP_TPU_TYPE": "v4-8"}
    cloud.run("create")
    assert cloud.calls()[0][3:6] == ["create", "a", "--zone=z"]  # no project: gcloud's own


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("RESOURCE_EXHAUSTED: Quota limit 'X' has been exceeded. Limit: 0 in zone z.", "final"),
        ("FAILED_PRECONDITION: billing is not enabled for project p", "final"),
        ("RESOURCE_EXHAUSTED: Quota limit 'X' has been exceeded. Limit: 32.", "ask for more"),
        ('{"code": 8, "message": "There is no more capacity in the zone"}', "try later"),
        ("ALREADY_EXISTS: Resource 'sbp' already exists", "delete.sh first"),
        ("You do not currently have an active account selected.", "gcloud auth login"),
    ],
)
def test_create_says_what_a_failure_means(cloud, said, remedy):
    error = f"ERROR: (gcloud.compute.tpus.queued-resources.create) {said}\n"
    cloud.answer({"when": "create", "stderr": error, "code": 1})
    done = cloud.run("create", *NAMED, "--type=v6e-16", code=1)
    assert done.stderr.startswith(error)
    assert remedy in done.stderr.removeprefix(error)
    assert done.stderr.endswith("create.sh: sbp was not created\n")


def test_delete(cloud):
    cloud.run("delete", *NAMED)
    start = ["compute", "tpus", "queued-resources", "delete", "sbp", *WHERE]
    assert cloud.calls() == [[*start, "--force", "--quiet", "--async"]]
    error = "ERROR: (gcloud.compute.tpus.queued-resources.delete) NOT_FOUND: Resource was not found"
    cloud.answer({"when": "delete", "stderr": error, "code": 1})
    assert "no such TPU" in cloud.run("delete", *NAMED, code=1).stderr


@pytest.mark.parametrize(
    ("answer", "shown", "remedy"),
    [
        ("WAITING_FOR_RESOURCES\t\n", "sbp WAITING_FOR_RESOURCES\n", ""),
        ("SUSPENDED\t\n", "sbp SUSPENDED\n", "delete.sh, create.sh, setup.sh, launch.sh"),
        ("FAILED\tno room\n", "sbp FAILED: no room\n", "delete.sh"),
    ],
)
def test_status_of_a_queued_resource(cloud, answer, shown, remedy):
    cloud.answer({"when": "queued-resources describe", "stdout": answer})
    done = cloud.run("status", *NAMED)
    assert done.stdout == shown
    assert remedy in done.stderr
    start = ["compute", "tpus", "queued-resources", "describe", "sbp", *WHERE]
    assert cloud.calls() == [[*start, "--format=value(state.state,state.failedData.error.message)"]]


def test_status_waits_until_active(cloud):
    states = ("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    when = {"when": "queued-resources describe", "times": 1}
    cloud.answer(*({**when, "stdout": f"{state}\n"} for state in states))
    done = cloud.run("status", *NAMED, "--wait=0")
    assert done.stdout == "sbp WAITING_FOR_RESOURCES\nsbp PROVISIONING\nsbp ACTIVE\n"
    assert len(cloud.calls()) == 4


def test_status_does_not_wait_for_what_never_comes(cloud):
    cloud.answer({"when": "queued-resources describe", "stdout": "SUSPENDED\n"})
    cloud.run("status", *NAMED, "--wait=0", code=1)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments", "remedy"),
    [
        ("create", ["--zone=z", "--type=v6e-8"], "--name=NAME"),
        ("create", ["--name=sbp", "--type=v6e-8"], "--zone=ZONE"),
        ("create", [*NAMED], "--type=TYPE"),
        ("create", [*NAMED, "--type=tpu7x-8"], "expected v6e-N"),
        ("create", [*NAMED, "--type=v6e"], "expected v6e-N"),
        ("create", ["--name=Sbp;ls", "--zone=z", "--type=v6e-8"], "small letters"),
        ("create", [*NAMED, "--type=v6e-8", "--slices=0"], "a number from 1"),
        ("create", ["--name", "sbp"], "--flag=VALUE"),
        ("delete", [*NAMED, "everything"], "--help"),
        ("status", [*NAMED, "--wait=long"], "seconds"),
        ("logs", [*NAMED, "--worker=all"], "a number from 0"),
        ("logs", [*NAMED, "--slice=1"], "from 0 to 0"),
        ("logs", [*NAMED, "--lines=x"], "a number"),
        ("stop", [*NAMED, "--grace=x"], "seconds"),
        ("launch", [*NAMED], "STAGE"),
        ("launch", [*NAMED, "--env=X", "train"], "--env=NAME=VALUE"),
        ("launch", [*NAMED, "--worker=x", "train"], "a number from 0, or all"),
        ("launch", [*NAMED, "--commit=abc", "train"], "the whole hash"),
    ],
)
def test_a_mistake_is_one_line_and_calls_nothing(cloud, script, arguments, remedy):
    done = cloud.run(script, *arguments, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"{script}.sh: ")
    assert done.stderr.count("\n") == 1
    assert remedy in done.stderr
    assert cloud.calls() == []


def test_an_unknown_type_may_bring_its_runtime_version(cloud):
    cloud.run("create", *NAMED, "--type=v9-8", "--runtime-version=r9")
    assert {"--accelerator-type=v9-8", "--runtime-version=r9"} <= set(cloud.calls()[0])


@pytest.mark.parametrize("script", COMMANDS)
def test_help(cloud, script):
    text = cloud.run(script, "--help").stdout
    assert f"{script}.sh --name=NAME" in text
    assert "--dry-run" in text
    assert cloud.calls() == []


def test_without_gcloud(cloud):
    tools = cloud.folder / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    cloud.environment["PATH"] = str(tools)
    assert "install the Google Cloud SDK" in cloud.run("delete", *NAMED, code=2).stderr
    assert cloud.run("delete", *NAMED, "--dry-run").stdout.startswith("gcloud compute tpus ")


def test_outside_of_a_git_checkout(cloud):
    shutil.rmtree(cloud.own_checkout() / ".git")
    assert "set up from a clone" in cloud.run("setup", *NAMED, code=2).stderr
    assert "--commit=COMMIT" in cloud.run("launch", *NAMED, "train", code=2).stderr


# ---- dry run -------------------------------------------------------------------------------------

DRY = [
    ("create", ["--type=v6e-16", "--spot", "--", "--network=it's $(here)"]),
    ("setup", ["--slices=2"]),
    ("launch", ["--slices=2", "--batch-size=8", "--env=X=a 'b'", "train", *NASTY]),
    ("launch", ["--worker=1", "train"]),
    ("status", ["--slices=2", "--tunnel-through-iap"]),
    ("logs", ["--worker=1", "-f"]),
    ("stop", ["--internal-ip"]),
    ("delete", []),
]


@pytest.mark.parametrize(("script", "arguments"), DRY)
def test_a_dry_run_prints_what_would_run(cloud, script, arguments):
    cloud.nodes(sbp=2, sbp_0=1, sbp_1=1)
    cloud.set_up()
    for home in cloud.homes:
        (home / "sbp/jobs/old").mkdir(parents=True)
        (home / "sbp/jobs/old/log").write_text("the end\n")
        (home / "sbp/job").symlink_to("jobs/old")
    cloud.answer({"when": "queued-resources describe", "stdout": "ACTIVE\n"})
    before = sorted(cloud.folder.rglob("*"))
    printed = cloud.run(script, *NAMED, "--dry-run", *arguments)
    assert cloud.calls() == []
    assert printed.stderr == ""
    assert sorted(cloud.folder.rglob("*")) == before

    def comparable(calls):
        # Slices are called at once; the launch and the archive are named after the moment.
        text = json.dumps(sorted(calls))
        return re.sub(r"\d{8}T\d{6}Z-\d+|(?<=-)\d+\.tar\.gz", "X", text)

    pasted = cloud.shell("sh", "-c", printed.stdout)
    assert pasted.returncode == 0, pasted.stderr
    pasted_calls = comparable(cloud.calls())
    cloud.wait_for_jobs()
    cloud.run(script, *NAMED, *arguments)
    assert comparable(cloud.calls()) == pasted_calls


# ---- set-up --------------------------------------------------------------------------------------


def test_setup_of_two_slices(cloud):
    cloud.nodes(sbp_0=2, sbp_1=2)
    (cloud.own_checkout() / "code.py").write_text("version = 2\n")
    done = cloud.run("setup", *NAMED, "--slices=2")
    assert f"commit {cloud.commit} stands on all 4 workers" in done.stderr
    assert "1 files have changes that are not committed" in done.stderr
    assert len(cloud.homes) == 4
    for home in cloud.homes:
        root = home / "sbp"
        assert (root / "installed").read_text() == cloud.commit + "\n"
        assert (root / "tree/code.py").read_text() == "version = 1\n"  # as committed
        pip = f"pip install --quiet --python {root}/venv/bin/python "
        assert (home / "uv_calls").read_text().splitlines() == [
            f"venv --quiet --python 3.12 {root}/venv",
            pip + "--require-hashes -r requirements.lock",
            pip + "jax[tpu]==0.12.0.1",
            pip + "--no-deps --no-build-isolation --editable .",
        ]
    assert not list((cloud.checkout / ".git").glob("*.tar.gz"))

    calls = cloud.calls()
    archive = rf"{re.escape(str(cloud.checkout))}/\.git/sbp-{cloud.commit}-\d+\.tar\.gz"
    for node, copy in zip(("sbp-0", "sbp-1"), calls[:2], strict=True):
        assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"]
        assert re.fullmatch(archive, copy[4])
        assert copy[5:] == [f"{node}:sbp.tar.gz", *WHERE, "--quiet", "--worker=all"]
    assert all("--worker=all" in call and "ssh" in call for call in calls[2:4])
    describe = ["compute", "tpus", "tpu-vm", "describe"]
    assert calls[4:6] == [[*describe, node, *WHERE, COUNT] for node in ("sbp-0", "sbp-1")]
    checks = [ssh(node, f"{WORKER} {node} check {cloud.commit}") for node in ("sbp-0", "sbp-1")]
    assert sorted(calls[6:]) == checks


def test_setup_again(cloud):
    cloud.own_checkout()
    cloud.run("setup", *NAMED)
    for home in cloud.homes:
        (home / "uv_calls").unlink()
        (home / "sbp/tree/runs/kept").write_text("what a run left")
        (home / "sbp/tree/stale.py").write_text("not of the next commit")
    (cloud.checkout / "code.py").write_text("version = 2\n")
    commit(cloud.checkout)
    cloud.run("setup", *NAMED)
    for home in cloud.homes:
        assert (home / "sbp/tree/code.py").read_text() == "version = 2\n"
        assert (home / "sbp/tree/runs/kept").read_text() == "what a run left"
        assert not (home / "sbp/tree/stale.py").exists()
        assert len((home / "uv_calls").read_text().splitlines()) == 1  # the same lock file

    (cloud.checkout / "requirements.lock").write_text("jax==0.13.0 \\\n    --hash=sha256:00\n")
    commit(cloud.checkout)
    cloud.run("setup", *NAMED)
    assert "jax[tpu]==0.13.0\n" in (cloud.homes[0] / "uv_calls").read_text()


def test_setup_that_failed_on_one_worker(cloud):
    cloud.set_up()
    (cloud.homes[1] / "no_network").touch()
    done = cloud.run("setup", *NAMED, code=1)
    assert "sbp t1v-n-sbp-w-1: requirements.lock could not be installed" in done.stderr
    assert "run setup.sh again" in done.stderr
    assert not (cloud.homes[1] / "sbp/installed").exists()
    assert "not set up" in cloud.run("launch", *NAMED, "train", code=2).stderr
    (cloud.homes[1] / "no_network").unlink()
    assert "on all 2 workers" in cloud.run("setup", *NAMED).stderr


def test_setup_counts_the_workers(cloud):
    cloud.answer({"when": "tpu-vm describe", "stdout": "3\n"})
    done = cloud.run("setup", *NAMED, code=1)
    assert "2 of 3 workers have commit" in done.stderr
    assert re.search(r"^sbp t1v-n-sbp-w-1: commit \w+ stands$", done.stderr, re.M)  # who answered


def test_setup_after_a_broken_connection(cloud):
    for home in cloud.homes:
        (home / "broken_connection").touch()
    assert "on all 2 workers" in cloud.run("setup", *NAMED).stderr


def test_setup_is_refused_while_a_job_runs(cloud):
    cloud.set_up()
    cloud.run("launch", *NAMED, "forever")
    done = cloud.run("setup", *NAMED, code=2)
    assert done.stderr.count("a job runs already") == 2
    assert all((home / "sbp/installed").exists() for home in cloud.homes)


def test_setup_brings_uv(cloud):
    uv = cloud.root / "bin/uv"
    elsewhere = cloud.root / "uv"
    uv.rename(elsewhere)
    install = 'mkdir -p "$HOME/.local/bin"; cp "${0%/*}/../uv" "$HOME/.local/bin"'
    program(cloud.root / "bin/python3", f'echo "$*" >"$HOME/pip_call"; {install}')
    cloud.run("setup", *NAMED)
    for home in cloud.homes:
        assert (home / "pip_call").read_text() == "-m pip install --quiet --user uv\n"
        assert (home / "uv_calls").exists()


def test_a_wrong_or_broken_archive_is_refused(cloud):
    cloud.set_up()
    home = cloud.homes[0]
    environment = {"HOME": str(home), "PATH": f"{cloud.root}/bin:/usr/bin:/bin"}
    git(cloud.checkout, "archive", f"--output={home}/sbp.tar.gz", "HEAD")
    for other, archive in [("0" * 40, home / "sbp.tar.gz"), (cloud.commit, home / "none.tar.gz")]:
        done = subprocess.run(
            ["bash", str(SCRIPTS / "worker.sh"), "sbp", "setup", str(archive), other],
            env=environment,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 1
        assert f"instead of {other}" in done.stderr
        assert (home / "sbp/tree/tpu_scripts/worker.sh").exists()  # what stood there stands


# ---- launch, status, logs, stop ------------------------------------------------------------------


def test_launch_hands_over_every_argument_as_it_is(cloud):
    cloud.nodes(sbp_0=2, sbp_1=1)
    cloud.set_up()
    variables = [f"--env=NASTY_{i}={text}" for i, text in enumerate(NASTY)]
    done = cloud.run("launch", *NAMED, "--slices=2", *variables, "train", *NASTY)
    assert "commit" in done.stderr
    assert done.stdout.count("started (process ") == 3
    assert len(cloud.homes) == 3
    for home in cloud.homes:
        assert eventually(home / "sbp/job/exit_code") == "0\n"
        arguments = (home / "arguments").read_bytes().decode().split("\0")[:-1]
        assert arguments == ["train", "--coordinator=auto", *NASTY]
        lines = (home / "environment").read_bytes().decode().split("\0")[:-1]
        environment = dict(line.split("=", 1) for line in lines)
        assert [environment[f"NASTY_{i}"] for i in range(len(NASTY))] == NASTY
        assert environment["JAX_COMPILATION_CACHE_DIR"] == f"{home}/sbp/compile-cache"
        assert (home / "folder").read_text() == f"{home}/sbp/tree\n"
        assert not (home / "was_here").exists()

    calls = cloud.calls()
    idle = [ssh(n, f"{WORKER} {n} idle {cloud.commit}") for n in ("sbp-0", "sbp-1")]
    assert sorted(calls[2:4]) == idle
    assert len(calls) == 6


def test_quoting_survives_any_shell():
    letters = "ab '\"\\$`\n\t!*?[]{}()<>|&;~#%=-é\x01"
    source = random.Random(0)
    words = ["".join(source.choices(letters, k=source.randrange(12))) for _ in range(300)]
    quote = ["bash", "-c", 'source "$0"; quoted "$@"', str(SCRIPTS / "gcloud.sh"), *words]
    line = subprocess.run(quote, check=True, capture_output=True).stdout.decode()
    for shell in ("sh", "bash"):
        show = [shell, "-c", r"printf '%s\0' " + line]
        read_back = subprocess.run(show, check=True, capture_output=True).stdout.decode()
        assert read_back.split("\0")[:-1] == words


def test_launch_status_logs_stop(cloud):
    cloud.set_up()
    cloud.answer({"when": "queued-resources describe", "stdout": "ACTIVE\n"})
    assert cloud.run("status", *NAMED).stdout.count("no job yet") == 2
    cloud.run("launch", *NAMED, "forever", "two words")
    for home in cloud.homes:
        assert eventually(home / "sbp/job/log") == "the first line\n"
    lines = cloud.run("status", *NAMED).stdout.splitlines()
    assert lines[0] == "sbp ACTIVE"
    pattern = (
        r"sbp t1v-n-sbp-w-{}: running \(process \d+, launch [\w-]+\):"
        r" sbp forever --coordinator=auto two\\ words"
    )
    for index, line in enumerate(sorted(lines[1:])):
        assert re.fullmatch(pattern.format(index), line)

    refused = cloud.run("launch", *NAMED, "train", code=2)
    assert refused.stderr.count("a job runs already") == 2
    assert "nothing was started" in refused.stderr

    assert cloud.run("logs", *NAMED, "--worker=1", "--lines=1").stdout == "the first line\n"
    assert cloud.run("stop", *NAMED).stdout.count(": stopped\n") == 2
    assert cloud.run("stop", *NAMED).stdout.count(": no job runs\n") == 2
    for home in cloud.homes:
        assert (home / "starts").read_text() == "start\n"
        assert (home / "sbp/job/exit_code").read_text() == "143\n"  # of SIGTERM
    cloud.run("launch", *NAMED, "train")  # free again


def test_the_exit_code_of_a_job(cloud):
    cloud.set_up()
    cloud.answer({"when": "queued-resources describe", "stdout": "ACTIVE\n"})
    cloud.run("launch", *NAMED, "fail")
    for home in cloud.homes:
        assert eventually(home / "sbp/job/exit_code") == "7\n"
    assert cloud.run("status", *NAMED).stdout.count("ended with exit code 7") == 2
    assert cloud.run("logs", *NAMED, "-f", "--lines=1").stdout == "the last line\n"


def test_a_job_that_was_killed(cloud):
    cloud.nodes(sbp=1)
    cloud.set_up()
    cloud.answer({"when": "queued-resources describe", "stdout": "ACTIVE\n"})
    cloud.run("launch", *NAMED, "forever")
    os.killpg(int(eventually(cloud.homes[0] / "sbp/job/pid")), signal.SIGKILL)
    cloud.wait_for_jobs()
    assert "ended without an exit code" in cloud.run("status", *NAMED).stdout
    cloud.run("launch", *NAMED, "train")


def test_a_job_that_does_not_stop(cloud):
    cloud.nodes(sbp=1)
    cloud.set_up()
    cloud.run("launch", *NAMED, "deaf")
    eventually(cloud.homes[0] / "sbp/job/log")
    assert "killed, since it did not stop" in cloud.run("stop", *NAMED, "--grace=1").stdout
    assert (cloud.homes[0] / "sbp/job/exit_code").read_text() == "137\n"
    assert "no job runs" in cloud.run("stop", *NAMED).stdout


def test_launch_starts_nothing_where_one_worker_has_another_commit(cloud):
    cloud.set_up()
    (cloud.homes[1] / "sbp/installed").write_text("0" * 40 + "\n")
    done = cloud.run("launch", *NAMED, "train", code=2)
    assert f"sbp t1v-n-sbp-w-1: commit {'0' * 40} is set up, not {cloud.commit}" in done.stderr
    assert "1 of 2 workers" in done.stderr
    assert not any((home / "starts").exists() for home in cloud.homes)


def test_launch_of_a_commit_that_is_set_up_but_no_longer_checked_out(cloud):
    cloud.set_up()
    old = cloud.commit
    (cloud.own_checkout() / "code.py").write_text("version = 2\n")
    commit(cloud.checkout)
    assert f"launch with --commit={old}" in cloud.run("launch", *NAMED, "train", code=2).stderr
    cloud.run("launch", *NAMED, f"--commit={old}", "train")


def test_launch_is_not_repeated_after_a_broken_connection(cloud):
    cloud.set_up()
    for home in cloud.homes:
        (home / "broken_connection").touch()
    done = cloud.run("launch", *NAMED, "forever")
    assert done.stdout.count("started (process ") == 2
    assert done.stdout.count("this launch has started it already") == 2
    assert all(eventually(home / "starts") == "start\n" for home in cloud.homes)


def test_launch_before_setup(cloud):
    done = cloud.run("launch", *NAMED, "train", code=2)
    assert "run setup.sh" in done.stderr


def test_launch_on_one_worker(cloud):
    cloud.nodes(sbp_0=2, sbp_1=2)
    cloud.set_up()
    cloud.run("launch", *NAMED, "--slices=2", "--slice=1", "--worker=1", "report", "x")
    home = cloud.root / "homes/sbp-1/1"
    assert eventually(home / "sbp/job/exit_code") == "0\n"
    assert (home / "arguments").read_text() == "report\0x\0"
    assert [h for h in cloud.homes if (h / "starts").exists()] == [home]
    text = cloud.run("logs", *NAMED, "--slices=2", "--slice=1", "--worker=1").stdout
    assert text == "the first line\n"
    done = cloud.run("logs", *NAMED, "--slices=2", code=2)
    assert "sbp-0 t1v-n-sbp-0-w-0: no job yet" in done.stderr


def test_a_dead_process_s_lock_on_the_tpu_is_removed(cloud):
    cloud.nodes(sbp=1)
    cloud.set_up()
    lock = cloud.homes[0] / "libtpu_lockfile"
    with lock.open("w"):
        done = cloud.run("launch", *NAMED, "train", code=1)
        assert f"the TPU is in use by process {os.getpid()}," in done.stderr
        assert lock.exists()
    cloud.run("launch", *NAMED, "train")
    assert not lock.exists()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('ERROR: Please run "ssh-add k" to add it, and try again.', "ssh-agent"),
        ("ERROR: (gcloud.x) [/usr/bin/ssh] exited with return code [255].", "--batch-size=8"),
        ("ERROR: (gcloud.x) NOT_FOUND: Resource 'n' was not found", "check --name"),
    ],
)
def test_workers_out_of_reach(cloud, said, remedy):
    cloud.set_up()
    cloud.answer({"when": "ssh", "stderr": said + "\n", "code": 1})
    done = cloud.run("launch", *NAMED, "train", code=1)
    assert remedy in done.stderr
    assert "nothing was started" in done.stderr


def test_one_slice_out_of_reach(cloud):
    cloud.nodes(sbp_0=1)
    cloud.set_up()
    cloud.answer({"when": "queued-resources describe", "stdout": "ACTIVE\n"})
    done = cloud.run("status", *NAMED, "--slices=2", code=1)
    assert "sbp-0 t1v-n-sbp-0-w-0: no job yet" in done.stdout
    assert "status.sh: sbp-1: not all workers did it" in done.stderr


def test_flags_that_only_the_alpha_command_has(cloud):
    cloud.set_up()
    cloud.run("stop", *NAMED, "--batch-size=8", "--tunnel-through-iap")
    call = cloud.calls()[0]
    assert call[:5] == ["alpha", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"--batch-size=8", "--tunnel-through-iap"} <= set(call)
