"""Repositories of the Hugging Face hub: which commit a run uses, and downloads of just the files that are read here."""

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NoReturn

from cyclediff.errors import UserError

CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")  # whose errors are those of a download
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TO_SAFETENSORS = (
    "python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{0}').save_pretrained('{1}')\""
)


@cache
def commit_of(repository: str) -> str:
    """The commit that a repository's main branch has now or, where the hub cannot be asked, the one in its cache.

    Raises:
        UserError: if there is neither.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi().model_info(repository, timeout=10).sha
        if commit:
            return commit
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        pass  # the cache may have it
    except Exception as error:  # each version of the client has its own errors of the connection
        if not type(error).__module__.startswith(CLIENTS):
            raise
    if commit := _cached_commit(repository):
        return commit
    raise UserError(
        f"{repository} is no file or folder here, and the Hugging Face hub has no such repository or cannot be "
        "reached; check the name and the connection, or give a folder"
    )


def cached_folder(repository: str, files: Sequence[str]) -> Path | None:
    """The folder of a repository's main branch in the hub's cache, if all `files` without a * are there."""
    commit = _cached_commit(repository)
    folder = _cache_of(repository) / "snapshots" / (commit or "")
    return folder if commit and all((folder / file).exists() for file in files if "*" not in file) else None


def fetch_repository(repository: str, files: Sequence[str]) -> Path:
    """Download files of a repository's main branch into the hub's cache, where a run finds them; returns their folder.

    What has arrived is kept, and the same call continues.

    Args:
        repository: its id, such as CompVis/stable-diffusion-v1-4.
        files: their names or patterns. Those without a * must be there.

    Raises:
        UserError: if the hub cannot be reached, has no such repository, does not give it, or it lacks a file.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        there = {entry.rfilename for entry in HfApi().model_info(repository, timeout=10).siblings or []}
        _require_files(repository, files, there)
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except Exception as error:  # each version of the client has its own errors
        if type(error).__module__.startswith(CLIENTS):
            _explain(repository, error)
        raise


def _require_files(repository: str, files: Sequence[str], there: set[str]) -> None:
    missing = [file for file in files if not any(fnmatch(name, file) for name in there) and "*" not in file]
    folders = {Path(file).parent for file in missing if file.endswith(".safetensors")}
    if any(name.endswith(PICKLES) and Path(name).parent in folders for name in there):
        own = f"checkpoints/{repository.rpartition('/')[2]}"
        raise UserError(
            f"{repository} has pickles, which can run code, and no safetensors, which are read here ({missing[0]}); if "
            f"you trust it, convert it with {TO_SAFETENSORS.format(repository, own)} and run with task.model.path={own}"
        )
    if missing:
        raise UserError(f"{repository} on the Hugging Face hub lacks {', '.join(missing)}; get another copy of it")


def _explain(repository: str, error: Exception) -> NoReturn:
    """One sentence for an error of the hub's client."""
    from huggingface_hub import errors

    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        sentence = (
            f"{repository} is open only to people who have accepted its terms; accept them at "
            f"https://huggingface.co/{repository}, then run `hf auth login`"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        sentence = f"the Hugging Face hub has no {repository}, or it is private; check the name, or run `hf auth login`"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        sentence = f"{repository} was not downloaded, because HF_HUB_OFFLINE is set; unset it"
    elif isinstance(error, errors.HFValidationError):
        sentence = f"{repository} is no id of the Hugging Face hub; write OWNER/NAME ({reason})"
    elif isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        sentence = (
            f"the Hugging Face hub answered {status} for {repository}; try again later, the same command continues"
        )
    else:
        sentence = (
            f"the Hugging Face hub cannot be reached for {repository} ({reason}); check the connection, the same "
            "command continues"
        )
    raise UserError(sentence) from error


def _cached_commit(repository: str) -> str | None:
    try:
        return (_cache_of(repository) / "refs" / "main").read_text().strip()
    except OSError:
        return None


def _cache_of(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
