"""Folders of images to numbers: unpaired translations, edits, and the judge of pets."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data.images import to_uint8
from cyclediff.pets.captions import sample_edits
from cyclediff.pets.folders import prepare_pets
from cyclediff.pets.render import render, sample_factors
from eval.edits import Edit, read_edits
from eval.evaluate import evaluate as score
from eval.metrics.clip import ClipScorer
from eval.metrics.pets import DOMAIN, PetsJudge, attribute_error, edit_error, kept_error, pets_judge
from eval.protocols import Protocol

JUDGE = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights" / "judge.safetensors"
PETS = Protocol("pets/2", 64, "bilinear", pets_judge(str(JUDGE)), "pets-dog", JUDGE)


def evaluate(*arguments):
    scores = score(*arguments)
    return scores.metrics, scores.rows


def test_attribute_error_of_known_differences():
    a = torch.zeros(3, 18, dtype=torch.float64)
    a[:, 7::2] = 1.0  # every hue's cosine: turn 0
    b = a.clone()
    b[1, 0] = 2.0  # one scalar off by its whole range
    b[2, 7:9] = torch.tensor([-1.0, 0.0])  # one hue off by half a turn
    assert torch.allclose(attribute_error(a, b), torch.tensor([0, 0.1, 0.1], dtype=torch.float64))


def test_evaluating_the_truth_gives_perfect_scores(tmp_path):
    """The true dogs, scored as translations of the cats: perfect against themselves, and not against the cats."""
    cats, dogs = (prepare_pets(species, "source", 12, 64, tmp_path) for species in ("cat", "dog"))
    metrics, rows = evaluate(dogs.path, cats.path, dogs.path, dogs.path, PETS)
    assert set(rows) == set(dogs.ids)
    assert metrics["ground_truth_psnr"]["value"] == 100
    assert metrics["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert metrics["psnr"]["value"] < 30
    assert (metrics["fid"]["n"], metrics["fid"]["n_reference"]) == (12, 12)
    for entry in metrics.values():
        if entry["ci95"]:
            assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    other, _ = evaluate(cats.path, cats.path, dogs.path, None, PETS)
    assert (other["psnr"]["value"], other["l2"]["value"], other["attribute_error"]["value"]) == (100, 0, 0)
    assert other["ssim"]["value"] == pytest.approx(1)
    assert other["fid"]["value"] > 1
    assert "ground_truth_psnr" not in other


def test_one_image_leaves_the_distances_empty(tmp_path):
    cats, dogs = (prepare_pets(species, "source", count, 64, tmp_path) for species, count in (("cat", 1), ("dog", 5)))
    metrics, _ = evaluate(cats.path, cats.path, dogs.path, None, PETS)
    assert metrics["fid"]["value"] is metrics["kid"]["value"] is None
    assert metrics["psnr"]["value"] == 100


def test_judge_shapes():
    features_, outputs = PetsJudge()(torch.zeros(2, 3, 64, 64))
    assert features_.shape == (2, 64)
    assert outputs.shape == (2, 18)


# zero-shot edits


CLIP_WORDS = {"a cat": 0.0, "a dog": 1.0}


class Colours:
    """A CLIP whose features are mean red, green and blue, each one apart from 0.1; a text's are of a grey or a red."""

    def encode_image(self, batch):
        return batch.mean(dim=(2, 3)) + 0.1

    def encode_text(self, batch):
        return torch.cat([batch + 0.5, torch.full((len(batch), 2), 0.5)], dim=1)


def colour_scorer():
    return ClipScorer(
        "colours/png",
        lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255,
        Colours(),
        lambda texts: torch.tensor([[CLIP_WORDS[text]] for text in texts]),
    )


def write_edits(folder, rows):
    lines = ["id,source,target,category,mask", *rows]
    (folder / "edits.csv").write_text("\n".join(lines) + "\n")


def square(folder, stem, colour, size=16):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(colour, tuple) else "L", (size, size), colour).save(folder / f"{stem}.png")


GREY, RED = (100, 100, 100), (200, 100, 100)


@pytest.fixture
def editing(tmp_path):
    """Three edits of grey squares: one done, one not begun, one that wants no change; the second and third masked."""
    source, generated = tmp_path / "source", tmp_path / "generated"
    for stem in "abc":
        square(source, stem, GREY)
        square(generated, stem, GREY if stem == "b" else RED)
    square(generated, "other", GREY)
    square(source / "masks", "b", 255)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(source / "masks" / "c.png")
    write_edits(source, ["a,a cat,a dog,animal,", "b,a cat,a dog,,masks/b.png", "c,a cat,a cat,,masks/c.png"])
    return source, generated


def test_edits_are_read(editing):
    source, generated = editing
    assert read_edits(source) == {
        "a": Edit("a cat", "a dog", "animal", None),
        "b": Edit("a cat", "a dog", "", source / "masks" / "b.png"),
        "c": Edit("a cat", "a cat", "", source / "masks" / "c.png"),
    }
    assert read_edits(generated) == {}
    (source / "edits.csv").write_text("id,source,mask\na,b,\n")
    with pytest.raises(ValueError, match=r"edits.csv has no column target, category; its columns must be id, "):
        read_edits(source)


def test_texts_may_have_commas_quotes_and_letters_of_any_script(tmp_path):
    texts = ("a cat, asleep", 'a "dog", æøå 熊')
    with (tmp_path / "edits.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("mask", "id", "category", "source", "target"), ("", "x", "", *texts)])
    assert read_edits(tmp_path) == {"x": Edit(*texts, "", None)}


def test_edits_are_scored(editing):
    source, generated = editing
    protocol = Protocol("x/1", 16, "bicubic", None, "", clip=colour_scorer())
    metrics, rows = evaluate(generated, source, None, None, protocol)
    image, before = ((torch.tensor([colour]) / 255 + 0.1).double() for colour in (RED, GREY))
    text, old = torch.tensor([[1.5, 0.5, 0.5]]).double(), torch.tensor([[0.5, 0.5, 0.5]]).double()
    unit = torch.nn.functional.normalize
    agreement = torch.cosine_similarity(unit(image) - unit(before), unit(text) - unit(old)).item()
    assert [rows[stem]["dclip"] for stem in "abc"] == [pytest.approx(agreement, abs=1e-6), 0, None]
    assert rows["a"]["clip"] == pytest.approx(torch.cosine_similarity(image, text).item(), abs=1e-6)
    assert set(rows) == set("abc")
    assert metrics["dclip"]["n"] == 2
    assert metrics["dclip"]["value"] == pytest.approx(agreement / 2, abs=1e-6)
    assert (
        metrics["dclip"]["protocol"]
        == "dclip/colours/png/png16/bicubic/per-image-mean/unchanged-image=0/unchanged-text=none"
    )
    assert metrics["clip"]["protocol"] == "clip/colours/png/png16/bicubic/per-image-mean/vs-target-text"
    assert metrics["clip"]["higher_is_better"]
    assert set(metrics) == {"psnr", "ssim", "l2", "clip", "dclip"} | {
        f"background_{k}" for k in ("psnr", "ssim", "mse")
    }


def test_an_image_without_background_has_no_value(editing):
    source, generated = editing
    metrics, rows = evaluate(generated, source, None, None, Protocol("x/1", 16, "bicubic", None, ""))
    for key in ("background_psnr", "background_ssim", "background_mse"):
        assert [rows[stem][key] is None for stem in "abc"] == [True, True, False]
        assert (metrics[key]["value"], metrics[key]["n"]) == (rows["c"][key], 1)
    assert rows["c"]["background_mse"] == pytest.approx(((100 / 255) ** 2) / 3 / 4)  # red only, a quarter of the width
    Image.new("L", (16, 16), 255).save(source / "masks" / "c.png")
    metrics, _ = evaluate(generated, source, None, None, Protocol("x/1", 16, "bicubic", None, ""))
    assert (metrics["background_psnr"]["value"], metrics["background_psnr"]["n"]) == (None, 0)
    assert metrics["background_psnr"]["ci95"] is None
    assert metrics["psnr"]["n"] == 3


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s, _: Image.new("L", (8, 16), 255).save(s / "masks" / "c.png"), "has 8×16 pixels, its image 16×16"),
        (lambda s, _: write_edits(s, ["a,a cat,a dog,,"]), r"edits.csv has no line for 2 images \(b, …\)"),
        (lambda _, g: [path.unlink() for path in g.glob("?.png")], "there is nothing to score"),
    ],
    ids=["size of a mask", "no text", "no image"],
)
def test_mistakes_in_edits_get_a_sentence(editing, spoil, match):
    spoil(*editing)
    with pytest.raises(ValueError, match=match):
        evaluate(editing[1], editing[0], None, None, Protocol("x/1", 16, "bicubic", None, ""))


def test_texts_change_nothing_else(editing):
    source, generated = editing
    with_texts, _ = evaluate(
        generated, source, None, None, Protocol("x/1", 16, "bicubic", None, "", clip=colour_scorer())
    )
    (source / "edits.csv").unlink()
    without, _ = evaluate(generated, source, None, None, Protocol("x/1", 16, "bicubic", None, "", clip=colour_scorer()))
    assert without == {key: with_texts[key] for key in ("psnr", "ssim", "l2")}


def test_edit_and_kept_error_of_known_differences():
    a = torch.zeros(5, 18, dtype=torch.float64)
    a[:, 7::2] = 1.0  # every hue's cosine: turn 0, and 0 of the degradations
    a[:, DOMAIN] = -30.0  # surely a cat
    b = a.clone()
    b[0, DOMAIN] = 30.0  # surely a dog
    b[1, 2] = 0.5  # size, by a quarter of its range
    b[2, 7:9] = torch.tensor([0.0, 1.0])  # fur, by half of half a turn
    b[3, 9:11] = torch.tensor([-1.0, 0.0])  # background, by half a turn
    b[4, 6] = -2.0  # gaze, by its range
    categories = ["animal", "size", "fur", "background", "gaze"]
    amounts = torch.tensor([1, 0.25, 0.5, 1, 1], dtype=torch.float64)
    assert torch.allclose(edit_error(a, b, categories), amounts)
    assert torch.allclose(kept_error(a, b, categories), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    others = [*categories[1:], categories[0]]
    assert torch.allclose(edit_error(a, b, others), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(kept_error(a, b, others), amounts / 10)
    with pytest.raises(ValueError, match="changes one of size, gaze, fur, background, animal; got 'hat'"):
        edit_error(a, b, ["hat"] * 5)


def test_the_judge_distinguishes_a_true_edit_from_none(tmp_path):
    """Every kind of edit, rendered: the true result and the unchanged source, each scored as if it were the result."""
    drawn = sample_factors(25, torch.Generator().manual_seed(9))
    edits = sample_edits(drawn, torch.Generator().manual_seed(10))
    for part in ("source", "target"):
        (tmp_path / part).mkdir()
        for i, edit in enumerate(edits):
            what = getattr(edit, part)
            image = to_uint8(render(what.factors[None], what.species))[0]
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / part / f"{i:02d}.png")
    rows = [f'{i:02d},"{e.source_text}","{e.target_text}",{e.trait},' for i, e in enumerate(edits)]
    write_edits(tmp_path / "source", rows)
    source, target = tmp_path / "source", tmp_path / "target"
    true, true_rows = evaluate(target, source, None, target, PETS)
    none, none_rows = evaluate(source, source, None, target, PETS)
    assert "attribute_error" not in true
    assert true["edit_error"]["value"] < 0.1
    assert none["edit_error"]["value"] > 0.3
    assert true["kept_error"]["value"] < 0.08
    assert none["kept_error"]["value"] == 0
    for category in {edit.trait for edit in edits}:
        own = [f"{i:02d}" for i, edit in enumerate(edits) if edit.trait == category]
        mean = {key: sum(r[i]["edit_error"] for i in own) / len(own) for key, r in (("t", true_rows), ("n", none_rows))}
        assert mean["t"] < 0.1
        assert mean["n"] > 0.25, category
        assert sum(true_rows[i]["kept_error"] for i in own) / len(own) < 0.1
    assert true["edit_error"]["protocol"].endswith("/per-image-mean/edited-attribute/vs-ground-truth")
    assert true["kept_error"]["protocol"].endswith("/per-image-mean/other-attributes/vs-source")
    assert "ground_truth_psnr" in true
