"""Folders of SDXL, SD 3 and FLUX that are not whole, of another kind, or do not fit: one sentence each."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cyclediff.errors import UserError
from cyclediff.models.load_text import load_text_to_image

from .tiny_backbones import MAKERS, clip

WEIGHTS = "diffusion_pytorch_model.safetensors"
OTHER_KINDS = (
    "FluxKontextPipeline", "FluxFillPipeline", "FluxInpaintPipeline", "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3InpaintPipeline", "PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    names = ("sdxl", "sd3", "flux_dev", "flux_schnell")
    return {name: MAKERS[name](tmp_path_factory.mktemp(name)) for name in names}


def settings(part: Path, **more) -> None:
    found = json.loads(part.read_text())
    part.write_text(json.dumps({key: value for key, value in (found | more).items() if value != "REMOVED"}))


def tensors(file: Path, change) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def replaced_clip(folder: Path, number: str, width: int, projected: bool) -> None:
    shutil.rmtree(folder / f"text_encoder{number}")
    shutil.rmtree(folder / f"tokenizer{number}")
    clip(folder, number, width, projected)


BROKEN = [
    ("sdxl", lambda f: shutil.rmtree(f / "text_encoder_2"), "/text_encoder_2 is not there; get the whole model again"),
    ("sdxl", lambda f: settings(f / "model_index.json", text_encoder=[None, None]),
     "has no text_encoder, which is a CLIPTextModel; get the whole model"),
    ("sdxl", lambda f: settings(f / "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"]),
     "has a T5EncoderModel as text_encoder_2; a CLIPTextModelWithProjection belongs there"),
    ("sdxl", lambda f: settings(f / "model_index.json", requires_aesthetics_score=True),
     "is SDXL's refiner, which reads aesthetic scores; choose the base model"),
    ("sdxl", lambda f: replaced_clip(f, "_2", 16, True), "reads texts of 40 numbers a token, and .* gives 32"),
    ("sdxl", lambda f: (f / "tokenizer_2" / "tokenizer_config.json").unlink(), "it says how texts are padded"),
    ("sdxl", lambda f: tensors(f / "unet" / WEIGHTS, lambda s: s.pop("add_embedding.linear_1.bias")), "1 missing"),
    ("sdxl", lambda f: tensors(f / "text_encoder_2/model.safetensors", lambda s: s.pop("text_projection.weight")),
     r"1 missing \(text_projection.weight\)"),
    ("sd3", lambda f: shutil.rmtree(f / "text_encoder_3"), "/text_encoder_3 is not there; get the whole model again"),
    ("sd3", lambda f: settings(f / "model_index.json", tokenizer_3=[None, None]),
     "has no tokenizer_3, which is a T5Tokenizer; get the whole model"),
    ("sd3", lambda f: tensors(f / "transformer" / WEIGHTS, lambda s: s.update(more=torch.ones(2))),
     r"1 unexpected \(more\)"),
    ("sd3", lambda f: replaced_clip(f, "_2", 40, True),
     "reads texts of 48 numbers a token, fewer than the 56 of both CLIPs"),
    ("sd3", lambda f: settings(f / "vae/config.json", shift_factor=None), "does not state shift_factor"),
    ("sd3", lambda f: settings(f / "scheduler/scheduler_config.json", use_dynamic_shifting=True),
     "sets use_dynamic_shifting, which models here do not have"),
    ("sd3", lambda f: tensors(f / "vae" / WEIGHTS, lambda s: s["decoder.conv_in.bias"].fill_(torch.nan)), "NaN"),
    ("flux_dev", lambda f: shutil.rmtree(f / "transformer"), "/transformer is not there; get the whole model again"),
    ("flux_dev", lambda f: settings(f / "model_index.json", text_encoder_2=[None, None]),
     "has no text_encoder_2, which is a T5EncoderModel; get the whole model"),
    ("flux_dev", lambda f: tensors(f / "text_encoder_2/model.safetensors", lambda s: s.pop("shared.weight")),
     "missing"),
    ("flux_dev", lambda f: replaced_clip(f, "", 24, False), "reads texts of 16 numbers a prompt, and .* gives 24"),
    ("flux_dev", lambda f: settings(f / "scheduler/scheduler_config.json", time_shift_type="linear"),
     "shifts its levels in the linear way, and models here in the exponential one"),
    ("flux_dev", lambda f: settings(f / "scheduler/scheduler_config.json", base_shift="REMOVED"),
     "does not state base_shift; add the value that the network was trained with"),
    ("flux_dev", lambda f: settings(f / "scheduler/scheduler_config.json", base_image_seq_len=4096),
     "states base_image_seq_len as 4096, which must be below its max_image_seq_len, 4096"),
    ("flux_dev", lambda f: settings(f / "transformer/config.json", _class_name="SD3Transformer2DModel"),
     "is a SD3Transformer2DModel; a FluxTransformer2DModel belongs there"),
    ("flux_schnell", lambda f: settings(f / "transformer/config.json", guidance_embeds=True), "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "break_it", "message"), BROKEN)
def test_broken_folders_get_a_sentence(folders, tmp_path, name, break_it, message):
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_text_to_image(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_are_refused_by_name(folders, tmp_path, name):
    folder = Path(shutil.copytree(folders["flux_dev"], tmp_path / "copy"))
    settings(folder / "model_index.json", _class_name=name)
    with pytest.raises(UserError, match=f"is a {name}; the models here are one of .*FluxPipeline"):
        load_text_to_image(str(folder))


def test_a_folder_without_t5_says_so_once(tmp_path):
    folder = MAKERS["sd3_without_t5"](tmp_path)
    with pytest.warns(UserWarning, match=r"has no T5 \(text_encoder_3\); its tokens are zeros") as caught:
        model = load_text_to_image(str(folder))
    assert len(caught) == 1
    assert (model.condition(["a cat"]).context.tokens[:, 24:] == 0).all()


def test_an_image_that_is_too_large_for_sd3(folders):
    """The table of positions has 8 tokens a side here, 8 pixels each."""
    model = load_text_to_image(str(folders["sd3"]))
    assert model.for_size(64) is model
    with pytest.raises(UserError, match=r"has positions for images of up to 64 pixels; got 72, choose a smaller"):
        model.for_size(72)


def test_a_long_text_is_cut_where_the_longest_encoder_cuts_it(folders):
    """FLUX's T5 reads 512 tokens, of letters here; that CLIP reads 22 is no loss, as it only gives one vector."""
    model = load_text_to_image(str(folders["flux_dev"]))
    model.warn_of_cut("a small cat " * 10)
    with pytest.warns(UserWarning, match="the model reads 511 of the 600 tokens") as caught:
        model.warn_of_cut("abcde " * 100)
    assert str(caught[0].message).endswith("what is cut: " + repr(("abcde " * 100)[510:]))
