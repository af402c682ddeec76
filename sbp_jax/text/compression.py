"""Compression: how many times smaller a text becomes, which sees repetition of every kind.

Runs of four words (`repetition`) do not see a table of numbers, one letter over and over, or a
sentence with another name each time; a compressor does. It is zstandard's, since the library comes
with its package, so that a lock file decides the ratio; zlib's is that of the machine.
"""

from __future__ import annotations

import zstandard

LEVEL = 3


def compression(text: str) -> float:
    """Bytes of a text in UTF-8 over those that zstandard packs them into; 0 if there are none.

    A longer text has a higher ratio at the same quality, so compare texts of like length.
    """
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zstandard.compress(data, LEVEL)) if data else 0.0
