"""On a CUDA device: the images of the CPU, in every precision, compiled, and by two processes; skipped without one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.diffusion.noise import Noise
from cyclediff.runtime.batch_size import find_batch_size

ROOT = Path(__file__).parents[1]
DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
TRANSLATE = ("method=cyclediffusion", "steps=few", "task.reference_count=8")
EDIT = ("experiment=pets_edit", "method=cyclediffusion", "tier=few")
CONTROLLED = ("experiment=pets_edit", "method=cyclediffusion_cac", "tier=few")


def pictures(outputs: Path, *arguments: str, processes: int = 1) -> tuple[np.ndarray, dict]:
    """Images of a run, (4, h, w, 3), and its record."""
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    own = [f"paths.outputs={outputs}", f"paths.cache={outputs}/cache", "data.limit=4", "batch_size=2", "hydra.mode=RUN"]
    done = subprocess.run(
        [sys.executable, *launch, ROOT / "run.py", *arguments, *own], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (record,) = outputs.glob("*/*/run.json")
    found = [np.array(Image.open(path)) for path in sorted(record.parent.glob("images/*.png"))]
    return np.stack(found), json.loads(record.read_bytes())


@pytest.mark.parametrize(("arguments", "modes"), [
    (TRANSLATE, ((), ("dtype=bfloat16",), ("dtype=float16",), ("compile_mode=default",),
                 ("compile_mode=reduce-overhead", "dtype=bfloat16"))),
    (EDIT, ((), ("dtype=bfloat16",), ("compile_mode=reduce-overhead", "dtype=float16"))),
    (CONTROLLED, ((), ("dtype=bfloat16",), ("compile_mode=default",))),
], ids=["translate", "edit", "attention control"])  # fmt: skip
def test_images_are_those_of_the_cpu(arguments, modes, tmp_path):
    expected, _ = pictures(tmp_path / "cpu", *arguments, "device=cpu")
    for number, mode in enumerate(modes):
        found, record = pictures(tmp_path / str(number), *arguments, *mode, f"device={DEVICE}")
        assert record["device"].startswith(DEVICE)
        error = np.square(found.astype(float) - expected).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > (35 if mode else 45), mode


def test_noise_of_the_cpu():
    x = torch.zeros(2, 3, 64, 64)
    ours, theirs = (Noise(1, ["a", "b"]).randn_like(x.to(device)) for device in ("cpu", DEVICE))
    assert theirs.device.type == DEVICE
    assert torch.equal(ours, theirs.cpu())
    own = Noise(1, ["a", "b"], device=DEVICE)
    assert not torch.equal(own.randn_like(x.to(DEVICE)), own.randn_like(x.to(DEVICE)))


def test_two_processes_on_one_device(tmp_path):
    alone, _ = pictures(tmp_path / "one", *TRANSLATE, f"device={DEVICE}")
    together, record = pictures(tmp_path / "two", *TRANSLATE, f"device={DEVICE}", processes=2)
    assert record["world_size"] == 2
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_a_batch_is_halved_where_memory_runs_out():
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        best = find_batch_size(lambda n: torch.zeros(n, 2**26, device=DEVICE).sum().item(), 256)  # 256 MiB each
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert best in (1, 2)
