"""Documents in files: read as streams, by shards, and nothing lost without a word."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
import zstandard
from etils import epath

from sbp_jax.data import formats, tasks
from sbp_jax.data.files import FilesSource, shards
from sbp_jax.data.formats import File, Schema
from sbp_jax.errors import UserError

GOOD = [{"text": f"document {i} says {'so ' * (i % 5)}", "n": i} for i in range(30)]


def lines(records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def read(place, schema: Schema | None = None, **options) -> list[dict[str, str]]:
    files = formats.find(os.fspath(place), "corpus.files", **options)
    return [example for file in files for example in formats.read(file, schema or Schema())]


def rejected(place, schema: Schema | None = None) -> dict[str, str]:
    examples = read(place, schema)
    assert all(example["text"] == "" for example in examples if example["rejected"])
    return {e["id"]: e["rejected"] for e in examples if e["rejected"]}


@pytest.fixture
def corpus(tmp_path):
    """Files of all kinds, in folders; and what they hold, in order."""
    half = len(GOOD) // 2
    member = gzip.compress(lines(GOOD[:half])) + gzip.compress(lines(GOOD[half:]))
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    content = {
        "a/plain.jsonl": lines(GOOD),
        "a/windows.ndjson": b"\xef\xbb\xbf" + lines(GOOD).replace(b"\n", b"\r\n") + b"\r\n",
        "b/members.jsonl.gz": member,
        "b/c4.json.gz": gzip.compress(lines(GOOD).rstrip()),
        "b/frames.jsonl.zst": zstd(lines(GOOD[:half])) + skippable + zstd(lines(GOOD[half:])),
        "b/other.jsonl.zstd": zstd(lines(GOOD)),
    }
    for name, value in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(value)
    table = pa.Table.from_pylist(GOOD)
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=7)
    (tmp_path / "d.txt").write_text("a text\nof two lines\n")
    (tmp_path / "e.md").write_bytes(b"\xef\xbb\xbf# Marked")
    (tmp_path / "ignored.pdf").write_bytes(b"\xff")
    texts = [record["text"] for record in GOOD]
    names = [*sorted(content), "c.parquet"]
    expected = [(f"{name}:{i}", text) for name in names for i, text in enumerate(texts, 1)]
    return tmp_path, [*expected, ("d.txt", "a text\nof two lines\n"), ("e.md", "# Marked")]


def test_every_format_gives_its_documents_in_order(corpus):
    folder, expected = corpus
    examples = read(folder)
    assert [(e["id"], e["text"]) for e in examples] == expected
    assert {e["rejected"] for e in examples} == {""}


def test_a_glob_and_a_file_name_documents_from_where_they_stand(corpus):
    folder, expected = corpus
    assert {e["id"].partition(":")[0] for e in read(f"{folder}/*/p*.jsonl")} == {"a/plain.jsonl"}
    below = {e["id"].partition(":")[0] for e in read(f"{folder}/[ab]")}
    assert below == {name.partition(":")[0] for name, _ in expected if "/" in name}
    assert [e["id"] for e in read(folder / "d.txt")] == ["d.txt"]


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.binary()])
def test_parquet_text_of_any_type_and_rows_without_one(tmp_path, text_type):
    texts = pa.array([b"one", b"\xff", None, b" ", b"f" * 9], pa.binary())
    if text_type != pa.binary():  # Arrow does not look whether it is UTF-8
        texts = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers()).cast(text_type)
    table = {"text": texts, "id": pa.array(["own", "", None, "d", "e"]), "url": ["u"] * 5}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    schema = Schema(fields=("url", "missing"), max_bytes=8)
    found = read(tmp_path, schema)
    assert found[0] == {"id": "own", "text": "one", "rejected": "", "url": "u", "missing": ""}
    assert [(e["id"], e["text"], e["rejected"]) for e in found[1:]] == [
        ("a.parquet:2", "", "not UTF-8"),
        ("a.parquet:3", "", "no text under 'text'"),
        ("a.parquet:4", "", "empty"),
        ("a.parquet:5", "", "longer than 8 bytes"),
    ]
    words = pa.array(["red", None, "red"]).dictionary_encode()
    pq.write_table(pa.table({"text": words, "id": [7, 8, None]}), tmp_path / "a.parquet")
    assert [(e["id"], e["text"], e["rejected"]) for e in read(tmp_path)] == [
        ("7", "red", ""),
        ("a.parquet:2", "", "no text under 'text'"),
        ("a.parquet:3", "red", ""),
    ]


def test_what_cannot_be_used_is_said_by_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good", "id": "mine", "meta": {"a": 1}}\n'
        b"{broken\n"
        b'{"txt": "no text"}\n'
        b'{"text": null}\n'
        b'{"text": ["a"]}\n'
        b'["text"]\n'
        b'{"text": "\xe4rger"}\n'
        b'{"text": "half a character \\ud800"}\n'
        b'{"text": " \\n "}\n'
        b"\n"
        b'{"text": "' + b"x" * 90 + b'"}\n' + b"[" * 70 + b"\n"
        b'{"text": "' + b"y " * 10**6 + b'z"}\n'
        b'{"text": "good too", "id": 0}\n'
        b'{"text": "cut off'
    )
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4rger")
    (tmp_path / "long.txt").write_text("x" * 81)
    schema = Schema(max_bytes=80)
    assert rejected(tmp_path, schema) == {
        "a.jsonl:2": "not JSON",
        "a.jsonl:3": "no text under 'text'",
        "a.jsonl:4": "no text under 'text'",
        "a.jsonl:5": "text is not a string",
        "a.jsonl:6": "not a JSON object",
        "a.jsonl:7": "not UTF-8",
        "a.jsonl:8": "not UTF-8",
        "a.jsonl:9": "empty",
        "a.jsonl:11": "longer than 80 bytes",
        "a.jsonl:12": "not JSON",
        "a.jsonl:13": "longer than 80 bytes",
        "a.jsonl:15": "not JSON",
        "empty.txt": "empty",
        "latin.txt": "not UTF-8",
        "long.txt": "longer than 80 bytes",
    }
    good = [(e["id"], e["text"]) for e in read(tmp_path, schema) if not e["rejected"]]
    assert good == [("mine", "good"), ("0", "good too")]
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert rejected(tmp_path / "deep.jsonl") == {"deep.jsonl:1": "not JSON"}
    renamed = Schema(text="txt", max_bytes=80)
    assert [e for e in read(tmp_path / "a.jsonl", renamed) if not e["rejected"]] == [
        {"id": "a.jsonl:3", "text": "no text", "rejected": ""}
    ]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_is_too_long_from_one_byte_on(tmp_path, end):
    for size in range(76, 86):
        line = b'{"text": "' + b"x" * (size - 12) + b'"}'
        assert len(line) == size
        (tmp_path / "a.jsonl").write_bytes(line + end + (b"[]\n" if end else b""))
        found = [e["rejected"] for e in read(tmp_path, Schema(max_bytes=80))]
        expected = ["longer than 80 bytes" if size > 80 else ""]
        assert found == expected + (["not a JSON object"] if end else [])


def damaged(name: str) -> list[bytes]:
    content = lines({"text": f"{i}", "noise": os.urandom(40).hex()} for i in range(3000))
    if name.endswith("parquet"):
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(GOOD), stream)
        whole = stream.getvalue()
    else:
        whole = gzip.compress(content) if name.endswith("gz") else zstd(content)
    return [whole[:-1], whole[: len(whole) // 2], b"", b"nonsense" * 9]


@pytest.mark.parametrize("how", range(4))
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_breaks_off_is_refused(tmp_path, name, how):
    (tmp_path / name).write_bytes(damaged(name)[how])
    with pytest.raises(
        UserError, match=f"{name} is damaged or breaks off.* copy it again"
    ) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    if how == 1 and name != "a.parquet":
        assert "after line 1" in str(caught.value)  # and more digits


def test_mistakes_are_named(tmp_path):
    (tmp_path / "some.pdf").write_text("")
    pq.write_table(pa.table({"content": ["x"], "n": [1]}), tmp_path / "a.parquet")
    for place, message in (
        (tmp_path / "none", "corpus.files = '.*none' is no folder and no file"),
        (tmp_path / "*.jsonl", "matches nothing"),
        (tmp_path / "*.pdf", "holds no file that ends in .txt, .md, .jsonl"),
        (f"{tmp_path}/**/*.parquet", "a folder is read through all its depths"),
        (tmp_path, "a.parquet has no column 'text': it has content, n"),
    ):
        with pytest.raises(UserError, match=message):
            read(place)
    with pytest.raises(UserError, match="has no column 'score'"):
        read(tmp_path, Schema(text="content", needs=("score",)))
    (file,) = formats.find(os.fspath(tmp_path), "corpus.files")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a.parquet cannot be read: No such file"):
        list(formats.read(file, Schema()))


def source(folder, shard_bytes=1000, **options) -> FilesSource:
    files = formats.find(os.fspath(folder), "corpus.files")
    return FilesSource(
        files, lambda file: formats.read(file, Schema()), shard_bytes=shard_bytes, **options
    )


def test_shards_put_together_are_the_corpus_in_order(corpus):
    folder, expected = corpus
    made = source(folder)
    assert 2 < len(made.list_shards("train")) < 9
    assert len(set(made.list_shards("train"))) == len(made.list_shards("train"))
    task = seqio.Task("files", made, {}, [])

    def part(index: int, count: int) -> list[tuple[str, str]]:
        info = seqio.ShardInfo(index, count)
        found = task.get_dataset(None, "train", shuffle=False, shard_info=info)
        return [(e["id"].decode(), e["text"].decode()) for e in found.as_numpy_iterator()]

    for count in (1, 3):
        assert [one for index in range(count) for one in part(index, count)] == expected
    # More parts than the source has shards are every so many-th example.
    assert [part(index, 20) for index in (0, 19)] == [expected[0::20], expected[19::20]]
    # Shuffled by whole shards, and the same for the same seed.
    ids = [
        [e["id"] for e in made.get_dataset("train", seed=seed).as_numpy_iterator()]
        for seed in (1, 1, 2)
    ]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(ids[0]) == sorted(name.encode() for name, _ in expected)


def test_a_shard_reads_no_file_of_another(corpus):
    folder, _ = corpus
    opened = []
    files = formats.find(os.fspath(folder), "corpus.files")

    def read_one(file):
        opened.append(file.name)
        return formats.read(file, Schema())

    made = FilesSource(files, read_one, shard_bytes=1000)
    for index in range(3):
        list(made.get_dataset("train", False, shard_info=seqio.ShardInfo(index, 3)))
    assert opened == [file.name for file in files]


def test_small_files_are_one_shard_and_large_ones_their_own():
    sizes = [5, 5, 50, 3, 3, 3, 3, 200, 1]
    files = [File(f"{i}", f"/{i}", size, 0) for i, size in enumerate(sizes)]
    found = shards(files, 10)
    assert [[file.size for file in part] for part in found] == [
        [5, 5],
        [50],
        [3, 3, 3],
        [3],
        [200],
        [1],
    ]
    assert list(itertools.chain(*found)) == files
    assert len(shards([File(f"{i}", f"/{i}", 10**4, 0) for i in range(10**4)], 64 * 10**6)) == 2


def test_the_fingerprint_follows_names_sizes_times_and_settings(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, (1000, 1000))
    taken = [source(tmp_path).fingerprint, source(tmp_path).fingerprint]
    assert taken[0] == taken[1]
    taken.append(source(tmp_path, settings=["other"]).fingerprint)
    os.utime(file, (1000, 1001))
    taken.append(source(tmp_path).fingerprint)
    file.write_text("more")
    os.utime(file, (1000, 1001))
    taken.append(source(tmp_path).fingerprint)
    file.rename(tmp_path / "b.txt")
    taken.append(source(tmp_path).fingerprint)
    assert len(set(taken)) == len(taken) - 1
    task = seqio.Task("files", source(tmp_path), {})
    assert tasks.fingerprint(task) == {
        "task": "files",
        "examples": {"train": None},
        "content": taken[-1],
    }


def test_the_readers_own_message_comes_through_tensorflow(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(GOOD * 20))[:-9])
    made = source(tmp_path)
    task = seqio.Task("files", made, {}, [])
    found = tasks.examples(task, "train")
    assert next(found)["text"] == GOOD[0]["text"].encode()
    assert made.failure is None
    with pytest.raises(UserError, match=r"a.jsonl.gz is damaged or breaks off"):
        list(found)
    assert isinstance(made.failure, UserError)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines([*GOOD, {"text": "\0nul\0"}])))
    assert [e["text"] for e in tasks.examples(task, "train")][30:] == [b"\0nul\0"]
    assert made.failure is None

    def torn(dataset):
        return dataset.map(lambda example: {"id": tf.io.decode_raw(example["id"], tf.int64)})

    with pytest.raises(tf.errors.InvalidArgumentError):  # TensorFlow's own stays its own
        list(tasks.examples(seqio.Task("files", made, {}, [torn]), "train"))


def test_a_file_of_a_bucket_is_a_stream_for_every_format(corpus, monkeypatch):
    """TensorFlow's files, which read buckets, lack what Arrow and readline by bytes want."""
    folder, expected = corpus

    def opened(path, mode):
        return tf.io.gfile.GFile(os.fspath(path), mode)

    monkeypatch.setattr(type(epath.Path(folder)), "open", opened)
    assert [(e["id"], e["text"]) for e in read(folder)] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_memory_does_not_follow_the_file(tmp_path, name):
    """A document of 100 MB is passed over and 40 MB of others are read, in 60 MB of memory."""
    code = """
import re, sys
from sbp_jax.data import formats

def peak():  # not getrusage, in which the parent's counts
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

schema = formats.Schema(max_bytes=2**20)
(small,) = formats.find(sys.argv[1], "corpus.files")
list(formats.read(small, schema))
before = peak()
(large,) = formats.find(sys.argv[2], "corpus.files")
reasons = [example["rejected"] for example in formats.read(large, schema)]
print(len(reasons), max(reasons), peak() - before)
"""
    long = {"text": "long " * (20 * 2**20)}
    others = [{"text": os.urandom(20_000).hex()} for _ in range(1000)]
    for folder, records in (("small", GOOD), ("large", [*others, long, GOOD[0]])):
        (tmp_path / folder).mkdir()
        if name.endswith("parquet"):
            if folder == "large":
                records = others * 3  # a row of Parquet is in memory before it can be measured
            pq.write_table(
                pa.Table.from_pylist(records), tmp_path / folder / name, row_group_size=99
            )
            continue
        pack = {"zst": zstd, "gz": lambda c: gzip.compress(c, 1)}.get(
            name.rpartition(".")[2], bytes
        )
        (tmp_path / folder / name).write_bytes(pack(lines(records)))
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small" / name, tmp_path / "large" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, *reason, grown = done.stdout.split()
    assert int(count) == (3000 if name.endswith("parquet") else 1002)
    assert name.endswith("parquet") or reason == ["longer", "than", "1048576", "bytes"]
    assert int(grown) < 60_000, grown  # KiB
