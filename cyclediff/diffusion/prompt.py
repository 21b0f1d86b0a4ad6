"""A prompt as its tokenizer sees it."""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A text and its tokens.

    Args:
        text: the prompt.
        ids: its tokens with the start and the end token, without padding.
        spans: the part text[begin:end] that each token stands for, as the tokenizer says; (0, 0) for start and end. Two
            tokens of one letter have the same span.
        blended: the word that an edit is about, where a list names one; see `cyclediff.local_blend`.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    blended: str = ""

    @property
    def words(self) -> list[str]:
        """The blank-separated words; punctuation belongs to the word that it touches."""
        return self.text.split()

    @property
    def word_spans(self) -> list[tuple[int, int]]:
        """Where each word is: text[begin:end]."""
        found, end = [], 0
        for word in self.words:
            begin = self.text.index(word, end)
            end = begin + len(word)
            found.append((begin, end))
        return found


def bare(word: str) -> str:
    """A word without the punctuation, symbols and invisible characters around it; the word itself if it has no others.

    Signs of the word's own inside stay: "snow-covered", "it's".
    """
    plain = [i for i, character in enumerate(word) if unicodedata.category(character)[0] not in "PSC"]
    return word[plain[0] : plain[-1] + 1] if plain else word


def is_named(word: str, name: str) -> bool:
    """Whether a name means a word of a text: without looking at case and at the punctuation around the word.

    A name that has such punctuation itself ("dog,") means the word as a whole.
    """
    return _folded(word if bare(name) != name else bare(word)) == _folded(name)


def _folded(word: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", word).casefold())
