"""The vocabulary: lossless, the same every time, and clear about what it cannot do."""

from __future__ import annotations

import functools
import sys
import tempfile
import textwrap

import pytest
import sentencepiece
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st

from sbp_jax import artifacts
from sbp_jax.data import vocab, vocabularies
from sbp_jax.errors import UserError

TEXTS = [
    "def f(x):\n    return  x + 1\n\n\tTabs\tand  runs   of    spaces.",
    "Markup </s> <s> <pad> <unk> <0x41> in </s> a </s> document, and <s>s</s> again.",
    "Bars ▁▂▃ and naïve café, 漢字 🙂, a NUL \x00 and ▁ alone ▁.",
    "The mean of the values along an axis; the sum of the values along an axis.",
] * 5
SIZE = 400


@functools.cache
def trained() -> bytes:
    return vocab.train(lambda: TEXTS, SIZE, 1.0, "test")


@functools.cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=trained())


@pytest.fixture
def run(tmp_path) -> artifacts.Run:
    return artifacts.Run(epath.Path(tmp_path / "run"), "vocab")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Writes a module with a task over given documents; gives the task's name."""

    def make(documents: list[str]) -> str:
        source = f"""
            import seqio
            import tensorflow as tf

            DOCUMENTS = {documents!r}

            def documents(vocabulary):
                def dataset(split, shuffle_files, seed=None):
                    return tf.data.Dataset.from_generator(
                        lambda: ({{"targets": text}} for text in DOCUMENTS),
                        output_signature={{"targets": tf.TensorSpec([], tf.string)}},
                    )

                seqio.TaskRegistry.remove("vocab_test")
                return seqio.TaskRegistry.add(
                    "vocab_test",
                    source=seqio.FunctionDataSource(dataset, splits=["train"]),
                    preprocessors=[seqio.preprocessors.tokenize],
                    output_features={{"targets": seqio.Feature(vocabulary)}},
                )
            """
        (tmp_path / "vocab_documents.py").write_text(textwrap.dedent(source))
        return "vocab_documents:documents"

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    sys.modules.pop("vocab_documents", None)


# U+10FFFF is no character, and stands for ▁ inside pieces; surrogates are no text.
@given(
    st.text(
        st.one_of(
            st.characters(exclude_categories=["Cs"], exclude_characters="\U0010ffff"),
            st.sampled_from("\n\t \r\x00▁▅⁇</s>\u00a0\u2028\ufeff🙂漢ae"),
        )
    )
)
@example(" ")
@example("\n")
@example("  \n\n \t\t  ")
@example("▁ ▁▁a▁")
@example("</s><s><pad><unk><0x41>")
@example("\x00\x00")
@example("⁇ ▅")
@example("e\u0301é\ufb01")
def test_what_is_encoded_decodes_to_itself_without_control_ids(text):
    ids = processor().encode(text)
    assert processor().decode(ids) == text
    assert not {vocab.PAD, vocab.EOS, vocab.UNK, vocab.BOS} & set(ids)


def test_ids_are_where_the_project_expects_them():
    assert processor().get_piece_size() == SIZE
    assert (processor().pad_id(), processor().eos_id()) == (0, 1)
    assert (processor().unk_id(), processor().bos_id()) == (2, 3)
    assert processor().encode("\n") == [4]
    assert len(processor().encode(" of the values")) == 3


def test_seqio_reads_the_same_ids_and_text(tmp_path):
    import seqio
    import tensorflow as tf

    path = tmp_path / "vocab.model"
    path.write_bytes(trained())
    loaded = vocabularies.load(path)
    vocabulary = seqio.SentencePieceVocabulary(str(path))
    for text in TEXTS:
        ids = loaded.encode(text)
        assert vocabulary.encode(text) == ids
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
        assert vocabulary.decode(ids) == text
        assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == text
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


def test_the_same_text_gives_the_same_file_with_no_path_in_it():
    assert vocab.train(lambda: list(TEXTS), SIZE, 1.0, "test") == trained()
    assert b".tsv" not in trained()
    assert tempfile.gettempdir().encode() not in trained()


@pytest.mark.parametrize("word", ["understanding", "понимание"])
def test_very_long_lines_are_learned_from_too(word):
    line = "to be " * 500 + f"{word} " * 3000
    model = vocab.train(lambda: [line], 290, 1.0, "test")
    learned = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert len(learned.encode(line)) < 4010  # one a word, but for the first and the last


def test_lines_with_tabs_are_learned_from_and_runs_of_spaces_are_pieces():
    texts = ["name\tvalue of it\n        name\tvalue of it"] * 10
    model = vocab.train(lambda: texts, 298, 1.0, "test")
    learned = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert len(learned.encode("name")) == 1
    assert len(learned.encode(" " * 8)) == 1


def test_an_error_while_reading_is_raised_as_it_is():
    def texts(count):
        yield from TEXTS[:count]
        raise UserError("the disk is gone")

    for count in (0, 1, len(TEXTS)):  # the last is enough to train from
        with pytest.raises(UserError, match="the disk is gone"):
            vocab.train(functools.partial(texts, count), SIZE, 1.0, "test")


def test_the_stage_leaves_a_vocabulary_and_counts(run, task):
    vocab.vocab(run, task=task(TEXTS), size=SIZE, character_coverage=1.0)
    loaded = vocabularies.load(run.out)
    size = sum(len(text.encode()) for text in TEXTS)
    tokens = sum(len(loaded.encode(text)) for text in TEXTS)
    assert artifacts.read_manifest(run.out).counts == {
        "documents": len(TEXTS),
        "bytes": size,
        "tokens": tokens,
        "pieces": SIZE,
        "bytes_per_token": round(size / tokens, 4),
    }
    assert (run.out / vocabularies.SENTENCEPIECE_FILE).read_bytes() == trained()
    written = (run.out / vocabularies.SENTENCEPIECE_FILE).stat().mtime
    vocab.vocab(run, task="vocab_documents:documents", size=SIZE, character_coverage=1.0)
    assert (run.out / vocabularies.SENTENCEPIECE_FILE).stat().mtime == written
    with pytest.raises(UserError, match="size was 400, now 420"):
        vocab.vocab(run, task="vocab_documents:documents", size=420, character_coverage=1.0)


def test_other_text_under_the_same_name_is_refused(run, task, monkeypatch):
    name = task(TEXTS)
    vocab.vocab(run, task=name, size=330, character_coverage=1.0)
    from sbp_jax.data import tasks

    real = tasks.fingerprint
    monkeypatch.setattr(tasks, "fingerprint", lambda one: {**real(one), "content": "changed"})
    with pytest.raises(UserError, match=r"corpora was .*, now .*changed"):
        vocab.vocab(run, task=name, size=330, character_coverage=1.0)


def test_the_stage_can_stop_after_so_many_documents(run, task):
    vocab.vocab(run, task=task(TEXTS), size=330, character_coverage=1.0, documents=4)
    assert artifacts.read_manifest(run.out).counts["documents"] == 4


@pytest.mark.parametrize(
    ("documents", "arguments", "message"),
    [
        (TEXTS, {"size": 50_000}, r"size 50000 is too large .* at most \d+ pieces"),
        (TEXTS, {"size": 262}, r"size 262 is too small .* need \d+ pieces"),
        (TEXTS, {}, "size is not set: set vocab.task and vocab.size"),
        (TEXTS, {"size": 100}, r"size 100 is too small: 261 pieces are"),
        (TEXTS, {"size": 400, "character_coverage": 2.0}, "character_coverage 2.0 must be"),
        (TEXTS, {"size": 400, "documents": 0}, "documents 0 must be"),
        ([], {"size": 400}, "holds no text"),
        (["", "\n\n"], {"size": 400}, "holds no text"),
    ],
)
def test_mistakes_are_named(run, task, documents, arguments, message):
    name = task(documents)
    with pytest.raises(UserError, match=message) as raised:
        vocab.vocab(run, **{"character_coverage": 1.0, **arguments}, task=name)
    assert "\n" not in raised.value.message
    assert not run.out.exists()


def test_the_largest_size_that_an_error_names_works(run, task):
    name = task(TEXTS)
    with pytest.raises(UserError) as raised:
        vocab.vocab(run, task=name, size=50_000, character_coverage=1.0)
    largest = int(raised.value.message.split("at most ")[1].split()[0])
    vocab.vocab(run, task=name, size=largest, character_coverage=1.0)
    assert vocabularies.load(run.out).size == largest


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no vocabulary \(vocab\.model"):
        vocabularies.load(tmp_path)
    with pytest.raises(UserError, match=r"none\.model does not exist"):
        vocabularies.load(tmp_path / "none.model")
    for content in (b"not a model", b""):
        (tmp_path / "other.model").write_bytes(content)
        with pytest.raises(UserError, match=r"other\.model is not a SentencePiece"):
            vocabularies.load(tmp_path / "other.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=80,
        eos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="no id for the end of a document"):
        vocabularies.load(tmp_path / "endless.model")
