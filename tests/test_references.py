"""Reference statistics from files that the libraries themselves write, and a cache that notices damage."""

import resource
import struct
import threading
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.metrics.frechet import Statistics, frechet_distance
from eval.metrics.references import cached, read_statistics


def features(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def images(tmp_path):
    """Six files, whose contents are what the cache goes by."""
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / "images" / f"{i}.png").write_bytes(bytes([i] * 100))
    return sorted((tmp_path / "images").iterdir())


# files of other libraries


def test_pytorch_fids_statistics_are_read(tmp_path, images):
    """Its own save_fid_stats, without its network: what that would give for each image is put in its place."""
    from pytorch_fid import fid_score

    found = features(6, 8, 1)
    path = tmp_path / "dogs.npz"
    with patch.object(fid_score, "InceptionV3") as network, patch.object(fid_score, "get_activations") as activations:
        network.BLOCK_INDEX_BY_DIM = {8: 3}
        activations.return_value = found.numpy()
        fid_score.save_fid_stats([str(images[0].parent), str(path)], 50, "cpu", 8)
    read = read_statistics(path)
    assert isinstance(read, Statistics)
    assert read.n is None
    assert torch.equal(read.mean, torch.from_numpy(found.numpy().mean(0)))
    assert torch.allclose(read.covariance, torch.cov(found.T), rtol=1e-12)
    generated = features(9, 8, 2)
    with np.load(path) as theirs:
        moments = generated.numpy().mean(0), np.cov(generated.numpy(), rowvar=False), theirs["mu"], theirs["sigma"]
    official = fid_score.calculate_frechet_distance(*moments)
    assert frechet_distance(generated, read) == pytest.approx(official, rel=1e-5)


def test_clean_fids_statistics_and_features_are_read(tmp_path):
    """Its own make_custom_stats, whose network and folder of statistics are replaced."""
    from cleanfid import fid

    found = features(6, 8, 1).float().numpy()
    (tmp_path / "stats").mkdir()
    with (
        patch.object(fid, "get_folder_features", return_value=found),
        patch.object(fid, "build_feature_extractor"),
        patch.object(fid.cleanfid, "__file__", str(tmp_path / "__init__.py")),
    ):
        fid.make_custom_stats("Dogs", "anywhere", mode="clean", device=torch.device("cpu"))
    statistics, kept = (read_statistics(tmp_path / "stats" / f"dogs_clean_custom_na{end}.npz") for end in ("", "_kid"))
    assert isinstance(statistics, Statistics)
    assert isinstance(kept, torch.Tensor)
    assert kept.dtype == torch.float64
    assert torch.equal(kept, torch.from_numpy(found).double())
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    generated = features(20, 8, 2)
    assert frechet_distance(generated, statistics) == pytest.approx(frechet_distance(generated, kept), rel=1e-5)


MU, SIGMA = np.zeros(3), np.eye(3)
WRONG = {
    "keys": ({"mean": MU, "cov": SIGMA}, "has the keys cov, mean; it must have mu and sigma, or feats"),
    "one key": ({"mu": MU}, "has the keys mu; it must have"),
    "no key": ({}, "has the keys of no array"),
    "unequal": ({"mu": np.zeros(4), "sigma": SIGMA}, r"mu of shape \(4,\) and sigma of shape \(3, 3\)"),
    "turned": ({"mu": SIGMA, "sigma": MU}, r"mu in .* is float64 of shape \(3, 3\); it must be numbers of 1 dimension"),
    "empty": ({"feats": np.zeros((0, 3))}, r"feats in .* of shape \(0, 3\)"),
    "not finite": ({"mu": MU, "sigma": np.diag([1, np.inf, 1])}, "sigma in .* is not finite everywhere"),
    "nan": ({"feats": np.full((3, 3), np.nan)}, "feats in .* is not finite everywhere"),
    "not symmetric": ({"mu": MU, "sigma": np.triu(np.ones((3, 3)))}, "sigma in .* is not symmetric"),
    "complex": ({"mu": MU * 1j, "sigma": SIGMA}, "mu in .* is complex128"),
    "text": ({"feats": np.array([["a"]])}, "feats in .* is <U1"),
    "objects": ({"mu": np.array([{}], dtype=object), "sigma": SIGMA}, "damaged or holds Python objects"),
}


@pytest.mark.parametrize(("arrays", "match"), WRONG.values(), ids=WRONG)
def test_other_contents_get_a_sentence(tmp_path, arrays, match):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=match):
        read_statistics(tmp_path / "x.npz")


def test_files_that_are_no_statistics_get_a_sentence(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match="there is no file"):
        read_statistics(path)
    with pytest.raises(ValueError, match="is damaged"):
        read_statistics(tmp_path)
    with path.open("wb") as file:
        np.save(file, MU)
    with pytest.raises(ValueError, match="is a single array"):
        read_statistics(path)
    np.savez_compressed(path, mu=np.arange(500.0), sigma=np.eye(500))
    whole = path.read_bytes()
    middle = len(whole) // 3
    spoilt = [b"", b"PK", b"no archive at all", whole[:middle], whole[: len(whole) - 30]]
    start = 30 + sum(struct.unpack("<HH", whole[26:30]))  # of the compressed numbers in a ZIP file
    spoilt += [whole[:place] + b"\xff" * 20 + whole[place + 20 :] for place in (35, start, start + 50, middle)]
    for content in spoilt:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz (is damaged|has the keys)"):
            read_statistics(path)


# the cache


class Counted:
    """Features, and how often they were asked for."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


@pytest.fixture
def compute():
    return Counted(features(6, 8, 1))


@pytest.fixture
def silent():
    with warnings.catch_warnings(action="error"):
        yield


@pytest.mark.usefixtures("silent")
def test_features_are_computed_once(tmp_path, images, compute):
    cache = tmp_path / "made" / "when needed"
    for _ in range(3):
        found = cached("inception", images, compute, cache)
        assert torch.equal(found, compute.value)
        assert found.dtype == torch.float64
    assert compute.calls == 1
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


@pytest.mark.usefixtures("silent")
def test_without_a_folder_nothing_is_kept(tmp_path, images, compute):
    cached("inception", images, compute, None)
    cached("inception", images, compute, None)
    assert compute.calls == 2
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def rename(images):
    return [images[0].rename(images[0].with_name("a.png")), *images[1:]]


def edit(images):
    images[2].write_bytes(b"another picture")
    return images


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("change", [rename, edit, lambda images: images[::-1]], ids=["name", "content", "order"])
def test_other_images_have_other_features(tmp_path, images, compute, change):
    cached("inception", images, compute, tmp_path)
    cached("inception", change(images), compute, tmp_path)
    assert compute.calls == 2


@pytest.mark.usefixtures("silent")
def test_another_extractor_has_other_features(tmp_path, images, compute):
    cached("inception", images, compute, tmp_path)
    cached("inception, cut", images, compute, tmp_path)
    assert compute.calls == 2


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def rewrite(change, noted=None):
    def damage(file):
        save_file({key: change(value).contiguous() for key, value in load_file(file).items()}, file, noted)

    return damage


def reshape(file):
    """The same bytes under another shape."""
    content = file.read_bytes()
    assert b"[6,8]" in content
    file.write_bytes(content.replace(b"[6,8]", b"[8,6]"))


def retype(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"F64"', b'"I64"'))


DAMAGE = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "not of this kind": lambda file: file.write_bytes(b"something else entirely" * 9),
    "one bit": flip,
    "other numbers": rewrite(lambda x: x + 1),
    "fewer rows": rewrite(lambda x: x[:-1]),
    "shape": reshape,
    "type": retype,
    "not finite": rewrite(lambda x: x * float("nan"), {"sha256": "0" * 64}),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed_and_fixed(tmp_path, images, compute, damage):
    cache = tmp_path / "cache"
    cached("inception", images, compute, cache)
    (file,) = cache.iterdir()
    damage(file)
    with pytest.warns(UserWarning, match=f"{file.name} cannot be read or is not what was written") as warned:
        found = cached("inception", images, compute, cache)
    assert torch.equal(found, compute.value)
    assert compute.calls == 2
    if file.is_file():
        assert len(warned) == 1
        with warnings.catch_warnings(action="error"):
            cached("inception", images, compute, cache)
        assert compute.calls == 2


def test_a_file_of_another_set_is_noticed(tmp_path, images, compute):
    for text in ("inception", "dino"):
        cached(text, images, compute, tmp_path / text)
    (first,), (second,) = ((tmp_path / text).iterdir() for text in ("inception", "dino"))
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="is not what was written"):
        cached("inception", images, compute, tmp_path / "inception")


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path, images, compute):
    (tmp_path / "file").write_text("no folder")
    for cache in (tmp_path / "file", Path("/proc/none")):
        with pytest.warns(UserWarning, match=f"cannot be kept in {cache}"):
            assert torch.equal(cached("inception", images, compute, cache), compute.value)


def test_a_full_disk_leaves_nothing_behind(tmp_path, images, compute):
    cache = tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # the kernel takes 10 bytes and refuses the others
    try:
        with pytest.warns(UserWarning, match="File too large"):
            cached("inception", images, compute, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with (
        patch("os.replace", side_effect=OSError(28, "No space left on device")),
        pytest.warns(UserWarning, match="No space left on device"),
    ):
        assert torch.equal(cached("inception", images, compute, cache), compute.value)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("silent")
def test_features_that_are_not_finite_are_not_kept(tmp_path, images):
    compute = Counted(features(6, 8, 1) / 0)
    assert cached("inception", images, compute, tmp_path / "cache").isinf().any()
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("silent")
def test_many_at_once_find_whole_files(tmp_path, images):
    """Eight start together without a file; a ninth reads all the while."""
    cache, start, failures = tmp_path / "cache", threading.Barrier(9), []
    value = features(6, 5000, 1)

    def together():
        start.wait()
        return value

    def work(compute, times):
        try:
            for _ in range(times):
                assert torch.equal(cached("inception", images, compute, cache), value)
        except BaseException as error:
            failures.append(error)

    def read():
        start.wait()
        work(lambda: value, 20)

    threads = [threading.Thread(target=work, args=(together, 1)) for _ in range(8)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(cache.iterdir())) == 1
