"""The corpora of docstrings and functions: what is read, how it is split, what leaks."""

from __future__ import annotations

import collections
import dataclasses
import random
import textwrap

import pytest

from sbp_jax.errors import UserError
from sbp_jax.text import splits
from tasks import installed, pydocs, pyfunctions
from tasks.installed import Document, Wanted

LONG = "A sentence that is long enough to be kept. " * 4  # 171 characters once stripped


# Larger than the defaults, so that a small corpus has documents in every split.
SHARES = {"heldout_share": 0.05, "dev_share": 0.03, "train_share": 0.05}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Makes installed distributions: metadata and files in a folder on the path."""
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(root)

    def install(name, requires=(), files=None, version="1.0"):
        files = files or {}
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = [f"Name: {name}", f"Version: {version}"]
        metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(metadata) + "\n")
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))

    installed.fingerprint.cache_clear()
    yield install
    installed.fingerprint.cache_clear()


@pytest.fixture
def no_standard_library(monkeypatch):
    monkeypatch.setattr(installed, "_standard_library_files", lambda root: [])


def found_in(source: str, tmp_path, wanted: Wanted | None = None) -> dict[str, str]:
    path = tmp_path / "m.py"
    path.write_text(textwrap.dedent(source))
    made = installed.extract(
        installed.Source("p", "pkg.m", path), wanted or Wanted(min_characters=20)
    )
    return {d.name: d.text for d in made}


def test_docstrings_of_all_definitions_with_their_qualified_names(tmp_path):
    source = '''
        """The module's own docstring.

        Below.   \t

            Indented.
        """
        import sys
        if sys.version_info > (3,):
            def inside_if():
                """A function inside a condition."""
        else:
            def inside_else():
                """A function in the other branch."""
        try:
            pass
        except ImportError:
            async def inside_except():
                """A coroutine inside a handler."""
        class Outer:
            """A class with a docstring of its own."""
            def method(self):
                "A single-quoted docstring."
                def local():
                    """A function inside a method."""
            class Inner:
                text = """Not a docstring, but long enough to be one."""
                def short(self):
                    """Too short."""
        """Nor is a string at the end a docstring."""
    '''
    expected = {
        "pkg.m": "The module's own docstring.\n\nBelow.\n\n    Indented.",
        "pkg.m.inside_if": "A function inside a condition.",
        "pkg.m.inside_else": "A function in the other branch.",
        "pkg.m.inside_except": "A coroutine inside a handler.",
        "pkg.m.Outer": "A class with a docstring of its own.",
        "pkg.m.Outer.method": "A single-quoted docstring.",
        "pkg.m.Outer.method.local": "A function inside a method.",
    }
    assert list(found_in(source, tmp_path).items()) == list(expected.items())


def test_functions_by_their_source_without_decorators_and_indentation(
    tmp_path,
):
    source = '''
        # A form feed ends no line: \f
        """The module's docstring."""
        @decorated
        def plain(a, *, b=1):
            """Its docstring belongs to it."""
            return a + b   \t
        class Outer:
            async def method(self):

                return self
            def short(self): pass
            def long(self):
                return "%s"
    ''' % ("x" * 100)
    wanted = Wanted("functions", min_characters=30, max_characters=90)
    assert found_in(source, tmp_path, wanted) == {
        "pkg.m.plain": (
            'def plain(a, *, b=1):\n    """Its docstring belongs to it."""\n    return a + b'
        ),
        "pkg.m.Outer.method": "async def method(self):\n\n    return self",
    }


def test_nothing_is_imported_and_nothing_unreadable_stops_the_reading(tmp_path):
    run = f'"""{LONG}"""\nraise SystemExit("this file was run")'
    assert len(found_in(run, tmp_path)) == 1
    assert found_in("def broken(:\n    pass", tmp_path) == {}
    assert found_in(f'"""{LONG} \\ud800 {LONG}"""', tmp_path) == {}
    gone = installed.Source("p", "gone", tmp_path / "gone.py")
    assert installed.extract(gone, Wanted()) == []


def test_requirements_are_followed_without_extras(site):
    site("root", ["a>=1", "b[fast] ; python_version >= '3'", 'tool ; extra == "dev"'])
    site("a", ["c", "not-installed"])
    site("b", ['d ; extra == "fast"', 'e ; extra == "slow"'])
    site("c", ["A", "root", "f ; python_version < '3'"])  # a circle
    for name in ("d", "e", "f", "tool", "Unrelated"):
        site(name)
    assert list(installed.distributions("root")) == ["a", "b", "c", "d"]


def test_the_corpus_is_what_the_project_needs_and_no_development_tool():
    names = set(installed.distributions())
    assert {"numpy", "scipy", "jax", "tensorflow", "flax"} <= names
    assert not {"pytest", "hypothesis", "mypy", "ruff", "sbp-jax"} & names


def test_a_project_without_metadata_is_a_clear_error():
    with pytest.raises(UserError, match=r"no-such-project is not installed.*pip install"):
        installed.distributions("no-such-project")


def test_documents_are_unique_and_named_after_where_they_first_stand(
    site, no_standard_library, monkeypatch
):
    one, two = f'"""{LONG} One."""', f'"""{LONG} Two."""'
    respaced = '"""' + LONG.replace(" ", "\n", 7) + ' One.\n"""'
    site("root", ["z", "a"])
    site("z", files={"z/__init__.py": one.encode()})
    site(
        "a",
        files={
            "a/b.py": respaced.encode(),
            "a/c.py": two.encode(),
            "a/tests/d.py": f'"""{LONG} In a test."""'.encode(),
            "a/not-a-module.py": f'"""{LONG} In a script."""'.encode(),
            "a/data.txt": one.encode(),
        },
    )
    for processes in (1, 2):
        found = installed.documents(Wanted(min_characters=100), "root", processes=processes)
        assert [(d.name, d.package) for d in found] == [("a.b", "a"), ("a.c", "a")]
    assert found[0].id == installed.document_id(f"{LONG} One.")
    assert found[0].id != found[1].id
    assert len(found[0].id) == 16
    assert installed.documents(Wanted(min_characters=10_000), "root") == []
    (only,) = installed.documents(Wanted(min_characters=100, package="z"), "root")
    assert (only.name, only.package) == ("z", "z")
    with pytest.raises(UserError, match=r"package 'y': expected one that root requires: a, z$"):
        installed.documents(Wanted(package="y"), "root")
    monkeypatch.setattr(installed.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="parses docstrings ended with 1"):
        installed.documents(Wanted(min_characters=100), "root")


def test_the_standard_library_is_read_without_its_tests():
    modules = {s.module for s in installed.sources() if s.package == "python"}
    assert {"argparse", "json.decoder", "concurrent.futures.thread"} <= modules
    assert not any("test" in module.split(".") or "numpy" in module for module in modules)


def test_the_fingerprint_changes_with_the_environment_and_nothing_else(
    site, no_standard_library, monkeypatch
):
    def taken():
        installed.fingerprint.cache_clear()
        return installed.fingerprint("root")

    site("root", ["a", "b", "c"])
    site("a", files={"a.py": b"x = 1"})
    alone = taken()
    assert taken() == alone
    site("unrelated", files={"unrelated.py": b""})
    assert taken() == alone
    site("b", version="1.0")
    with_b = taken()
    assert with_b != alone
    installed.distributions("root")["a"].locate_file("a.py").write_bytes(b"x = 10")
    assert taken() not in (alone, with_b)
    before = taken()
    monkeypatch.setattr(installed.sys, "version_info", (3, 99, 0))
    assert taken() != before


def test_settings_have_data_sets_of_their_own():
    default = pydocs.Settings()
    assert pydocs.fingerprint(default) == pydocs.fingerprint(pydocs.Settings())
    others = [
        pydocs.Settings(train_share=0.06),
        pydocs.Settings(min_characters=399),
        pydocs.Settings(text="functions"),
        pydocs.Settings(package="keras"),
    ]
    assert len({pydocs.fingerprint(s) for s in (default, *others)}) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"heldout_share": -0.1},
        {"train_share": 1.5},
        {"heldout_share": 0.6, "dev_share": 0.4},
        {"threshold": 0.0},
        {"text": "comments"},
        {"min_characters": 11, "max_characters": 10},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match="pydocs: "):
        pydocs.Settings(**wrong)


def document(text: str) -> Document:
    return Document(installed.document_id(text), "name", "package", text)


def made_up(clusters: int, sizes=(1, 1, 2, 3), seed: int = 0) -> list[list[Document]]:
    """Clusters of near-duplicates: 40 words of their own, the last few different in each copy."""
    rng = random.Random(seed)
    made = []
    for _ in range(clusters):
        shared = [f"w{rng.randrange(10**9)}" for _ in range(60)]
        copies = rng.choice(sizes)
        made.append([document(" ".join([*shared, f"copy{i}"])) for i in range(copies)])
    return made


def where(splits: dict[str, list[Document]]) -> dict[str, str]:
    """The split of each document; a document of the oracle alone is in `oracle`."""
    return {d.id: name for name in ("oracle", "train", "dev", "heldout") for d in splits[name]}


def test_clusters_stay_together_and_shares_are_kept():
    clusters = made_up(3000)
    documents = [d for cluster in clusters for d in cluster]
    splits = pydocs.split(documents, pydocs.Settings(**SHARES))
    counts = collections.Counter(where(splits).values())
    assert sum(counts.values()) == len(documents)
    assert counts["heldout"] / len(documents) == pytest.approx(0.05, abs=0.015)
    assert counts["dev"] / len(documents) == pytest.approx(0.03, abs=0.012)
    assert counts["train"] / len(splits["oracle"]) == pytest.approx(0.05, abs=0.015)
    assert {d.id for d in splits["train"]} <= {d.id for d in splits["oracle"]}
    side = {d.id: n for n in ("oracle", "dev", "heldout") for d in splits[n]}
    assert all(len({side[d.id] for d in cluster}) == 1 for cluster in clusters)
    assert pydocs.near_duplicates_across_splits(splits, 0.5) == 0


def test_a_documents_split_does_not_depend_on_the_rest_of_the_corpus():
    ours, others = made_up(300), made_up(300, seed=1)
    documents = [d for cluster in ours for d in cluster]
    alone = where(pydocs.split(documents))
    mixed = [d for cluster in others for d in cluster] + documents[::-1]
    together = where(pydocs.split(mixed))
    assert {i: together[i] for i in alone} == alone


def test_a_larger_train_split_holds_a_smaller_one():
    documents = [d for cluster in made_up(500) for d in cluster]
    small, large = (
        {d.id for d in pydocs.split(documents, pydocs.Settings(train_share=share))["train"]}
        for share in (0.05, 0.2)
    )
    assert small < large


def test_a_very_large_cluster_stays_in_the_oracle():
    settings = pydocs.Settings(heldout_share=0.9, dev_share=0.05)
    size = splits.LARGEST_HELD_OUT_CLUSTER
    for copies, expected in ((size, {"heldout"}), (size + 1, {"oracle"})):
        (cluster,) = made_up(1, sizes=(copies,))
        side = {n for n in ("oracle", "dev", "heldout") if pydocs.split(cluster, settings)[n]}
        assert side == expected


def test_leaks_are_counted():
    documents = [d for cluster in made_up(200) for d in cluster]
    splits = pydocs.split(documents, pydocs.Settings(**SHARES))
    leaked = document("entirely new words before " + splits["heldout"][0].text)
    splits["oracle"].append(leaked)
    own_words = splits["heldout"][0].text.split()[:60]
    family = [d for d in splits["heldout"] if d.text.split()[:60] == own_words]
    assert pydocs.near_duplicates_across_splits(splits, 0.5) == len(family)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A part of the real corpus, prepared by TFDS: the standard library, keras, numpy, …"""
    root = tmp_path_factory.mktemp("real")
    info = root / "site" / "pydocs_part-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pydocs-part\nVersion: 1.0\nRequires-Dist: keras\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "site")
        patch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
        yield pydocs.Settings(**SHARES, project="pydocs-part")


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """The 13-word shingles of a text, as they are and not as hashes."""
    tokens = pydocs.shingles.words(text)
    n = min(13, len(tokens))
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def test_no_held_out_document_has_a_near_duplicate_elsewhere(real):
    splits = {name: list(pydocs.documents(name, real)) for name in pydocs.SPLITS}
    assert len(splits["oracle"]) > 2000
    assert min(map(len, splits.values())) > 30
    assert {d.id for d in splits["train"]} <= {d.id for d in splits["oracle"]}
    assert pydocs.near_duplicates_across_splits(splits, real.threshold) == 0
    # The same without hashes, prefixes or clusters. Every held-out document asks all the others.
    documents = [(n, d) for n in ("oracle", "dev", "heldout") for d in splits[n]]
    assert len({d.id for _, d in documents}) == len(documents)
    runs = [runs_of_words(d.text) for _, d in documents]
    holders = collections.defaultdict(list)
    for i, (name, _) in enumerate(documents):
        if name != "oracle":
            for run in runs[i]:
                holders[run].append(i)
    closest, near_duplicates = 0.0, 0
    for i, (name, _) in enumerate(documents):
        shared = collections.Counter(j for run in runs[i] for j in holders.get(run, ()))
        for j, count in shared.items():
            containment = count / min(len(runs[i]), len(runs[j]))
            if documents[j][0] != name:
                closest = max(closest, containment)
            elif i != j:
                near_duplicates += containment >= real.threshold
    assert closest < real.threshold
    assert near_duplicates > 0  # they exist in this corpus, and are kept on one side


def test_tasks_read_the_splits_through_seqio(real):
    import seqio

    vocabulary = seqio.ByteVocabulary()
    for name in pydocs.SPLITS:
        factory = getattr(pydocs, name)
        factory(vocabulary, real)
        task = factory(vocabulary, real)  # a second time replaces the first
        assert task.name == f"pydocs_{name}"
        assert task.splits == ("train",)
        expected = list(pydocs.documents(name, real))
        assert task.num_input_examples("train") == len(expected)
        examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
        read = [
            Document(*(e[key].decode() for key in ("id", "name", "package")), text)
            for e in examples
            for text in [e["targets_pretokenized"].decode()]
        ]
        assert read == expected
        assert vocabulary.decode(examples[0]["targets"].tolist()) == expected[0].text
        assert all(len(d.text) >= 400 for d in expected)
        assert all(installed.document_id(d.text) == d.id for d in expected)


def test_functions_have_tasks_of_their_own(site, no_standard_library, tmp_path, monkeypatch):
    """The same splits as of docstrings, of a variant of the data set."""
    import seqio

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    functions = [
        f'def f{i}(x):\n    """{LONG}"""\n    return {" + ".join(map(str, range(i, i + 20)))}'
        for i in range(60)
    ]
    site("a", files={"a.py": "\n".join(functions).encode()})
    site("b", files={"b.py": functions[0].replace("f0", "other").encode()})
    site("root", ["a", "b"])
    settings = dataclasses.replace(
        pyfunctions.SETTINGS,
        project="root",
        package="a",
        heldout_share=0.2,
        dev_share=0.2,
        train_share=0.5,
        threshold=1.0,
    )
    monkeypatch.setattr(pyfunctions, "SETTINGS", settings)
    vocabulary = seqio.ByteVocabulary()
    found = {}
    for name in pydocs.SPLITS:
        data = getattr(pyfunctions, name)(vocabulary).get_dataset(split="train", shuffle=False)
        texts = [e["targets_pretokenized"].decode() for e in data.as_numpy_iterator()]
        assert texts == [d.text for d in pydocs.documents(name, settings)]
        found[name] = set(texts)
    assert found["oracle"] | found["dev"] | found["heldout"] == set(functions)
    assert found["train"] < found["oracle"]
    assert not found["oracle"] & (found["dev"] | found["heldout"])


def test_a_prepared_data_set_is_not_made_again_and_is_the_same_when_it_is(
    site, no_standard_library, tmp_path, monkeypatch
):
    site("root", ["einops", "absl-py"])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    settings = pydocs.Settings(**SHARES, project="root")
    first = pydocs.builder(settings).data_path
    files = {p.name: p.read_bytes() for p in first.glob("*.tfrecord*")}
    assert len(files) == len(pydocs.SPLITS)
    first.rename(tmp_path / "moved")
    assert pydocs.builder(settings).data_path == first
    assert {p.name: p.read_bytes() for p in first.glob("*.tfrecord*")} == files
    monkeypatch.setattr(installed, "documents", lambda *_: pytest.fail("prepared once more"))
    pydocs.builder(settings)


def test_a_data_set_that_another_process_finished_first_is_taken(
    site, no_standard_library, tmp_path, monkeypatch
):
    site("root", ["einops", "absl-py"])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    settings = pydocs.Settings(**SHARES, project="root")
    extract, others = installed.documents, []

    def slowly(*arguments):
        found = extract(*arguments)
        if not others:  # the other process starts and ends while this one is at work
            others.append(None)
            others.append(pydocs.builder(settings).data_path)
        return found

    monkeypatch.setattr(installed, "documents", slowly)
    made = pydocs.builder(settings)
    assert made.data_path == others[1]
    assert made.is_prepared()
    assert made.info.splits["oracle"].num_examples > 10


def test_the_command_prints_the_size_of_each_split(real, capsys):
    pydocs.main([f"--{f}={v}" for f, v in dataclasses.asdict(real).items()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(pydocs.SPLITS)
    oracle = len(list(pydocs.documents("oracle", real)))
    assert lines[2].split()[1:3] == [f"{oracle:,}", "documents"]


def test_an_empty_split_is_a_clear_error(site, no_standard_library, tmp_path, monkeypatch):
    site("root", ["einops", "absl-py"])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(UserError, match="none fell to dev: make its share larger"):
        pydocs.builder(pydocs.Settings(**{**SHARES, "dev_share": 0.0}, project="root"))


def test_no_documents_is_a_clear_error(site, no_standard_library, tmp_path, monkeypatch):
    site("empty", files={"empty.py": b""})
    site("root", ["empty"])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(UserError, match="none of the docstrings of what root requires has 400"):
        pydocs.builder(pydocs.Settings(**SHARES, project="root"))
