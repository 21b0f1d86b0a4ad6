"""Words of each entry of a list for LocalBlend and re-weighting: as PnPInversion's code runs PIE-Bench."""

from dataclasses import replace

import pytest
import torch

from baselines.direct_inversion import DirectInversion
from cyclediff.attention_control import AttentionControl
from cyclediff.data.folders import Folder
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.local_blend import LocalBlend
from cyclediff.models.load_text import load_text_to_image
from cyclediff.studies.candidates import Edits, edit
from cyclediff.studies.edit_checks import listed_words
from cyclediff.studies.selection import Grid

from .nets import golden
from .test_golden_direct_inversion import CASES, NAME, control, sides
from .tiny_sd import stable_diffusion

TEXTS = [
    ("a small cat on a blue background", "a small dog on a blue background"),
    ("a small cat on a blue background", "a small dog on a blue background"),  # the same texts with other words
    ("a red house, far away", "a green house, far away"),
    ("a red house, far away", "a green house, far away"),
]
WORDS = [("cat", "dog"), ("blue", "background"), ("red", "green"), ("", "")]
GRID = Grid(1, (1.0,), (0,), (5.0,))
LISTED = AttentionControl(0.4, 0.6, "refine", weights="listed", max_queries=1024, blend="listed")


def test_official_numbers():
    """The official run with a blended pair whose second word counts twice."""
    config = CASES["b"]
    source, target = config["blend"]
    assert (config["eq"]["words"], config["eq"]["values"]) == (target, [2])
    rule = LocalBlend(listed=True, threshold=config["th"])
    method = DirectInversion(config["N"], attention=replace(control("b"), weights="listed", blend=rule))
    denoisers = [
        replace(side, prompts=tuple(replace(prompt, blended=word) for prompt in side.prompts))
        for side, (word,) in zip(sides("b"), (source, target), strict=True)
    ]
    found = method(golden(NAME)["b.x0"].float(), *denoisers, Noise(1, ["a"]))
    expected = golden(NAME)["b.out"][1:]
    assert (found - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())


def test_published_rule():
    """Of run_editing_p2p.py: thresholds of 0.3, nothing in the first 10 of 50 calls, two and three layers."""
    rule = LocalBlend(listed=True)
    assert (rule.threshold, rule.subtract_threshold, int(rule.start * 50)) == (0.3, 0.3, 10)
    assert (rule.down, rule.up) == ((2, 4), (0, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_text_to_image(str(stable_diffusion(tmp_path_factory.mktemp("sd"))))


def edits(rows, words=None) -> Edits:
    x0 = torch.randn(len(TEXTS), 4, 8, 8, generator=torch.Generator().manual_seed(6))
    return Edits([str(i) for i in rows], [TEXTS[i] for i in rows], x0[rows], seed=1, words=words)


def edited(model, control, found):
    units = [(image, GRID.candidates()[0]) for image in range(len(found.ids))]
    return edit(DirectInversion(T=8, attention=control), model, found, GRID, units, False)


def test_each_pair_of_a_batch_has_its_own_words(model):
    """The same as each pair alone under settings that name its words, or none."""
    rule = {"threshold": 0.9, "listed": True}
    together = edited(model, replace(LISTED, blend=rule), edits([0, 1, 2, 3], WORDS))
    alone = []
    for i, (source, target) in enumerate(WORDS):
        blend = {"threshold": 0.9, "source": source, "target": target} if source else None
        own = replace(LISTED, weights={target: 2} if target else None, blend=blend)
        alone.append(edited(model, own, edits([i]))[0])
        assert (together[i] - alone[i]).abs().max() < 2e-4
    plain = edited(model, replace(LISTED, weights=None, blend=None), edits([0, 1, 2, 3]))
    assert all((plain[i] - alone[i]).abs().max() > 1e-2 for i in range(3))
    assert (plain[3] - together[3]).abs().max() < 2e-4


def test_the_second_word_counts_twice(model):
    found = edits([0], [("cat", "dog")])
    weighted = edited(model, replace(LISTED, blend=None), found)
    assert weighted.equal(edited(model, replace(LISTED, blend=None, weights={"dog": 2}), edits([0])))
    assert not weighted.equal(edited(model, replace(LISTED, blend=None, weights={"dog": 1}), edits([0])))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"blend": "list"}, "blend must be null, listed, or settings"),
        ({"weights": "list"}, "weights must give words and numbers"),
        ({"blend": {"listed": True, "source": "cat"}}, "so it has none of its own"),
        ({"blend": {"listed": "yes"}}, "blend.listed must be true or false; got 'yes'"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        AttentionControl(**settings)


def prepared(tmp_path, content: str | None) -> Folder:
    if content is not None:
        (tmp_path / "blended_words.json").write_text(content)
    return Folder(tmp_path, ("a", "b"), "my list", "d")


def test_a_list_without_words(tmp_path):
    with pytest.raises(UserError) as caught:
        listed_words(LISTED.listed, prepared(tmp_path, None), {})
    assert str(caught.value) == (
        "method.attention.weights=listed with method.attention.blend=listed asks for blended words, and my list names "
        "none; give PIE-Bench's mapping_file.json, or method.attention.weights=null method.attention.blend=null"
    )


def test_words_that_are_in_no_text_are_named(tmp_path):
    texts = {"a": ("a Cat, far away", "a dog"), "b": ("one", "two")}
    folder = prepared(tmp_path, '{"a": ["cat", "dogs"]}')
    with pytest.warns(UserWarning, match="blended words that are not in their text do nothing: 'dogs' of a$"):
        assert listed_words(["blend"], folder, texts) == {"a": ("cat", "dogs")}
