"""The harness' requests: answered as a decoder alone would, cut and stopped as the harness does."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import tempfile

# Before the harness' libraries read them: nothing is looked for on the network.
_home = tempfile.TemporaryDirectory(prefix="sbp-jax-datasets-")
os.environ.update(HF_HOME=_home.name, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import gin
import jax
import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

import lm_eval.tasks
import made_tasks
import tokenizers
from etils import epath
from lm_eval.api.instance import Instance
from made_rows import Reference, write_bytes_vocabulary, write_model, write_rows_artefact
from tokenizers import models, processors

from sbp_jax import artifacts
from sbp_jax.data import vocabularies
from sbp_jax.errors import UserError
from sbp_jax.evaluate import completions, harness, piece_losses
from sbp_jax.evaluate.harness_model import HarnessModel, row_length
from sbp_jax.evaluate.stage import evaluate
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.train.step import parameter_shardings

VOCABULARY = vocabularies.Bytes()
BOS, EOS = VOCABULARY.bos, VOCABULARY.eos
MODEL = DecoderConfig(
    vocab_size=VOCABULARY.size + 1,  # which a mesh can divide
    width=16,
    layers=1,
    heads=2,
    kv_heads=2,
    head_size=8,
    hidden=16,
    tied=False,
    dtype="float32",
)
LENGTH = 40
TEXT = made_tasks.TEXTS[0]


@pytest.fixture(scope="module", autouse=True)
def _often_looked_at():
    """Answers of a few tokens are made in several rounds too."""
    patch = pytest.MonkeyPatch()
    patch.setattr(completions, "TOGETHER", 8)
    patch.setattr(piece_losses, "_POSITIONS", 16)  # and short rows have logits in several parts
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    write_bytes_vocabulary(directory)
    write_rows_artefact(
        directory,
        "rows/heldout",
        {"heldout": [[5, 6, 7]]},
        length=LENGTH,
        vocab_size=MODEL.vocab_size,
        vocab=directory / "vocab",
    )
    made_tasks.write(pathlib.Path(directory) / "tasks")
    return directory


@pytest.fixture(scope="module")
def parameters(run_directory):
    return write_model(run_directory, MODEL)


@pytest.fixture(scope="module")
def reference(parameters):
    return Reference(MODEL, parameters, LENGTH)


def make(parameters, mesh=None, batch_size=8, bos_first=True, vocabulary=VOCABULARY):
    layout = make_layout(mesh or MeshConfig())
    return HarnessModel(
        MODEL,
        jax.device_put(parameters, parameter_shardings(MODEL, layout)),
        vocabulary,
        layout,
        length=LENGTH,
        batch_size=batch_size,
        bos_first=bos_first,
        replica=lambda: jax.device_put(parameters, jax.devices()[0]),
    )


@pytest.fixture(scope="module")
def model(parameters):
    return make(parameters)


@pytest.fixture
def remembered(model, monkeypatch):
    """What the harness' cache is told."""
    found = {}

    class Hook:
        def add_partial(self, kind, request, answer):
            found[kind, request[0], json.dumps(request[1:])] = answer

    monkeypatch.setattr(model, "cache_hook", Hook())
    return found


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_log_likelihoods_are_those_of_the_decoder_alone(model, reference, remembered):
    asked = [
        ("The lighthouse", " keeper climbed"),
        ("", "A text without a context."),
        ("Its spaces are the answer's:  ", "so"),
        ("a" * 50, "b" * 30),  # cut on the left
        ("c" * 39, "d" * 39),  # of the context a token is left
        *((TEXT[:n], TEXT[n : n + 3]) for n in range(1, 20)),
    ]
    encode = VOCABULARY.encode
    expected = []
    for context, continuation in asked:
        kept = context.rstrip()
        targets = encode(context[len(kept) :] + continuation)
        before = [BOS, *encode(kept)]
        expected.append(reference.score(before[-(LENGTH + 1 - len(targets)) :], targets))
    answers = model.loglikelihood(requests("loglikelihood", *asked))
    assert [value for value, _ in answers] == pytest.approx([v for v, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    assert remembered == {
        ("loglikelihood", context, json.dumps([continuation])): answer
        for (context, continuation), answer in zip(asked, answers, strict=True)
    }


def greedily(reference, context: list[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        tokens.append(int(reference.log_probabilities(tokens)[-1].argmax()))
    return tokens[len(context) :]


def test_what_the_model_would_write_is_greedy_and_nothing_else(model, reference):
    contexts = [[BOS, *VOCABULARY.encode(TEXT[:n])] for n in (1, 9, 33)]
    wanted = [greedily(reference, context, 4) for context in contexts]
    pairs = list(zip(contexts, wanted, strict=True))
    others = [(context, [*tokens[:3], (tokens[3] + 1) % 259]) for context, tokens in pairs]
    others += [(context, [(tokens[0] + 1) % 259, *tokens[1:]]) for context, tokens in pairs]
    found = model._loglikelihood_tokens([(None, *pair) for pair in [*pairs, *others]])
    assert [greedy for _, greedy in found] == [True] * 3 + [False] * 6


def windows(reference, tokens: list[int], prefix: int) -> float:
    """The log-likelihood of a text, each token once, with as much before it as fits."""
    total = reference.score([prefix], tokens[:LENGTH])[0]
    for start in range(LENGTH, len(tokens), LENGTH):
        targets = tokens[start : start + LENGTH]
        end = start + len(targets)
        total += reference.score(tokens[end - LENGTH - 1 : start], targets)[0]
    return total


def test_a_long_text_is_scored_once_in_windows(model, reference, remembered):
    text = " ".join(made_tasks.TEXTS)
    tokens = VOCABULARY.encode(text)
    assert 7 * LENGTH < len(tokens) < 8 * LENGTH
    asked = requests("loglikelihood_rolling", (text,), ("",), (TEXT[:30],))
    whole, nothing, part = model.loglikelihood_rolling(asked)
    assert whole == pytest.approx(windows(reference, tokens, BOS), rel=1e-6)
    assert nothing == 0
    assert part == pytest.approx(windows(reference, VOCABULARY.encode(TEXT[:30]), BOS), rel=1e-6)
    assert remembered["loglikelihood_rolling", text, "[]"] == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 24},
        {"mesh": MeshConfig(data=2, fsdp=2, tensor=2), "batch_size": 4},
    ],
)
def test_scores_depend_neither_on_the_batch_nor_on_the_mesh(model, parameters, changes):
    asked = requests("loglikelihood", *((TEXT[:n], TEXT[n:50]) for n in range(10, 50, 3)))
    one, other = model.loglikelihood(asked), make(parameters, **changes).loglikelihood(asked)
    assert [value for value, _ in one] == pytest.approx([v for v, _ in other], rel=1e-5)
    assert [greedy for _, greedy in one] == [greedy for _, greedy in other]


def test_few_programs_are_compiled(model):
    lengths = [row_length(size, 4096) for size in range(1, 4097)]
    assert all(length >= size for size, length in enumerate(lengths, start=1))
    assert all(length <= max(32, 1.5 * size) for size, length in enumerate(lengths, start=1))
    assert len(set(lengths)) == 15
    assert row_length(39, LENGTH) == row_length(LENGTH, LENGTH) == LENGTH


@pytest.fixture(scope="module")
def counted(model):
    """Requests that reached the sampler, round by round: their numbers and keys."""
    sampled = []
    before = completions.Sampler.sample

    def sample(self, asked):
        asked = list(asked)
        sampled.append({request.index: request.key.tobytes() for request in asked})
        return before(self, asked)

    patch = pytest.MonkeyPatch()
    patch.setattr(completions.Sampler, "sample", sample)
    yield sampled
    patch.undo()


def test_answers_are_what_is_most_probable_up_to_a_stop(model, reference, remembered, counted):
    contexts = [TEXT[:7], "", "x" * 50]
    tokens = [[BOS, *VOCABULARY.encode(context)][-(LENGTH - 20) :] for context in contexts]
    written = []
    for context in tokens:
        whole = greedily(reference, context, 20)
        whole = whole[: whole.index(EOS)] if EOS in whole else whole
        written.append(VOCABULARY.decode(whole))
    stop = written[0][3:5]  # within the first round
    settings = {"until": [stop], "max_gen_toks": 20, "do_sample": False}
    counted.clear()
    answers = model.generate_until(
        requests("generate_until", *((context, settings) for context in contexts))
    )
    assert answers == [text.split(stop)[0] for text in written]
    assert answers[0] != written[0]
    assert list(counted[0]) == [0, 1, 2]
    assert all(0 not in round_ for round_ in counted[1:])  # its end has been found
    assert len(counted) == 3
    assert remembered["generate_until", contexts[0], json.dumps([settings])] == answers[0]


def test_answers_are_drawn_where_a_task_says_so(model, reference, counted):
    drawn = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", *[(TEXT[:9], drawn)] * 4)
    counted.clear()
    answers = model.generate_until(asked)
    assert len(set(answers)) == 4
    keys = [key for round_ in counted for key in round_.values()]
    assert len(set(keys)) == len(keys) >= 4 + 1  # no tokens are drawn by the same chance
    assert model.generate_until(asked) == answers
    few = {**drawn, "temperature": completions.COLD, "top_k": 1, "num_beams": 1}
    tokens = greedily(reference, [BOS, *VOCABULARY.encode(TEXT[:9])], 20)
    asked = requests("generate_until", (TEXT[:9], few))
    assert model.generate_until(asked) == [VOCABULARY.decode(tokens)]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("generate_until", ("a", {"num_beams": 4}), "ask for num_beams = 4, which the sampler"),
        ("generate_until", ("a", {"max_gen_toks": LENGTH}), "answers of 40 tokens, and the model"),
        ("generate_until", ("a", {"max_gen_toks": 0}), "answers of 0 tokens"),
        (
            "loglikelihood",
            ("a", "b" * 41),
            "continuation 'b{40}' has 41 tokens",
        ),
        ("loglikelihood", ("a", ""), "continuation '' has no token of its own"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(model, kind, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        getattr(model, kind)(requests(kind, arguments))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("bos", [None, "known", "added"])
@pytest.mark.parametrize("bos_first", [False, True])
def test_texts_start_where_their_tokenizer_or_their_training_says(
    parameters, tmp_path, bos, bos_first
):
    """As `HFLM` encodes, of a tokenizer without BOS, with one, and with one that it adds."""
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.add_special_tokens(["<|endoftext|>", *(["<|begin_of_text|>"] if bos else [])])
    if bos == "added":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 3)]
        )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = make(parameters, bos_first=bos_first, vocabulary=vocabularies.load(tmp_path))
    prefix = 2 if bos is None else 3
    assert (model.eot_token_id, model.prefix_token_id) == (2, prefix)
    starts = bos_first or bos == "added"
    assert model.tok_encode("ab") == ([prefix, 0, 1] if starts else [0, 1])
    assert model.tok_encode("ab", add_special_tokens=False) == [0, 1]
    asked = []
    model._loglikelihood_tokens = lambda windows, **_: asked.extend(windows) or [(0.0, True)]
    model.loglikelihood_rolling(requests("loglikelihood_rolling", ("ab",)))
    counted = [prefix, 0, 1] if bos == "added" and not bos_first else [0, 1]
    assert asked == [(None, [prefix], counted)]


@pytest.fixture
def local_only(monkeypatch):
    """The harness without its own thousands of tasks, which take it seconds to find."""
    manager = lm_eval.tasks.TaskManager

    def local(include_path=None, include_defaults=True):
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", local)


def scored(directory, scope, **options):
    given = {"rows": "rows/heldout", "tasks": "local_*", "batch_size": 8}
    given["include_path"] = str(directory / "tasks")
    evaluate(artifacts.Run(directory, scope), checkpoint="pretrain", **{**given, **options})
    return json.loads((directory / scope / "scores.json").read_text())


@pytest.fixture(scope="module")
def scores(run_directory, parameters):
    return scored(run_directory, "scores")


def test_scores_of_tasks_stand_beside_the_loss(scores, run_directory):
    assert scores["tokens"] == 4
    assert list(scores["tasks"]) == ["local_answer", "local_choice", "local_text", "local_word"]
    versions = [found["version"] for found in scores["tasks"].values()]
    assert versions == [4.5, 1.5, 2.5, 3.5]
    for found in scores["tasks"].values():
        assert (found["samples"], found["num_fewshot"]) == (4, 0)
    choice = scores["tasks"]["local_choice"]["metrics"]
    assert choice.keys() == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    config = artifacts.read_manifest(run_directory / "scores").config
    assert config["tasks"] == ["local_*"]
    assert config["harness"] == harness.version()
    assert config["task_length"] == LENGTH


def test_metrics_are_those_of_the_decoder_alone(scores, reference):
    encode = VOCABULARY.encode
    right = right_norm = 0
    for index in range(4):
        record = made_tasks.record(index)
        context = encode(f"Question: {record['question']}\nAnswer:")
        found = []
        for choice in record["choices"]:
            targets = encode(f" {choice}")
            before = [BOS, *context][-(LENGTH + 1 - len(targets)) :]
            found.append(reference.score(before, targets)[0])
        normed = [v / len(c) for v, c in zip(found, record["choices"], strict=True)]
        right += found.index(max(found)) == record["answer"]
        right_norm += normed.index(max(normed)) == record["answer"]
    metrics = scores["tasks"]["local_choice"]["metrics"]
    assert (metrics["acc"], metrics["acc_norm"]) == (right / 4, right_norm / 4)
    nats = [-windows(reference, encode(text), BOS) for text in made_tasks.TEXTS]
    bits = sum(nats) / math.log(2) / sum(len(text.encode()) for text in made_tasks.TEXTS)
    assert scores["tasks"]["local_text"]["metrics"]["bits_per_byte"] == pytest.approx(bits, 1e-6)
    words = [text.rpartition(" ") for text in made_tasks.TEXTS]
    nats = [
        -reference.score([BOS, *encode(a)][-(LENGTH - len(b)) :], encode(f" {b}"))[0]
        for a, _, b in words
    ]
    perplexity = math.exp(sum(nats) / 4)
    assert scores["tasks"]["local_word"]["metrics"]["perplexity"] == pytest.approx(perplexity, 1e-4)


def test_what_is_asked_decides_the_identity(scores, run_directory, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(harness, "scores", lambda *_, **__: pytest.fail("asked again"))
        scored(run_directory, "scores", batch_size=16)
    part = scored(run_directory, "part", limit=3, tasks=["local_choice"], num_fewshot=1)
    assert part["tasks"]["local_choice"]["samples"] == 3
    assert part["tasks"]["local_choice"]["num_fewshot"] == 1
    for changes in (
        {"limit": 2},
        {"num_fewshot": 1},
        {"tasks": "local_text"},
        {"task_length": 39},
        {"tasks": ()},
    ):
        with pytest.raises(UserError, match="another configuration"):
            scored(run_directory, "scores", **changes)
    other = run_directory / "other_tasks"
    shutil.copytree(run_directory / "tasks", other)
    (other / "questions.jsonl").write_text((other / "questions.jsonl").read_text() + "\n")
    with pytest.raises(UserError, match="another configuration"):
        scored(run_directory, "scores", include_path=str(other))


def test_more_examples_than_there_are_and_names_that_are_none(scores, run_directory):
    with pytest.raises(UserError, match="num_fewshot = 50: a task has fewer examples"):
        scored(run_directory, "few", tasks="local_choice", num_fewshot=50)
    for tasks in ("", "local_choice,", " , "):
        with pytest.raises(UserError, match="expected names"):
            scored(run_directory, "wrong", tasks=tasks)


def test_an_unknown_task_is_named_with_those_near(scores, run_directory, local_only):
    with pytest.raises(UserError) as caught:
        scored(run_directory, "wrong", tasks="local_text,local_chioce")
    assert caught.value.message.startswith(
        "evaluate.tasks: the harness knows no task 'local_chioce': did you mean local_choice"
    )
    assert "\n" not in caught.value.message
    assert not (run_directory / "wrong.partial").exists()


def test_a_task_without_its_data_is_named(run_directory, parameters, tmp_path, local_only):
    made_tasks.write(tmp_path / "tasks")
    (tmp_path / "tasks/questions.jsonl").unlink()
    options = {"include_path": str(tmp_path / "tasks"), "tasks": "local_word"}
    with pytest.raises(UserError, match="task local_word cannot be loaded") as caught:
        scored(run_directory, "wrong", **options)
    assert "questions.jsonl" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_group_has_its_mean_and_its_tasks_are_asked_once(scores, run_directory, monkeypatch):
    asked = []
    before = HarnessModel.loglikelihood

    def counting(self, requests, **options):
        asked.extend(requests)
        return before(self, requests, **options)

    monkeypatch.setattr(HarnessModel, "loglikelihood", counting)
    found = scored(run_directory, "group", tasks="two_tasks,local_choice")["tasks"]
    assert found.keys() == {"two_tasks", "local_choice", "local_word"}
    assert len(asked) == 4 * 4 + 4
    parts = [scores["tasks"][name]["metrics"]["acc"] for name in ("local_choice", "local_word")]
    assert found["two_tasks"]["metrics"]["acc"] == pytest.approx(sum(parts) / 2)


def test_what_a_model_writes_is_not_run(run_directory, parameters):
    with pytest.raises(UserError, match="task program runs the programs that a model writes"):
        scored(run_directory, "wrong", tasks="program")


def test_tasks_alone(run_directory, parameters, monkeypatch):
    gin.clear_config()
    found = scored(run_directory, "alone", rows=None, tasks="local_text", task_length=LENGTH)
    assert found.keys() == {"checkpoint", "checkpoint_step", "tasks"}
