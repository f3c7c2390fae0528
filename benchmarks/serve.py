"""``python -m benchmarks.serve MODULE:FACTORY PLACE``: one app under uvicorn, with uvloop and httptools; says its port, then serves."""

from __future__ import annotations

import importlib
import socket
import sys

import uvicorn


def main(code: str, place: str) -> None:
    """Serve until it is killed."""
    module, _, factory = code.partition(":")
    app = getattr(importlib.import_module(module), factory)(place)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", timeout_keep_alive=300)
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
