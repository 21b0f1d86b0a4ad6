"""Small CLIPs with random weights, in the forms in which open_clip finds its networks."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from eval.metrics.clip import WEIGHTS

SHIPPED = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights" / "clip"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_clip(folder: Path) -> tuple[Path, Any]:
    """A file of weights, and its network with QuickGELU.

    It fits two architectures that open_clip knows from now on in this process, tiny-quickgelu and tiny (GELU).
    """
    (folder / "tiny-quickgelu.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    (folder / "tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    network: Any = open_clip.create_model("tiny-quickgelu")
    save_file(network.state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors", network.eval()


def local_clip(folder: Path) -> Path:
    """A folder in open_clip's local-dir form: the architecture of pets' CLIP and words, other weights, 16 bits."""
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(1)
    network: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({key: value.half() for key, value in network.state_dict().items()}, folder / WEIGHTS)
    return folder
