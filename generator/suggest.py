"""What somebody may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LIST_LIMIT = 16  # more choices than this are no help in one line


def close_matches(word: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `choices` that look like `word`, nearest first; case does not matter."""
    by_folded: dict[str, str] = {}
    for choice in choices:
        by_folded.setdefault(choice.casefold(), choice)
    matches = difflib.get_close_matches(word.casefold(), list(by_folded), n=count, cutoff=0.6)
    return [by_folded[match] for match in matches]


def nearest(word: str, choices: Iterable[str]) -> str:
    """``; did you mean "x"?``, or else ``; there are: …`` if that is a short list, or else nothing."""
    known = sorted(choices)
    matches = close_matches(word, known, count=1)
    if matches:
        return f'; did you mean "{matches[0]}"?'
    return "; there are: " + ", ".join(known) if 0 < len(known) <= _LIST_LIMIT else ""
