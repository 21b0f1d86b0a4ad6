"""Which tokens of two prompts belong together: Prompt-to-Prompt's tables (arXiv 2208.01626, section 3.2).

The tables equal those of the official code (google/prompt-to-prompt, seq_aligner.py and ptp_utils.py), also where it
differs from the paper: see `replacement_mapper`. `length` is the number of token positions that the network sees (77
for Stable Diffusion). Positions count the start token as 0.

There are three differences from the official code. Words are separated by any number of blanks, as in tokenizers; the
official code splits at each single blank and then counts empty words. The tokenizer says which letters a token stands
for; the official code counts the characters of decoded tokens, and so gives tokens to a wrong word after a "#" and
after letters of several tokens. A word is named without looking at case and at punctuation around it, so that "dog" is
in "a dog, a cat"; there the official code finds no "dog" without a word.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import permutations
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from cyclediff.diffusion.prompt import Prompt, bare, is_named

Bounds = float | Sequence[float]
Mode = Literal["replace", "refine", "auto"]
DEFAULT = "default_"
LISTED = 40  # words in a message


def word_positions(prompt: Prompt, word: int) -> list[int]:
    """Positions of the tokens of the word with this index (get_word_inds); empty if the tokenizer cut it off."""
    return [position for position, owner in enumerate(_owners(prompt), start=1) if owner == word]


def _owners(prompt: Prompt) -> list[int]:
    """Index of the word that each token between start and end begins in."""
    begins = [begin for begin, _ in prompt.word_spans]
    return [bisect_right(begins, begin) - 1 for begin, _ in prompt.spans[1:-1]]


def positions_of(prompt: Prompt, name: str) -> list[int]:
    """Positions of the tokens of all words that a name means (`is_named`), empty if there is none.

    Of a word with punctuation around it they are the word's own ("dog" in "dog,"), unless the name has it, too.
    """
    found = []
    for word, (begin, end) in zip(prompt.words, prompt.word_spans, strict=True):
        if is_named(word, name):
            if bare(name) == name:
                begin += word.index(bare(word))
                end = begin + len(bare(word))
            tokens = enumerate(prompt.spans[1:-1], start=1)
            found += [position for position, span in tokens if span[0] < end and begin < span[1]]
    return found


def require_words(setting: str, names: Iterable[object], texts: Sequence[str], side: str = "target") -> None:
    """Require that each name means a word (`is_named`) of at least one text.

    Args:
        setting: where the names are, for the sentence.
        names: a number is meant as a word, as in "2 dogs".
        texts: the texts of a run.
        side: "source" or "target", whichever texts these are.

    Raises:
        ValueError: if one means none; the sentence lists the texts' words, or those that are most like it.
    """
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    for name in map(str, names):
        if not any(is_named(word, name) for word in words):
            known = list(dict.fromkeys(bare(word) for word in words))
            near = known if len(known) <= LISTED else get_close_matches(name, known, LISTED, cutoff=0)
            raise ValueError(
                f"{setting} names {name!r}, which is no word of "
                f"{f'the {side} text' if len(texts) == 1 else f'any of the {len(texts)} {side} texts'}; choose one of "
                f"{', '.join(near)}{', …' if len(near) < len(known) else ''}"
            )


def require_weights(weights: object) -> None:
    """Require that weights are finite numbers, one for a word.

    Raises:
        ValueError: if one is anything else, or two names mean one word.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must give words and numbers, such as {{dog: 2}}; got {weights!r}")
    for word, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not isfinite(weight):
            raise ValueError(f"weights[{str(word)!r}] must be a finite number; got {weight!r}")
    for one, other in permutations(map(str, weights), 2):
        if is_named(one, other):
            raise ValueError(f"weights must name a word once; got {one!r} and {other!r}, which mean the same word")


def replacement_mapper(source: Prompt, target: Prompt, length: int) -> Tensor:
    """Which source tokens each token of a target with swapped words takes its map from ("word swap").

    A map of the target is `map of the source @ mapper` (get_replacement_mapper). Tokens of a swapped word are paired if
    there are equally many; else each target token gets 1 / (target tokens) of each source token. Two things are as in
    the official code. Columns need not sum to 1 (m source tokens for n target tokens: m / n). After the last swapped
    word the mapper is the plain diagonal: where the token counts differ, the end of the sentence is aligned by position
    and not by word, and columns that would look beyond the last row are 0.

    Returns:
        float (length, length), rows source, columns target.

    Raises:
        ValueError: if the prompts have different numbers of words, or more tokens than `length`.
    """
    a, b = source.words, target.words
    if len(a) != len(b):
        raise ValueError(
            f"replacing words needs prompts with equal numbers of words; got {len(a)} in {source.text!r} and {len(b)} "
            f"in {target.text!r}: change them, or use the mode refine"
        )
    _check_length(source, length)
    _check_length(target, length)
    mapper = torch.zeros(length, length)
    i = j = 0
    for word in (word for word in range(len(a)) if a[word] != b[word]):
        rows, columns = (torch.tensor(word_positions(prompt, word)) for prompt in (source, target))
        if not len(rows) or not len(columns):  # cut off by the tokenizer
            continue
        same = torch.arange(int(rows[0]) - i)
        mapper[i + same, j + same] = 1
        i, j = int(rows[0]) + len(rows), j + len(same) + len(columns)
        if len(rows) == len(columns):
            mapper[rows, columns] = 1
        else:
            mapper[rows[:, None], columns] = 1 / len(columns)
    mapper.diagonal()[j : j + length - i] = 1
    return mapper


def refinement_mapper(source: Prompt, target: Prompt, length: int) -> tuple[Tensor, Tensor]:
    """Which source token each target token takes its map from ("adding a new phrase", get_refinement_mapper).

    Tokens are matched by a longest common subsequence; of several, by the one with the earliest matches. This equals
    the official global alignment with gap 0, match 1 and mismatch -1. The start and the end token take part. Padding
    takes the same position of the source.

    Returns:
        mapper, int64 (length,), -1 for a target token without a partner, and alphas, float (length,), 0 for such a
        token and else 1.

    Raises:
        ValueError: if a prompt has more tokens than `length`.
    """
    _check_length(source, length)
    _check_length(target, length)
    mapper = torch.arange(length)
    mapper[: len(target.ids)] = torch.tensor(_partners(source.ids, target.ids))
    return mapper, (mapper != -1).float()


def _partners(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """For each element of target its index in source under a longest common subsequence, or -1."""
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, a in enumerate(source, start=1):
        for j, b in enumerate(target, start=1):
            score[i][j] = score[i - 1][j - 1] + 1 if a == b else max(score[i][j - 1], score[i - 1][j])
    partners = [-1] * len(target)
    i, j = len(source), len(target)
    while j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def mixing(source: Prompt, target: Prompt, mode: Mode, length: int) -> tuple[Tensor, Tensor]:
    """(P, keep), float (length, length) and (length,): how much of each source token and of itself a token takes."""
    if mode == "replace" or (mode == "auto" and len(source.words) == len(target.words)):
        return replacement_mapper(source, target, length), torch.zeros(length)
    partners, alphas = refinement_mapper(source, target, length)
    mapper = torch.zeros(length, length)
    mapper[partners, torch.arange(length)] = alphas  # no partner is -1, the last row, with alpha 0
    return mapper, 1 - alphas


def equalizer(prompt: Prompt, weights: Mapping[Any, float], length: int) -> Tensor:
    """The factor of each token's attention map, float (length,): 1 but for the words in `weights`.

    "Attention re-weighting", get_equalizer as in the null-text notebook. Words are found by `positions_of`; one that
    the prompt does not have is ignored, see `AttentionControl.require_words`. A number is meant as a word. A negative
    weight turns a word into its opposite.

    Raises:
        ValueError: if the prompt has more tokens than `length`.
    """
    _check_length(prompt, length)
    values = torch.ones(length)
    for word, weight in weights.items():
        values[positions_of(prompt, str(word))] = weight
    return values


def window(bounds: Bounds, name: str = "bounds") -> tuple[float, float]:
    """Both bounds of a part of the steps; b alone means (0, b).

    Raises:
        ValueError: unless 0 ≤ a ≤ b ≤ 1.
    """
    pair: Any = bounds if isinstance(bounds, Sequence) and not isinstance(bounds, str) else (0.0, bounds)
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in pair)
    if not numbers or len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
        raise ValueError(f"{name} must be a fraction b or a pair [a, b] with 0 ≤ a ≤ b ≤ 1; got {bounds!r}")
    return pair[0], pair[1]


def window_alphas(prompt: Prompt, bounds: Bounds | Mapping[str, Bounds], num_steps: int, length: int) -> Tensor:
    """Whether each token's attention is edited at each step: 0 or 1, float (num_steps + 1, length).

    get_time_words_attention_alpha for one target prompt. A window (a, b) is the steps int(a (num_steps + 1)) ≤ step <
    int(b (num_steps + 1)): one more than there are steps, as in the official code. The official code fails for an int
    such as 1 and changes the caller's dict; here 1 means 1.0, and nothing is changed.

    Args:
        prompt: the target prompt.
        bounds: one window for all tokens; or a window for each of some words (the last wins where they overlap), and
            under "default_" for all other tokens (the whole run if it is missing). Words are found by `positions_of`;
            those that the prompt does not have are ignored, see `AttentionControl.require_words`.
        num_steps: of the sampler.
        length: number of token positions.

    Raises:
        ValueError: unless 0 ≤ a ≤ b ≤ 1 for each window, or if the prompt has more tokens than `length`.
    """
    _check_length(prompt, length)
    windows = dict(bounds) if isinstance(bounds, Mapping) else {DEFAULT: bounds}
    alphas = torch.zeros(num_steps + 1, length)
    alphas[_steps(windows.pop(DEFAULT, 1.0), num_steps)] = 1
    for word, part in windows.items():
        positions = positions_of(prompt, str(word))
        alphas[:, positions] = 0
        alphas[_steps(part, num_steps), positions] = 1
    return alphas


def _steps(bounds: Bounds, num_steps: int) -> slice:
    low, high = window(bounds)
    return slice(int(low * (num_steps + 1)), int(high * (num_steps + 1)))


def _check_length(prompt: Prompt, length: int) -> None:
    if len(prompt.ids) > length:
        raise ValueError(
            f"a prompt must have at most {length} tokens, start and end included; got {len(prompt.ids)} in "
            f"{prompt.text!r}: shorten it"
        )
