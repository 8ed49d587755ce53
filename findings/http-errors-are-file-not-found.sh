#!/usr/bin/env bash
# A server that is broken, or refuses, is "file not found" to whoever asks fsspec for a file's facts.
#
# Guess: fsspec's HTTP file system raises FileNotFoundError for 404, and something else (PermissionError, an
# aiohttp error) for 403, 500 and a refused connection, so that a caller can try again what may pass.
# Seen (fsspec 2026.9.0, aiohttp 3.14.5): info() raises FileNotFoundError for all four, and exists() says False
# for all four; the truth is in __cause__ of the error of info() alone. A job that takes FileNotFoundError
# for a final answer gives up on a server that restarts, and exists() cannot be used to tell.
# Fails if one of the answers changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet fsspec==2026.9.0 aiohttp==3.14.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import http.server
import socket
import sys
import threading
from importlib.metadata import version

import fsspec


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(int(self.path.strip("/")))

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    closed = free.getsockname()[1]
base = f"http://127.0.0.1:{server.server_port}"
print(f"fsspec {version('fsspec')}, aiohttp {version('aiohttp')}")
seen = {}
for what, url in (
    ("404", f"{base}/404"),
    ("403", f"{base}/403"),
    ("500", f"{base}/500"),
    ("refused", f"http://127.0.0.1:{closed}/x"),
):
    files = fsspec.filesystem("http", skip_instance_cache=True)
    try:
        files.info(url)
        error = cause = None
    except Exception as err:
        error, cause = type(err).__name__, type(err.__cause__).__name__
    seen[what] = (error, files.exists(url))
    print(f"{what}: info() raises {error} from {cause}; exists() says {seen[what][1]}")
sys.exit(set(seen.values()) != {("FileNotFoundError", False)})
PYTHON
