"""What an experiment has computed so far, on disk, so that an interrupted one goes on.

Each thing has a file of its own, named by what it is, and is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.experiment.fitting import Fit


class Memory:
    """Results by name, in a directory.

    Args:
      directory: where they lie.
      written: called after each that is kept.
    """

    def __init__(self, directory: epath.Path, written: Callable[[], None] = lambda: None):
        self.directory, self._written = directory, written

    def record(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value as JSON gives it back, computed once."""
        path = self.directory / f"{name}.json"
        if not path.exists():
            self._keep(path, json.dumps(compute()))
        with _read(path):
            return json.loads(path.read_text())

    def fit(self, name: str, compute: Callable[[], Fit]) -> Fit:
        """A trained model, trained once."""
        path = self.directory / f"{name}.npz"
        if not path.exists():
            self._keep(path, _packed(compute()))
        with _read(path):
            return _unpacked(path)

    def _keep(self, path: epath.Path, content: str | bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomic(path, content)
        self._written()


@contextlib.contextmanager
def _read(path: epath.Path) -> Iterator[None]:
    """Names a file that cannot be read as what was written."""
    try:
        yield
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): delete it and run the same command "
            "again, which computes it anew"
        ) from error


def _packed(fit: Fit) -> bytes:
    arrays = dict(_flat(f"parameters@{fit.step}", fit.parameters))
    for step, parameters in fit.kept.items():
        arrays |= _flat(f"kept@{step}", parameters)
    told = {name: value for name, value in vars(fit).items() if name not in ("parameters", "kept")}
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # any name is an array
    return buffer.getvalue()


def _unpacked(path: epath.Path) -> Fit:
    with path.open("rb") as file, np.load(io.BytesIO(file.read())) as arrays:
        told = json.loads(arrays["told"].tobytes())
        trees: dict[str, Any] = {}
        for name in arrays.files:
            if name != "told":
                head, *keys, last = name.split("/")
                node = trees.setdefault(head, {})
                for key in keys:
                    node = node.setdefault(key, {})
                node[last] = arrays[name]
    told["curve"] = [tuple(point) for point in told["curve"]]
    parameters = trees.pop(f"parameters@{told['step']}")
    kept = {int(head.partition("@")[2]): tree for head, tree in trees.items()}
    return Fit(**told, parameters=parameters, kept=kept)


def _flat(head: str, tree: Any) -> list[tuple[str, np.ndarray]]:
    if not isinstance(tree, dict):
        return [(head, tree)]
    return [leaf for key, child in tree.items() for leaf in _flat(f"{head}/{key}", child)]
