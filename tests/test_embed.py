"""Embedding: how vectors lie on disk, what an interruption leaves, and what the decoder gives."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from etils import epath
from flax import nnx
from made_rows import TEXTS, small_model, write_rows_artefact, write_text_run

from sbp_jax import artifacts, exchange
from sbp_jax.checkpoints import CHECKPOINTS, save_parameters
from sbp_jax.data import documents as documents_module
from sbp_jax.data import vocabularies
from sbp_jax.data.documents import Document, Documents
from sbp_jax.errors import UserError
from sbp_jax.model.decoder import Decoder, structure
from sbp_jax.pair.activations import Embedded, make_batches, make_runner, row_lengths
from sbp_jax.pair.embed import embed
from sbp_jax.pair.embedders import ActivationEmbedder, HuggingFaceEmbedder, TfidfEmbedder, unit
from sbp_jax.pair.vectors import DTYPES, open_vectors, write_shard
from sbp_jax.parallel.mesh import MeshConfig, make_layout

QWEN = pathlib.Path(__file__).parent / "hugging_face/qwen3_embedding"
MODEL = small_model(320, layers=2)


# --- on disk


def made_vectors(count: int, dimensions: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors, the third of which is of a document with nothing in it."""
    vectors = unit(np.random.default_rng(seed).normal(size=(count, dimensions)))
    vectors[2] = 0
    return vectors


def write_split(directory, dtype="float32", counts=(5, 3, 7)) -> np.ndarray:
    vectors = made_vectors(sum(counts))
    first = 0
    for number, count in enumerate(counts):
        part = slice(first, first + count)
        ids = [f"id{i}" for i in range(first, first + count)]
        write_shard(epath.Path(directory), "train", number, ids, vectors[part], dtype)
        first += count
    return vectors


def by_numpy(folder, dtype: str) -> np.ndarray:
    """All vectors of a folder, as one reads them who has read only what the file format is."""
    found = []
    for path in sorted(folder.glob("vectors-*.npy")):
        stored = np.load(path, allow_pickle=False)
        if dtype == "bfloat16":
            assert stored.dtype == np.uint16
            stored = stored.view(ml_dtypes.bfloat16).astype(np.float32)
        elif dtype == "int8":
            assert stored.dtype == np.int8
            name = path.name.replace("vectors", "scales")
            stored = stored * np.load(path.parent / name, allow_pickle=False)[:, None]
        assert stored.dtype == np.float32
        found.append(stored)
    return np.concatenate(found)


@pytest.mark.parametrize(("dtype", "error"), zip(DTYPES, (0, 2**-9, 0.005), strict=True))
def test_vectors_are_read_back_in_any_blocks_and_by_numpy(tmp_path, dtype, error):
    vectors = write_split(tmp_path, dtype)
    found = open_vectors(tmp_path, "train")
    assert (len(found), found.dimensions) == (15, 24)
    assert found.ids == [f"id{i}" for i in range(15)]
    whole = found.read()
    np.testing.assert_allclose(whole, vectors, atol=error)
    np.testing.assert_array_equal(whole, by_numpy(tmp_path / "train", dtype))
    for size in (1, 4, 15, 99):
        blocks = [found.read(i, min(i + size, 15)) for i in range(0, 15, size)]
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert not whole[2].any()
    if dtype == "int8":
        lengths = np.linalg.norm(whole[[0, 1, 3]], axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_a_block_reads_no_more_than_itself(tmp_path):
    vectors = write_split(tmp_path)
    found = open_vectors(tmp_path, "train")
    (tmp_path / "train/vectors-00002.npy").unlink()
    np.testing.assert_array_equal(found.read(0, 8), vectors[:8])
    np.testing.assert_array_equal(found.part(2, 8).read(1, 4), vectors[3:6])
    with pytest.raises(UserError, match=r"vectors-00002.npy cannot be read"):
        found.read(7, 9)


def rewritten(name, change):
    def damage(folder):
        path = folder / name
        array = np.load(path)
        np.save(path, change(array), allow_pickle=True)

    return damage


def set_nan(array):
    array = array.copy()
    array[1] = np.nan
    return array


def cut(folder):
    path = folder / "vectors-00001.npy"
    path.write_bytes(path.read_bytes()[:-8])


def same_ids(folder):
    (folder / "ids-00001.json").write_text(json.dumps(["id5", "id6", "id0"]))


@pytest.mark.parametrize(
    ("dtype", "damage", "message"),
    [
        ("float32", rewritten("vectors-00001.npy", set_nan), "vector of 'id6' has length nan"),
        ("int8", rewritten("scales-00001.npy", set_nan), "vector of 'id6' has length nan"),
        ("float32", rewritten("vectors-00001.npy", lambda v: v * 1.01), "'id5' has length 1.01"),
        ("bfloat16", rewritten("vectors-00001.npy", lambda v: v + 2), "'id5' has length 1.0"),
        ("int8", rewritten("scales-00001.npy", lambda v: v * 1.01), "'id5' has length 1.0"),
        ("float32", rewritten("vectors-00001.npy", lambda v: v[:, :9]), "has 9 dimensions"),
        ("float32", rewritten("vectors-00001.npy", lambda v: v[:-1]), "one vector for each id"),
        ("int8", rewritten("scales-00001.npy", lambda v: v[:-1]), "each id and scale"),
        ("float32", rewritten("vectors-00001.npy", lambda v: v.astype(float)), "found float64"),
        ("float32", rewritten("vectors-00001.npy", lambda v: v.astype(object)), r"is damaged \("),
        ("float32", rewritten("vectors-00001.npy", lambda v: v[0]), "two dimensions"),
        ("float32", rewritten("vectors-00001.npy", np.asfortranarray), r"is damaged \("),
        ("float32", cut, r"vectors-00001.npy is damaged \(\d+ bytes, and by its header \d+\)"),
        ("float32", same_ids, "ids of 'train' stand twice, 'id0' among them"),
        ("float32", lambda f: (f / "ids-00001.json").unlink(), r"is damaged \("),
        ("int8", lambda f: (f / "scales-00002.npy").unlink(), r"is damaged \("),
        ("float32", lambda f: (f / "ids-00001.json").write_text("["), r"is damaged \("),
        ("float32", lambda f: (f / "vectors-00001.npy").unlink(), "00001.npy is missing"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path, dtype, damage, message):
    write_split(tmp_path, dtype)
    damage(tmp_path / "train")
    with pytest.raises(UserError, match=message) as caught:
        open_vectors(tmp_path, "train").read()
    assert "\n" not in caught.value.message


def test_a_shard_of_another_dtype_is_refused(tmp_path):
    write_split(tmp_path)
    write_shard(epath.Path(tmp_path), "train", 3, ["a", "b", "c"], made_vectors(3), "bfloat16")
    with pytest.raises(UserError, match=r"00003.npy has 24 dimensions of uint16"):
        open_vectors(tmp_path, "train")


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_split(tmp_path)
    with pytest.raises(UserError, match=r"no vectors of 'dev': expected one of \['train'\]"):
        open_vectors(tmp_path, "dev")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_only_unit_vectors_are_written(tmp_path, value):
    vectors = made_vectors(4)
    vectors[3] = value
    with pytest.raises(UserError, match="vector of 'd' has length"):
        write_shard(epath.Path(tmp_path), "train", 0, list("abcd"), vectors)
    assert not list(tmp_path.rglob("*.npy"))


# --- the stage


class Interrupted(Exception):
    pass


class Calls(list):
    """What the embedder was asked for; a call of a number may fail."""

    fail_at = 0

    def start(self, fail_at: int = 0) -> None:
        self.clear()
        self.fail_at = fail_at


CALLS = Calls()


@dataclasses.dataclass(frozen=True)
class Letters:
    """Embeds by the letters of a text; `CALLS` says what it was asked for.

    Attributes:
      name: any.
    """

    name: str = "letters"

    @property
    def inputs(self) -> dict[str, str]:
        return {}

    def fit(self, run, texts):
        def embed(texts):
            CALLS.append(list(texts))
            if len(CALLS) == CALLS.fail_at:
                raise Interrupted
            counts = [[text.count(letter) for letter in "abcdefgh"] for text in texts]
            return Embedded(unit(np.array(counts)), sum(map(len, texts)), 1)

        return embed


def write_documents(directory, name: str, made: list[Document]) -> None:
    out = write_rows_artefact(directory, name, {"corpus": [[5] * 4 for _ in made]})
    documents_module.write(out / "corpus" / documents_module.FILE, made)


def written(count: int, seed: int = 0, longest: int = 60) -> list[Document]:
    """Documents of one to `longest` words."""
    rng = np.random.default_rng(seed)
    return [
        Document(
            f"doc{i}", " ".join(rng.choice(TEXTS[i % 12].split(), rng.integers(1, longest + 1)))
        )
        for i in range(count)
    ]


DOCUMENTS = {"train": "rows/many", "dev": "rows/few"}


@pytest.fixture
def run_directory(tmp_path):
    write_documents(tmp_path, "rows/many", written(10))
    write_documents(tmp_path, "rows/few", written(3, seed=1))
    return epath.Path(tmp_path)


def embedded(directory, scope="embed", **changes):
    options = {"embedder": Letters(), "documents": DOCUMENTS, "shard_documents": 4, **changes}
    embed(artifacts.Run(directory, scope), **options)
    return directory / scope


def files(directory) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in directory.glob("*/*")
        if p.suffix in (".npy", ".json")
    }


def test_a_finished_shard_is_not_embedded_again(run_directory):
    CALLS.start()
    whole = files(embedded(run_directory, "whole"))
    texts = [d.text for d in Documents(run_directory / "rows/many")]
    assert texts[:4] == CALLS[0]
    assert [len(c) for c in CALLS] == [4, 4, 2, 3]
    CALLS.start(fail_at=3)
    with pytest.raises(Interrupted):
        embedded(run_directory)
    work = run_directory / "embed.partial"
    # Killed after the vectors of a shard were written, and before it was finished.
    (work / "train/counts-00001.json").unlink()
    before = (work / "train/vectors-00000.npy").stat().mtime
    CALLS.start()
    out = embedded(run_directory)
    assert [c for c in CALLS if c == texts[:4]] == []
    assert [len(c) for c in CALLS] == [4, 2, 3]
    assert files(out) == whole
    assert (out / "train/vectors-00000.npy").stat().mtime == before
    counts = artifacts.read_manifest(out).counts
    assert counts == artifacts.read_manifest(run_directory / "whole").counts
    assert (counts["train_documents"], counts["dev_documents"]) == (10, 3)
    assert "padding" not in counts
    shard = json.loads((out / "train/counts-00000.json").read_text())
    assert shard["padding"] > 0
    CALLS.start(fail_at=1)
    embedded(run_directory)
    assert not CALLS


def test_no_more_than_a_shard_is_read_at_a_time(run_directory, monkeypatch):
    CALLS.start()
    read = []
    get = Documents.__getitem__

    def spy(self, index):
        if isinstance(index, slice):
            read.append(len(range(*index.indices(len(self)))))
        return get(self, index)

    monkeypatch.setattr(Documents, "__getitem__", spy)
    monkeypatch.setattr(Documents, "ids", property(lambda _: pytest.fail("all were read")))
    embedded(run_directory)
    assert read == [4, 4, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stage_writes_the_dtype_it_is_told(run_directory, dtype):
    out = embedded(run_directory, vectors_dtype=dtype)
    found = open_vectors(out, "train")
    np.testing.assert_array_equal(found.read(), by_numpy(out / "train", dtype))
    assert found.ids == [f"doc{i}" for i in range(10)]


def test_a_lost_shard_is_noticed(run_directory):
    out = embedded(run_directory)
    (out / "train/vectors-00002.npy").unlink()
    with pytest.raises(UserError, match="has 8 vectors, and 10 were written"):
        open_vectors(out, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors_dtype": "float16"}, "vectors_dtype = 'float16': expected one of"),
        ({"shard_documents": 0}, "shard_documents = 0"),
        ({"fit_on": "test"}, "fit_on = 'test'"),
        ({"documents": {"../x": "rows/few"}, "fit_on": "../x"}, "cannot name a folder"),
    ],
)
def test_settings_that_cannot_be(run_directory, changes, message):
    with pytest.raises(UserError, match=message):
        embedded(run_directory, **changes)


def test_documents_of_one_id_are_refused(run_directory):
    made = written(9)
    write_documents(run_directory, "rows/twice", [*made, made[0]])
    with pytest.raises(UserError, match="ids of 'train' stand twice, 'doc0'"):
        embedded(run_directory, documents={"train": "rows/twice"})
    assert not (run_directory / "embed").exists()


def test_a_split_without_documents_is_refused(run_directory):
    write_documents(run_directory, "rows/none", [])
    with pytest.raises(UserError, match="has no documents"):
        embedded(run_directory, documents={"train": "rows/none"})


def test_shards_of_tfidf_are_those_of_one_model(run_directory):
    write_documents(run_directory, "rows/many2", written(60))
    found = []
    for size in (7, 1000):
        out = embedded(
            run_directory,
            f"tfidf{size}",
            embedder=TfidfEmbedder(dimensions=8, max_document_frequency=0.5),
            documents={"train": "rows/many2"},
            shard_documents=size,
        )
        found.append(open_vectors(out, "train").read())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


# --- packing


def lognormal(count: int, most: int) -> list[int]:
    """Lengths as pages of the web have them: median 490, mean 900 tokens."""
    lengths = np.random.default_rng(0).lognormal(6.2, 1.1, count)
    return np.clip(lengths, 1, most).astype(int).tolist()


def batches_of(sizes, most: int, devices: int = 8, tokens_per_device: int = 16_384):
    lengths = row_lengths(most)
    rows_of = {n: devices * max(1, tokens_per_device // n) for n in lengths}
    found = list(make_batches(sizes, lengths, rows_of))
    computed = sum(length * rows_of[length] for length, _ in found)
    return found, rows_of, 1 - sum(sizes) / computed


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        (lognormal(20_000, 8192), 8192),
        (lognormal(3000, 2048), 2048),
        (lognormal(5000, 512), 512),
        (np.random.default_rng(1).integers(4097, 8193, 3000).tolist(), 8192),
        ([1, 2, 3] * 2000 + [0] * 5, 300),
        ([7, 0, 100], 100),
    ],
)
def test_every_document_has_its_place(sizes, most):
    found, rows_of, _ = batches_of(sizes, most)
    places = [i for _, rows in found for row in rows for i in row.members]
    assert sorted(places) == [i for i, size in enumerate(sizes) if size]
    longest = max(rows_of)
    for length, rows in found:
        assert len(rows) == rows_of[length] or length == longest
        for row in rows:
            assert sum(sizes[i] for i in row.members) <= length
            assert len(row.members) <= length // 8
    assert len(rows_of) <= 9
    assert sum(len(rows) < rows_of[length] for length, rows in found) <= 1


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("count", "most", "share"), [(20_000, 8192, 0.02), (3000, 2048, 0.1), (5000, 512, 0.1)]
)
def test_padding_stays_small(count, most, share, devices):
    found, _, padding = batches_of(lognormal(count, most), most, devices)
    assert 0 <= padding < share
    # And rows are not all as long as the longest document, which would cost as much in attention.
    if most == 8192:
        tokens = {length: 0 for length, _ in found}
        for length, rows in found:
            tokens[length] += length * len(rows)
        mean = sum(n * t for n, t in tokens.items()) / sum(tokens.values())
        assert mean < 0.7 * most


# --- the decoder


def some_tokens(count: int, seed: int = 0, most: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 320, rng.integers(1, most + 1)).astype(np.int32) for _ in range(count)]


@pytest.fixture(scope="module")
def parameters():
    """Random ones, of NumPy: the decoder's own would take longer than all that is done here."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        mean, scale = (1.0, 0.1) if path[-1].key == "scale" else (0.0, 0.3)
        return rng.normal(mean, scale, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(structure(MODEL)[1]))


def runner(parameters, devices=8, **options):
    layout = make_layout(MeshConfig(), jax.devices()[:devices])
    options = {"max_length": 64, "tokens_per_device": 128, "pooling": "last", **options}
    return make_runner(MODEL, parameters, layout, **options)


@functools.cache
def alone(layer: int | None, final_norm: bool):
    """The activations [L, D] of one document in a row of its own."""

    @jax.jit
    def run(parameters, tokens_1L, segment_ids_1L, positions_1L):
        model = nnx.merge(structure(MODEL)[0], parameters)
        x_LD = model.hidden_states(tokens_1L, segment_ids_1L, positions_1L, layer=layer)[0]
        return model.final_norm(x_LD) if final_norm else x_LD

    return run


def one_by_one(parameters, documents, pooling: str, layer=None, final_norm=False) -> np.ndarray:
    found = []
    for tokens in documents:
        tokens_1L, segment_ids_1L = np.zeros((2, 1, 64), np.int32)
        tokens_1L[0, : len(tokens)], segment_ids_1L[0, : len(tokens)] = tokens, 1
        run = alone(layer, final_norm)
        x_LD = np.asarray(run(parameters, tokens_1L, segment_ids_1L, np.arange(64)[None]))
        x_LD = x_LD[: len(tokens)]
        found.append(x_LD[-1] if pooling == "last" else x_LD.mean(axis=0))
    return np.stack(found)


@pytest.mark.parametrize(
    ("pooling", "layer", "final_norm"), [("last", None, True), ("mean", 1, False)]
)
def test_a_vector_does_not_depend_on_what_is_beside_it(parameters, pooling, layer, final_norm):
    documents = some_tokens(40)
    documents[7] = documents[7][:0]
    options = {"pooling": pooling, "layer": layer, "final_norm": final_norm}
    found = runner(parameters, **options)(documents)
    assert not found.vectors[7].any()
    single = one_by_one(parameters, [d for d in documents if len(d)], **options)
    there = [i for i, d in enumerate(documents) if len(d)]
    np.testing.assert_allclose(found.vectors[there], single, atol=1e-5)
    others = runner(parameters, **options)([documents[3], *some_tokens(30, seed=5)])
    np.testing.assert_allclose(others.vectors[0], found.vectors[3], atol=1e-5)


def test_a_vector_does_not_depend_on_the_devices(parameters):
    documents = some_tokens(40)
    eight, one = (runner(parameters, devices=n)(documents) for n in (8, 1))
    assert eight.tokens == one.tokens == sum(map(len, documents))
    np.testing.assert_allclose(eight.vectors, one.vectors, atol=1e-5)


def test_each_row_length_is_one_program_on_all_devices(parameters, monkeypatch):
    shapes, placed = [], []
    states = Decoder.hidden_states
    monkeypatch.setattr(
        Decoder,
        "hidden_states",
        lambda self, tokens, *rest, **options: (
            shapes.append(tokens.shape) or states(self, tokens, *rest, **options)
        ),
    )
    put = jax.device_put
    monkeypatch.setattr(
        jax, "device_put", lambda x, where=None: placed.append(put(x, where)) or placed[-1]
    )
    run = runner(parameters, max_length=512, tokens_per_device=2048)
    sizes = lognormal(600, 512)
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 320, size).astype(np.int32) for size in sizes]
    for part in (documents, documents[50:], documents[:-20]):
        found = run(part)
        assert found.padding < 0.1 * (found.tokens + found.padding)
    assert len(shapes) == len({length for _, length in shapes}) <= 6
    assert placed
    assert all(len(x.addressable_shards) == 8 for x in placed)
    assert all(x.addressable_shards[0].data.shape[0] * 8 == x.shape[0] for x in placed)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory, parameters):
    """A run with a vocabulary, documents and a model."""
    directory = write_text_run(tmp_path_factory.mktemp("model"))
    write_documents(directory, "rows/many", [*written(60), Document("empty", " ")])
    stage = artifacts.begin(
        artifacts.Run(directory, "pretrain"),
        "import_hf",
        config={"model": MODEL},
        inputs={},
        code=(),
    )
    save_parameters(stage.work / CHECKPOINTS, parameters)
    stage.commit({})
    return directory


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_models_own_activations(model_directory, parameters, pooling):
    embedder = ActivationEmbedder(pooling=pooling, max_length=64, layer=1, tokens_per_device=128)
    found = []
    for size in (13, 1000):
        out = embedded(
            model_directory,
            f"{pooling}{size}",
            embedder=embedder,
            documents={"train": "rows/many"},
            shard_documents=size,
        )
        found.append(open_vectors(out, "train").read())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    vocabulary = vocabularies.load(model_directory / "vocab")
    tokens = [
        np.array([vocabulary.bos, *vocabulary.encode(d.text)], np.int32)[:64]
        for d in Documents(model_directory / "rows/many")
    ]
    expected = one_by_one(parameters, tokens[:-1], pooling, layer=1)
    np.testing.assert_allclose(found[0][:-1], unit(expected - expected.mean(axis=0)), atol=1e-4)
    assert not found[0][-1].any()
    manifest = artifacts.read_manifest(out)
    assert manifest.inputs["checkpoint"]
    assert manifest.counts["train_zero_vectors"] == 1
    assert manifest.counts["tokens"] == sum(map(len, tokens[:-1]))
    shard = json.loads((out / "train/counts-00000.json").read_text())
    assert shard["padding"] > 0


def test_a_layer_that_is_not_there(model_directory):
    with pytest.raises(UserError, match="layer = 9"):
        embedded(
            model_directory,
            "deep",
            embedder=ActivationEmbedder(layer=9),
            documents={"train": "rows/many"},
        )


# --- Qwen3-Embedding


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A run with the imported model."""
    directory = epath.Path(tmp_path_factory.mktemp("qwen"))
    exchange.import_hf(artifacts.Run(directory, "embedder"), str(QWEN))
    return directory


def qwen_vectors(directory, texts, **options) -> np.ndarray:
    options = {"dtype": "float32", "max_length": 128, **options}
    embedder = HuggingFaceEmbedder(vocab=str(QWEN / "tokenizer.json"), **options)
    return embedder.fit(artifacts.Run(directory, "embed"), texts)(texts).vectors


@pytest.mark.parametrize("kind", ["documents", "queries", "short"])
def test_vectors_are_those_of_transformers(qwen, kind):
    expected = np.load(QWEN / "expected.npz", allow_pickle=False)
    assert int(expected["max_length"]) == 128
    texts = [str(text) for text in expected["texts"]]
    options = {
        "documents": {},
        "queries": {"instruction": str(expected["task"])},
        "short": {"dimensions": 8},
    }[kind]
    found = qwen_vectors(qwen, texts, **options)
    assert found.shape == expected[kind].shape
    np.testing.assert_allclose(found, expected[kind], atol=1e-4)


def test_a_text_of_white_space_gets_no_vector(qwen):
    found = qwen_vectors(qwen, [" \n", "text"], instruction="find it")
    assert not found[0].any()
    np.testing.assert_allclose(np.linalg.norm(found[1]), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 33}, "dimensions = 33: the model has 32"),
        ({"dimensions": 0}, "dimensions = 0: must be at least 1"),
        ({"end_token": "</s>"}, "has no token '</s>'"),
    ],
)
def test_what_the_model_does_not_have_is_named(qwen, options, message):
    with pytest.raises(UserError, match=message):
        qwen_vectors(qwen, ["text"], **options)


def test_a_vocabulary_larger_than_the_models_is_refused(qwen, model_directory):
    embedder = HuggingFaceEmbedder(
        checkpoint=str(model_directory / "pretrain"), vocab=str(QWEN / "tokenizer.json")
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(QWEN / "tokenizer.json"))
    tokenizer.add_tokens(["one more"])
    path = model_directory / "tokenizer.json"
    tokenizer.save(str(path))
    embedder = dataclasses.replace(embedder, vocab=str(path))
    with pytest.raises(UserError, match="a table of 320"):
        embedder.fit(artifacts.Run(model_directory, "x"), [])
