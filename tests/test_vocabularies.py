"""Vocabularies of all kinds: the same promises, and what each of them cannot keep."""

from __future__ import annotations

import functools
import json
import pickle
import random
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tokenizers
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from sbp_jax import artifacts
from sbp_jax.data import documents, rows, vocab, vocabularies
from sbp_jax.data.cache import cache
from sbp_jax.data.seqio_vocabularies import seqio_vocabulary
from sbp_jax.errors import UserError

KINDS = ("sentencepiece", "bytes", "hugging_face")
SPECIAL = ("<pad>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>")
TEXTS = [
    "def f(x):\n    return  x + 1\n\n\tTabs\tand  runs   of    spaces.",
    "Markup </s> <s> <pad> <unk> in </s> a<|endoftext|>document<|im_end|> and <s>s</s> again.",
    "naïve café, e\u0301, 漢字と仮名 🙂👩‍👩‍👧, a NUL \x00 and bars ▁▂▃, \r\n\u2028\ufeff.",
    "The mean of the values along an axis; the sum of the values along an axis.",
    "",
]
# Bytes that are no UTF-8: alone, cut short, overlong, a surrogate; each is a character of its own.
BROKEN = (b"a\xffb", b"cut \xe2\x82 short", b"\xf0\x9f\x99", b"\xc0\xaf", b"\xed\xa0\x80 end")


@functools.cache
def byte_level(special: tuple[str, ...] = SPECIAL) -> str:
    """The content of a `tokenizer.json` with byte-level pieces."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """What `vocab.given` may be, by kind."""
    directory = tmp_path_factory.mktemp("given")
    (directory / "some.model").write_bytes(vocab.train(lambda: TEXTS * 5, 400, 1.0, "test"))
    (directory / "tokenizer.json").write_text(byte_level())
    config = {"eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": False}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return {
        "sentencepiece": str(directory / "some.model"),
        "bytes": "bytes",
        "hugging_face": str(directory / "tokenizer.json"),
    }


@pytest.fixture(scope="module")
def loaded(files) -> dict[str, vocabularies.Vocabulary]:
    return {kind: vocabularies.given(name)[0] for kind, name in files.items()}


def from_json(directory, content: str | dict, config: object = None) -> vocabularies.HuggingFace:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "tokenizer.json").write_text(text)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
    return vocabularies.load(directory)


@given(
    st.text(
        st.one_of(
            # SentencePiece here stores U+2581 as U+10FFFF, which is no character.
            st.characters(exclude_categories=["Cs"], exclude_characters="\U0010ffff"),
            st.sampled_from("\n\t \r\x00▁Ġ</s>\u0301\u200d\u2028\ufeff🙂漢ae"),
        )
    )
)
@example("</s><s><pad><unk><|endoftext|><|im_end|>")
@example(" <s> a</s>b ")
@example("e\u0301é\ufb01\u0301 👩‍👩‍👧🏽 漢\x00\x00字")
@example("\ufffd")
@example("   \n\n \t ")
def test_text_comes_back_and_is_never_a_special_token(loaded, text):
    for kind, vocabulary in loaded.items():
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text, kind
        assert all(type(i) is int and 0 <= i < vocabulary.size for i in ids)
        assert not {vocabulary.eos, vocabulary.bos, *vocabulary.never} & set(ids), kind
        assert vocabulary.encode_batch([text, "a", text]) == [ids, vocabulary.encode("a"), ids]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_texts_give(loaded, kind):
    texts = [random.Random(i).choice(TEXTS) * (i % 4) for i in range(60)]
    texts += [data.decode(errors="surrogateescape") for data in BROKEN]
    vocabulary = loaded[kind]
    assert vocabulary.encode_batch(texts) == [vocabulary.encode(text) for text in texts]
    assert vocabulary.encode_batch(tuple(texts)) == vocabulary.encode_batch(texts)
    assert vocabulary.encode_batch([]) == []
    assert vocabulary.encode_batch(["", "\n"])[0] == []


@given(st.binary())
@example(bytes(range(256)))
@example(b"".join(BROKEN))
def test_bytes_keep_every_byte_with_the_ids_of_seqio(data):
    vocabulary = vocabularies.Bytes()
    ids = vocabulary.encode(data.decode(errors="surrogateescape"))
    assert ids == [byte + 3 for byte in data]
    assert vocabulary.decode(ids).encode(errors="surrogateescape") == data
    theirs = seqio.ByteVocabulary(extra_ids=0)
    text = data.decode(errors="replace")
    assert vocabulary.encode(text) == theirs.encode(text)
    assert (vocabulary.size, vocabulary.eos) == (theirs.vocab_size, theirs.eos_id)
    assert (vocabulary.bos, vocabulary.never) == (theirs.pad_id, (theirs.pad_id, theirs.unk_id))


@given(st.one_of(st.binary(), st.sampled_from(BROKEN)))
@example(b"\xff \xe2\x82 \xf0\x9f\x99")
def test_the_other_kinds_put_a_replacement_for_each_byte_that_is_no_utf8(loaded, data):
    text = data.decode(errors="surrogateescape")
    wanted = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    for kind in ("sentencepiece", "hugging_face"):
        assert loaded[kind].decode(loaded[kind].encode(text)) == wanted
        assert loaded[kind].encode_batch(["", text])[1] == loaded[kind].encode(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_surrogate_that_is_no_byte_is_replaced(loaded, kind):
    assert loaded[kind].decode(loaded[kind].encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def test_what_bytes_decode_can_be_made_text():
    text = vocabularies.Bytes().decode([3 + b for b in b"a\xff\xe2\x82b\xc3\xa9"])
    assert vocabularies.well_formed(text) == "a\ufffd\ufffd\ufffdbé"
    assert vocabularies.well_formed("é🙂") == "é🙂"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_ids_without_one_give_no_text(loaded, kind):
    vocabulary = pickle.loads(pickle.dumps(loaded[kind]))
    vocabulary.size += 2
    unwritten = [i for i in vocabulary.never if "unk" not in vocabulary.piece(i)]
    assert {vocabulary.size - 1, vocabulary.size - 2} <= set(unwritten)
    assert vocabulary.eos not in vocabulary.never
    around = [vocabulary.bos, *unwritten, *vocabulary.encode("ab c"), vocabulary.eos]
    assert vocabulary.decode(around) == "ab c"
    assert vocabulary.decode(np.asarray(around, np.int32)) == "ab c"


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_sent_to_another_process(loaded, kind):
    copy = pickle.loads(pickle.dumps(loaded[kind]))
    assert [copy.encode(text) for text in TEXTS] == [loaded[kind].encode(text) for text in TEXTS]
    for field in ("size", "eos", "bos", "never"):
        assert getattr(copy, field) == getattr(loaded[kind], field)


def test_pieces_are_as_a_person_reads_them(loaded):
    def pieces(kind, text):
        return [loaded[kind].piece(i) for i in loaded[kind].encode(text)]

    for kind in KINDS:
        assert "".join(pieces(kind, "The mean of x")) == "The mean of x"
        assert loaded[kind].piece(loaded[kind].eos) == "</s>"
        assert loaded[kind].piece(10**6) == "<1000000>"
    assert " values" in pieces("sentencepiece", "the values")
    assert " values" in pieces("hugging_face", "the values")
    assert pieces("sentencepiece", "▁") == ["▁"]
    assert pieces("bytes", "a é") == ["a", " ", "<0xC3>", "<0xA9>"]
    assert pieces("sentencepiece", "\U0001f680")[-1] == "<0x80>"
    assert "\ufffd" not in "".join(pieces("hugging_face", "\U0001f680"))
    names = {kind: [one.piece(i) for i in one.never] for kind, one in loaded.items()}
    assert names["sentencepiece"] == ["<pad>", "<unk>", "<s>"]
    assert names["bytes"] == ["<pad>", "<unk>"]
    assert names["hugging_face"] == ["<pad>", "<|im_end|>", "<|endoftext|>", "<s>"]


def test_pieces_of_a_tokenizer_that_writes_spaces_as_bars(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<｜end▁of▁sentence｜>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the values of the values"] * 9, trainer)
    vocabulary = from_json(tmp_path, tokenizer.to_str())
    assert [vocabulary.piece(i) for i in vocabulary.encode("the values")] == [" the", " values"]
    assert vocabulary.decode(vocabulary.encode("the values")) == "the values"
    assert vocabulary.piece(vocabulary.eos) == "<｜end▁of▁sentence｜>"
    assert vocabulary.never == (vocabulary.unk,) == (0,)


@pytest.mark.parametrize(
    ("config", "eos", "bos"),
    [
        (None, "<|endoftext|>", "<s>"),
        ({"model_max_length": 1024}, "<|endoftext|>", "<s>"),
        ({"eos_token": "<|im_end|>", "bos_token": None}, "<|im_end|>", "<|im_end|>"),
        ({"eos_token": {"content": "</s>", "special": True}}, "</s>", "<s>"),
        ({"bos_token": {"content": "<|endoftext|>"}}, "<|endoftext|>", "<|endoftext|>"),
        ({"pad_token": "[none such]", "unk_token": None}, "<|endoftext|>", "<s>"),
    ],
)
def test_special_tokens_are_found_by_name(tmp_path, config, eos, bos):
    vocabulary = from_json(tmp_path, byte_level(), config)
    assert vocabulary.piece(vocabulary.eos) == eos
    assert vocabulary.piece(vocabulary.bos) == bos


def test_without_a_bos_documents_start_from_eos_or_padding(tmp_path):
    vocabulary = from_json(tmp_path, byte_level(("<|endoftext|>",)))
    assert vocabulary.bos == vocabulary.eos == 0
    assert vocabulary.never == ()
    import sentencepiece

    for flags, bos in (({"pad_id": 7}, 7), ({"pad_id": -1}, 0)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 5),
            model_prefix=str(tmp_path / "m"),
            vocab_size=200,
            hard_vocab_limit=False,
            bos_id=-1,
            minloglevel=2,
            **flags,
        )
        assert vocabularies.load(tmp_path / "m.model").bos == bos


@pytest.mark.parametrize("listed", ["as a token like others", "not at all"])
def test_an_end_of_document_is_special_whatever_the_file_says(tmp_path, listed):
    content = json.loads(byte_level())
    for token in content["added_tokens"]:
        token["special"] = False
    if listed == "not at all":
        content["added_tokens"] = []
    vocabulary = from_json(tmp_path, content)
    eos = json.loads(byte_level())["model"]["vocab"]["<|endoftext|>"]
    assert vocabulary.eos == eos
    text = "a<|endoftext|>b <s>"
    for one in (vocabulary, pickle.loads(pickle.dumps(vocabulary))):
        ids = one.encode(text)
        assert not {one.eos, one.bos} & set(ids)
        assert one.decode([*ids, one.eos]) == text


def test_what_a_tokenizer_carries_for_other_uses_changes_nothing(tmp_path):
    plain = from_json(tmp_path, byte_level())
    tokenizer = tokenizers.Tokenizer.from_str(byte_level())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    content = json.loads(tokenizer.to_str())
    content["model"]["dropout"] = 0.9
    content["post_processor"] = {
        "type": "BertProcessing",
        "sep": ["</s>", 4],
        "cls": ["<s>", 3],
    }
    other = from_json(tmp_path, content)
    assert other.encode_batch(TEXTS) == plain.encode_batch(TEXTS)
    assert [other.encode(text) for text in TEXTS] == plain.encode_batch(TEXTS)


def test_size_is_above_every_id_though_some_have_no_token(tmp_path):
    content = json.loads(byte_level())
    content["model"]["vocab"]["zzz"] = 500
    vocabulary = from_json(tmp_path, content)
    assert vocabulary.size == 501
    assert {400, 499} <= set(vocabulary.never)
    assert 500 not in vocabulary.never
    assert vocabulary.piece(400) == "<400>"
    assert vocabulary.decode([400, *vocabulary.encode("a"), 499]) == "a"


def test_what_is_no_vocabulary_is_refused_with_the_remedy(tmp_path):
    unigram = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -5.0) for c in "</s>ab▁")], unk_id=0)
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    cases = [
        (byte_level(("<x>",)), None, r"tokenizer\.json has no token .* end a document: name it as"),
        (byte_level(), {"eos_token": None}, r"has no token .* \"eos_token\" in .*config\.json"),
        (
            byte_level(),
            {"eos_token": "<gone>"},
            r"config\.json: eos_token is '<gone>', which is no",
        ),
        (byte_level(), {"bos_token": 3}, r"config\.json: bos_token is 3, which is no"),
        (byte_level(), "{", r"config\.json is not JSON .* mend it"),
        (byte_level(), "[]", r"config\.json holds no JSON object: mend it"),
        (unigram.to_str(), {}, r"special token </s> of a text .* name the SentencePiece \.model"),
        (byte_level()[:-200], {}, r"tokenizer\.json is not a Hugging Face tokenizer .* name a"),
        ('{"eos_token": "</s>"}', {}, r"tokenizer\.json is not a Hugging Face tokenizer"),
        ("", {}, r"tokenizer\.json is not a Hugging Face tokenizer"),
        ("\x00\x01", {}, r"tokenizer\.json is not a Hugging Face tokenizer"),
    ]
    for content, config, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            from_json(tmp_path, content, config)
        assert "\n" not in raised.value.message
        assert str(tmp_path) in raised.value.message


def dataset(texts):
    return tf.data.Dataset.from_generator(
        lambda: ({"targets": text} for text in texts),
        output_signature={"targets": tf.TensorSpec([], tf.string)},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_seqio_gives_the_same_ids_inside_tf_data(loaded, kind):
    vocabulary = seqio_vocabulary(loaded[kind])
    raw = [*(text.encode() for text in TEXTS), *BROKEN]
    feature = seqio.Feature(vocabulary, add_eos=True)
    found = seqio.preprocessors.tokenize(dataset(raw), {"targets": feature})
    found = seqio.preprocessors.append_eos(found, {"targets": feature})
    found = list(found.batch(1).unbatch().as_numpy_iterator())
    assert [one["targets_pretokenized"] for one in found] == raw
    for data, one in zip(raw, found, strict=True):
        ids = loaded[kind].encode(data.decode(errors="surrogateescape"))
        assert one["targets"].dtype == np.int32
        assert one["targets"].tolist() == [*ids, loaded[kind].eos]


@pytest.mark.parametrize("kind", KINDS)
def test_seqio_reads_ids_back(loaded, kind):
    vocabulary = seqio_vocabulary(loaded[kind])
    ids = loaded[kind].encode("a 漢 <s> b")
    assert vocabulary.encode("a 漢 <s> b") == ids
    assert (vocabulary.eos_id, vocabulary.vocab_size) == (loaded[kind].eos, loaded[kind].size)
    ended = [*ids, loaded[kind].eos, *loaded[kind].encode("behind")]
    assert vocabulary.decode(ended) == "a 漢 <s> b"
    decoded = vocabulary.decode_tf(tf.constant([ended, ended], tf.int32)).numpy()
    assert [one.decode() for one in decoded] == ["a 漢 <s> b"] * 2
    assert vocabulary.decode_tf(tf.constant(ended, tf.int32)).numpy().decode() == "a 漢 <s> b"


def test_what_seqio_reads_ends_at_the_end_though_id_0_is_text(tmp_path):
    tokenizer = tokenizers.Tokenizer.from_str(byte_level(()))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    ours = from_json(tmp_path, tokenizer.to_str())
    assert ours.encode("!") == [0]
    ended = tf.constant([*ours.encode("a b"), ours.eos, *ours.encode("behind")], tf.int32)
    assert seqio_vocabulary(ours).decode_tf(ended).numpy() == b"a b"


def test_seqio_tells_vocabularies_apart(files, loaded, tmp_path):
    made = {kind: seqio_vocabulary(one) for kind, one in loaded.items()}
    for kind, name in files.items():
        again = seqio_vocabulary(vocabularies.given(name)[0])
        assert [again == other for other in made.values()] == [kind == other for other in made]
    ours = made["hugging_face"]
    assert ours == pickle.loads(pickle.dumps(ours))
    config = {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    assert ours != seqio_vocabulary(from_json(tmp_path, byte_level(), config))


TASKS = f"""
    import seqio
    import tensorflow as tf

    RAW = {[*(text.encode() for text in TEXTS[:4]), *BROKEN]!r}

    def raw(vocabulary):
        def dataset(split, shuffle_files, seed=None):
            return tf.data.Dataset.from_generator(
                lambda: ({{"targets": text}} for text in RAW),
                output_signature={{"targets": tf.TensorSpec([], tf.string)}},
            )

        seqio.TaskRegistry.remove("raw")
        return seqio.TaskRegistry.add(
            "raw",
            source=seqio.FunctionDataSource(dataset, splits=["train"]),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={{"targets": seqio.Feature(vocabulary)}},
        )
    """


@pytest.fixture
def task(tmp_path, monkeypatch):
    (tmp_path / "vocabulary_tasks.py").write_text(textwrap.dedent(TASKS))
    monkeypatch.syspath_prepend(tmp_path)
    yield "vocabulary_tasks:raw"
    sys.modules.pop("vocabulary_tasks", None)


@pytest.fixture
def run(tmp_path) -> artifacts.Run:
    return artifacts.Run(epath.Path(tmp_path / "run"), "vocab")


@pytest.fixture
def own(files, tmp_path) -> dict[str, str]:
    """`files`, copied to where a test may change them."""
    found = {"bytes": "bytes"}
    for kind in ("sentencepiece", "hugging_face"):
        source = epath.Path(files[kind]).parent
        shutil.copytree(source, tmp_path / kind)
        found[kind] = str(tmp_path / kind / epath.Path(files[kind]).name)
    return found


COPIES = {
    "sentencepiece": ["vocab.model"],
    "bytes": [],
    "hugging_face": ["tokenizer.json", "tokenizer_config.json"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_takes_what_is_given_into_the_run(own, loaded, run, kind):
    vocab.vocab(run, given=own[kind])
    manifest = artifacts.read_manifest(run.out)
    assert manifest.counts == {"pieces": loaded[kind].size}
    assert sorted(manifest.inputs) == COPIES[kind]
    for name in COPIES[kind]:
        assert manifest.inputs[name]["hash"] == artifacts.input_hash(run.out / name)
    written = (run.out / "manifest.json").stat().mtime
    vocab.vocab(run, given=own[kind])
    assert (run.out / "manifest.json").stat().mtime == written
    if kind != "bytes":
        shutil.rmtree(epath.Path(own[kind]).parent)
    alone = vocabularies.load(run.out)
    assert type(alone) is type(loaded[kind])
    assert alone.encode_batch(TEXTS) == loaded[kind].encode_batch(TEXTS)
    for field in ("size", "eos", "bos", "never"):
        assert getattr(alone, field) == getattr(loaded[kind], field)


def test_another_vocabulary_than_before_is_refused(own, run):
    vocab.vocab(run, given=own["hugging_face"])
    with pytest.raises(UserError, match="given was 'HuggingFace', now 'Bytes'"):
        vocab.vocab(run, given="bytes")
    config = epath.Path(own["hugging_face"]).parent / "tokenizer_config.json"
    config.write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(UserError, match=r"input tokenizer_config\.json was"):
        vocab.vocab(run, given=own["hugging_face"])
    config.unlink()
    with pytest.raises(UserError, match=r"input tokenizer_config\.json was"):
        vocab.vocab(run, given=own["hugging_face"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_table_may_be_larger_than_what_is_given(files, loaded, run, kind):
    size = loaded[kind].size
    with pytest.raises(
        UserError, match=rf"size {size - 1} is too small .* set vocab.size to {size}"
    ):
        vocab.vocab(run, given=files[kind], size=size - 1)
    assert not run.out.exists()
    vocab.vocab(run, given=files[kind], size=size + 5)
    found = vocabularies.load(run.out)
    assert found.size == size + 5
    assert found.never == (*loaded[kind].never, *range(size, size + 5))
    # and a copy of the copy is the same
    again = artifacts.Run(run.directory, "again")
    vocab.vocab(again, given=str(run.out))
    assert vocabularies.load(again.out).size == size + 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_counted_and_cached_with_what_is_given(files, loaded, run, task, kind):
    vocab.vocab(run, given=files[kind], task=task)
    texts = [*TEXTS[:4], *(data.decode(errors="replace") for data in BROKEN)]
    counts = artifacts.read_manifest(run.out).counts
    assert counts["documents"] == len(texts)
    assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert counts["tokens"] == sum(map(len, loaded[kind].encode_batch(texts)))
    cache(artifacts.Run(run.directory, "rows"), task=task, length=64, documents=True)
    assert artifacts.read_manifest(run.directory / "rows").counts["vocab_size"] == loaded[kind].size
    assert [one.text for one in documents.Documents(run.directory / "rows")] == texts
    raw = [*(text.encode() for text in TEXTS[:4]), *BROKEN]
    wanted = [
        [*loaded[kind].encode(data.decode(errors="surrogateescape")), loaded[kind].eos]
        for data in raw
    ]
    (source,) = rows.open_rows(run.directory / "rows").sources.values()
    records, inputs, targets = source.open(), [], []
    for index in range(source.rows):
        row = source.read(records, index)
        targets += row.targets[row.segment_ids > 0].tolist()
        inputs += row.inputs[row.segment_ids > 0].tolist()
    assert sorted(targets) == sorted(token for one in wanted for token in one)
    assert sorted(inputs) == sorted(
        token for one in wanted for token in (loaded[kind].bos, *one[:-1])
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.model", "nowhere.model does not exist"),
        ("byte", "byte does not exist"),
        (".", r"holds no vocabulary \(vocab.model, tokenizer.json, vocab.bytes\)"),
        ("noise.json", "noise.json is not a Hugging Face tokenizer"),
        ("noise.model", "noise.model is not a SentencePiece model"),
    ],
)
def test_what_cannot_be_given_is_named(run, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for file in ("noise.json", "noise.model"):
        (tmp_path / file).write_bytes(b"noise")
    with pytest.raises(UserError, match=message):
        vocab.vocab(run, given=name)
    assert not run.out.exists()


def test_loading_needs_neither_tensorflow_nor_seqio_nor_the_network(files):
    program = """
        import sys
        from sbp_jax.data import vocab, vocabularies
        for name in sys.argv[1:]:
            assert vocabularies.given(name)[0].encode_batch(["a b"])[0]
        print({"tensorflow", "seqio", "transformers", "huggingface_hub"} & set(sys.modules))
        """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *files.values()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.strip() == "set()"
