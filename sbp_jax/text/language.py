"""The language of a text, by the n-grams of its bytes: langid's model (Lui and Baldwin, 2012).

It comes with the package `py3langid`, so that a lock file decides what is found.
"""

from __future__ import annotations

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier


def language(text: str) -> str:
    """The most probable language's code of ISO 639; of a text of few words, a guess."""
    return _identifier().classify(text)[0]


def known() -> list[str]:
    """The codes that may be found."""
    return list(_identifier().labels)


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
