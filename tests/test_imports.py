"""What must start in a second, and run where TensorFlow is not installed, does not import it."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent / "sbp_jax"
# Lower rooms first; a room imports only from those before it.
FLOORS = [
    {"errors", "progress"},
    {"settings"},
    {"artifacts"},
    {"parallel"},
    {"text", "model"},
    {"data", "checkpoints"},
    {"train", "pair", "synthesize", "exchange"},
    {"evaluate", "report", "plan", "show"},
    {"experiment"},
    {"bootstrap"},
    {"cli"},
]
BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets", "scann", "sklearn"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import %s
"""


def test_no_tensorflow_where_models_are_trained_and_sampled():
    modules = [
        "sbp_jax.model.decoder",
        "sbp_jax.train.stage",
        *("sbp_jax.data.loader", "sbp_jax.data.documents", "sbp_jax.data.vocabularies"),
        *("sbp_jax.synthesize.sampler", "sbp_jax.synthesize.stage"),
        *("sbp_jax.synthesize.export", "sbp_jax.evaluate.corpus_report"),
        *("sbp_jax.evaluate.stage", "sbp_jax.evaluate.conditioning", "sbp_jax.pair.embed"),
        "sbp_jax.experiment.stage",
        "sbp_jax.evaluate.completions",
        "sbp_jax.cli",
    ]
    code = BLOCKED % ", ".join(modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_no_harness_where_no_task_is_asked():
    """It is an extra, and takes seconds to start."""
    modules = ["sbp_jax.cli", "sbp_jax.evaluate.stage", "sbp_jax.evaluate.harness"]
    code = BLOCKED.replace('"tensorflow", ', '"lm_eval", "datasets", ') % ", ".join(modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def imports(path: pathlib.Path) -> set[str]:
    """Rooms of sbp_jax that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module + "." + alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("sbp_jax.")}
    return found


def test_rooms_import_only_from_the_floors_below():
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {p.stem if p.suffix else p.name for p in PACKAGE.iterdir()} - {
        "__init__",
        "__pycache__",
    }
    assert rooms == set(floor)
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            wrong += [
                f"{path.relative_to(PACKAGE)} imports {other}"
                for other in imports(path) - {room}
                if floor[other] >= floor[room]
            ]
    assert not wrong
