"""PIE-Bench's official numbers (cure-lab/PnPInversion@07f97f4, evaluation/) on a tiny ViT and a random SqueezeNet."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import squeezenet1_1

from cyclediff.data.masks import decode_mask
from eval.metrics.lpips import lpips_network
from eval.metrics.pairwise import mse, psnr, ssim
from eval.metrics.pie_bench import official_background
from eval.metrics.structure import Structure

GOLDEN = Path(__file__).parent / "golden"
NAMES = "mild", "unrelated", "oblong", "same"
WAYS = {"": "255-noantialias", "_input01_antialias": "unit-antialias"}


@cache
def golden():
    with safe_open(GOLDEN / "pie_metrics.safetensors", "pt") as file:
        header = {key: value for key, value in file.metadata().items()}
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118


def pair(name):
    tensors, _ = golden()
    return tuple(tensors[f"img.{name}.{side}"].permute(2, 0, 1)[None] for side in ("tgt", "src"))


def mask_of(runs, height, width):
    """The rule of `decode_mask`, for shapes that are not square."""
    flat = np.zeros(height * width, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + max(length, 0)] = True
    mask = flat.reshape(height, width)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return torch.from_numpy(mask)[None, None]


def expected(name):
    entry = json.loads(golden()[1]["pairs"])[name]
    runs = entry["mask_rle"]
    runs = golden()[0][f"mask.pair_{name}.rle"].tolist() if isinstance(runs, str) else runs
    return entry["values"], runs


@cache
def structure():
    nets = load_file(GOLDEN / "guided_tiny_nets.safetensors")
    state = {key.removeprefix("vit."): value.float() for key, value in nets.items() if key.startswith("vit.")}
    config = json.loads(golden()[1]["vit_config"])
    network = timm.models.vision_transformer.VisionTransformer(
        num_classes=0, dynamic_img_size=True, **{k: v for k, v in config.items() if k != "img_size"}, img_size=14
    )
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
    return Structure("tiny", network.eval(), 14)


@cache
def random_squeezenet(folder):
    seed = json.loads(golden()[1]["lpips"])["seed"]
    draw, network = np.random.RandomState(seed), squeezenet1_1().features
    state = {}
    for key in sorted(network.state_dict()):
        shape = network.state_dict()[key].shape
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else 0.1
        state[f"features.{key}"] = torch.from_numpy(draw.standard_normal(shape) * scale).float().half().float()
    torch.save(state, folder / "squeezenet1_1.pth")
    return folder / "squeezenet1_1.pth"


@pytest.mark.parametrize("name", ["mild", "unrelated", "same"])  # the tiny network is for squares
@pytest.mark.parametrize("suffix", WAYS)
def test_structure_distance(name, suffix):
    values, _ = expected(name)
    found = structure()(*pair(name), WAYS[suffix]).item()
    assert found == pytest.approx(values[f"structure_distance{suffix}"], rel=1e-3, abs=1e-8)


def test_the_ways_of_structure_distance_differ():
    """So a test of one cannot pass with the other."""
    values, _ = expected("mild")
    numbers = [values[f"structure_distance{suffix}"] for suffix in ("", "_antialias", "_input01", "_input01_antialias")]
    assert min(abs(a / b - 1) for i, a in enumerate(numbers) for b in numbers[:i]) > 0.1


def test_prepared_images(parity):
    tensors, _ = golden()
    for name in ("mild", "oblong"):
        found = structure().prepare(pair(name)[1], "255-noantialias")[0]
        parity("PIE-Bench", "prepared images", found, tensors[f"dino.{name}.transformed"])
    similarity = structure().similarities(pair("mild")[1], "255-noantialias")[0]
    parity("PIE-Bench", "self-similarities", similarity, tensors["dino.mild.selfsim"])


@pytest.mark.parametrize("name", NAMES)
def test_background(name, tmp_path_factory):
    a, b = pair(name)
    values, runs = expected(name)
    outside = ~mask_of(runs, *a.shape[2:])
    folder = tmp_path_factory.getbasetemp()
    lpips = lpips_network(str(random_squeezenet(folder)), "squeeze", rule="torchmetrics")
    found = {key: value.item() for key, value in official_background(a, b, outside, lpips).items()}
    equal = values["psnr_unedit_part"] == "inf"
    assert found["psnr"] == pytest.approx(100 if equal else values["psnr_unedit_part"], abs=1e-3)
    assert found["mse"] == pytest.approx(values["mse_unedit_part"], abs=1e-7)
    assert found["lpips"] == pytest.approx(values["lpips_unedit_part"], abs=1e-5)
    assert found["ssim"] == pytest.approx(values["ssim_valid_unedit_part"], abs=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_whole_images(name):
    a, b = pair(name)
    values, _ = expected(name)
    assert mse(a, b).item() == pytest.approx(values["mse"], abs=1e-7)
    assert ssim(a, b).item() == pytest.approx(values["ssim_valid"], abs=3e-5)
    assert psnr(a, b).item() == pytest.approx(100 if values["psnr"] == "inf" else values["psnr"], abs=1e-3)


def test_the_border_of_ssim_is_that_of_torchmetrics_before_its_change():
    """The installed torchmetrics has the golden file's other number, so that a test sees which is used."""
    a, b = pair("unrelated")
    values, runs = expected("unrelated")
    outside = ~mask_of(runs, *a.shape[2:])
    padded = structural_similarity_index_measure(a * outside / 255.0, b * outside / 255.0, data_range=1.0).item()
    assert padded == pytest.approx(values["ssim_unedit_part"], abs=3e-5)
    assert abs(values["ssim_unedit_part"] - values["ssim_valid_unedit_part"]) > 1e-3


def test_masks():
    tensors, header = golden()
    for name, about in json.loads(header["masks"]).items():
        runs = about["rle"] if isinstance(about["rle"], list) else tensors[f"mask.{name}.rle"].tolist()
        packed = np.packbits(decode_mask(runs))
        assert np.array_equal(packed, tensors[f"mask.{name}.packed"].numpy()), name
