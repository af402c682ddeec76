"""Tasks of lm-evaluation-harness as local files: one of each kind of request, four documents."""

from __future__ import annotations

import json
import pathlib
from typing import Any

TEXTS = (
    "The lighthouse keeper climbed the stairs and lit the lamp before the storm came in.",
    "In the morning the sea was calm, and two boats went out to look for the third.",
    "Nobody had told the children that bread is made of flour, water, salt and time.",
    "Rain fell for a week; the river rose, took the bridge, and then fell again.",
)
COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
metadata:
  version: {version}
"""
YAML = {
    "local_choice": """\
task: local_choice
output_type: multiple_choice
fewshot_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "local_text": """\
task: local_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "local_word": """\
task: local_word
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "local_answer": """\
task: local_answer
output_type: generate_until
doc_to_text: "Say: {{question}}\\n"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n", "e "]
  max_gen_toks: 20
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
}


GROUP = """\
group: two_tasks
task: [local_choice, local_word]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""
UNSAFE = YAML["local_word"].replace("task: local_word", "task: program\nunsafe_code: true")


def record(number: int) -> dict[str, Any]:
    """A document, with a question about it."""
    text = TEXTS[number]
    choices = [text[24:40], text[40:50], "no", TEXTS[number - 1][:30]]
    return {"text": text, "question": text[:24], "choices": choices, "answer": number % 4}


def write(folder: pathlib.Path) -> None:
    """Leaves the YAML files and their data."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = folder / "questions.jsonl"
    records = [record(number) for number in range(len(TEXTS))]
    questions.write_text("".join(json.dumps(one) + "\n" for one in records))
    for version, (name, yaml) in enumerate(YAML.items(), start=1):
        more = COMMON.format(file=questions, version=f"{version}.5")
        (folder / f"{name}.yaml").write_text(yaml + more)
    (folder / "two_tasks.yaml").write_text(GROUP)
    (folder / "program.yaml").write_text(UNSAFE + COMMON.format(file=questions, version=1))
