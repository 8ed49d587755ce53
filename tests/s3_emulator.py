"""An emulator of S3 on this machine, behind a front that can break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from storage_front import StorageFront


@contextmanager
def running() -> Iterator[StorageFront]:
    """An emulator and its front; this process and its children find it while the block runs."""
    s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    moto_server = pytest.importorskip("moto.server", reason="the extra test is not installed")
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            StorageFront(server.get_host_and_port()) as front,
        ):
            patch.setenv("AWS_ENDPOINT_URL", front.url)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "made-up")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            yield front
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()
