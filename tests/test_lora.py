"""task.model.lora: a LoRA in the weights of a network, by its formula and against peft."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from cyclediff.errors import UserError
from cyclediff.models.load_text import load_text_to_image
from cyclediff.studies.requirements import find_weights, fingerprints

from .tiny_backbones import MAKERS

LAYERS = {
    "sdxl": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    "sd3": ("transformer", "transformer_blocks.0.attn.to_q"),
    "flux_dev": ("transformer", "single_transformer_blocks.0.proj_mlp"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: MAKERS[name](tmp_path_factory.mktemp(name)) for name in LAYERS}


def weights(model, name) -> torch.Tensor:
    return model.module.get_submodule(LAYERS[name][1]).weight


def file(path, weight, name="sdxl", rank=4, metadata=None, **more):
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, weight.shape[1]), (len(weight), rank)))
    place = ".".join(LAYERS[name])
    stated = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up, **more}, path, stated)
    return up @ down


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8, 2.0)])
@pytest.mark.parametrize("name", LAYERS)
def test_the_formula(folders, tmp_path, name, alpha, scale):
    """W + (alpha / r) B A in one layer, and the others as they were; loaded without it, the model has none of it."""
    before, path = load_text_to_image(str(folders[name])), tmp_path / "lora.safetensors"
    metadata = alpha and {f"{LAYERS[name][0]}.lora_alpha": alpha, f"{LAYERS[name][0]}.r": 4}
    change = file(path, weights(before, name), name, metadata=metadata)
    after = load_text_to_image(str(folders[name]), lora=str(path))
    assert torch.allclose(weights(after, name), weights(before, name) + scale * change, atol=1e-6)
    own = before.module.state_dict()
    same = [key for key, value in after.module.state_dict().items() if value.equal(own[key])]
    assert len(same) == len(own) - 1
    assert load_text_to_image(str(folders[name])) is before


@pytest.mark.parametrize("name", LAYERS)
def test_it_equals_diffusers_with_peft(folders, tmp_path, name):
    pytest.importorskip("peft")
    path, plain = tmp_path / "lora.safetensors", load_text_to_image(str(folders[name]))
    file(path, weights(plain, name), name)
    theirs = type(plain.module).from_pretrained(folders[name], subfolder=LAYERS[name][0], low_cpu_mem_usage=False)
    theirs.load_lora_adapter(str(path), prefix=LAYERS[name][0])
    theirs.fuse_lora()
    theirs.unload_lora()
    ours = load_text_to_image(str(folders[name]), lora=str(path)).module.state_dict()
    assert all(torch.allclose(value, ours[key], atol=1e-6) for key, value in theirs.state_dict().items())


EXTRA = torch.ones(4, 4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"rank": 4, "text_encoder.layer.lora_A.weight": EXTRA}, "holds text_encoder.layer.lora_A.weight, which is no"),
    ({"rank": 4, "lora_unet_mid_block.alpha": EXTRA}, "holds lora_unet_mid_block.alpha, which is no"),
    ({"rank": 4, "unet.conv_in.lora_A.weight": EXTRA}, "holds half of conv_in"),
    ({"rank": 4, "unet.conv_in.lora_A.weight": EXTRA, "unet.conv_in.lora_B.weight": 2 * EXTRA}, "is for another model"),
    ({"metadata": {"unet.use_dora": True}}, "was trained with use_dora, which is not known here"),
    ({"rank": 4, "unet.conv_in.lora_A.weight": EXTRA * torch.nan}, "NaN"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(folders, tmp_path, settings, message):
    path = tmp_path / "lora.safetensors"
    file(path, weights(load_text_to_image(str(folders["sdxl"])), "sdxl"), **settings)
    with pytest.raises(UserError, match=message) as caught:
        load_text_to_image(str(folders["sdxl"]), lora=str(path))
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(folders, tmp_path):
    for name, content in (("a.pt", b"x"), ("a.safetensors", b"broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"is no \.safetensors file|is truncated or damaged"):
            load_text_to_image(str(folders["sdxl"]), lora=str(tmp_path / name))


def test_the_identity_of_a_run_has_the_file(folders, tmp_path):
    """Another LoRA is another fingerprint; one that is not there gets a sentence."""
    path, found = tmp_path / "lora.safetensors", []
    node = {"path": str(folders["sdxl"]), "lora": str(path), "config": None}
    nodes = {"model": SimpleNamespace(**node, get=node.get)}
    for rank in (4, 8):
        file(path, torch.zeros(3, 3), rank=rank)
        found.append(fingerprints(find_weights(nodes), {}, tmp_path / f"cache{rank}"))
    assert found[0]["model"] == found[1]["model"]
    assert found[0]["model's lora"] != found[1]["model's lora"]
    path.unlink()
    with pytest.raises(UserError, match=r"is not there; task\.model\.lora names the .safetensors file of a LoRA"):
        find_weights(nodes)
