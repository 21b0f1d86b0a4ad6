"""Finished runs as run.py leaves them, for tests of what shows them."""

import json
import warnings

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from cyclediff.loggers.log import log
from cyclediff.runtime.record import Run, Scored

CONFIG = {"seed": 1, "method": {"eta": 0.1}, "paths": {"outputs": "/home/me"}, "paper": {"values": [1]}}
COSTS = {"images_per_second": 2.0, "seconds_per_image": 0.5, "network_evaluations_per_image": 50, "network_share": None}


def make_run(task, method, *, fid=20.0, psnr=18.0, digest="d1", protocol="fid/x", finish=True, metrics=None, **record):
    identity = {"task": task.name, "protocol": "pets/1", "method": {"name": method}, "seed": 1, "data": digest}
    about = {"name": "cats", "digest": digest, "n": 3, "source": "cats", "counterpart": "dogs", "dataset": None}
    run = Run(task, identity)
    start = {"schema": 1, "code": "c0de", "embedded": True, "data": about, "published_settings": True, **record}
    run.start(OmegaConf.to_yaml(OmegaConf.create(CONFIG)), {"random_weights": [], **start})
    random = np.random.default_rng(0)
    for folder in (task / "data" / "cats", task / "data" / "dogs", run.images):
        folder.mkdir(parents=True, exist_ok=True)
        for stem in "abc":
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{stem}.png")
    if finish:
        about = {"n": 3, "n_reference": None, "higher_is_better": True}
        distance = {"n": 3, "n_reference": 7, "higher_is_better": False, "protocol": protocol}
        scores = {
            "fid": {"value": fid, "ci95": None, **distance},
            "psnr": {"value": psnr, "ci95": [psnr - 1, psnr + 2], **about, "protocol": "psnr/x"},
            "ssim": {"value": 0.25, "ci95": [0.125, 0.5], **about, "protocol": "ssim/x", "unselected": 0.2},
        }
        rows = [{"id": stem, "psnr": k + 0.5, "ssim": None if stem == "b" else 0.1} for k, stem in enumerate("abc")]
        scored = Scored(scores if metrics is None else metrics, rows, {})
        run.finish(scored, COSTS | {"device": "cpu", "peak_memory_mib": 9})
    return run.path


def read_json(path):
    return json.loads(path.read_bytes())


def set_fid(folder, fid):
    metrics = read_json(folder / "metrics.json")
    metrics["metrics"]["fid"]["value"] = fid
    (folder / "metrics.json").write_text(json.dumps(metrics))


def only_warning(folder, settings):
    """Log a run that fails; its files stay as they are. Returns the one warning."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log(folder, settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (warning,) = caught
    return str(warning.message)
