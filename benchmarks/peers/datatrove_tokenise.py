"""datatrove's tokeniser over a JSON lines file; runs in an environment of its own.

    python datatrove_tokenise.py CASE, as JSON: folder, tokenizer, eos, out

Prints the seconds that the pipeline took, and the tokens that it wrote.
"""

import json
import pathlib
import sys
import time

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    """Tokenises once."""
    case = json.loads(sys.argv[1])
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(case["folder"], glob_pattern="*.jsonl"),
            DocumentTokenizer(
                output_folder=f"{case['out']}/tokens",
                tokenizer_name_or_path=case["tokenizer"],
                eos_token=case["eos"],
                shuffle_documents=False,
            ),
        ],
        logging_dir=f"{case['out']}/logs",
        tasks=1,
        workers=1,
    )
    started = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - started
    written = sum(path.stat().st_size for path in pathlib.Path(case["out"]).glob("tokens/*.ds"))
    print(json.dumps({"seconds": seconds, "tokens": written // 2}))


if __name__ == "__main__":
    main()
