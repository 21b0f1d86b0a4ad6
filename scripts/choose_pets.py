"""Run methods of pets with some settings on animals that no table uses; conf/task and conf/tier have the chosen ones.

    python scripts/choose_pets.py method=cyclediffusion,ddib method.eta=0.1,1.0     a sweep, as of run.py
    python scripts/choose_pets.py experiment=pets_edit 'selection.grid={source_guidance:[1],skip:[3],guidance:[2]}'

The cats, the dogs that they are compared with, and the edits are drawn from seeds of their own.
"""

import sys
from pathlib import Path

import torch
from train_pets import render_all

from cyclediff.cli.main import main
from cyclediff.data.images import to_pil
from cyclediff.pets.folders import PETS_SEEDS
from cyclediff.pets.render import sample_factors

OUTPUTS = Path(__file__).parents[1] / "outputs" / "choose_pets"
SPLITS = {"cat": (6006, 64), "dog": (6007, 512)}  # seed and number; pets/folders.py has the seeds of tables
EDITS_SEED = 6008


def folder_of(species: str) -> Path:
    """A folder of animals, drawn once."""
    seed, count = SPLITS[species]
    folder = OUTPUTS / f"{species}s"
    if not folder.exists():
        folder.mkdir(parents=True)
        for i, image in enumerate(render_all(sample_factors(count, torch.Generator().manual_seed(seed)), species)):
            to_pil(image).save(folder / f"{i:04d}.png")
    return folder


def data_of(arguments: list[str]) -> list[str]:
    """Settings that name the data: edits, or else cats and dogs."""
    if any(argument.startswith("experiment=pets_edit") for argument in arguments):
        PETS_SEEDS["edits"] = EDITS_SEED
        return [f"paths.cache={OUTPUTS / 'cache'}"]  # the usual cache has edits of the usual seed
    return [f"data.source={folder_of('cat')}", f"data.reference={folder_of('dog')}", "data.limit=null"]


if __name__ == "__main__":
    settings = sys.argv[1:]
    sys.argv[1:] = [f"paths.outputs={OUTPUTS}", *data_of(settings), *settings]
    main()
