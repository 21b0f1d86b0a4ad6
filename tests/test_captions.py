"""Pets in words: captions say what is drawn, and a changed word is a changed picture."""

import pytest
import torch

from cyclediff.pets.captions import ANIMAL, COLUMNS, TEMPLATES, TRAITS, Description, sample_edits
from cyclediff.pets.render import FACTORS, SPECIES, render, sample_factors

FACTOR = {factor.name: factor for factor in FACTORS}


def described(n: int, seed: int = 0) -> list[Description]:
    factors = sample_factors(n, torch.Generator().manual_seed(seed))
    return [Description(vector, SPECIES[i % 2]) for i, vector in enumerate(factors)]


def test_words_cut_each_factor_into_equal_bins():
    for trait in TRAITS:
        words = [d.words()[trait.name] for d in described(6000)]
        assert set(words) == set(trait.words)
        for word in trait.words:
            assert words.count(word) == pytest.approx(6000 / len(trait.words), rel=0.1)


def test_hue_words_are_centred_on_their_hues():
    for turn, word in ((0.0, "pink"), (0.98, "pink"), (1 / 6, "ginger"), (0.5, "teal"), (4 / 6, "blue")):
        factors = torch.tensor([0.0, 0.0, 1.0, 0.0, turn, 0.5, turn, 0.5, 0.0, 0.0])
        words = Description(factors, "cat").words()
        assert words["fur"] == word
        assert words["background"] == ("orange" if word == "ginger" else word)


@pytest.mark.parametrize("trait", TRAITS, ids=lambda trait: trait.name)
def test_a_word_moves_one_factor_to_the_same_place_of_another_bin(trait):
    factor, column = FACTOR[trait.factor], COLUMNS[trait.factor]
    width = (factor.high - factor.low) / len(trait.words)
    for d in described(60):
        for word in trait.words:
            moved = d.with_word(trait.name, word)
            assert moved.words() == d.words() | {trait.name: word}
            difference = moved.factors - d.factors
            others = torch.arange(len(FACTORS)) != column
            assert difference[others].abs().max() == 0
            assert (difference[column] / width).sub((difference[column] / width).round()).abs() < 1e-4
            assert factor.low - 1e-5 <= moved.factors[column] <= factor.high + 1e-5
            assert torch.allclose(moved.with_word(trait.name, d.words()[trait.name]).factors, d.factors, atol=1e-5)


def test_the_animal_is_a_word_too():
    d = described(1)[0]
    assert d.with_word(ANIMAL, "dog") == Description(d.factors, "dog")
    with pytest.raises(ValueError, match=r"animal can be one of \('cat', 'dog'\); got 'horse'"):
        d.with_word(ANIMAL, "horse")
    with pytest.raises(ValueError, match="got 'crimson'"):
        d.with_word("fur", "crimson")


def test_edits_change_one_word_and_take_turns():
    factors = sample_factors(100, torch.Generator().manual_seed(3))
    edits = sample_edits(factors, torch.Generator().manual_seed(4))
    assert {edit.trait for edit in edits} == {ANIMAL, *(trait.name for trait in TRAITS)}
    for edit in edits:
        before, after = edit.source_text.split(), edit.target_text.split()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert any(edit.source_text == edit.source.caption(template) for template in TEMPLATES)
        seen = [render(d.factors[None], d.species, 32) for d in (edit.source, edit.target)]
        assert (seen[0] - seen[1]).abs().max() > 0.05
    again = sample_edits(factors, torch.Generator().manual_seed(4))
    assert [edit.target_text for edit in again] == [edit.target_text for edit in edits]
