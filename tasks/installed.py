"""Documents from an installation: docstrings or functions of the standard library and of packages.

Source files are parsed with `ast`, nothing of them is imported or run. Which packages are read
follows from the metadata of this project alone: its requirements and theirs, without extras such
as `dev`, so that a linter installed beside it does not change the corpus.
"""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import queue
import re
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from sbp_jax.errors import UserError
from sbp_jax.progress import progress

PROJECT = "sbp-jax"
STANDARD_LIBRARY = "python"

# Tests and bundled copies of other packages: either written for no reader, or another's text.
_LEFT_OUT = {"test", "tests", "testdata", "site-packages", "dist-packages", "__pycache__"}
_FILES_A_TASK = 100
TEXTS = ("docstrings", "functions")
_DEFINITIONS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Source:
    """One Python file of a package: `package` as on the package index, `module` as for import."""

    package: str
    module: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Document:
    """A docstring or a function: its cleaned text, its hash, where it stands, in which package."""

    id: str
    name: str
    package: str
    text: str


class Wanted(NamedTuple):
    """What counts as a document.

    Attributes:
      text: one of `TEXTS`.
      min_characters: of the shortest document, after cleaning.
      max_characters: of the longest.
      package: the only one that is read, as on the package index; "" for all.
    """

    text: str = "docstrings"
    min_characters: int = 1
    max_characters: int = sys.maxsize
    package: str = ""


def distributions(project: str = PROJECT) -> dict[str, importlib.metadata.Distribution]:
    """What a project requires, and what that requires in turn, by normalised name.

    Extras are followed only where a requirement asks for one (`etils[epath]`); the project itself
    and requirements that are not installed are left out.

    Raises:
      UserError: the project's own metadata is not installed.
    """
    try:
        root = importlib.metadata.distribution(project)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{project} is not installed in {sys.prefix}: the corpus is the documentation of what "
            "it requires; install it with `pip install -e .`"
        ) from None
    found: dict[str, importlib.metadata.Distribution] = {}
    followed: set[tuple[str, str]] = set()
    waiting = [(root, "")]
    while waiting:
        distribution, extra = waiting.pop()
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = _normalised(requirement.name)
            try:
                required = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            found[name] = required
            for wanted in ("", *sorted(requirement.extras)):
                if (name, wanted) not in followed:
                    followed.add((name, wanted))
                    waiting.append((required, wanted))
    found.pop(_normalised(project), None)
    return dict(sorted(found.items()))


def sources(project: str = PROJECT) -> list[Source]:
    """The Python files that are read, by package and path; the standard library comes first.

    Raises:
      UserError: the project's own metadata is not installed.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [
        Source(STANDARD_LIBRARY, module, root / path)
        for path in sorted(_standard_library_files(root))
        if (module := _module(path))
    ]
    for name, distribution in distributions(project).items():
        files = [Path(f) for f in distribution.files or [] if f.suffix == ".py"]
        for path in sorted(files):
            if path.is_absolute() or ".." in path.parts or _LEFT_OUT.intersection(path.parts):
                continue
            if module := _module(path):
                found.append(Source(name, module, Path(str(distribution.locate_file(path)))))
    return found


@functools.cache  # a process does not outlive its environment, and this looks at 11,000 files
def fingerprint(project: str = PROJECT) -> str:
    """16 hex digits that change with Python, a package's version, or a file's name or size.

    Raises:
      UserError: the project's own metadata is not installed.
    """
    versions = {name: d.version for name, d in distributions(project).items()}
    files = []
    for source in sources(project):
        size = source.path.stat().st_size if source.path.exists() else -1
        files.append((source.package, source.module, size))
    record = json.dumps([sys.version_info[:3], versions, files])
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def documents(
    wanted: Wanted, project: str = PROJECT, processes: int | None = None
) -> list[Document]:
    """Every distinct document of an installation, in the order of `sources`.

    Two texts are the same document when they differ in white space only; it then has the name
    under which it comes first.

    Args:
      wanted: which.
      project: whose requirements are read.
      processes: how many parse files; None for one a core, at most 8.

    Raises:
      UserError: the project's own metadata is not installed, or the package is none of them.
    """
    files = sources(project)
    if wanted.package:
        known = sorted({file.package for file in files})
        if wanted.package not in known:
            raise UserError(
                f"package {wanted.package!r}: expected one that {project} requires: "
                f"{', '.join(known)}"
            )
        files = [file for file in files if file.package == wanted.package]
    tasks = [files[i : i + _FILES_A_TASK] for i in range(0, len(files), _FILES_A_TASK)]
    found: dict[str, Document] = {}
    with progress(desc=wanted.text, unit="file", total=len(files)) as bar:
        for task, parsed in zip(tasks, _parse(tasks, wanted, processes), strict=True):
            for document in parsed:
                found.setdefault(document.id, document)
            bar.update(len(task))
    return list(found.values())


def extract(source: Source, wanted: Wanted) -> list[Document]:
    """The documents of one file, in the order in which they stand.

    A file that this Python cannot parse (templates, other versions' syntax) has none; neither
    counts a text that is no valid Unicode (a lone surrogate).
    """
    try:
        content = source.path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            tree = ast.parse(content)
        lines = importlib.util.decode_source(content).split("\n")
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    found = []
    for name, node in _definitions(tree, source.module):
        text = _docstring(node) if wanted.text == "docstrings" else _function(node, lines)
        if wanted.min_characters <= len(text) <= wanted.max_characters and _is_unicode(text):
            found.append(Document(document_id(text), name, source.package, text))
    return found


def _docstring(node: _DEFINITIONS) -> str:
    """Without what its place indents it by; empty where there is none."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _function(node: _DEFINITIONS, lines: Sequence[str]) -> str:
    """The source of a function, without decorators and indentation; empty for another node."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def document_id(text: str) -> str:
    """16 hex digits that depend on a text but for its white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _parse(
    tasks: Sequence[Sequence[Source]], wanted: Wanted, processes: int | None
) -> Iterator[list[Document]]:
    """The documents of each task's files, in the order of tasks.

    The processes are fresh interpreters that load this module alone: a fork would take over
    TensorFlow's threads, and multiprocessing's spawn would run the caller's main module again.
    """
    count = min(processes or min(os.cpu_count() or 1, 8), max(1, len(tasks)))
    idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def ask(task: Sequence[Source]) -> list[Document]:
        process = idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        files = [[source.package, source.module, os.fspath(source.path)] for source in task]
        try:
            process.stdin.write(json.dumps([wanted, files]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # tries once more to write what is left
            answer = ""
        if not answer:
            raise RuntimeError(f"a process that parses {wanted.text} ended with {process.wait()}")
        idle.put(process)
        return [Document(*fields) for fields in json.loads(answer)]

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tasks.installed"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            idle.put(process)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            yield from pool.map(ask, tasks)


def _answer() -> None:
    """What a process of `_parse` does: a line of files in, a line of documents out."""
    for line in sys.stdin:
        wanted, files = json.loads(line)
        found = [
            dataclasses.astuple(document)
            for package, module, path in files
            for document in extract(Source(package, module, Path(path)), Wanted(*wanted))
        ]
        print(json.dumps(found), flush=True)


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, _DEFINITIONS]]:
    """A module and the classes and functions in it, with their qualified names.

    Statements such as `if` and `try` are looked into and expressions are not, which hold no
    definition and are most of a tree.
    """
    yield module, tree
    waiting: list[tuple[str, ast.AST]] = [(module, child) for child in reversed(tree.body)]
    while waiting:
        outer, node = waiting.pop()
        name = outer
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{outer}.{node.name}"
            yield name, node
        for field in ("finalbody", "orelse", "cases", "handlers", "body"):  # last out, first in
            inner = getattr(node, field, ())
            if isinstance(inner, list):
                waiting += [(name, child) for child in reversed(inner)]


def _standard_library_files(root: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _LEFT_OUT and not f.startswith("config-")]
        for file in files:
            if file.endswith(".py"):
                yield (Path(directory) / file).relative_to(root)


def _module(path: Path) -> str:
    """`a/b/__init__.py` to `a.b`; empty for a file that cannot be imported (`a/b-c.py`)."""
    parts = path.with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) if all(part.isidentifier() for part in parts) else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    _answer()
