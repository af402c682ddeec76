"""lm-evaluation-harness with its own HFLM over local tasks; runs in an environment of its own.

    python harness_hf.py CASE, as JSON: model, tasks, names, length, batch_size, add_bos

Prints what was answered, by task, and the metrics.
"""

from __future__ import annotations

import json
import sys

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main() -> None:
    """Asks once."""
    case = json.loads(sys.argv[1])
    model = HFLM(
        pretrained=case["model"],
        dtype="float32",
        device="cpu",
        max_length=case["length"],
        batch_size=case["batch_size"],
        add_bos_token=case["add_bos"],
    )
    manager = TaskManager(include_path=case["tasks"], include_defaults=False)
    found = evaluator.simple_evaluate(
        model=model, tasks=case["names"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    answers = {
        name: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in found["samples"].items()
    }
    print(json.dumps({"results": found["results"], "answers": answers}))


if __name__ == "__main__":
    main()
