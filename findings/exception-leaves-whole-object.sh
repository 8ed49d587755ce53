#!/usr/bin/env bash
# An exception while a file is written to S3 by fsspec: the half that was written becomes a whole object all the same.
#
# Guess: with a bucket nothing is there until a file is complete: `with fs.open(uri, "wb")` that ends by an exception
# leaves no object, or the one that was there.
# Seen (s3fs and fsspec 2026.9.0, with moto 5.2.5 for S3): leaving the block closes the file, and closing uploads what there
# is. It replaces the whole object that was there, with no sign of it, and so do 6 MiB that were sent in parts. A job that
# fails and is tried again elsewhere leaves files that others take for finished.
# Inside `with fs.transaction:` the object that was there stays.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet s3fs==2026.9.0 fsspec==2026.9.0 'moto[server]==5.2.5'
cd "$folder"
AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1 "$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import logging
import sys
from importlib.metadata import version

import fsspec
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"s3fs {version('s3fs')}, fsspec {version('fsspec')}, moto {version('moto')}")
store = fsspec.filesystem("s3", endpoint_url=f"http://{host}:{port}", use_listings_cache=False)
store.mkdir("bucket")


class BreaksError(Exception):
    pass


def left_by(half, in_transaction=False):
    """What is at a place where something whole was, after writing half of something else broke off."""
    store.pipe_file("bucket/file", b"whole" * 3)
    try:
        with store.transaction if in_transaction else contextlib.nullcontext():
            with store.open("bucket/file", "wb", block_size=5 * 2**20) as file:
                file.write(half)
                raise BreaksError
    except BreaksError:
        pass
    return store.cat_file("bucket/file"), "-" in store.info("bucket/file")["ETag"]  # sent in parts


MANY = bytes(6 * 2**20)
seen = {
    "3 bytes": left_by(b"one") == (b"one", False),
    "6 MiB in parts": left_by(MANY) == (MANY, True),
    "3 bytes in a transaction": left_by(b"one", in_transaction=True) != (b"whole" * 3, False),
}
for what, replaced in seen.items():
    print(f"{what}, then an exception: the half has replaced the whole: {replaced}")
server.stop()
sys.exit(list(seen.values()) != [True, True, False])
PYTHON
