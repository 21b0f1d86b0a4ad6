"""Write files of random weights under the published names, to try a real experiment without its weights.

    python scripts/make_random_checkpoints.py cat2dog --checkpoints outputs/random
    python scripts/make_random_checkpoints.py diffuseit_imagenet --checkpoints outputs/random

Names, shapes and formats are those of the published files. Every file carries a mark in its weights, and whatever is
made with one says RANDOM WEIGHTS. Existing files are not overwritten.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from cyclediff.cli.errors import fail
from cyclediff.data.assets import catalogue
from cyclediff.models import adm, ddpm, vit
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.cut_networks import Generator
from cyclediff.models.identity import COUNTER, IRSE50
from eval import terminal
from eval.random_mark import MARK

ROOT = Path(__file__).parents[1]
FLAT = ("qkv", "qkv_proj", "proj_out", "c_proj")  # 1-D convolutions in guided-diffusion
FEATURES = 2048
NOT_SHAPES = (  # settings that change no shape
    "_convert_", "path", "ema", "state_dict", "attention_order", "schedule", "num_train_timesteps", "dtype",
    "compile_mode",
)  # fmt: skip


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a published checkpoint, from the architecture in conf/model."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg: Any = OmegaConf.to_container(hydra.compose("config", [f"+model@probe={name}"]).probe)
    kind = cfg.pop("_target_").rpartition(".")[2]
    settings = {key: value for key, value in cfg.items() if key not in NOT_SHAPES}
    with torch.device("meta"):
        if kind == "load_adm":
            network: nn.Module = adm.build(out_channels=6 if settings.pop("learn_sigma") else 3, **settings)
            names = adm.names(network.config, network.state_dict())
        elif kind == "load_ddpm":
            network = ddpm.build(**settings)
            names = ddpm.names(len(settings["ch_mult"]), network.state_dict())
        else:
            network = DomainClassifier(**settings)
            names = classifier_names(network)
    own = network.state_dict()
    return {key: official_shape(key, [own[part] for part in parts]) for key, parts in names.items()}


def official_shape(key: str, parts: list[Tensor]) -> tuple[int, ...]:
    """The shape of a tensor in its published file: attention is made of 1×1 convolutions there."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    place, _, kind = key.rpartition(".")
    layer = place.rpartition(".")[2]
    if kind != "weight" or len(shape) != 2:
        return shape
    if ".attn" in place:
        return (*shape, 1, 1)
    return (*shape, 1) if layer in FLAT else shape


def random_state(wanted: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights of the usual scale, norms near 1, and the mark in the first vector that can hold it."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in wanted.items():
        if key.endswith(COUNTER):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        if key.endswith("running_var"):
            state[key] = torch.ones(shape)
            continue
        norm = len(shape) == 1 and key.endswith("weight")
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 2500
        state[key] = torch.randn(shape, generator=generator) / fan_in**0.5 + norm
    first = next(key for key in sorted(state) if key.endswith("bias") and state[key].numel() >= len(MARK))
    state[first][: len(MARK)] = MARK
    return state


class TorchScriptInception(nn.Module):
    """A small network with the interface of NVIDIA's file: `layers` for normalised 299×299 images, 2048 features."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, FEATURES)
        )

    def forward(self, image: Tensor, return_features: bool = False) -> Tensor:
        """Features of images in 0 … 255."""
        return self.layers((image - 128) / 128)


def write_torchscript(path: Path) -> None:
    """clean-fid's file."""
    torch.manual_seed(0)
    network = TorchScriptInception()
    with torch.no_grad():
        first: Any = network.layers[0]
        first.bias[: len(MARK)] = MARK
    torch.jit.save(torch.jit.script(network.eval()), str(path))


def write_pytorch_inception(path: Path) -> None:
    """pytorch-fid's file: the whole architecture, as clean-fid's copy of pytorch-fid builds it."""
    from unittest.mock import patch

    import cleanfid.inception_pytorch as library

    wanted: dict[str, tuple[int, ...]] = {}

    def note(network: nn.Module, *_: Any, **__: Any) -> None:
        wanted.update({key: tuple(value.shape) for key, value in network.state_dict().items()})

    no_download = patch.object(library, "load_state_dict_from_url", lambda *_, **__: {})
    with no_download, patch.object(nn.Module, "load_state_dict", note):
        library.fid_inception_v3()
    torch.save(random_state(wanted, seed=1), path)


def write_vit(path: Path, name: str) -> None:
    """DINO's file: timm's names; `name` is timm's."""
    with torch.device("meta"):
        network = vit.build(name)
    torch.save(random_state(shapes_of(network), seed=sum(path.name.encode())), path)


def write_faces(path: Path) -> None:
    """The file of ArcFace's IR-SE50, which has no counters of batches."""
    with torch.device("meta"):
        wanted = {key: shape for key, shape in shapes_of(IRSE50()).items() if not key.endswith(COUNTER)}
    torch.save(random_state(wanted, seed=3), path)


def write_clip(path: Path, name: str) -> None:
    """OpenAI's file of a CLIP: a TorchScript program with weights of 16 bits; `name` is open_clip's.

    The published program computes something, this one gives back what it gets: its tensors alone are read.
    """
    import open_clip

    with torch.device("meta"):
        network: Any = open_clip.create_model(name, device="meta", load_weights=False)
    program = Place()
    for key, value in random_state(shapes_of(network), seed=sum(path.name.encode())).items():
        program.hold(key.split("."), value.half() if value.is_floating_point() else value)
    torch.jit.save(torch.jit.script(program), str(path))


class Place(nn.Module):
    """A place of a state dict, with the places below it."""

    def hold(self, names: list[str], value: Tensor) -> None:
        """Keep a tensor under names, one below the other."""
        name, *rest = names
        if not rest:
            self.register_buffer(name, value)
            return
        if name not in self._modules:
            self.add_module(name, Place())
        below: Any = self._modules[name]
        below.hold(rest, value)

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the tensors of its state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def write_network(path: Path, name: str) -> None:
    """A network's file, with the prefix that EGSDE's DDPM has in its own."""
    state = random_state(shapes(name), seed=sum(path.name.encode()))
    prefix = "module." if path.suffix == ".pth" else ""
    torch.save({prefix + key: value for key, value in state.items()}, path)


def write_generator(path: Path) -> None:
    """CUT's generator. Its filters are the known ones: a file with others is refused."""
    network = Generator()
    filters = {key: value for key, value in network.state_dict().items() if key.endswith(".filt")}
    torch.save(random_state(shapes_of(network), seed=sum(path.name.encode())) | filters, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "afhq_dog_4m.pt": partial(write_network, name="afhq_dog"),
    "cat_ema_0.9999_050000.pt": partial(write_network, name="afhq_cat"),
    "wild_ema_0.9999_050000.pt": partial(write_network, name="afhq_wild"),
    "celebahq_female_ddpm.pth": partial(write_network, name="celebahq_female"),
    "cat2dog_dse.pt": partial(write_network, name="dse_cat2dog"),
    "wild2dog_dse.pt": partial(write_network, name="dse_wild2dog"),
    "male2female_dse.pt": partial(write_network, name="dse_male2female"),
    "cut_cat2dog.pth": write_generator,
    "256x256_diffusion_uncond.pt": partial(write_network, name="imagenet256_uncond"),
    "ffhq_10m.pt": partial(write_network, name="ffhq"),
    "dino_vitbase8_pretrain.pth": partial(write_vit, name="vit_base_patch8_224.dino"),
    "dino_deitsmall8_pretrain.pth": partial(write_vit, name="vit_small_patch8_224.dino"),
    "model_ir_se50.pth": write_faces,
    "clip/RN50.pt": partial(write_clip, name="RN50-quickgelu"),
    "clip/RN50x4.pt": partial(write_clip, name="RN50x4-quickgelu"),
    "clip/RN50x16.pt": partial(write_clip, name="RN50x16-quickgelu"),
    "clip/ViT-B-32.pt": partial(write_clip, name="ViT-B-32-quickgelu"),
    "clip/ViT-B-16.pt": partial(write_clip, name="ViT-B-16-quickgelu"),
    "inception-2015-12-05.pt": write_torchscript,
    "pt_inception-2015-12-05-6726825d.pth": write_pytorch_inception,
}


def main() -> None:
    """Parse the command line and write."""
    terminal.adapt_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="experiments, or published file names")
    parser.add_argument("--checkpoints", type=Path, default=Path("outputs/random"), help="folder to write to")
    arguments = parser.parse_args()
    assets = catalogue(ROOT / "conf")
    experiments = {experiment for asset in assets.values() for experiment in asset.used_by}
    for name in arguments.names:
        if name not in experiments and name not in WRITERS:
            fail(f"there is no experiment or file {name}; choose from {', '.join([*sorted(experiments), *WRITERS])}")
    for name, write in WRITERS.items():
        path = arguments.checkpoints / name
        used_by = assets[Path(name).parts[0]].used_by  # a folder of several files is one asset
        if path.exists() or not {name, *used_by} & set(arguments.names):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        logging.disable(logging.WARNING)  # open_clip says that its weights are random
        with warnings.catch_warnings(action="ignore"):  # TorchScript and clean-fid's use of torchvision are of old
            write(temporary)
        temporary.replace(path)
        print(f"{path}  {path.stat().st_size / 2**20:.0f} MiB  RANDOM WEIGHTS", flush=True)


if __name__ == "__main__":
    main()
