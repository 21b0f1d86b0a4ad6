"""Run methods of pets with some settings on cats that no table uses; conf/task/pets_cat2dog.yaml has the chosen ones.

    python scripts/choose_pets.py method=cyclediffusion,ddib method.eta=0.1,1.0     a sweep, as of run.py

The cats, and the dogs that they are compared with, are drawn from seeds of their own.
"""

import subprocess
import sys
from pathlib import Path

import torch
from train_pets import render_all

from cyclediff.data.images import to_pil
from cyclediff.pets.render import sample_factors

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / "outputs" / "choose_pets"
SPLITS = {"cat": (6006, 64), "dog": (6007, 512)}  # seed and number; pets/folders.py has the seeds of tables


def folder_of(species: str) -> Path:
    """A folder of animals, drawn once."""
    seed, count = SPLITS[species]
    folder = OUTPUTS / f"{species}s"
    if not folder.exists():
        folder.mkdir(parents=True)
        for i, image in enumerate(render_all(sample_factors(count, torch.Generator().manual_seed(seed)), species)):
            to_pil(image).save(folder / f"{i:04d}.png")
    return folder


if __name__ == "__main__":
    data = [f"data.source={folder_of('cat')}", f"data.reference={folder_of('dog')}", f"paths.outputs={OUTPUTS}"]
    command = [sys.executable, ROOT / "run.py", *data, "data.limit=null", *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)
