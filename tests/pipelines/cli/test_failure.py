"""Errors of the operating system and of object storage, in the user's words."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.failure import explain_os_error, explain_store_error, is_from_store


def failure(action: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as caught:
        action()
    return caught.value


def test_real_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.touch()
    wanted = f"{file} is a file, and a folder is needed there; give another folder"
    assert explain_os_error(failure((file / "pool" / "shards").mkdir)) == wanted
    assert explain_os_error(failure(file.mkdir)) == wanted
    assert explain_os_error(failure((tmp_path / "none").read_bytes)) == f"{tmp_path / 'none'} does not exist"
    assert explain_os_error(failure(tmp_path.read_bytes)) == f"{tmp_path} is a folder, and a file is needed there"


def test_errors_that_are_hard_to_provoke() -> None:
    full = explain_os_error(OSError(errno.ENOSPC, "No space left on device", "/pool/x"))
    assert full.startswith("/pool/x: no space is left") and "run the same command again" in full
    assert "permission denied" in explain_os_error(PermissionError(errno.EACCES, "Permission denied", "/pool/x"))
    assert explain_os_error(OSError(errno.EIO, "Input/output error", "/pool/x")) == "/pool/x: Input/output error"
    assert explain_os_error(OSError("the server hung up")) == "the server hung up"


def test_errors_of_object_storage() -> None:
    exceptions = pytest.importorskip("botocore.exceptions", reason="part of the extra dev")
    error = exceptions.NoCredentialsError()
    assert is_from_store(error)
    assert "Unable to locate credentials" in explain_store_error(error)
    assert "AWS_ACCESS_KEY_ID" in explain_store_error(error)
    assert not is_from_store(KeyError("x"))
