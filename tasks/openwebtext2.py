"""OpenWebText2: pages that Reddit linked to, as held-out text that no training corpus here holds.

What: web pages up to April 2020 that a submission of at least three votes linked to, without
near-duplicates. A document is a line of zstd JSON lines with `text` and `meta`; its id is
`file:line`.
Source: EleutherAI, https://openwebtext2.readthedocs.io; a part of the Pile, arXiv 2101.00027.
Licence: none of its own; the pages remain their authors'.
Size: 17 million documents, 66 GB unpacked; as held-out text one file of it is plenty.
Prepare: unpack one or more of its `.jsonl.zst` files to a folder or bucket; then in gin, after
`import tasks.openwebtext2`, `openwebtext2.files = 'openwebtext2/2020-04.jsonl.zst'`.

Splits: only `heldout`. Common Crawl may hold the same pages, and nobody took them out of DCLM or
FineWeb-Edu for us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


@configurable
def openwebtext2(
    *, files: str = gin.REQUIRED, max_bytes: int = formats.MAX_BYTES
) -> corpora.Streamed:
    """Where the files lie.

    Args:
      files: a folder, file or glob, local or `gs://`.
      max_bytes: a longer line is not used.
    """
    schema = formats.Schema(max_bytes=max_bytes)
    return corpora.Streamed("openwebtext2.files", files, schema, formats.LINES)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """All documents of the files."""
    source = corpora.from_files(openwebtext2())
    return corpora.register("openwebtext2_heldout", source, vocabulary, [corpora.text_to_targets])
