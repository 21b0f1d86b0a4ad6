"""A prompt as its tokenizer sees it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A text and its tokens.

    Args:
        text: the prompt.
        ids: its tokens with the start and the end token, without padding.
        pieces: the text of each token without `</w>` and surrounding blanks.
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The blank-separated words; punctuation belongs to the word that it touches."""
        return self.text.split()
