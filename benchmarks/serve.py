"""``python -m benchmarks.serve MODULE:FACTORY PLACE``: one app under uvicorn, with uvloop and httptools; says its port, then serves.

It ends with whoever started it: when its standard input does.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading

import uvicorn


def main(code: str, place: str) -> None:
    """Serve until standard input ends."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    module, _, factory = code.partition(":")
    app = getattr(importlib.import_module(module), factory)(place)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", timeout_keep_alive=300)
        uvicorn.Server(config).run([listening])


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
