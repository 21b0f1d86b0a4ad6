"""Images of any shape: data.fit=pad and native, from the picture to the network and back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.fitting import cropped, fitted, frame, label, padded
from cyclediff.data.folders import prepare_photos
from cyclediff.data.masks import draw_mask
from cyclediff.errors import UserError
from cyclediff.runtime.batches import make_all
from cyclediff.runtime.study import Execution
from cyclediff.studies.edit_checks import require_shapes, shaped_scores, square_like
from cyclediff.studies.scoring import require_sides
from cyclediff.studies.sources import Sources, require_fit
from eval.metrics.measure import columns
from eval.protocols import load_protocol
from eval.report.grid import draw_grid

from .fake_study import CPU, FakeStudy, begun
from .test_identity import CONF

SHAPES = {"a": (40, 40), "b": (48, 32), "c": (50, 37), "d": (48, 32), "e": (37, 50)}  # width, height


def picture(width, height, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pixels(path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, (name, size) in enumerate(SHAPES.items()):
        picture(*size, k).save(folder / f"{name}.png")
    return folder


def sources(photos, tmp_path, fit, size=48) -> Sources:
    prepared = prepare_photos(photos, None, size, "bicubic", tmp_path / "cache", fit)
    return Sources(prepared, None, None, None, fit=fit, size=size)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 13), (1, 5), (3, 1), (16, 7)])
def test_padding_and_back(width, height):
    """NumPy's mirror on each axis, half of it on each side; without it, each pixel is where it was."""
    image = torch.from_numpy(np.array(picture(width, height))).permute(2, 0, 1)
    found = padded(image, 23, 32)
    halves = [((whole - size) // 2, whole - size - (whole - size) // 2) for size, whole in ((height, 23), (width, 32))]
    assert found.numpy().tolist() == np.pad(image.numpy(), [(0, 0), *halves], mode="reflect").tolist()
    assert cropped(found, height, width).equal(image)
    assert padded(image, height, width).equal(image)


@pytest.mark.parametrize(("size", "expected"), [((640, 480), (64, 48)), ((30, 61), (31, 64)), ((500, 2), (64, 1))])
def test_pad_keeps_the_shape(size, expected):
    assert fitted(picture(*size), 64, "bicubic", "pad").size == expected
    assert frame(*expected[::-1], 64, 8, "pad") == (64, 64)


def test_native_keeps_every_pixel():
    image = picture(50, 37)
    assert fitted(image, 64, "bicubic", "native") is image
    assert frame(37, 50, 64, 8, "native") == (40, 56)
    assert frame(32, 48, 64, 8, "native") == (32, 48)


@pytest.mark.parametrize("fit", ["pad", "native"])
def test_from_the_folder_to_the_model_and_back(photos, tmp_path, fit):
    found = sources(photos, tmp_path, fit)
    for item, (width, height) in SHAPES.items():
        own = pixels(found.source.path / f"{item}.png")
        if fit == "native":
            assert np.array_equal(own, pixels(photos / f"{item}.png"))
        else:
            assert abs(own.shape[0] / own.shape[1] / (height / width) - 1) < 0.02
            assert max(own.shape[:2]) == 48
        seen = found.read([item], CPU, 8)
        assert not any(side % 8 for side in seen.shape[2:])
        assert seen.shape[2:] == found.frame(item, 8)
        assert np.array_equal(found.shaped(list(seen), [item])[0].permute(1, 2, 0).numpy(), own)
    if fit == "pad":
        assert found.read(list(SHAPES), CPU, 8).shape == (5, 3, 48, 48)
        assert found.kinds == {}
    else:
        assert found.kinds == {item: (height, width) for item, (width, height) in SHAPES.items()}


def test_every_fit_has_a_folder_of_its_own(photos, tmp_path):
    """Squares have the folder that they had before there was a choice: equal to none given."""
    digests = [sources(photos, tmp_path, fit).source.digest for fit in ("crop", "pad", "native")]
    assert len(set(digests)) == 3
    assert prepare_photos(photos, None, 48, "bicubic", tmp_path / "cache").digest == digests[0]


def listed(tmp_path, size=(60, 37)):
    """A list of one edit whose image is white where its mask is, in a place without symmetry."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[3:20, 25:58] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "own.csv").write_text("image,id,source,target,mask\na.png,a,a cat,a dog,m.png\n")
    return read_edit_list(tmp_path / "own.csv")


@pytest.mark.parametrize("fit", ["crop", "pad", "native"])
def test_masks_lie_on_their_images(tmp_path, fit):
    """White is where the image is white, on disk and as a model sees it."""
    folder = prepare_edits(listed(tmp_path), None, 120, "bilinear", tmp_path / "cache", fit)
    image, mask = pixels(folder.path / "a.png")[..., 0], pixels(folder.path / "masks" / "a.png")
    assert image.shape == mask.shape
    assert (np.abs(image.astype(int) - mask) > 127).mean() < 0.02  # the image is smoothed at the border
    assert 0.1 < (mask > 0).mean() < 0.6
    found = Sources(folder, None, None, None, fit=fit, size=120)
    seen = found.read(["a"], CPU, 16)[:, :1]
    drawn = found.padded(torch.from_numpy(mask)[None, None], "a", 16)
    assert drawn.shape == seen.shape
    assert ((seen.int() - drawn.int()).abs() > 127).float().mean() < 0.02


def test_masks_of_pie_bench_are_for_its_own_images(tmp_path):
    picture(512, 512).save(tmp_path / "a.png")
    picture(512, 400).save(tmp_path / "b.png")
    for fit in ("pad", "native"):
        assert draw_mask((600, 5), tmp_path / "a.png", 512, fit).size == (512, 512)
        with pytest.raises(UserError, match=r"b.png has 512×400 pixels, and PIE-Bench's masks are drawn on 512×512"):
            draw_mask((600, 5), tmp_path / "b.png", 512, fit)


def test_an_image_that_is_too_large(photos, tmp_path):
    Image.new("RGB", (2049, 20)).save(photos / "f.png")
    with pytest.raises(UserError, match=r"f.png has 2049×20 pixels, and data.fit=native takes images of up to 2048"):
        sources(photos, tmp_path, "native")
    assert pixels(sources(photos, tmp_path, "pad").source.path / "f.png").shape == (1, 48, 3)  # 0.47, at least 1


def test_a_side_that_no_metric_takes(photos, tmp_path):
    protocol = SimpleNamespace(lpips=None, pie=None, name="zero_shot/2")
    require_sides(sources(photos, tmp_path, "native"), protocol)
    Image.new("RGB", (40, 9)).save(photos / "f.png")
    with pytest.raises(UserError, match=r"1 images have sides of less than 11 pixels under .* \(f: 40×9\)"):
        require_sides(sources(photos, tmp_path, "native"), protocol)
    with pytest.raises(UserError, match=r"6 images have sides of less than 31 pixels"):
        require_sides(sources(photos, tmp_path, "pad", 30), SimpleNamespace(**vars(protocol) | {"lpips": Small()}))


class Small:
    smallest = 31


class Back(FakeStudy):
    """Gives the images back, and notes what it is asked for."""

    def __init__(self, found):
        super().__init__(found.source, None)
        self.sources, self.asked = found, []

    def read(self, ids):
        return self.sources.read(ids, CPU, 8)

    def make(self, ids, inputs, size, execution, meter):
        self.asked.append((list(ids), tuple(inputs.shape[2:])))
        return [{"images": image} for image in self.sources.shaped(list(inputs), ids)]


def test_batches_are_of_one_size(photos, tmp_path):
    """The same batches after a resume, and all images are made."""
    found = sources(photos, tmp_path, "native")
    study = Back(found)
    run = begun(tmp_path, study)
    make_all("m", study, found.source.ids, 1, run, Execution(1, 4, CPU, CPU), found.kinds)
    expected = [(["a"], (40, 40)), (["b", "d"], (32, 48)), (["c"], (40, 56)), (["e"], (56, 40))]
    assert study.asked == expected
    for item in SHAPES:
        assert np.array_equal(pixels(run.path / "images" / f"{item}.png"), pixels(photos / f"{item}.png"))
    (run.path / "images" / "d.png").unlink()
    make_all("m", study, found.source.ids, 1, run, Execution(1, 4, CPU, CPU), found.kinds)
    assert study.asked[4:] == expected[1:2]


@pytest.mark.parametrize("fit", ["pad", "native"])
def test_scores_of_candidates_are_in_the_images_own_shapes(photos, tmp_path, fit):
    """Each image with itself, in the order in which they were asked for, whatever a model was given beside it."""
    found, seen = sources(photos, tmp_path, fit), []

    def scores(ids, pictures):
        seen.append((tuple(ids), pictures.shape))
        return {"sum": pictures.double().sum((1, 2, 3))}

    order = ["b", "c", "e", "d", "a"] if fit == "pad" else ["d", "b", "d"]
    of = shaped_scores(scores, found)(order, found.read(order, CPU, 8))
    assert of["sum"].tolist() == [pixels(found.source.path / f"{item}.png").sum() for item in order]
    assert len(seen) == len({found.shapes[item] for item in order})


def test_what_is_measured_has_the_size_of_the_largest(photos, tmp_path):
    found = sources(photos, tmp_path, "native")
    assert square_like(found, 8) == 48  # of 40 × 56: 47.3
    assert square_like(found, 8, min) == 40
    assert square_like(sources(photos, tmp_path, "pad"), 8) == 48
    assert square_like(sources(photos, tmp_path, "crop"), 8) == 48


def test_models_that_cannot_take_every_size(photos, tmp_path, capsys):
    found = sources(photos, tmp_path, "native")
    model = SimpleNamespace(size=32, multiple=8, dynamic=None, backbone=SimpleNamespace(largest=None))
    require_shapes(model, found, "it")
    said = "trained on squares of 32 pixels, and the longer sides of these images have 40 to 50"
    assert said in capsys.readouterr().out
    model.backbone.largest = 48
    with pytest.raises(UserError, match="positions for images of up to 48 pixels, and c has 50×37"):
        require_shapes(model, found, "it")
    model.dynamic = "shift"
    with pytest.raises(UserError, match="noise levels of it follow the size of an image"):
        require_shapes(model, found, "it")


EDIT = ("experiment=zero_shot_sd14", "tier=single", "data.source=x.csv")
REFUSED = [
    (("experiment=zero_shot_sd14", "data.fit=whole"), "data.fit must be one of crop, pad, native; got whole"),
    (("experiment=pets_edit", "data.fit=pad"), "the images of pets are squares already; choose data.fit=crop"),
    (("experiment=pets_edit", "data.source=x.csv", "data.fit=pad"), "the judge of pets reads squares; choose"),
    (("experiment=pets_cat2dog", "data.source=x", "data.fit=pad"), "reference images of pets are squares; choose"),
    (("experiment=cat2dog", "data.fit=native"), "networks on pixels work at the size that they are for, 256;"),
    (("experiment=cat2dog", "method=sdedit", "method.mask=x.png", "data.fit=pad"), "method.mask is cut as a square"),
    (("experiment=pets_similarity", "data.fit=pad"), "study=similarity works on squares"),
    (("experiment=guidance_ffhq_clip", "data.fit=pad"), "study=guide works on squares"),
    (("experiment=pets_train_cut", "data.fit=native"), "study=train works on squares"),
    (
        (*EDIT, "method=ddib_cac", "method.attention._target_=mine.Control", "data.fit=native"),
        "only this project's attention control follows a size; choose data.fit=pad or data.fit=crop",
    ),
    ((*EDIT, "method=ledits_pp", "method.masks=intersect", "data.fit=native"), "ledits_pp chooses layers by how many"),
]


def settings(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", list(overrides))


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_is_refused(overrides, sentence):
    with pytest.raises(UserError) as caught:
        require_fit(settings(*overrides))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=cat2dog", "data.fit=pad"),
        (*EDIT, "method=ddib_cac", "data.fit=pad"),
        (*EDIT, "method=ddib_cac", "data.fit=native"),
        (*EDIT, "method=ddib", "data.fit=native"),
        (*EDIT, "method=ledits_pp", "data.fit=native"),
        ("experiment=pets_similarity",),
    ],
)
def test_what_is_not_refused(overrides):
    require_fit(settings(*overrides))


def test_numbers_say_how_images_were_prepared(tmp_path):
    """So that those of whole images never stand in a column of squares."""
    from dataclasses import replace

    clip = str(CONF.parent / "cyclediff" / "pets" / "weights" / "clip")
    protocol = replace(load_protocol("zero_shot", None, tmp_path, clip=clip), size=512)
    strings = []
    for fit in ("crop", "pad", "native"):
        shape = label(512, fit)
        found = columns([], False, replace(protocol, shape=shape, size=None if shape else 512))
        strings.append({text for _, text in found.values()})
        assert all(fit == "crop" or shape in text for text in strings[-1])
    assert not strings[0] & strings[1] | strings[1] & strings[2] | strings[0] & strings[2]


def test_a_sheet_keeps_shapes(tmp_path):
    Image.new("RGB", (100, 50), "black").save(tmp_path / "a.png")
    Image.new("RGB", (30, 90), "black").save(tmp_path / "b.png")
    sheet = np.array(draw_grid([("", tmp_path)]).convert("L"))
    dark = (sheet < 128).astype(int)
    middle = sheet.shape[1] - 6 - 128 - 3  # between the two tiles
    for part, (width, height) in ((dark[:, :middle], (128, 64)), (dark[:, middle:], (43, 128))):
        assert (part.any(0).sum(), part.any(1).sum()) == (width, height)
