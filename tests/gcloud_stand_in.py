"""A stand-in for `gcloud`: records its arguments, plays canned answers, runs commands on "workers".

Run as a program, in place of gcloud, with GCLOUD_STAND_IN naming a directory of

    calls.jsonl    one call a line, the list of its arguments (written here)
    answers.json   [{"when": WORDS, "stdout", "stderr", "code", "times"}]: the first whose words all
                   stand among the arguments answers the call, as often as `times` says (or always)
    workers.json   {node: number of workers}
    homes/NODE/I/  the home directory of worker I of a node; a file `broken_connection` in it makes
                   ssh run the command once more, as gcloud does when a connection breaks
    bin/           comes first on the workers' PATH

Flags that this release track of the real command does not have are refused as it refuses them
(Google Cloud SDK 528). A command reaches the worker's shell on the real one's way: split at spaces,
joined again by ssh, and given to the login shell, all workers at once.
"""

from __future__ import annotations

import json
import os
import sys  # and nothing more: the tests start this program some hundred times

ROOT = os.environ["GCLOUD_STAND_IN"]
WIDE = {"--project", "--format", "--quiet", "--zone"}
CREATE = {
    "--accelerator-type", "--runtime-version", "--node-id", "--node-count", "--node-prefix",
    "--spot", "--reserved", "--internal-ips", "--network", "--valid-until-duration",
}  # fmt: skip
CONNECT = {"--worker", "--internal-ip"}
CONNECT_ALPHA = {*CONNECT, "--batch-size", "--tunnel-through-iap"}
FLAGS = {
    "compute tpus queued-resources create": CREATE,
    "compute tpus queued-resources describe": set(),
    "compute tpus queued-resources delete": {"--force", "--async"},
    "compute tpus tpu-vm describe": set(),
    "compute tpus tpu-vm scp": CONNECT,
    "compute tpus tpu-vm ssh": {*CONNECT, "--command"},
    "alpha compute tpus tpu-vm scp": CONNECT_ALPHA,
    "alpha compute tpus tpu-vm ssh": {*CONNECT_ALPHA, "--command"},
}


def main(arguments: list[str]) -> int:
    """Answers one call; returns its exit code."""
    with open(f"{ROOT}/calls.jsonl", "a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    command = next((c for c in FLAGS if arguments[: len(c.split())] == c.split()), None)
    if command is None:
        return fail("gcloud", f"Invalid choice: {arguments}", 2)
    rest = arguments[len(command.split()) :]
    flags = dict(a.partition("=")[::2] for a in rest if a.startswith("--"))
    positional = [a for a in rest if not a.startswith("--")]
    unknown = flags.keys() - FLAGS[command] - WIDE
    if unknown:
        return fail(command, f"unrecognized arguments: {' '.join(sorted(unknown))}", 2)
    answer = canned(arguments)
    if answer is not None:
        sys.stdout.write(answer.get("stdout", ""))
        sys.stderr.write(answer.get("stderr", ""))
        return answer.get("code", 0)
    if "tpu-vm" not in command:
        return 0
    node, _, path = positional[-1].partition(":")
    with open(f"{ROOT}/workers.json") as file:
        workers = json.load(file).get(node, 0)
    if not workers:
        return fail(command, f"NOT_FOUND: Resource 'nodes/{node}' was not found")
    if command.endswith("describe"):
        print(workers)
        return 0
    chosen = range(workers) if flags["--worker"] == "all" else [int(flags["--worker"])]
    homes = [f"{ROOT}/homes/{node}/{i}" for i in chosen]
    if command.endswith("scp"):
        for home in homes:
            with open(positional[0], "rb") as source, open(f"{home}/{path}", "wb") as copy:
                copy.write(source.read())
        return 0
    codes = [os.waitpid(pid, 0)[1] for pid in [ssh(h, flags["--command"]) for h in homes]]
    codes = [os.waitstatus_to_exitcode(code) for code in codes]
    for index, code in zip(chosen, codes, strict=True):
        if code:
            text = f"##### Command execution on worker {index} failed with exit status {code}."
            print(text, file=sys.stderr)
    return next((code for code in codes if code), 0)


def ssh(home: str, command: str) -> int:
    """Starts a command as sshd does for a user whose login shell is bash; returns the process."""
    node, index = home.split("/")[-2:]
    environment = {
        "HOME": home,
        "PATH": f"{ROOT}/bin:/usr/local/bin:/usr/bin:/bin",
        "SHELL": "/bin/bash",
        "HOSTNAME": f"t1v-n-{node}-w-{index}",
        "SBP_LIBTPU_LOCKFILE": f"{home}/libtpu_lockfile",
    }
    sent = " ".join(command.split(" "))
    sshd = 'cd; if [ -e broken_connection ]; then bash -c "$1"; fi; exec bash -c "$1"'
    empty = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    start = ["/bin/sh", "-c", sshd, "sshd", sent]
    return os.posix_spawn(start[0], start, environment, file_actions=[empty])


def canned(arguments: list[str]) -> dict | None:
    """The answer that the test has laid ready for these arguments, if any."""
    path = f"{ROOT}/answers.json"
    with open(path) as file:
        answers = json.load(file)
    for answer in answers:
        if answer.get("times", 1) > 0 and set(answer["when"].split()) <= set(arguments):
            if "times" in answer:
                answer["times"] -= 1
                with open(path, "w") as file:
                    json.dump(answers, file)
            return answer
    return None


def fail(command: str, text: str, code: int = 1) -> int:
    print(f"ERROR: (gcloud.{command.replace(' ', '.')}) {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
