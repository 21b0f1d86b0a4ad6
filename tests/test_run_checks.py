"""Runs that would end in wrong pictures or in a traceback: one sentence before the slow part, or at the first image."""

import json
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from cyclediff.errors import UserError
from cyclediff.models.pixel import PixelModel
from cyclediff.models.text_to_image import TextModel
from cyclediff.studies.context import require_image_size

from .forking import finish, run
from .test_run import contents

FEW = ["steps=few", "data.limit=4", "batch_size=2"]


def refused(done) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=sdedit", "protocol.size=128"], "protocol pets/2 is for images of 64 pixels; got protocol.size=128"),
        (["method=sdedit", "protocol.size=null"], "protocol.size must be a whole number of at least 1; got None"),
        (
            ["experiment=pets_edit", "tier=few", "method=ddib", "task.size=32"],
            "task.size=32 and protocol.size=64 differ, and images are made and scored at one size; set both to it",
        ),
        (
            ["experiment=pets_edit", "tier=few", "method=ddib", "task.size=abc"],
            "error: task.size must be a whole number",
        ),
        (["method=sdedit", "method.mask=nowhere.png"], "error: method.mask=nowhere.png does not exist; name a picture"),
        (["experiment=pets_edit", "tier=few", "method=sdedit", "method.mask=m.png"], "a mask is for models on pixels"),
    ],
)
def test_refused_before_the_slow_part(arguments, message, tmp_path):
    done = run(*arguments, *FEW[1:], f"paths.outputs={tmp_path}")
    assert message in refused(done)
    assert not [*tmp_path.rglob("progress.jsonl")]


def test_a_size_that_a_network_cannot_halve(capsys):
    model = PixelModel(lambda x, level: (x, x), 64, 16)
    with pytest.raises(UserError) as refusal:
        require_image_size(model, 33, "the target model", "protocol.size")
    assert str(refusal.value) == (
        "the target model works on images whose sides are multiples of 16; got protocol.size=33, choose 32 or 48"
    )
    require_image_size(model, 48, "the target model", "protocol.size")
    assert capsys.readouterr().out == (
        "note: the target model was trained on images of 64 pixels, and protocol.size=48\n"
    )


@dataclass
class Spoiled:
    """A codec that gives NaN in the fourth image that it decodes, and is right else."""

    model: type

    def __call__(self):
        decode, made = self.model.decode, []

        def spoiled(model, x0):
            images = decode(model, x0)
            made.extend([None] * len(images))
            if len(made) >= 4:
                images[-1, 0, 0, 0] = torch.nan
            return images

        self.model.decode = spoiled


@pytest.mark.parametrize(
    ("model", "arguments"),
    [(PixelModel, ["method=sdedit"]), (TextModel, ["experiment=pets_edit", "method=ddib", "tier=few"])],
)
def test_a_picture_that_is_not_finite(model, arguments, tmp_path):
    """The decoder alone is wrong, at the fourth image: no black PNG, no table."""
    code, printed = finish([*arguments, *FEW, f"paths.outputs={tmp_path}"], tmp_path / "log", Spoiled(model))
    assert code == 2, printed
    assert "the decoder gave NaN or Inf for image " in printed
    (folder,) = [path.parent for path in tmp_path.glob("*/*/run.json")]
    assert json.loads((folder / "run.json").read_bytes())["status"] == "failed"
    assert len(list((folder / "images").glob("*.png"))) < 4
    assert not list(folder.rglob("metrics.json"))


def test_a_mask_keeps_the_source(tmp_path):
    """Where the mask is white the picture is the source with the noise of the last level; its content has a folder."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "m.png")
    arguments = ["method=sdedit", f"method.mask={tmp_path / 'm.png'}", *FEW, f"paths.outputs={tmp_path / 'out'}"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    (folder,) = [path.parent for path in tmp_path.glob("out/*/*/run.json")]
    from cyclediff.data.images import read_batch

    names = sorted(path.name for path in (folder / "images").glob("*.png"))
    made = read_batch([folder / "images" / name for name in names]).float()
    (prepared,) = (tmp_path / "out").glob("*/data/pets-cat-source-*")
    source = read_batch([next(prepared.rglob(name)) for name in names]).float()
    assert (made - source)[..., :32].abs().mean() < 4  # the noise of level 0 has a standard deviation of 1.3 in 255
    assert (made - source)[..., 32:].abs().mean() > 12
    before = contents(folder / "images")
    mask.paste(255, (0, 0, 64, 8))
    mask.save(tmp_path / "m.png")
    assert run(*arguments).returncode == 0
    assert len(list(tmp_path.glob("out/*/*/run.json"))) == 2
    assert contents(folder / "images") == before
