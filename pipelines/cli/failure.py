"""What to say of errors that libraries and the operating system raise: which file or place, and what to do."""

import errno
from pathlib import Path

# Libraries that reach object storage, whose errors are nobody's but the keys' and the network's.
_STORES = ("botocore", "aiobotocore", "gcsfs", "google", "adlfs", "azure")


def explain_os_error(error: OSError) -> str:
    """Return what went wrong with which file, and the remedy where there is one."""
    path = error.filename
    if not isinstance(path, str) or error.errno is None:
        return str(error)
    if isinstance(error, NotADirectoryError | FileExistsError):
        file = next((part for part in (Path(path), *Path(path).parents) if part.is_file()), None)
        if file:
            return f"{file} is a file, and a folder is needed there; give another folder"
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, and a file is needed there"
    if isinstance(error, PermissionError):
        return f"{path}: permission denied; give a place that this user may read and write"
    if error.errno == errno.ENOSPC:
        return (
            f"{path}: no space is left on its disk; free some and run the same command again, what is finished is kept"
        )
    return f"{path}: {error.strerror}"


def is_from_store(error: Exception) -> bool:
    """Tell whether a library that reaches object storage raised it."""
    return any(kind.__module__.partition(".")[0] in _STORES for kind in type(error).__mro__)


def explain_store_error(error: Exception) -> str:
    """Return what an object store or its library said, and where its keys are looked for."""
    return (
        f"object storage: {str(error).rstrip('.')}; keys and the endpoint are read from the environment "
        "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or from the library's own files"
    )
