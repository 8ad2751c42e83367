"""What a model writes about images, and how near it comes to what people wrote: VQA's agreement, and BLEU-4."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from fas.errors import FasError, with_extra

_NUMBERS = {
    name: str(number)
    for number, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = {"a", "an", "the"}
_ENOUGH = 3
"""People who must agree with an answer for it to be wholly right."""


def normalized(answer: str) -> str:
    """In small letters, without punctuation and articles, numbers as digits, as VQA's evaluation has it (Antol et al. 2015);
    contractions are left as they are, but for their apostrophe.

    >>> normalized("The two dogs."), normalized("It's 10:30")
    ('2 dogs', 'its 1030')
    """
    kept = re.sub(f"[{re.escape(string.punctuation)}]", "", answer.lower())
    return " ".join(_NUMBERS.get(word, word) for word in kept.split() if word not in _ARTICLES)


def vqa_accuracy(written: str, answers: Sequence[str]) -> float:
    """Agreement with what people answered: min(1, others that say the same / 3), averaged over leaving out each of them (Antol
    et al. 2015, as their evaluation does it); of one answer alone, whether it is that.

    >>> round(vqa_accuracy("2", ["two", "2", "3", "4", "5", "6", "7", "8", "9", "10"]), 3)
    0.6
    >>> vqa_accuracy("Yes", ["yes"])
    1.0
    """
    said, given = normalized(written), [normalized(answer) for answer in answers]
    if len(given) == 1:
        return float(said == given[0])
    matches = sum(answer == said for answer in given)
    return sum(min(1.0, (matches - (answer == said)) / _ENOUGH) for answer in given) / len(given)


def bleu4(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a corpus (Papineni et al. 2002), a share of 1, by sacrebleu with its own tokens, in small letters.

    ``references``: those of each text, at least one. Raises `FasError` where sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise FasError(f"captions are scored by sacrebleu, which is not installed; {with_extra('vision')}") from None
    most = max(map(len, references))
    columns = [[some[i] if i < len(some) else None for some in references] for i in range(most)]
    return BLEU(lowercase=True).corpus_score(list(written), columns).score / 100  # type: ignore[arg-type]
