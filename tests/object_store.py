"""An S3-compatible server as a process of its own, and a bucket in it: moto's, which keeps objects in memory."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "winnow"
_ADDRESS = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """Where the bucket is, and the environment by which a process finds its server."""

    url: str
    environment: dict[str, str]


@contextmanager
def serve_bucket() -> Iterator[ObjectStore]:
    """Run the server with an empty bucket until the block ends."""
    import s3fs

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            found = next((match for line in process.stderr if (match := _ADDRESS.search(line))), None)
            assert found, "the server did not start"
            keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
            environment = {**os.environ, **keys, "AWS_ENDPOINT_URL": found[1]}
            s3fs.S3FileSystem(key="test", secret="test", endpoint_url=found[1], use_listings_cache=False).mkdir(BUCKET)
            # What it goes on saying would fill the pipe.
            process.stderr.close()
            # This process may hold file systems of an earlier server.
            s3fs.S3FileSystem.clear_instance_cache()
            yield ObjectStore(url=f"s3://{BUCKET}", environment=environment)
        finally:
            process.terminate()
