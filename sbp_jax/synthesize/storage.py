"""Shared storage as it is: it fails now and then, and hosts create the same file at once."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable

import fsspec
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import Stopped

# Six tries take about a minute together.
TRIES = 6
FIRST_PAUSE_SECONDS = 1.0
# Answers of the storage, which asking again does not change.
FINAL = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.ENOSPC, errno.EROFS}
SETTLE_SECONDS = 0.5


def patiently[T](what: str, action: Callable[[], T]) -> T:
    """Does something with the storage, and again after a pause where that fails.

    Pauses double and are drawn at random around that, so that hosts which failed together do not
    come back together. A bucket's clients try again by themselves first.

    Args:
      what: is done, for the log: `writing FILE`.
      action: must bear to be repeated.

    Raises:
      OSError: at once, where trying again would not help: no such file, no space, no permission.
      Stopped: it has failed `TRIES` times.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError | FileExistsError) or error.errno in FINAL:
                raise
            if attempt == TRIES:
                raise Stopped(
                    f"{what} has failed {TRIES} times ({error}): what is finished stays, and the "
                    "same command goes on from there when the storage does"
                ) from error
            pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logging.warning("%s failed (%s): again in %.1f s", what, error, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def create(path: epath.Path, content: str) -> bool:
    """Creates a file if there is none; whether it did.

    Of several hosts that try at once one is told so. The storage itself sees to that on a disk
    and NFS (O_EXCL), and in a bucket where the package gcsfs is installed (if-generation-match 0).
    Without it nothing creates on a condition: the file is then written where none is seen, and
    read after half a second. Of two hosts whose writing lies further apart than that, though
    neither saw the other's file before, both may be told so.

    Args:
      path: of the file.
      content: has to tell the hosts apart.

    Raises:
      FileNotFoundError: its folder is not there.
    """
    url = os.fspath(path)
    if "://" not in url:
        try:
            with open(url, "x") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True
    try:
        bucket = fsspec.filesystem(url.partition("://")[0])
    except (ImportError, ValueError):
        if path.exists():
            return False
        path.write_text(content)
        time.sleep(SETTLE_SECONDS)
        return path.read_text() == content
    try:
        bucket.pipe_file(url, content.encode(), mode="create")
    except FileExistsError:
        return False
    return True


def write(path: epath.Path, content: str) -> None:
    """Writes a file so that it is there whole or not at all, patiently."""
    patiently(f"writing {path}", lambda: artifacts.write_atomic(path, content))


def read(path: epath.Path) -> bytes | None:
    """The content of a file, patiently; None if there is none."""

    def action() -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    return patiently(f"reading {path}", action)
