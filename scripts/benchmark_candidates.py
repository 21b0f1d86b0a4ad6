"""Best of N on pets: what dropping candidates on the way saves and loses, what ranking costs, and what noise costs."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.data.edit_lists import read_prompts
from cyclediff.data.images import from_uint8, read_batch, to_uint8
from cyclediff.diffusion.noise import Noise
from cyclediff.models.load_text import load_text_to_image
from cyclediff.pets.folders import prepare_pet_edits
from cyclediff.shared_encoding import Pruning
from cyclediff.studies.candidates import Edits, count_rows, edit, split
from cyclediff.studies.selection import Grid, Prune, rank
from eval.metrics.candidates import candidate_scores
from eval.metrics.clip import open_clip_scorer
from eval.metrics.pairwise import l2, psnr, ssim

PETS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
METHOD = CycleDiffusion(T=33, T_es=33, eta=0.1, spacing="latent")
GRID = Grid(3, (1.0,), (3, 6, 12), (1.5, 2.0, 3.0, 4.0))  # 36 candidates
IMAGES, SIZE = 16, 36
SHARES, KEPT = (0.5, 0.3, 0.15), (0.5, 0.25)  # of steps left, and of candidates that go on


@torch.no_grad()
def rows_of_pruning(table: Table) -> None:
    """How often the winner stays the same, and how many rows of the network are saved."""
    model = load_text_to_image(str(PETS / "text_to_image"))
    with tempfile.TemporaryDirectory() as place:
        folder, _ = prepare_pet_edits(IMAGES, 64, Path(place))
        texts, ids = read_prompts(folder), list(folder.ids)
        scores = candidate_scores(open_clip_scorer(str(PETS / "clip")), folder.path, torch.device("cpu"), "dclip")
        images = from_uint8(read_batch([folder.path / f"{item}.png" for item in ids]))
        edits = Edits(ids, [texts[item] for item in ids], model.encode(images, Noise(1, ids, -1)), 1)
        steps = {share: Prune((share,), 0.5).steps(METHOD.num_steps)[0] for share in SHARES}
        early: dict[tuple[int, int], dict[int, Any]] = {}  # (image, steps left) → rank by candidate
        last: dict[int, dict[int, Any]] = {}
        for units in split(METHOD, GRID, IMAGES, SIZE, False):

            def ranks(latents: Tensor, numbers: list[int], units: Any = units) -> list[Any]:
                pictures = to_uint8(model.decode(latents))
                columns = scores([ids[units[i][0]] for i in numbers], pictures)
                found = [{key: value[k].item() for key, value in columns.items()} for k in range(len(numbers))]
                return [
                    rank(row | {"index": units[i][1].index}, "dclip") for i, row in zip(numbers, found, strict=True)
                ]

            asked = iter(sorted(steps.values(), reverse=True))

            def note(x0_hat: Tensor, numbers: Any, units: Any = units, asked: Any = asked) -> Any:
                left = next(asked)
                for i, one in zip(numbers, ranks(x0_hat, numbers, units), strict=True):
                    early.setdefault((units[i][0], left), {})[units[i][1].index] = one
                return numbers

            latents = edit(METHOD, model, edits, GRID, units, False, Pruning(set(steps.values()), note))
            for i, one in enumerate(ranks(latents, list(range(len(units))), units)):
                last.setdefault(units[i][0], {})[units[i][1].index] = one
    whole = count_rows(METHOD, model.schedule, GRID, SIZE, False)
    for share, left in steps.items():
        for keep in KEPT:
            prune = Prune((share,), keep)
            same = 0
            for image, found in last.items():
                order = sorted(early[image, left], key=early[image, left].__getitem__, reverse=True)
                same += max(found, key=found.__getitem__) in order[: prune.count(len(order))]
            saved = 1 - count_rows(METHOD, model.schedule, replace(GRID, prune=prune), SIZE, False) / whole
            what = f"36 candidates, with {100 * share:.0f} % of the steps left {100 * keep:.0f} % go on"
            table.add_row(what, f"{same} of {IMAGES} winners stay, {100 * saved:.0f} % of rows saved", "off by default")


def rows_of_ranking(table: Table) -> None:
    """A 512×512 candidate: what ranks it against all scores."""
    pictures = torch.randint(0, 256, (4, 3, 512, 512), dtype=torch.uint8)
    scorer = open_clip_scorer(str(PETS / "clip"))
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "edits.csv").write_text("id,source,target,category,mask\na,a cat,a dog,,\n")
        Image.fromarray(np.array(pictures[0].permute(1, 2, 0))).save(Path(place) / "a.png")
        scores = candidate_scores(scorer, Path(place), torch.device("cpu"), "dclip")
        scores(["a"], pictures[:1])
        began = time.perf_counter()
        scores(["a"] * 3, pictures[1:])
        ranked = time.perf_counter() - began
        began = time.perf_counter()
        for score in (psnr, ssim, l2):
            score(pictures[1:], pictures[:1].expand(3, -1, -1, -1))
        others = time.perf_counter() - began
    text = f"{ranked / 3 * 1e3:.0f} ms against {(ranked + others) / 3 * 1e3:.0f} ms: {ranked / (ranked + others):.2f} ×"
    table.add_row("score of a 512×512 candidate (CLIP of pets), against all scores", text, "≤ 0.5 ×")


def rows_of_noise(table: Table) -> None:
    """Noise of a step, drawn on the CPU."""
    for what, shape in (("256×256 pixels", (3, 256, 256)), ("512×512 pixels in latents", (4, 64, 64))):
        noise, x = Noise(1, [str(i) for i in range(32)]), torch.zeros(32, *shape)
        noise.randn_like(x)
        began = time.perf_counter()
        for _ in range(5):
            noise.randn_like(x)
        took = (time.perf_counter() - began) / 5
        table.add_row(f"noise of a step for 32 images of {what}", f"{took * 1e3:.1f} ms", "")
