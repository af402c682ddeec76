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
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "tpu_scripts"
COMMANDS = ("create", "setup", "launch", "status", "logs", "stop", "delete")
WHERE = ("--zone=us-east5-b", "--project=p")
NASTY = (
    "two words",
    "it's",
    'say "so"',
    "$(touch /tmp/sbp_stand_in_was_here) `id` $HOME ${x:-y}",
    "first\nsecond\n",
    "--gin.X='a b'",
    "--gin.cache.task=\"'tasks.pydocs:train'\"",
    "back\\slash \\n",
    "a  b   c ",
    "*?[a-z]{1,2}~!#&;|<>()",
    "--",
    "",
    "tab\there – é",
)

# What the workers have in place of the real programs.
WORKER_PROGRAMS = {
    "hostname": 'echo "$STAND_IN_HOST"',
    "sudo": "exit 1",
    "uv": r"""
printf '%s\n' "$*" >>"$HOME/uv_calls"
if [[ -e $HOME/no_network && $1 == pip ]]; then exit 1; fi
if [[ $1 == venv ]]; then
  mkdir -p "${!#}/bin"
  cp "${0%/*}/../sbp" "${!#}/bin/sbp"
fi
""",
}
SBP = r"""#!/bin/bash
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
    """A fake Google Cloud, a clone of a small project, and a shell to run its scripts in."""

    def __init__(self, folder: Path, repository: Path):
        self.root = folder / "cloud"
        self.repository = repository
        (self.root / "homes").mkdir(parents=True)
        self.program("bin/gcloud", f'exec {sys.executable} -S {TESTS}/gcloud_stand_in.py "$@"')
        for name, text in WORKER_PROGRAMS.items():
            self.program(f"worker_bin/{name}", text)
        (self.root / "worker_bin").rename(self.root / "homes_bin")
        self.answers([])
        self.environment = {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "GCLOUD_STAND_IN": str(self.root / "state"),
        }

    def program(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
