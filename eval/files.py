"""Files that are whole or as they were before."""

import os
from pathlib import Path


def write_atomically(content: bytes, path: Path) -> None:
    """Write a file under another name, wait until it is on the disk, and rename it.

    Who writes must be alone: the other name is always the same, so what a kill leaves is written over next time.

    Raises:
        OSError: if it cannot be written; it names `path`, and nothing is left of the new content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
