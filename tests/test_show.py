"""`sbp show`: what is printed is what is in the rows, and a page escapes it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from made_rows import BOS, EOS, TEXTS, VOCAB_SIZE, write_text_run

from sbp_jax import artifacts
from sbp_jax.data import documents, rows, vocabularies
from sbp_jax.errors import UserError
from sbp_jax.show import terminal
from sbp_jax.show.examples import Example, Part, Token
from sbp_jax.show.stage import show

LONG = f"{TEXTS[0]} {TEXTS[1]}"
ANSI = re.compile(r"\033\[[0-9;]*m")


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = write_text_run(tmp_path_factory.mktemp("show"))
    vocabulary = vocabularies.load(directory / "vocab")
    pieces = [
        rows.pair_piece(
            vocabulary.encode("<b>seed</b>"), vocabulary.encode("it & more"), BOS, EOS, 11, 40
        ),
        *rows.split(rows.document_piece(vocabulary.encode(LONG), BOS, EOS), 64),
    ]
    stage = artifacts.begin(
        artifacts.Run(directory, "rows/made"),
        "cache",
        config={"length": 64},
        inputs={"vocab": directory / "vocab"},
        code=(),
    )
    folder = stage.work / "made"
    folder.mkdir()
    packed = list(rows.pack(pieces, 64))
    count = rows.write_rows(folder / "rows-00000.array_record", packed, VOCAB_SIZE)
    documents.write(folder / documents.FILE, [documents.Document("the <id>", "text")])
    fields = ("rows", "tokens", "loss_tokens", "documents", "bytes", "padding")
    counts = {**dict.fromkeys(fields, 1), "rows": count, "rate": 1.0}
    counts |= {"synthetic": False, "repeat": True}
    stage.commit({"vocab_size": VOCAB_SIZE, "sources": {"made": counts}})
    return directory


def test_rows_are_shown_with_segments_documents_and_loss(run_directory, capsys):
    show("rows/made", run_dir=str(run_directory))
    said = capsys.readouterr().out
    assert "made · row 0 of" in said
    assert "the <id>" in said
    assert "⟦<b>seed</b></s>⟧it & more</s>" in said
    assert re.search(r"segment \d · the <id> · \d+ tokens · loss on \d+", said)
    for part in (1, 2):
        assert f"part {part} of" in said
    # The text of a long document stands in its parts, one after the other.
    lines = [line for line in said.splitlines() if not line.startswith(("━", "─", "   ", "⟦"))]
    whole = "".join(lines)
    assert LONG in whole


def test_a_part_of_the_examples(run_directory, capsys):
    show("rows/made", run_dir=str(run_directory), count=1, start=1)
    said = capsys.readouterr().out
    assert said.count("━━") == 1
    assert "row 1 of" in said
    with pytest.raises(UserError, match="no example from number 99 on"):
        show("rows/made", run_dir=str(run_directory), start=99)


def test_a_page_escapes_what_it_shows(run_directory, tmp_path, capsys):
    page = tmp_path / "page.html"
    show("rows/made", str(page), run_dir=str(run_directory))
    content = page.read_text()
    text = re.sub(r"<[^>]*>", "", content.split("<body>")[1])
    assert "&lt;b&gt;seed&lt;/b&gt;&lt;/s&gt;" in text
    assert "it &amp; more" in text
    assert "<b>" not in content
    assert "the &lt;id&gt;" in content
    assert re.search(r'class="quiet"', content)
    assert re.search(r'class="loss special">&lt;/s&gt;<', content)


def test_colours_change_from_token_to_token_and_keep_the_text():
    tokens = (Token("a", False), Token("b\n"), Token("c"), Token("</s>", True, True))
    said = terminal.render([Example("title", {"n": "3"}, (Part("part", tokens),))], coloured=True)
    assert ANSI.sub("", said).endswith("ab⏎\nc</s>")
    styles = re.findall(r"((?:\033\[[0-9;]*m)+)[abc<]", said.replace(terminal.RESET, ""))
    assert len(set(styles)) == 4
    assert terminal.render([Example("t", {}, (Part("p", tokens),))], False).endswith("⟦a⟧b\nc</s>")


@pytest.mark.parametrize(
    ("what", "changes", "message"),
    [
        ("rows/none", {}, "holds no finished artefact"),
        ("vocab", {}, "was made by `sbp vocab`: expected rows, pairs"),
        ("no.such:task", {}, "unknown task 'no.such:task'"),
        ("rows/made", {"count": 0}, "count = 0 must be at least 1"),
    ],
)
def test_a_users_mistake_is_one_line(run_directory, what, changes, message):
    with pytest.raises(UserError, match=message):
        show(what, run_dir=str(run_directory), **changes)


def test_the_command_shows_a_task(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/lines.jsonl").write_text(
        '{"text": "one small step", "id": "moon"}\nnot json\n'
    )
    for index in range(60):
        (tmp_path / f"words/{index}.txt").write_text(f"file {index} of many words")
    command = [sys.executable, "-m", "sbp_jax.cli", "show", "tasks.folder:train"]
    bindings = ["--gin.folder.directory='words'", "--gin.show.count=100"]
    done = subprocess.run(
        [*command, *bindings], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "folder_train · train · " in done.stdout
    assert "of many words" in done.stdout
    assert "rejected not JSON" in done.stdout
    again = subprocess.run(
        [*command, "--scope=x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "takes no --scope" in again.stderr
