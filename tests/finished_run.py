"""Finished runs as they are on disk, written by hand: plain JSON, CSV and PNG files of schema 2."""

import csv
import json
import re
import warnings

import numpy as np
from PIL import Image

from cyclediff.loggers.log import log

CONFIG = "seed: 1\nmethod:\n  eta: 0.1\npaths:\n  outputs: /home/me\npaper:\n  values: [1]\n"
COSTS = {
    "forwards_per_image": 50,
    "backwards_per_image": 0,
    "seconds_per_image": 0.5,
    "images_per_second": 2.0,
    "network_share": None,
}
COLUMNS = {  # header, digits, scale, higher_is_better
    "fid": ("FID", 2, 1, False),
    "kid": ("KID×10³", 2, 1000, False),
    "psnr": ("PSNR dB", 2, 1, True),
    "ssim": ("SSIM", 3, 1, True),
    "l2": ("L2", 2, 1, False),
    "clip": ("CLIP", 3, 1, True),
    "dclip": ("D-CLIP", 3, 1, True),
    "edit_error": ("edit error", 3, 1, False),
    "kept_error": ("error elsewhere", 3, 1, False),
    "background_psnr": ("background PSNR", 2, 1, True),
    "background_ssim": ("background SSIM", 3, 1, True),
    "background_mse": ("background MSE×10⁴", 2, 1e4, False),
}


def metric(key, value, ci95=None, protocol=None, **more):
    """An entry of metrics.json."""
    header, digits, scale, higher = COLUMNS[key]
    shown = {"header": header, "digits": digits, "scale": scale, "higher_is_better": higher}
    counts = {"n": 3, "n_reference": 7 if key == "fid" else None}
    return {"value": value, "ci95": ci95, "protocol": protocol or f"{key}/x", **counts, **shown, **more}


def picture(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, side // 8), max(1, side // 8), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def write_images(folder, ids, seed, side):
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(ids):
        picture(seed + k, side).save(folder / f"{image}.png")


def write_run(task, method, *, ids="abc", data="d1", side=8, settings=None, images=True, truth=True, seed=1, **record):
    """A run's folder without scores; what is in `record` replaces or adds to run.json."""
    identity = {"task": {"name": task.name}, "method": {"name": method, **(settings or {})}, "seed": seed}
    count = len(list(task.glob("*/run.json")))
    folder = task / f"{re.sub('[^a-z]', '', method)[:20]}-{count:08x}"
    folder.mkdir(parents=True)
    about = {"name": "cats", "dataset": None, "digest": data, "n": len(ids), "source": None, "ground_truth": None}
    if images:
        about |= {"source": f"cats-{data}", "ground_truth": f"dogs-{data}" if truth else None}
        write_images(task / "data" / f"cats-{data}", ids, 0, side)
        if truth:
            write_images(task / "data" / f"dogs-{data}", ids, 50, side)
        write_images(folder / "images", ids, 100 * (count + 1), side)
    run = {
        "schema": 2, "study": "translate", "status": "finished", "identity": identity, "task": task.name,
        "method": method, "seed": seed, "synthetic": True, "data": about, "weights": {"source": "0" * 64},
        "random_weights": [], "published_settings": True, "start": "2026-01-02T03:04:05+00:00", "costs": COSTS,
        "code": "c0de", "device": "cpu", "peak_memory_mib": 9,
    }  # fmt: skip
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "run.json").write_text(json.dumps(run | record))
    return folder


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_scores(folder, metrics, *, per_image=None, bootstrap=None, curves=None, protocol="pets/2", **record):
    """A folder of scores in a run's folder."""
    scores = folder / "scores" / f"{protocol.replace('/', '-')}-{len(list(folder.glob('scores/*'))):08x}"
    scores.mkdir(parents=True)
    if per_image:
        write_csv(scores / "per_image.csv", per_image)
    if bootstrap:
        write_csv(scores / "bootstrap.csv", bootstrap)
    if curves:
        (scores / "curves.json").write_text(json.dumps(curves))
    content = {"schema": 2, "protocol": protocol, "identity": {"protocol": {"name": protocol}}, "metrics": metrics}
    content |= {"random_weights": [], "reference": None, "files": {}}
    (scores / "metrics.json").write_text(json.dumps(content | record))
    return scores


def make_run(task, method, *, fid=20.0, psnr=18.0, protocol="fid/x", finish=True, metrics=None, **more):
    """A run of three images with FID, PSNR and SSIM."""
    folder = write_run(task, method, **{"status": "finished" if finish else "running", **more})
    if finish:
        found = {
            "fid": metric("fid", fid, protocol=protocol),
            "psnr": metric("psnr", psnr, [psnr - 1, psnr + 2]),
            "ssim": metric("ssim", 0.25, [0.125, 0.5], unselected=0.2),
        }
        rows = [["id", "psnr", "ssim"], ["a", 0.5, 0.1], ["b", 1.5, ""], ["c", 2.5, 0.1]]
        write_scores(folder, found if metrics is None else metrics, per_image=rows)
    return folder


def scores_of(folder):
    """The only folder of scores of a run."""
    (scores,) = (folder / "scores").iterdir()
    return scores


def read_json(path):
    return json.loads(path.read_bytes())


def rewrite(path, change):
    """Change a JSON file in place."""
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def set_fid(folder, fid):
    rewrite(scores_of(folder) / "metrics.json", lambda content: content["metrics"]["fid"].update(value=fid))


def only_warning(folder, settings):
    """Log a run that fails; its files stay as they are. Returns the one warning."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log(folder, scores_of(folder), settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (warning,) = caught
    return str(warning.message)
