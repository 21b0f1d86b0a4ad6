"""What is needed of a reference set: statistics or features in other libraries' files, and a cache of features."""

import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.files import write_atomically
from eval.metrics.frechet import Statistics

CHECKSUM = "sha256"


def read_statistics(path: Path) -> Statistics | Tensor:
    """What clean-fid or pytorch-fid saved of a reference set.

    Args:
        path: an .npz with mu (d,) and sigma (d, d), as pytorch-fid's --save-stats and clean-fid's statistics have it;
            or with feats (n, d), as clean-fid's *_kid.npz.

    Returns:
        Statistics, whose number of images is not known, or features, float64 (n, d). Of both, features.

    Raises:
        ValueError: if the file is not there, damaged, or holds something else.
    """
    arrays = _read_arrays(path)
    if "feats" in arrays:
        (feats,) = _tensors(path, arrays, feats=2)
        return feats
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(
            f"{path} has the keys {', '.join(sorted(arrays)) or 'of no array'}; it must have mu and sigma, or feats, "
            "as clean-fid and pytorch-fid write them"
        )
    mean, covariance = _tensors(path, arrays, mu=1, sigma=2)
    if covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} has mu of shape {tuple(mean.shape)} and sigma of shape {tuple(covariance.shape)}; they must be "
            "(d,) and (d, d); make the file again"
        )
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * covariance.abs().max().item()):
        raise ValueError(f"sigma in {path} is not symmetric, so it is no covariance; make the file again")
    return Statistics(mean, (covariance + covariance.T) / 2)


def cached(key_text: str, paths: Sequence[Path], compute: Callable[[], Tensor], cache: Path | None) -> Tensor:
    """Features of a reference set, kept in a folder under a name made of extractor, file names and contents.

    A kept file that is damaged or of another set is made again, with a warning. If the folder cannot be used, there is
    a warning, and the features are computed each time. Processes may share a folder.

    Args:
        key_text: what besides the images decides the features: an extractor's protocol.
        paths: of the images, in the order of the features.
        compute: gives the features, (n, d).
        cache: the folder; it is made if need be. None keeps nothing.

    Returns:
        (n, d), as `compute` gave them.
    """
    if cache is None:
        return compute()
    key = _key(key_text, paths)
    file = cache / f"features-{key[:16]}.safetensors"
    found = _load(file, key)
    if found is None:
        found = compute()
        if found.isfinite().all():
            _save(found, file, key)
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}; give an .npz of clean-fid or pytorch-fid") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(
            f"{path} is damaged or holds Python objects, which are not read; get or make the file again"
        ) from error
    raise ValueError(f"{path} is a single array; give an .npz with mu and sigma, or with feats")


def _tensors(path: Path, arrays: dict[str, np.ndarray], **dimensions: int) -> list[Tensor]:
    """The named arrays as float64, if they are numbers, finite, and of so many dimensions."""
    for name, count in dimensions.items():
        array = arrays[name]
        if array.dtype.kind not in "fiu" or array.ndim != count or 0 in array.shape:
            raise ValueError(
                f"{name} in {path} is {array.dtype} of shape {array.shape}; it must be numbers of {count} "
                f"{'dimension' if count == 1 else 'dimensions'}; make the file again"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} in {path} is not finite everywhere; make the file again")
    return [torch.from_numpy(arrays[name].astype(np.float64)) for name in dimensions]


def _key(key_text: str, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(hashlib.sha256(key_text.encode()).digest())
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(hashlib.sha256(path.name.encode()).digest() + content)
    return digest.hexdigest()


def _checksum(features: Tensor, key: str) -> str:
    """Sha256 of the bytes, their type and their shape."""
    about = f"{key} {features.dtype} {tuple(features.shape)}".encode()
    return hashlib.sha256(about + features.contiguous().numpy().tobytes()).hexdigest()


def _load(file: Path, key: str) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        if not file.exists():
            return None
        with safe_open(file, "pt") as content:
            features, noted = content.get_tensor("features"), (content.metadata() or {}).get(CHECKSUM)
        if _checksum(features, key) == noted:
            return features.clone()  # aligned in memory as computed ones, so that sums round alike
    except (OSError, SafetensorError):
        pass  # as a file with other contents
    _warn(f"{file} cannot be read or is not what was written there; the features are computed again")
    return None


def _save(features: Tensor, file: Path, key: str) -> None:
    from safetensors.torch import save

    content = save({"features": features.contiguous()}, {CHECKSUM: _checksum(features, key)})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(content, file, sync=False)  # the checksum shows what a power cut leaves of it
    except OSError as error:
        _warn(f"features cannot be kept in {file.parent} ({error.strerror}); they will be computed each time")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)  # at who called `cached`
