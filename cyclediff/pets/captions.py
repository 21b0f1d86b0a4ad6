"""Captions of pets: factors → a caption, and a changed word → the factors of the true edited image.

A *trait* is a factor cut into equal bins, each with a word: "a small ginger cat on a teal background, looking left".
The animal is a trait as well. To change a word is to move its factor to the same place in another bin and to keep all
else, so every edit has a true result, which the renderer can draw.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cyclediff.pets.render import FACTORS, SPECIES


@dataclass(frozen=True)
class Trait:
    """What a caption says of one factor: a word per equal bin of its range."""

    name: str
    factor: str
    words: tuple[str, ...]


HUES = ("pink", "orange", "green", "teal", "blue", "purple")  # centred at 0, 60, … degrees of OKLCH
TRAITS = (
    Trait("size", "size", ("small", "big")),
    Trait("fur", "fur_hue", tuple("ginger" if word == "orange" else word for word in HUES)),
    Trait("background", "background_hue", HUES),
    Trait("gaze", "gaze", ("left", "ahead", "right")),
)
ANIMAL = "animal"
TEMPLATES = (
    "a {size} {fur} {animal} on a {background} background, looking {gaze}",
    "a picture of a {size} {fur} {animal} looking {gaze} on a {background} background",
    "{background} background, a {size} {fur} {animal} looking {gaze}",
)
SHORT = ("a {fur} {animal} on a {background} background", "a {size} {animal} looking {gaze}", "a {fur} {animal}")
COLUMNS = {factor.name: index for index, factor in enumerate(FACTORS)}


@dataclass(frozen=True)
class Description:
    """One animal of pets.

    Args:
        factors: (len(FACTORS),), see `render`.
        species: "cat" or "dog".
    """

    factors: Tensor
    species: str

    def words(self) -> dict[str, str]:
        """The word for each trait, and for the animal."""
        found = {trait.name: trait.words[_bin(trait, self.factors[COLUMNS[trait.factor]].item())] for trait in TRAITS}
        return found | {ANIMAL: self.species}

    def caption(self, template: str) -> str:
        """The template with this animal's words."""
        return template.format(**self.words())

    def with_word(self, name: str, word: str) -> "Description":
        """The same animal but for one trait: its factor is at the same place in the bin of another word.

        Raises:
            ValueError: if the trait or the word is unknown.
        """
        if name == ANIMAL and word in SPECIES:
            return replace(self, species=word)
        trait = next((trait for trait in TRAITS if trait.name == name), None)
        if trait is None or word not in trait.words:
            known = {trait.name: trait.words for trait in TRAITS} | {ANIMAL: SPECIES}
            raise ValueError(f"{name} can be one of {known.get(name, tuple(known))}; got {word!r}")
        column, factor = COLUMNS[trait.factor], FACTORS[COLUMNS[trait.factor]]
        value = self.factors[column].item()
        width = (factor.high - factor.low) / len(trait.words)
        moved = value + (trait.words.index(word) - _bin(trait, value)) * width
        factors = self.factors.clone()
        factors[column] = moved % 1.0 if factor.circular else moved
        return replace(self, factors=factors)


def _bin(trait: Trait, value: float) -> int:
    """Which word: bins of a circular factor are centred on multiples of their width, others fill the range."""
    factor, count = FACTORS[COLUMNS[trait.factor]], len(trait.words)
    place = (value - factor.low) / (factor.high - factor.low) * count
    return round(place) % count if factor.circular else min(max(int(place), 0), count - 1)


@dataclass(frozen=True)
class Edit:
    """A picture, a word of its caption to change, and what is then true.

    Args:
        source: what is on the picture.
        target: what is on the true edited picture.
        trait: the name of the trait that changes.
        source_text: caption of the source.
        target_text: the same caption with one other word.
    """

    source: Description
    target: Description
    trait: str
    source_text: str
    target_text: str


def sample_edits(factors: Tensor, generator: torch.Generator) -> list[Edit]:
    """One edit for each factor vector (n, len(FACTORS)); traits take turns, animals, words and templates are drawn."""
    names = [ANIMAL, *(trait.name for trait in TRAITS)]
    choices = {trait.name: trait.words for trait in TRAITS} | {ANIMAL: SPECIES}

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    edits = []
    for i, vector in enumerate(factors):
        source, name = Description(vector, SPECIES[draw(2)]), names[i % len(names)]
        others = [word for word in choices[name] if word != source.words()[name]]
        target = source.with_word(name, others[draw(len(others))])
        template = TEMPLATES[draw(len(TEMPLATES))]
        edits.append(Edit(source, target, name, source.caption(template), target.caption(template)))
    return edits
