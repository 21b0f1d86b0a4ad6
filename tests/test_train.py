"""study=train as a person meets it: CUT on pets, its cards, stops, mistakes; and what its result is good for."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from torch import nn

from baselines import cut
from cyclediff.data.images import from_uint8, read_batch
from cyclediff.errors import UserError
from cyclediff.models.cut_networks import load_generator
from cyclediff.runtime import checkpoints
from cyclediff.runtime.record import hash_of
from cyclediff.studies.context import Context
from cyclediff.studies.train import Train
from cyclediff.studies.train_scores import score
from cyclediff.studies.train_snapshots import Snapshots, keep, rounded
from cyclediff.studies.translate import Translate

from .forking import finish, run
from .test_run import metrics_of, scores_of

TRAIN = ("study=train", "method=cut", "task=pets_cat2dog")
SMALL = ("study.count=6", "data.limit=3", "task.reference_count=8", "method.training.width=4")
SMALL += ("method.training.discriminator_width=4", "method.training.discriminator_layers=1")
SMALL += ("method.training.epochs=2", "method.training.decay_epochs=1", "study.checkpoint_every=4")
CONF = Path(__file__).parents[1] / "conf"
STEPS = 18  # three epochs of six


def trained(outputs: Path) -> Path:
    [folder] = outputs.glob("pets_cat2dog/cut-*")
    return folder


def card_of(folder: Path, which: str) -> dict:
    return json.loads((folder / "weights" / f"{which}.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The outputs of a small training."""
    outputs = tmp_path_factory.mktemp("whole")
    done = run(*TRAIN, *SMALL, f"paths.outputs={outputs}")
    assert done.returncode == 0, done.stderr
    assert "FD, last epoch" in done.stdout
    assert "FD, best of 3" in done.stdout
    return outputs


def test_weights_and_cards(whole):
    folder = trained(whole)
    record, metrics = json.loads((folder / "run.json").read_text()), metrics_of(folder)
    assert (record["status"], record["training"]["steps"]) == ("finished", STEPS)
    fids = [row["metrics"]["fid"]["value"] for row in json.loads((folder / "training/snapshots.json").read_text())]
    assert len(fids) == 3
    assert metrics["fid"]["value"] == fids[-1]
    assert metrics["fid_best"]["value"] == min(fids)
    assert metrics["fid_best"]["protocol"].endswith("/best-of-3-chosen-by-it")
    assert metrics["best_at"]["value"] == fids.index(min(fids)) + 1
    for which, epoch in (("last", 3), ("best", fids.index(min(fids)) + 1)):
        card, content = card_of(folder, which), (folder / f"weights/{which}.safetensors").read_bytes()
        assert card["sha256"] == hashlib.sha256(content).hexdigest()
        assert (card["kept"], card["epoch"], card["of"], card["step"]) == (which, epoch, 3, 6 * epoch)
        assert card["scores"]["fid"][0] == fids[epoch - 1]
        assert card["settings"]["width"] == 4
        assert card["trained_on"]["source"]["n"] == 6
        assert set(card["losses"]) == {"D_real", "D_fake", "GAN", "NCE", "NCE_identity"}
        assert ("chosen as the best of 3 snapshots by the very score" in card.get("note", "")) == (which == "best")
    assert {value.dtype for value in load_file(folder / "weights/last.safetensors").values()} == {torch.float16}


def test_the_page_has_curves_and_sheets(whole):
    folder = trained(whole)
    curves = json.loads((scores_of(folder) / "curves.json").read_text())
    assert set(curves) == {"fid", *(f"loss_{key}" for key in ("D_real", "D_fake", "GAN", "NCE", "NCE_identity"))}
    assert [x for x, _ in curves["fid"]["points"]] == [1, 2, 3]
    page = (whole / "pets_cat2dog/report.html").read_text()
    assert "FD while the network is trained" in page
    sheets = sorted((folder / "images").glob("*.png"))
    assert [sheet.stem for sheet in sheets] == ["step0000006", "step0000012", "step0000018"]
    sheet = read_batch(sheets)[-1]
    source = whole / "pets_cat2dog/data" / next((whole / "pets_cat2dog/data").glob("pets-cat-source-*")).name
    first = read_batch(sorted(source.glob("*.png"))[:3])
    assert sheet[:, :64].equal(torch.cat(list(first), dim=2))  # sources above
    generator = load_generator(str(folder / "weights/last.safetensors"), width=4, blocks=5)
    made = ((generator(from_uint8(first)).clamp(-1, 1) + 1) * 127.5).round()
    below = torch.stack(sheet[:, 64:].split(64, dim=2)).float()
    assert (below - made).abs().max() <= 1  # results below, of the very weights that are kept


def test_the_score_is_that_of_a_translation_with_the_result(whole, tmp_path):
    weights = trained(whole) / "weights/last.safetensors"
    use = (f"task.generator.path={weights}", "task.generator.width=4", "data.limit=3", "task.reference_count=8")
    done = run("method=cut", *use, f"paths.outputs={tmp_path}", f"paths.cache={tmp_path}")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(trained(tmp_path))
    assert metrics["fid"]["value"] == pytest.approx(card_of(trained(whole), "last")["scores"]["fid"][0], rel=1e-3)
    record = json.loads((trained(tmp_path) / "run.json").read_text())
    assert record["costs"]["forwards_per_image"] == 1
    assert record["weights"] == {"generator": card_of(trained(whole), "last")["sha256"]}


def killed_at_step_11():
    plain, calls = cut.training_step, []

    def step(*arguments):
        calls.append(0)
        if len(calls) == 11:
            raise RuntimeError("killed")
        return plain(*arguments)

    cut.training_step = step


def test_a_killed_training_continues_to_the_same_weights(whole, tmp_path):
    arguments = [*TRAIN, *SMALL, f"paths.outputs={tmp_path}"]

    code, _ = finish(arguments, tmp_path / "log", killed_at_step_11)
    assert code == 1
    assert not (trained(tmp_path) / "weights").exists()
    code, text = finish(arguments, tmp_path / "log")
    assert code == 0, text
    for which in ("last", "best"):
        assert card_of(trained(tmp_path), which)["sha256"] == card_of(trained(whole), which)["sha256"]


def test_lost_weights_are_put_back(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (trained(tmp_path) / "weights/last.safetensors").write_bytes(b"")
    done = run(*TRAIN, *SMALL, f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    content = (trained(tmp_path) / "weights/last.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == card_of(trained(whole), "last")["sha256"]


def of_two_processes():
    plain = checkpoints.whole_settings
    checkpoints.whole_settings = lambda training: plain(training) | {"processes": 2}


def test_a_checkpoint_of_other_settings_is_refused(whole, tmp_path):
    """Such as one that was copied: a run with other settings has another folder."""

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(trained(tmp_path) / "weights")
    code, text = finish([*TRAIN, *SMALL, f"paths.outputs={tmp_path}"], tmp_path / "log", of_two_processes)
    assert code == 2
    assert "processes" in text
    assert "Traceback" not in text


def nan_at_step_6():
    plain, calls = cut.lsgan, []

    def lsgan(*arguments, **named):
        calls.append(0)
        return plain(*arguments, **named) * (float("nan") if len(calls) > 3 * 5 else 1)

    cut.lsgan = lsgan


def test_a_loss_that_is_nan_ends_it_at_the_last_checkpoint(tmp_path):
    code, text = finish([*TRAIN, *SMALL, f"paths.outputs={tmp_path}"], tmp_path / "log", nan_at_step_6)
    assert code == 2
    assert "the loss of the discriminator is NaN or Inf at step 6 of 18; the checkpoint of step 4 is kept" in text
    assert not list(trained(tmp_path).glob("weights/*"))
    record = json.loads((trained(tmp_path) / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] in text
    again = finish([*TRAIN, *SMALL, f"paths.outputs={tmp_path}"], tmp_path / "log")
    assert again[0] == 0, again[1]
    record = json.loads((trained(tmp_path) / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["training"]["steps"] == 18


def full_disk():
    checkpoints.shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(1, 1, 2**20)


def test_no_room_for_checkpoints(tmp_path):
    code, text = finish([*TRAIN, *SMALL, f"paths.outputs={tmp_path}"], tmp_path / "log", full_disk)
    assert code == 2
    assert "has room for 1 MiB, and two checkpoints of" in text


def study_of(outputs: Path, *overrides: str) -> Train:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", [*TRAIN, *overrides, f"paths.outputs={outputs}"])
    return Train(Context(cfg, (str(CONF),), str(CONF)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["method=sdedit"], "sdedit has no training; choose method=cut or"),
        (["study.count=1"], "study.count must be a whole number of at least 2; got 1"),
        (["study.source=null"], "study=train needs images of the source domain to train on, and none are known for"),
        (["study.weights=int8"], "study.weights must be float32 or float16; got int8"),
        (["study.sample_every=0"], "study.sample_every must be a whole number of at least 1; got 0"),
        (["dtype=bfloat16"], "study=train computes gradients in float32; leave out dtype and compile_mode"),
        (["method.training.lr=0"], "training.temperature and training.lr must be above 0; got 0.07 and 0"),
        (["method.training.lr=fast"], "method.training.lr must be of type float; got 'fast'"),
        (["method.training.layers=[0,99]"], "the generator has the layers 0 … 27; got [0, 99]"),
        (["method.training.crop_size=66"], "training.crop_size must be a multiple of 4 from 16 to training.load_size"),
        (["study.source=nowhere"], "files and folders missing for pets_cat2dog: 1 of 1"),
        (["task=pets_guidance", "protocol=pets"], "task pets_guidance has none"),
        (["study.count=6", "method.training.batch=9"], "training.batch must be at most the 6 images; got 9"),
    ],
)
def test_mistakes_are_found_before_the_slow_part(changes, sentence, tmp_path):
    study = study_of(tmp_path, *changes)

    def start() -> None:
        study.needs()
        study.items()

    with pytest.raises(UserError, match=re.escape(sentence)):
        start()


def test_what_decides_a_training_is_in_its_identity_and_in_no_translation(tmp_path):
    def folders(*overrides: str) -> tuple[str, str]:
        study = study_of(tmp_path, "study.count=2", "data.limit=2", "task.reference_count=2", *overrides)
        translation = Translate(study.context)
        vars(translation).update(fingerprints={"generator": "sha"})
        return hash_of(study.identity()), hash_of(translation.identity())

    before = folders()
    for change in ("method.training.lr=0.1", "method.training.width=4", "study.weights=float32", "study.count=3"):
        assert folders(change)[0] != before[0]
    assert folders("method.training.lr=0.1")[1] == before[1]
    assert folders("study.checkpoint_every=7") == before


def test_a_domain_with_one_image(whole, tmp_path):
    data = next((whole / "pets_cat2dog/data").glob("pets-cat-training_source-*"))
    (tmp_path / "one").mkdir()
    shutil.copy(sorted(data.glob("*.png"))[0], tmp_path / "one")
    done = run(*TRAIN, *SMALL, f"study.source={tmp_path / 'one'}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "a domain needs at least 2 images; the source has 1" in done.stderr


def test_folders_are_cut_from_larger_images(whole, tmp_path):
    """CUT's data sets are folders; while the learning rate falls, images are seen whole."""
    data = [next((whole / "pets_cat2dog/data").glob(f"pets-*-training_{side}-*")) for side in ("source", "target")]
    places = (f"study.source={data[0]}", f"study.target={data[1]}", "method.training.load_size=72")
    done = run(*TRAIN, *SMALL, *places, f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    sizes = {read_batch(sorted(f.glob("*.png"))[:1]).shape[2] for f in (tmp_path / "pets_cat2dog/data").glob("*train*")}
    assert sizes == {72, 64}
    assert card_of(trained(tmp_path), "last")["trained_on"]["target"]["n"] == 6


def test_real_images_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("study=train", "method=cut", "experiment=cat2dog", "hydra.mode=RUN", "data.reference=null", cwd=tmp_path)
    assert done.returncode == 2
    assert "files and folders missing for cat2dog: 2 of 2" in done.stderr
    assert "study=train method=cut task=pets_cat2dog" in done.stderr


def entry(value):
    return {"fid": {"value": value, "header": "FD", "protocol": "p", "digits": 2, "scale": 1.0}}


def line() -> nn.Linear:
    return nn.Linear(2, 2)


def test_the_best_snapshot_never_takes_the_place_of_the_last(tmp_path):
    snapshots = Snapshots(tmp_path / "run/training", steps=40, every=10, unit="epoch", period=20)
    assert snapshots.ids == ["step0000010", "step0000020", "step0000030", "step0000040"]
    snapshots.folder.mkdir(parents=True)
    (snapshots.folder / "history.json").write_text(json.dumps([{"step": 40, "rate": 1, "seconds": 9.0, "loss": 1.0}]))
    networks = [line() for _ in range(4)]
    for step, value, network in zip((10, 20, 30, 40), (3.0, 1.0, 1.0, 2.0), networks, strict=True):
        snapshots.add(step, torch.zeros(3, 8, 8, dtype=torch.uint8), entry(value), network, "float32")
    best = snapshots.best()
    assert best is not None
    assert best["step"] == 20  # the first of equal ones
    keep(tmp_path / "run", snapshots, snapshots.history(), {"method": "m", "task": "t"})
    kept = {which: load_file(tmp_path / f"run/weights/{which}.safetensors") for which in ("last", "best")}
    assert kept["last"]["weight"].equal(networks[3].weight.detach())
    assert kept["best"]["weight"].equal(networks[1].weight.detach())
    metrics = score(snapshots).metrics
    assert (metrics["fid"]["value"], metrics["fid"]["header"]) == (2.0, "FD, last epoch")
    assert (metrics["fid_best"]["value"], metrics["fid_best"]["header"]) == (1.0, "FD, best of 4")
    assert (metrics["best_at"]["value"], metrics["epochs"]["value"]) == (1.0, 2.0)


def test_snapshots_after_the_checkpoint_are_made_again(tmp_path):
    """A training that was killed goes back to its checkpoint, perhaps behind a snapshot, and makes it again."""
    snapshots = Snapshots(tmp_path, steps=30, every=10, unit="epoch", period=10)
    sheet = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for step, value in ((10, 3.0), (20, 1.0), (20, 1.0), (30, 2.0)):
        snapshots.add(step, sheet, entry(value), line(), "float32")
    assert [row["step"] for row in snapshots.rows()] == [10, 20, 30]


def test_without_a_reference_there_is_a_last_one_only(tmp_path):
    snapshots = Snapshots(tmp_path / "training", steps=10, every=10, unit="epoch", period=10)
    snapshots.folder.mkdir()
    (snapshots.folder / "history.json").write_text(json.dumps([{"step": 10, "rate": 1, "seconds": 9.0, "loss": 1.0}]))
    snapshots.add(10, torch.zeros(3, 8, 8, dtype=torch.uint8), {}, line(), "float32")
    keep(tmp_path, snapshots, snapshots.history(), {"method": "m", "task": "t"})
    assert [path.name for path in sorted((tmp_path / "weights").iterdir())] == ["last.json", "last.safetensors"]
    assert "fid_best" not in score(snapshots).metrics


def test_other_code_does_not_continue_a_training(tmp_path):
    snapshots = Snapshots(tmp_path, 1, 1, "epoch", 1)
    snapshots.require_code("one", False)
    snapshots.require_code("one", False)
    with pytest.raises(UserError, match="was begun by code one, and the code is now two; add allow_code_change=true"):
        snapshots.require_code("two", False)
    snapshots.require_code("two", True)


def test_what_is_scored_is_what_is_kept():
    network = line()
    weight = network.weight.detach().clone()
    assert rounded(network, "float32") is network
    assert network.weight.equal(weight)
    rounded(network, "float16")
    assert network.weight.equal(weight.half().float())
    assert not network.weight.equal(weight)
