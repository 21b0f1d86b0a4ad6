"""Features of vision transformers: any of timm's, its weights, its layers, and what is refused."""

import re
from copy import deepcopy

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from cyclediff.errors import UserError
from cyclediff.models.vit import _of_clip, build, features_of, keys_and_tokens, load_vit, resized

from .guided_nets import IMAGENET, tiny_vit, vit_network

NAME = "test_vit.r160_in1k"  # timm's smallest, 6 blocks, patches of 16 pixels
IMAGE = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(3)
    save_file(timm.create_model(NAME).state_dict(), tmp_path / "vit.safetensors")
    return str(tmp_path / "vit.safetensors")


def test_weights_of_a_file_and_its_normalisation(file):
    torch.manual_seed(3)
    network = timm.create_model(NAME).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = network.forward_intermediates(
        ((IMAGE + 1) / 2 - mean) / std, norm=False, return_prefix_tokens=True, intermediates_only=True
    )
    for layer in (0, 3, -1):
        found = load_vit(file, NAME, layer)(IMAGE)
        assert (found.cls - expected[layer][1][:, 0]).abs().max() < 1e-5
        assert found.keys.shape == (2, 101, 64)


def test_keys_are_those_that_attention_uses():
    """The input of the layer, through norm1 and the middle third of qkv, read without a hook."""
    network = vit_network().eval()
    x = torch.randn(2, 3, 14, 14)
    before = keys_and_tokens(network, 4, x)[:, 1]
    block = network.blocks[5]
    expected = F.linear(block.norm1(before), block.attn.qkv.weight[32:64], block.attn.qkv.bias[32:64])
    assert (keys_and_tokens(network, 5, x)[:, 0] - expected).abs().max() < 1e-5


def test_hooks_are_removed_also_after_an_error():
    network = vit_network()
    qkv = network.blocks[11].attn.qkv
    keys_and_tokens(network, 11, torch.randn(1, 3, 14, 14))
    assert not qkv._forward_hooks
    with pytest.raises(RuntimeError):
        keys_and_tokens(network, 11, torch.randn(1, 4, 14, 14))
    assert not qkv._forward_hooks


@pytest.mark.parametrize("part", ["keys", "cls"])
def test_a_gradient_flows_to_the_image(part):
    image = torch.rand(1, 3, 14, 14, dtype=torch.float64) * 2 - 1
    vit = features_of(deepcopy(tiny_vit().network.args[0]).double(), "tiny")
    direction = torch.randn(1, 3, 14, 14, dtype=torch.float64)
    with torch.enable_grad():
        leaf = image.requires_grad_()
        value = getattr(vit(leaf), part).square().mean()
        slope = (torch.autograd.grad(value, leaf)[0] * direction).sum()
    ahead, behind = (getattr(vit(image + h * direction), part).square().mean() for h in (1e-5, -1e-5))
    assert slope.item() == pytest.approx(((ahead - behind) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize(("height", "width", "grid"), [(28, 28, (14, 14)), (28, 39, (14, 19))])
def test_other_sizes(height, width, grid):
    """The positional embedding is interpolated; a side that is no multiple of the patch loses its end."""
    network = vit_network()
    image = torch.rand(1, 3, height, width) * 2 - 1
    found = features_of(network, "tiny", size=28)(image)
    assert found.keys.shape == (1, 1 + grid[0] * grid[1], 32)
    fixed = deepcopy(network)
    fixed.set_input_size((2 * grid[0], 2 * grid[1]))
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("mean", "std"))
    shown = (((image + 1) / 2 - mean) / std)[..., : 2 * grid[1]]
    assert (found.cls - keys_and_tokens(fixed, 11, shown)[:, 1, 0]).abs().max() < 1e-5
    assert (found.cls - features_of(network, "tiny")(image).cls).abs().max() > 1e-3


def test_the_longer_side_is_bounded():
    assert resized(256, 512, 224) == (224, 448)
    assert resized(2000, 200, 28) == (60, 6)


def test_the_image_tower_of_a_clip_under_open_clip_s_names():
    config = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    torch.manual_seed(1)
    clip = open_clip.model.CLIP(16, config, {"width": 32, "heads": 2, "layers": 1}).eval()
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0, pre_norm=True,
        norm_layer=torch.nn.LayerNorm, dynamic_img_size=True,
    )  # fmt: skip
    network.load_state_dict(_of_clip(clip.state_dict()))
    seen = []
    clip.visual.transformer.register_forward_hook(lambda module, given, out: seen.append(out))
    x = torch.randn(2, 3, 32, 32)
    clip.visual(x)
    assert (keys_and_tokens(network.eval(), 2, x)[:, 1] - seen[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_small_patch8_224.dino", (0.485, 0.456, 0.406)),
        ("vit_base_patch8_224.dino", (0.485, 0.456, 0.406)),
        ("vit_base_patch16_clip_quickgelu_224.openai", (0.48145466, 0.4578275, 0.40821073)),
        ("deit_small_patch16_224.fb_in1k", (0.485, 0.456, 0.406)),
    ],
)
def test_networks_that_papers_use(name, mean):
    with torch.device("meta"):
        vit = features_of(build(name), name, device="meta")
    assert vit.size == 224
    assert vit.mean == mean


FAULTS = {
    "missing": (lambda state: state.pop("blocks.3.attn.qkv.bias"), "1 missing (blocks.3.attn.qkv.bias)"),
    "left over": (lambda state: state.update(more=torch.zeros(2)), "more"),
    "not finite": (lambda state: state["cls_token"].fill_(torch.nan), "holds NaN or Inf in cls_token"),
    "another shape": (lambda state: state.update(cls_token=torch.zeros(1, 1, 65)), "1 of another shape (cls_token"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit(fault, tmp_path):
    change, sentence = FAULTS[fault]
    state = timm.create_model(NAME).state_dict()
    change(state)
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_vit(str(tmp_path / "vit.safetensors"), NAME)


def refused(*args, **settings) -> str:
    with pytest.raises(UserError) as error:
        load_vit(*args, **settings)
    return str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_what_is_refused(file, tmp_path):
    assert refused(file, NAME, 6) == f"{NAME} has the layers 0 … 5 (-1 is the last one); got layer=6"
    assert refused(file, NAME, size=8) == f"{NAME} reads patches of 16 pixels, so size must be at least 16; got 8"
    assert refused(file).startswith(f"{file} is a file, which does not say its architecture")
    assert refused(file, "vit_smal_patch8_224.dino").startswith(
        "timm has no vision transformer vit_smal_patch8_224; it has vit_small_patch8_224, "
    )
    assert refused(file, "resnet50.a1_in1k") == (
        "timm has no vision transformer resnet50; it has vit_small_patch8_224, vit_base_patch8_224, …"
    )
    assert "got vit_small_patch8_224, choose vit_small_patch8_224.dino" in refused(file, "vit_small_patch8_224")
    assert refused(file, "vit_base_patch16_siglip_224.webli") == (
        "vit_base_patch16_siglip_224.webli is no plain vision transformer with a CLS token; choose one, such as "
        "vit_base_patch8_224.dino"
    )
    assert refused(file, "vit_base_patch16_clip_224.openai") == (
        "vit_base_patch16_clip_224.openai was trained with QuickGELU and timm builds it with GELU; choose "
        "vit_base_patch16_clip_quickgelu_224.openai"
    )
    assert refused(str(tmp_path / "no.pth"), NAME).startswith(f"{tmp_path}/no.pth does not exist")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "program.pt")
    assert refused(str(tmp_path / "program.pt"), NAME).startswith(f"{tmp_path}/program.pt is a TorchScript program")


def test_a_repository_that_cannot_be_read():
    said = refused("hf-hub:timm/vit_base_patch8_224.dino")  # tests are offline
    assert said.startswith("hf-hub:timm/vit_base_patch8_224.dino could not be read from the hub; check the name and ")
    assert "\n" not in said
