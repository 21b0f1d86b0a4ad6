"""The documentation's examples: docs/adding.md's files are written and its commands run, and README's Python runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.metrics.metric import Metric
from eval.metrics.own import OwnMetric

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SECTIONS = re.split(r"(?m)^## ", (ROOT / "docs" / "adding.md").read_text())[1:]
SMALL = "hydra.mode=RUN data.limit=2 task.reference_count=8"


@pytest.mark.parametrize("section", SECTIONS, ids=[section.splitlines()[0] for section in SECTIONS])
def test_adding(section, tmp_path):
    commands = []
    for language, content in BLOCK.findall(section):
        if language == "bash":
            commands += content.splitlines()
            continue
        path = re.match(r"# (my_\w+/\S+)\n", content)
        assert path, content
        file = tmp_path / path[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (tmp_path / "cyclediff").symlink_to(ROOT / "cyclediff")
    assert commands
    for command in commands:
        code = f"{tmp_path / 'my_code'}{os.pathsep}{ROOT}"
        line = command.removeprefix("PYTHONPATH=my_code ").replace(".venv/bin/python", sys.executable)
        if "run.py" in line:
            line = line.replace("run.py", str(ROOT / "run.py")).replace(" my_conf", f" {tmp_path / 'my_conf'}")
            line += f" paths.outputs={tmp_path}/out paths.cache={tmp_path}/cache {SMALL}"
        done = subprocess.run(
            line.split(),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": code},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    runs = [path.parent for path in tmp_path.glob("out/*/*/run.json")]
    assert len(runs) == 1
    assert len(list((runs[0] / "images").glob("*.png"))) == 2
    (scores,) = runs[0].glob("scores/*/metrics.json")
    own = json.loads(scores.read_bytes())["metrics"].get("kept_contrast")
    assert (own is not None) == section.startswith("A metric")
    if own:
        assert 0 < own["value"] < 3
        assert own["ci95"]
        assert re.fullmatch(r"kept-contrast/1/code-[0-9a-f]{8}/per-image-mean/vs-source", own["protocol"])


@pytest.mark.parametrize(("score", "what"), [
    (lambda a, b: torch.zeros(3), "the shape (3,)"),
    (lambda a, b: torch.tensor([1.0, torch.inf]), "Inf"),
])  # fmt: skip
def test_a_metric_that_is_wrong(score, what):
    own = OwnMetric(Metric("own", 1, True), "own/1", score)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=re.escape(f"own/1 must give 2 finite numbers or NaN for as many images; got {what}")
    ):
        own.values(images, images)


def test_readme():
    """Its lines of Python, on the shipped model."""
    examples = [
        content for language, content in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python"
    ]
    assert len(examples) == 1
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    found = {"images": images}
    os.chdir(ROOT)
    exec(examples[0], found)
    assert found["edited"].shape == images.shape
    assert found["edited"].isfinite().all()
    assert (found["edited"] - images).abs().mean() > 0.01
