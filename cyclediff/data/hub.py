"""Which commit of a repository of the Hugging Face hub a run uses."""

from functools import cache
from pathlib import Path

from cyclediff.errors import UserError


@cache
def commit_of(repository: str) -> str:
    """The commit that a repository's main branch has now or, where the hub cannot be asked, the one in its cache.

    Raises:
        UserError: if there is neither.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi().model_info(repository, timeout=10).sha
        if commit:
            return commit
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        pass  # the cache may have it
    except Exception as error:  # each version of the client has its own errors of the connection
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
    main = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "refs", "main")
    try:
        return main.read_text().strip()
    except OSError as error:
        raise UserError(
            f"{repository} is no file or folder here, and the Hugging Face hub has no such repository or cannot be "
            "reached; check the name and the connection, or give a folder"
        ) from error
