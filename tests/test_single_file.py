"""Single files of Stable Diffusion and SDXL, in the names of their authors, against the folders they are made of."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.load_text import load_text_to_image

from .tiny_backbones import sd3, sdxl
from .tiny_sd import stable_diffusion

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {  # of the tiny UNets: two levels, one block each
    "time_embedding.linear_": {"1": "time_embed.0", "2": "time_embed.2"},
    "add_embedding.linear_": {"1": "label_emb.0.0", "2": "label_emb.0.2"},
    "conv_": {"in": "input_blocks.0.0", "norm_out": "out.0", "out": "out.2"},
    "down_blocks.0.": {"resnets.0": "input_blocks.1.0", "attentions.0": "input_blocks.1.1"},
    "down_blocks.0.downsamplers.": {"0.conv": "input_blocks.2.0.op"},
    "down_blocks.1.": {"resnets.0": "input_blocks.3.0"},
    "mid_block.": {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"},
    "up_blocks.0.": {"resnets.0": "output_blocks.0.0", "resnets.1": "output_blocks.1.0"},
    "up_blocks.0.upsamplers.": {"0.conv": "output_blocks.1.1.conv"},
    "up_blocks.1.": {f"{kind}.{i}": f"output_blocks.{2 + i}.{k}" for i in range(2)
                     for k, kind in enumerate(("resnets", "attentions"))},
}  # fmt: skip
PLACES = {place + name: own for place, names in UNET.items() for name, own in names.items()}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


def of_unet(key: str) -> str:
    place = max((p for p in PLACES if key.startswith(f"{p}.")), key=len)
    rest = key.removeprefix(f"{place}.")
    layer, _, end = rest.partition(".")
    return f"model.diffusion_model.{PLACES[place]}.{f'{RESNET[layer]}.{end}' if 'resnets' in place else rest}"


def of_vae(key: str) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{2 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0." in key:
        start, _, rest = key.partition("mid_block.attentions.0.")
        layer, _, end = rest.rpartition(".")
        key = f"{start}mid.attn_1.{ATTENTION[layer]}.{end}"
    return f"first_stage_model.{key}"


def of_open_clip(state: dict, prefix: str) -> dict:
    """OpenCLIP's names: one matrix for queries, keys and values, and the projection the other way round."""
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    found = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(), "logit_scale": torch.tensor(4.6),
    }  # fmt: skip
    for end in ("weight", "bias"):
        found[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
        for i in range(3):
            own, layer = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            parts = [state[f"{own}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{layer}.attn.in_proj_{end}"] = torch.cat(parts)
            found |= {f"{layer}.{new}.{end}": state[f"{own}.{old}.{end}"] for old, new in names.items()}
    return {prefix + key: value for key, value in found.items()}


def original(folder) -> dict[str, torch.Tensor]:
    """The tensors of a folder under the names of the authors' code."""
    parts = {
        part: load_file(next((folder / part).glob("*.safetensors")))
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        if (folder / part).is_dir()
    }
    found = {of_unet(key): value for key, value in parts["unet"].items()}
    for key, value in parts["vae"].items():
        conv = "attentions" in key and key.endswith("weight") and "group_norm" not in key
        found[of_vae(key)] = value[..., None, None] if conv else value
    xl = "text_encoder_2" in parts
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    text = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in parts["text_encoder"].items()}
    found |= {prefix + key: value for key, value in text.items()}
    if xl:
        found |= of_open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    found[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(24)[None]
    return found | {"alphas_cumprod": torch.ones(1000)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in (("sd", stable_diffusion), ("sdxl", sdxl))}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_file_equals_the_folder(folders, tmp_path, kind, suffix):
    folder, file = folders[kind], tmp_path / f"model.{suffix}"
    state = {key: value.contiguous() for key, value in original(folder).items()}
    save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state}, file)
    ours, theirs = load_text_to_image(str(file), config=str(folder)), load_text_to_image(str(folder))
    networks = [(model.module, model.vae, *(e.network for e in model.encoders)) for model in (ours, theirs)]
    for mine, other in zip(*networks, strict=True):
        assert mine is not other
        state = other.state_dict()
        assert mine.state_dict().keys() == state.keys()
        assert all(value.equal(state[key]) for key, value in mine.state_dict().items())
    x0 = ours.encode(IMAGE, Noise(1, ["a"]))
    assert x0.equal(theirs.encode(IMAGE, Noise(1, ["a"])))
    level = ours.schedule.at(500)
    assert level == theirs.schedule.at(500)
    seen, wanted = (model.condition(["a small cat"], 3.0)(x0, level).eps for model in (ours, theirs))
    assert torch.allclose(seen, wanted, atol=1e-5)
    assert ours.decode(x0).equal(theirs.decode(x0))


def dropped(state, part):
    key = next(key for key in state if part in key)
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: dropped(s, "input_blocks.3.0.in_layers.2"), "do not fit its config.json: 1 missing"),
    (lambda s: dropped(s, "middle_block.0.emb_layers"), "do not fit its config.json: 1 missing"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith("first_stage")}, "holds no weights of vae"),
    (lambda s: {k: v for k, v in s.items() if "diffusion_model" not in k}, "is no whole checkpoint"),
    (lambda s: s | {"model.diffusion_model.control.0.weight": torch.ones(7)}, "of which diffusers' converter uses"),
    (lambda s: s | {"lora.up.weight": torch.ones(7)}, r"1 tensors that are not known here \(lora.up.weight\)"),
    (lambda s: s | {"model.diffusion_model.out.2.bias": torch.ones(5)}, "1 of another shape"),
    (lambda s: s | {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "NaN"),
])  # fmt: skip
def test_a_file_that_does_not_fit(folders, tmp_path, change, message):
    folder = folders["sd"]
    state = {key: value.contiguous() for key, value in change(original(folder)).items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_text_to_image(str(tmp_path / "model.safetensors"), config=str(folder))
    assert "\n" not in str(caught.value)


def test_what_is_said_without_a_configuration_and_with_a_wrong_one(folders, tmp_path, monkeypatch):
    folder, file = folders["sd"], tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in original(folder).items()}, file)
    with pytest.raises(UserError, match=r"name a folder or hub id of its kind .*: task\.model\.config=FOLDER"):
        load_text_to_image(str(file))
    with pytest.raises(UserError, match="has its own; leave it out"):
        load_text_to_image(str(folder), config=str(folder))
    with pytest.raises(UserError, match="has no variants; leave variant out"):
        load_text_to_image(str(file), config=str(folder), variant="fp16")
    with pytest.raises(UserError, match="single files are read of Stable Diffusion 1, 2 and XL only"):
        load_text_to_image(str(file), config=str(sd3(tmp_path / "sd3", with_t5=False)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be downloaded from the hub") as caught:
        load_text_to_image(str(file), config="stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert "\n" not in str(caught.value)
