"""The page of results: made of one JSON file alone, saying what the figures say and no more."""

from __future__ import annotations

import ast
import copy
import html.parser
import itertools
import json
import pathlib
import shutil
import xml.etree.ElementTree as ET

import made_results
import pytest
from absl import logging

from sbp_jax import cli
from sbp_jax.errors import UserError
from sbp_jax.experiment import page, provenance, results, stage, verdict

ROOT = pathlib.Path(__file__).parent.parent
ROOM = ROOT / "sbp_jax" / "experiment"
FEW = {name: made_results.LOSSES[name] for name in ("repetition", "sbp", "oracle")}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of results of two experiments, taken in through the command."""
    folder = tmp_path_factory.mktemp("made")
    full = made_results.artefact(folder / "full")
    few = made_results.artefact(
        folder / "few", made_results.result(FEW, (0,)), name="one_seed", seed=2
    )
    into = folder / "docs" / "results.json"
    assert cli.main(["results", str(full), f"--into={into}", str(few)]) == 0
    return into.parent


def entry(losses=made_results.LOSSES, seeds=(0, 1, 2, 3, 4)):
    return {
        **made_results.result(losses, seeds),
        "seconds": 62.0,
        "machine": "Made-up CPU",
        "command": "sbp experiment --gin_file=experiments/worlds.gin",
        "config": {"corpus": {"ConceptCorpus": {}}, "design": made_results.DESIGN},
    }


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """All that `sbp results` has written there, by place."""
    pages = [folder / "results.md", folder / "results.html"]
    drawn = [
        path
        for path in sorted((folder / "figures").glob("*.svg"))
        if page.MADE_BY in path.read_text()
    ]
    there = [path for path in pages + drawn if path.exists()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in there}


def test_an_entry_holds_what_an_artefact_says(made):
    content = json.loads((made / "results.json").read_text())["experiments"]
    assert sorted(content) == ["one_seed", "worlds"]
    own = content["worlds"]
    given = made_results.result()
    assert own["oracle_gain_recovered"] == given["oracle_gain_recovered"]
    assert own["oracle_gain_recovered"]["low"] < own["oracle_gain_recovered"]["mean"]
    assert sorted(own["controls"]) == sorted(made_results.CONTROLS)
    assert own["seeds"] == [0, 1, 2, 3, 4]
    assert own["machine"] == "Made-up CPU, 2 cores, 8 GiB of memory"
    assert own["command"] == "sbp experiment --gin_file=experiments/worlds.gin"
    assert own["config"]["design"]["share"] == 0.4
    assert len(own["config_hash"]) == 16
    assert own["config_hash"] != given["config_hash"]
    assert own["seconds"] >= 0


@pytest.mark.parametrize("folder", ["made up", "docs"])
def test_pages_are_what_their_json_gives(made, tmp_path, folder):
    """Those that are committed as well; without a JSON file there must be none."""
    kept = made if folder == "made up" else ROOT / "docs"
    if not (kept / "results.json").exists():
        assert folder == "docs"
        assert files(kept) == {}
        return
    shutil.copy(kept / "results.json", tmp_path)
    results.results((), str(tmp_path / "results.json"))
    assert files(tmp_path) == files(kept)
    assert len(files(tmp_path)) > 3


def test_every_figure_and_table_tells_its_config_and_machine(made):
    for name, one in results.read(made / "results.json").items():
        chapter = page.chapter(name, one)
        assert one["config_hash"] in chapter.source
        assert one["machine"] in chapter.source
        shown = sum(len(section.figures) + len(section.tables) for section in chapter.sections)
        for path in (made / "results.md", made / "results.html"):
            assert path.read_text().count(chapter.source) == shown + 1  # and at the bars


class Texts(html.parser.HTMLParser):
    """Tags and links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        self.ids += [value for key, value in attrs if key == "id"]


def test_the_page_asks_for_nothing_and_escapes_everything(tmp_path):
    hostile = "<script>alert(1)</script> | {{ 7 * 7 }} *a*\n# b"
    one = {**entry(FEW), "question": hostile, "machine": hostile}
    one["sweeps"] = {hostile: one["sweeps"]["synthetic share"]}
    pages = page.render({"a": one, "b": entry()}, stem="results")
    found = Texts(pages["results.html"])
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert all(source.startswith(("#", "data:")) for source in found.sources)
    assert len(found.ids) == len(set(found.ids))
    markdown = pages["results.md"]
    assert "<script>" not in markdown.replace("\\<script\\>", "")
    assert "\n# b" not in markdown
    assert "49" not in hostile
    for line in markdown.splitlines():  # a bar in a cell would be a cell more
        if line.startswith("| a share") or line.startswith("| SBP below"):
            assert line.replace("\\|", "").count("|") == 4
    references = [line.split("(")[-1][:-1] for line in markdown.splitlines() if line[:2] == "!["]
    assert sorted(references) == sorted(place for place in pages if place.endswith(".svg"))


def test_a_figure_stands_alone_on_white(made):
    close = {"repetition": 1.2, "sbp": 1.1999, "oracle": 1.1998}
    drawn = page.render({"close": entry(close)}, stem="results")
    assert len([place for place in drawn if place.endswith(".svg")]) == 4
    for place, content in {**files(made), **drawn}.items():
        if not place.endswith(".svg"):
            continue
        root = ET.fromstring(content)
        assert root.tag == f"{SVG}svg"
        assert float(root.get("width")) > 0
        assert root.find(f"{SVG}rect").get("class") == "paper"
        style = root.find(f"{SVG}style").text
        assert ".paper{fill:#fff}" in style
        assert "var(" not in style
        labels = [e for e in root.iter(f"{SVG}text") if "label" in e.get("class")]
        heights = sorted(float(e.get("y")) for e in labels if float(e.get("x")) > 300)
        assert all(b - a >= 15.9 for a, b in itertools.pairwise(heights))
        for label in labels:
            if label.get("text-anchor") is None:
                assert float(label.get("x")) + 7 * len(label.text) <= 480


def test_loss_curves_are_means_over_seeds_with_the_bayes_optimal_loss():
    one = entry(FEW, (0, 1))
    for arm in one["arms"].values():
        arm["curves"] = [[[0, 3.0], [100, 1.0]], [[0, 3.0], [100, 2.0]]]
    section = page.chapter("a", one).sections[0]
    assert section.figures[0].name == "a-loss"
    drawing = section.figures[0].drawing
    assert "sbp 1.5000" in drawing
    assert "oracle 1.5000" in drawing
    assert drawing.count('class="band') == 3
    assert drawing.count('class="level"') == 1
    one["bayes_loss"] = [None, None]
    drawing = page.chapter("a", one).sections[0].figures[0].drawing
    assert 'class="level"' not in drawing


@pytest.mark.parametrize(
    ("changes", "seeds", "title", "outcomes"),
    [
        ({}, 5, "SBP beats repetition and all 5 controls", ["met"] * 9),
        (
            {"random_pairs": 1.1402, "augmentation": 1.10},
            5,
            "SBP beats repetition, but not random_pairs and augmentation",
            ["met", "not met", "met", "met", "met", "not met", *["met"] * 3],
        ),
        ({"oracle": 0.98}, 5, "SBP beats repetition", [*["met"] * 8, "not met"]),  # 27% of its gain
        ({"sbp": 1.26}, 5, "SBP is worse than repetition", ["not met"] * 9),
        ({"sbp": 1.20}, 5, "SBP and repetition are not told apart", None),
        (
            {},
            1,
            "SBP lies below repetition, without a standard error",
            [*["cannot be told"] * 6, "met", *["cannot be told"] * 2],
        ),
    ],
)
def test_the_verdict_is_what_the_figures_say(changes, seeds, title, outcomes):
    found = verdict.verdict(entry({**made_results.LOSSES, **changes}, tuple(range(seeds))))
    assert found.title.startswith(title)
    assert len(found.bars) == 9  # what is ideal is no control
    if outcomes:
        assert [bar.outcome for bar in found.bars] == outcomes
    assert "ceiling" in found.ceiling


def test_seeds_in_which_sbp_is_ahead_are_counted():
    one = entry(FEW)
    one["arms"]["sbp"]["by_seed"][3] = one["arms"]["repetition"]["by_seed"][3] + 0.01
    assert verdict.verdict(one).bars[0].figures.endswith("; below it in 4 of 5 seeds")
    ahead = verdict.verdict(one).bars[1]
    assert (ahead.figures, ahead.outcome) == ("4 of 5", "met")
    one["least_seeds_ahead"] = 5
    assert verdict.verdict(one).bars[1].outcome == "not met"
    one["least_seeds_ahead"] = one["least_share"] = None
    assert len(verdict.verdict(one).bars) == 2
    assert "seeds" not in verdict.verdict(entry(FEW, (0,))).bars[0].figures


def test_what_is_missing_or_doubtful_is_said():
    one = entry(FEW)
    assert "no control was trained" in verdict.verdict(one).title
    doubtful = copy.deepcopy(one)
    doubtful["arms"]["sbp"]["step_by_seed"] = [1000] * 5
    doubtful["arms"]["sbp"]["settings"]["learning_rate"] = 0.01
    doubtful["leakage"][2]["difference"]["low"] = 0.001
    doubtful["leakage"][3]["seeds_in_train"] = 0.99
    doubtful["leakage"][4]["whole"]["difference"]["low"] = 0.001
    doubtful["synthesizer_tuning"]["related"][0]["learning_rate"] = 0.001
    doubtful["config"]["corpus"] = {"TextCorpus": {}}
    told = [
        text
        for text in verdict.verdict(doubtful).cautions
        if text not in verdict.verdict(one).cautions
    ]
    assert len(told) == 6
    assert any("synthesizer (related) learning rate 0.003" in text for text in told)
    assert any("In 1 of 5 seeds the synthetic text has most of" in text for text in told)
    assert any("All seeds have the same documents" in text for text in told)
    assert any("sbp learning rate 0.01" in text for text in told)
    assert any("least at the last step in sbp" in text for text in told)
    assert any("In 1 of 5 seeds some synthetic documents" in text for text in told)
    assert any("In 1 of 5 seeds the synthetic text has more" in text for text in told)
    one["arms"]["oracle"]["oracle_gain_recovered"] = dict.fromkeys(("mean", "low", "high"))
    one["arms"]["sbp"]["oracle_gain_recovered"] = dict.fromkeys(("mean", "low", "high"))
    assert [bar.figures[:9] for bar in verdict.verdict(one).bars[-2:]] == ["undefined"] * 2


def test_how_many_seeds_chose_the_settings_is_said():
    one = entry(FEW)
    assert "settings chosen on 2 others" in page.render({"a": one}, stem="results")["results.md"]
    one["tuning_seeds"] = [1000]
    told = page.render({"a": one}, stem="results")["results.md"]
    assert "settings chosen on another" in told
    assert "Settings tried on seed 1000 (" in told


def test_earlier_runs_and_what_a_text_is_made_from_are_told():
    one = entry(FEW)
    plain = page.render({"a": one}, stem="results")
    for told in plain.values():
        assert "First, with the same file" not in told
    one["before"] = "A run of seed 7 failed."
    roles = {role: f"rows/{role}" for role in ("train", "dev", "heldout", "oracle")}
    one["config"]["corpus"] = {"TextCorpus": {**roles, "vocab": "vocab"}}
    for arm in one["arms"]["oracle"]["passes"]:
        arm["oracle"] = 5.23
    for name, told in page.render({"a": one}, stem="results").items():
        if not name.endswith("svg"):
            assert "Before this run." in told
            assert "A run of seed 7 failed." in told
            assert "--scope=rows/oracle" in told
            assert "D_pretrain’s and other, 5.2 times over" in told
            assert "each read once" not in told
    one["before"] = ""
    assert "Before this run" not in page.render({"a": one}, stem="results")["results.md"]


def test_what_of_a_sweep_was_not_to_be_made_is_said():
    one = entry()
    found = {"changes": {"alpha": 0.99}, "arms": {}, "failed": "no pair is more similar"}
    made = made_results.swept({"alpha": 0.3}, (0, 1, 2, 3, 4), sbp=1.1)
    one["config"]["design"] = {**made_results.DESIGN, "alpha": 0.2}
    one["sweeps"] = {"alpha": [made, found]}
    told = page.render({"a": one}, stem="results")["results.md"]
    assert "alpha 0.99 was not to be made: no pair is more similar" in told


def test_settings_of_one_value_are_told_as_not_searched():
    one = entry(FEW)
    told = "Given to all arms, and not searched: weight decay 0.1."
    assert told in verdict.verdict(one).cautions
    one["tuning"]["oracle"][-1]["weight_decay"] = 0.5
    assert "not searched" not in "".join(verdict.verdict(one).cautions)


def test_settings_that_did_far_better_where_they_were_chosen_are_named():
    one = entry(FEW)
    arm, tried = one["arms"]["repetition"], one["tuning"]["repetition"]

    def told():
        return [text for text in verdict.verdict(one).cautions if "luck" in text]

    arm["dev_by_seed"] = [1.19, 1.20, 1.21, 1.20, 1.20]
    for least, named in ((1.19, ""), (1.02, "repetition 1.0200 against 1.2000")):
        for number, setting in enumerate(tried):
            setting["dev_loss"] = least + 0.1 * number
        assert named in "".join(told())
        assert ("repetition" in "".join(told())) == bool(named)
    arm["dev_by_seed"] = [1.20, 1.20]
    assert "repetition" not in "".join(told())  # of two seeds nobody knows how far they spread


def tables(one):
    found = page.chapter("a", one).sections
    return {table.title: table for section in found for table in section.tables}


def sweep_section(one, sweep):
    found = page.chapter("a", one).sections
    return next(section for section in found if section.title == f"Sweep: {sweep}")


def test_sweeps_are_set_beside_the_repetition_of_their_own_design():
    one = entry()
    base = sum(one["arms"]["repetition"]["by_seed"]) / 5
    share = sweep_section(one, "synthetic share")
    rows = {row[0]: row for row in share.tables[0].rows}
    own = sum(one["sweeps"]["synthetic share"][0]["arms"]["sbp"]["by_seed"]) / 5
    assert rows["0.125"][3].startswith(f"+{base - own:.4f} ± ")
    # Shares 0 and 0.4 are repetition and the sbp arm: they stand in the figure beside the three.
    assert share.figures[0].drawing.count('class="mark arm-sbp"') == 5
    arms = one["sweeps"]["passes"][0]["arms"]
    own = sum(arms["repetition"]["by_seed"]) / 5 - sum(arms["sbp"]["by_seed"]) / 5
    rows = {row[:2]: row for row in sweep_section(one, "passes").tables[0].rows}
    assert rows["5", "sbp"][3].startswith(f"+{own:.4f}")
    for point in one["sweeps"]["passes"]:
        del point["arms"]["repetition"]
    rows = {row[:2]: row for row in sweep_section(one, "passes").tables[0].rows}
    assert rows["5", "sbp"][3] == "–"
    own = sum(one["arms"]["sbp"]["by_seed"]) / 5
    assert rows["20 (design)", "sbp"][3].startswith(f"+{base - own:.4f} ± ")


def test_the_design_itself_stands_among_the_values_of_a_sweep():
    one = entry()
    led = page.chapter("a", one)
    arms = next(t for s in led.sections for t in s.tables if t.title == "Arms and controls")
    lead = next(row for row in arms.rows if row[0] == "sbp")[2]
    for sweep, own in (
        ("synthetic share", ["0.125", "0.25", "0.4 (design)", "0.6"]),
        ("passes", ["5", "10", "20 (design)"]),
        ("width", ["96 (design)", "64", "128"]),
    ):
        table = sweep_section(one, sweep).tables[-1]
        assert list(dict.fromkeys(row[0] for row in table.rows)) == own
        found = next(row for row in table.rows if "(design)" in row[0] and "sbp" in row)
        assert lead in found
    # Where a change leaves something alone, it has the design's value; the design is no second row.
    one["sweeps"]["embedder"][1]["changes"]["passes"] = 10.0
    rows = sweep_section(one, "embedder").tables[-1].rows
    assert [row[:2] for row in rows] == [
        ("TfidfEmbedder (design)", "20"),
        ("ActivationEmbedder layer 1", "10"),
        ("ActivationEmbedder layer 2", "20"),
    ]


def test_two_settings_are_crossed_where_each_value_met_each():
    one = entry()
    crossed = tables(one)["Gain of sbp over repetition: temperature (down) × top p (across)"]
    assert [row[0] for row in crossed.rows] == ["0.8", "1"]
    assert crossed.header[1:] == ("0.9", "1")
    del one["sweeps"]["sampling"][1]
    titles = [title for title in tables(one) if "(across)" in title]
    assert not titles


def test_both_accounts_of_the_cost():
    found = tables(entry())
    first = {
        row[0]: row[1]
        for row in found["First account: tokens of training, the same for each arm"].rows
    }
    assert first["sbp"] == first["repetition"] == first["oracle"] == "1,040,000"
    assert first["repetition_charged"] == "2,571,142"
    second = found["Second account: everything that SBP costs"].rows
    assert second[-1] == ("in all", "2,571,142", "2.47")
    sections = {section.title: section for section in page.chapter("a", entry()).sections}
    assert "SBP lies below it by" in sections["What it costs"].paragraphs[0]


def test_all_settings_tried_are_told_and_folded(made):
    table = next(t for title, t in tables(entry(FEW)).items() if title.startswith("Settings tried"))
    assert table.folded
    assert len(table.rows) == 3 * 9
    assert [row[:4] for row in table.rows if row[-1]] == [
        (name, "0.003", "0.1", "0.1") for name in FEW
    ]
    table = next(t for title, t in tables(entry(FEW)).items() if "of synthesizers tried" in title)
    assert [row[0] for row in table.rows if row[-1]] == ["related pairs (sbp)", "random pairs"]
    assert (made / "results.md").read_text().count("<details>") == 6


def changed(path, value):
    """An entry with another value at a dotted place; `...` removes it."""
    content = {"experiments": {"worlds": entry()}}
    *way, last = path
    at = content
    for key in way:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(content)


OWN = ("experiments", "worlds")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing: take in an experiment"),
        ("{", "cannot be read as JSON"),
        ("[]", "its content is [], expected an object"),
        ("{}", "experiments is missing, expected an object"),
        (changed((*OWN, "machine"), ...), "experiments.worlds.machine is missing, expected text"),
        (
            changed((*OWN, "oracle_gain_recovered", "mean"), "40%"),
            "oracle_gain_recovered.mean is '40%', expected a finite number",
        ),
        (changed((*OWN, "seeds"), [0, True]), "worlds.seeds.1 is True, expected a whole number"),
        (changed((*OWN, "seconds"), float("nan")), "NaN is no number"),
        (changed((*OWN, "arms", "repetition"), ...), "worlds.arms.repetition is missing"),
        (
            changed((*OWN, "controls", "random_pairs", "sbp_lead"), ...),
            "worlds.controls.random_pairs.sbp_lead is missing",
        ),
        (
            changed((*OWN, "controls", "ideal", "by_seed"), [1.0]),
            "worlds.controls.ideal.by_seed has 1 values, expected 5",
        ),
        (
            changed((*OWN, "arms", "sbp", "curves", 0, 3), [1.0]),
            "arms.sbp.curves.0.3 is [1.0], expected a list of 2",
        ),
        (
            changed((*OWN, "arms", "sbp", "heldout_loss", "low"), None),
            "expected all of standard_error, low, high or none",
        ),
        (
            changed((*OWN, "arms", "sbp", "oracle_gain_recovered", "mean"), 9.0),
            "arms.sbp.oracle_gain_recovered.mean is 9.0, expected 0.",
        ),
        (
            changed((*OWN, "controls", "ideal", "by_seed", 2), 1.5),
            "which the losses by seed give",
        ),
        (json.dumps({"experiments": {"../x": entry()}}), "expected a name of letters"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capfd, text, message):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["results", f"--into={path}"]) == 2
    told = capfd.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert told.startswith(f"sbp results: {path}")
    assert message in told
    assert "sbp results ARTEFACT" in told or "letters" in told
    assert [p.name for p in tmp_path.iterdir()] == (["results.json"] if text else [])


def test_an_artefact_is_checked_before_it_is_believed(tmp_path):
    folder = made_results.artefact(tmp_path / "a")
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**content, "config_hash": "0" * 16}))
    with pytest.raises(UserError, match="config_hash is '0000000000000000', expected"):
        results.collect(folder)
    del content["tuning"]
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"result.json: tuning is missing, .* run its experiment"):
        results.collect(folder)
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"result\.json is missing"):
        results.collect(folder)
    with pytest.raises(UserError, match="holds no finished artefact"):
        results.collect(tmp_path / "nowhere")


def test_what_an_artefact_does_not_say_is_asked_for(tmp_path):
    folder = made_results.artefact(tmp_path / "a", provenance=False)
    with pytest.raises(UserError, match="--name=EXPERIMENT --machine="):
        results.collect(folder, name="worlds")
    name, one = results.collect(folder, "worlds", "a machine")
    assert (name, one["machine"]) == ("worlds", "a machine")
    assert one["command"] == "sbp experiment --gin_file=experiments/worlds.gin"
    with pytest.raises(UserError, match="--name=a/b: expected letters"):
        results.collect(folder, "a/b", "a machine")


def test_an_entry_of_another_config_is_replaced_only_on_demand(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    into = str(tmp_path / "results.json")
    one = made_results.artefact(tmp_path / "a", made_results.result(FEW))
    other = made_results.artefact(tmp_path / "b", made_results.result(FEW), seed=2)
    results.results([str(one)], into)
    results.results([str(one)], into)
    assert told == []
    old = results.read(into)["worlds"]["config_hash"]
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(UserError, match=f"{old}, and would be lost .* give --replace"):
        results.results([str(other)], into)
    assert (tmp_path / "results.json").read_bytes() == before
    results.results([str(other)], into, replace=True)
    new = results.read(into)["worlds"]["config_hash"]
    assert old != new
    assert len(told) == 1
    assert old in told[0]
    assert new in told[0]


def test_curves_are_thinned_until_the_file_is_small(monkeypatch):
    curve = [[n, 1 / (n + 1)] for n in range(1000)]
    assert results.thin(curve, 2000) == curve
    thinned = results.thin(curve, 60)
    assert len(thinned) == 60
    assert thinned[0] == curve[0]
    assert thinned[-1] == curve[-1]
    one = entry(FEW)
    whole = len(results.to_json({"a": one}))
    monkeypatch.setattr(results, "MOST_BYTES", whole - 1000)
    text = results.to_json({"a": one})
    assert len(text) < whole
    kept = json.loads(text)["experiments"]["a"]
    assert 5 <= len(kept["arms"]["sbp"]["curves"][0]) < 20
    assert kept["arms"]["sbp"]["by_seed"] == one["arms"]["sbp"]["by_seed"]
    monkeypatch.setattr(results, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="into several files with --into"):
        results.to_json({"a": one})


def test_figures_of_no_experiment_go_and_others_stay(made, tmp_path):
    shutil.copytree(made, tmp_path / "docs")
    foreign = tmp_path / "docs" / "figures" / "drawn-by-hand.svg"
    foreign.write_text("<svg/>")
    content = json.loads((tmp_path / "docs" / "results.json").read_text())
    del content["experiments"]["one_seed"]
    (tmp_path / "docs" / "results.json").write_text(json.dumps(content))
    results.results((), str(tmp_path / "docs" / "results.json"))
    left = {path.name for path in (tmp_path / "docs" / "figures").iterdir()}
    assert "drawn-by-hand.svg" in left
    assert "worlds-loss.svg" in left
    assert not any(name.startswith("one_seed") for name in left)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results", "--gin_file=a.gin"], "takes no --gin_file"),
        (["results", "--run_dir=a"], "takes no --run_dir"),
        (["results", "--gin.a=1"], "reads no gin"),
        (["results", "--name=a"], "--name is of one experiment"),
        (["results", "--into=a.txt"], "--into=a.txt: expected a file that ends in .json"),
        (["train", "--into=a.json"], "takes no --into"),
        (["train", "--replace"], "takes no --replace"),
        (["show", "a", "b"], "takes one path, and got a b"),
    ],
)
def test_mistakes_on_the_command_line(capfd, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capfd.readouterr().err


def test_a_run_tells_its_name_and_command():
    flags = ("--gin_file=hardware/cpu.gin", "--gin_file=a/experiments/worlds.gin")
    more = ("--run_dir=/tmp/x", "--gin.experiment.seeds=[0, 1]", "--verbosity=info")
    found = provenance.provenance("experiment", "x", (*flags, *more))
    assert found.name == "worlds"
    assert found.command == (
        "sbp experiment --gin_file=hardware/cpu.gin --gin_file=a/experiments/worlds.gin "
        "'--gin.experiment.seeds=[0, 1]'"
    )
    assert "core" in found.machine
    assert "GiB" in found.machine
    again = provenance.provenance("more/wide", "x", flags)
    assert again.name == "worlds-more-wide"
    assert again.command.endswith(" --scope=more/wide")
    assert provenance.provenance("experiment", "x", ()).name == "x"


def test_what_tells_of_results_is_no_code_of_theirs():
    """Else a page that looks better would make a finished experiment one of other code."""
    wanted, found = ["stage"], set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        for node in ast.walk(ast.parse((ROOM / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                of_room = node.module.removeprefix("sbp_jax.experiment")
                if of_room == node.module:
                    continue
                names = [of_room[1:]] if of_room else [alias.name for alias in node.names]
                wanted += [one for one in names if one not in found]
    assert found - {"provenance"} == {name.rpartition(".")[2] for name in stage.CODE}
