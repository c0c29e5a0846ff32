"""An honest tiny model: it answers a prompt by the label of the nearest demonstration in it.

It is not a language model. It knows nothing, generates nothing and cannot follow an instruction: it finds, among the
solved examples that the prompt itself shows, the one that has most words in common with the question, and repeats its
answer. Without demonstrations, or without a word in common with any, it says "unknown". It shares with a real model
what an optimiser needs: more and better-chosen demonstrations raise its score.

Nearest means: largest cosine between TF-IDF vectors over words and parts of identifiers, where
tf = 1 + ln(count) and idf = 1 + ln((1 + N) / (1 + df)) over the N demonstrations of this prompt (Salton & Buckley 1988,
with the smoothing scikit-learn uses). Ties go to the demonstration that stands first. The answer is a pure function of
the prompt: same prompt, same answer, on every node.

`embed` is of the same kind: a hashed bag of words (Weinberger et al. 2009), no knowledge of meaning.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

from meshnode.lm import prompts
from meshnode.lm.prompts import Message

EMBEDDING_SIZE = 256

_WORD = re.compile(r"\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")


def answer(messages: Sequence[Message]) -> str:
    """What the model says to a chat; never raises: a prompt it can't read is answered with "unknown"."""
    prompt = prompts.read(messages)
    index = _index(tuple(demonstration.question for demonstration in prompt.demonstrations))
    likeness = index.likeness(prompt.question)
    answers = {}
    best = 0.0
    for name, default in prompt.defaults.items():
        # The first of equals wins, and one without a word in common is no neighbour.
        known = [place for place, shown in enumerate(prompt.demonstrations) if name in shown.answers]
        nearest = max(known, key=likeness.__getitem__, default=None)
        if nearest is None or likeness[nearest] == 0.0:
            answers[name] = default
        else:
            answers[name] = prompt.demonstrations[nearest].answers[name]
            best = max(best, likeness[nearest])
    return prompts.write(prompt, answers, _why(len(prompt.demonstrations), best))


def terms(text: str) -> list[str]:
    """Words in lower case, in order; an identifier counts whole and by its parts: `read_JSONLine` gives four terms."""
    found = []
    for word in _WORD.findall(text):
        found.append(word.lower())
        parts = _PART.findall(word)
        if len(parts) > 1:
            found.extend(part.lower() for part in parts)
    return found


class Index:
    """The demonstrations of one prompt, ready to be compared with questions."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(terms(text)) for text in texts]
        seen = Counter(term for count in counts for term in count)
        self._size = len(texts)
        self._idf = {term: 1.0 + math.log((1 + len(texts)) / (1 + df)) for term, df in seen.items()}
        self._postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            weights = {term: (1.0 + math.log(n)) * self._idf[term] for term, n in count.items()}
            norm = math.hypot(*weights.values())
            for term, weight in weights.items():
                self._postings[term].append((place, weight / norm))

    def likeness(self, question: str) -> list[float]:
        """The cosine between the question and each text, 0 to 1, in the texts' order."""
        unseen = 1.0 + math.log(1 + self._size)
        weights = {
            term: (1.0 + math.log(n)) * self._idf.get(term, unseen) for term, n in Counter(terms(question)).items()
        }
        norm = math.hypot(*weights.values())
        likeness = [0.0] * self._size
        for term, weight in weights.items():
            for place, other in self._postings.get(term, ()):
                likeness[place] += weight * other / norm
        return likeness


def embed(text: str, *, size: int = EMBEDDING_SIZE) -> list[float]:
    """A unit vector of `size` floats, all zero if the text has no word: each term adds ±(1 + ln count) at its hash."""
    vector = [0.0] * size
    for term, n in Counter(terms(text)).items():
        digest = int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "big")
        vector[digest % size] += (1.0 if digest >> 63 else -1.0) * (1.0 + math.log(n))
    norm = math.hypot(*vector)
    return [value / norm for value in vector] if norm else vector


def count_tokens(text: str) -> int:
    """An estimate for usage figures: four characters a token, as for English text in common tokenizers."""
    return -(-len(text) // 4)


# As real servers cache a prompt's prefix: evaluation sends the same demonstrations with every question.
_index = lru_cache(maxsize=64)(Index)


def _why(shown: int, likeness: float) -> str:
    if likeness:
        return f"Repeating the nearest of {shown} demonstrations, by words in common (cosine {likeness:.3f})."
    return f"Nothing in common with any of {shown} demonstrations." if shown else "No demonstrations to go by."
