"""Install the built wheel in fresh environments outside the checkout and use it: ``python tests/smoke_wheel.py DIRECTORY_WITH_WHEEL``.

The tests run on an editable install, which sees the whole checkout; only this sees what a user gets.
"""

import contextlib
import http.client
import http.cookies
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convmem import bootstrap

IMPORTS_NOTHING = """
import sys, convmem
unwanted = {"fastapi", "langchain_core", "pydantic", "redis", "asyncpg", "sqlite3", "starlette", "typer", "uvicorn"} & set(sys.modules)
assert not unwanted, unwanted
assert "site-packages" in convmem.__file__, convmem.__file__
"""
NAMES_ITS_LINE = """
try:
    from convmem_langchain import ConversationHistory
except ImportError as error:
    assert 'pip install "convmem[langchain]"' in str(error), error
else:
    raise AssertionError
"""
NAMES_THE_LINE_OF_REDIS = """
from convmem import ConfigurationError, open_store
try:
    open_store("redis://cache")
except ConfigurationError as error:
    assert 'pip install "convmem[redis]"' in str(error), error
else:
    raise AssertionError
"""


def main():
    (wheel,) = Path(sys.argv[1]).resolve().glob("convmem-*.whl")
    tools = bootstrap.Tools()
    with tempfile.TemporaryDirectory(prefix="convmem-smoke-") as name:
        outside = Path(name)

        plain = environment(tools, outside / "plain", str(wheel))
        run(outside, plain, "-c", IMPORTS_NOTHING)
        run(outside, plain, "-c", NAMES_ITS_LINE)
        told = subprocess.run([command(plain), "demo"], cwd=outside, env=clean(), capture_output=True, text=True, check=False)
        assert told.returncode == 2, told
        assert 'pip install "convmem[demo]"' in told.stderr, told.stderr
        extras = {"convmem_llamaindex": "llamaindex", "convmem_openai_agents": "openai-agents", "convmem_pydantic_ai": "pydantic-ai"}
        for package, extra in extras.items():
            told = subprocess.run(
                [str(plain), "-c", f"import {package}"], cwd=outside, env=clean(), capture_output=True, text=True, check=False
            )
            assert f'pip install "convmem[{extra}]"' in told.stderr, told.stderr
        run(outside, plain, "-c", NAMES_THE_LINE_OF_REDIS)
        print("plain wheel: imports nothing, names the install line")

        full = environment(tools, outside / "demo", f"{wheel}[demo]")
        run(outside, full, "-c", IMPORTS_NOTHING)
        run(outside, full, "-m", "convmem", "--help")
        subprocess.run([command(full), "--help"], cwd=outside, env=clean(), check=True, stdout=subprocess.DEVNULL)
        demo(outside, full)
        print("wheel[demo]: the demo remembers")


def environment(tools, directory, requirement):
    tools.make_venv(directory)
    tools.install(directory, "-c", str(bootstrap.CONSTRAINTS), requirement)
    return bootstrap.python_of(directory)


def command(python):
    return str(python.with_name("convmem.exe" if os.name == "nt" else "convmem"))


def clean():
    """The environment without what would lead back to the checkout or configure convmem."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CONVMEM_", "PYTHON", "VIRTUAL_ENV"))}


def run(outside, python, *arguments):
    subprocess.run([str(python), *arguments], cwd=outside, env=clean(), check=True, stdout=subprocess.DEVNULL, timeout=60)


def demo(outside, python):
    """Start the demo as a user would, say two things, and see that the second answer knows the first."""
    port = free_port()
    with (outside / "demo.log").open("w+") as log:
        server = subprocess.Popen(
            [command(python), "demo", "--port", str(port), "--no-browser"],
            cwd=outside,
            env=clean(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server, port)
            first, cookie = chat(port, "my name is Ada", "")
            second, _ = chat(port, "what is my name?", cookie)
            assert "Ada" in second, (first, second)
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            server.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()


def chat(port, text, cookie):
    """Send one message; return the whole answer and the cookie to send next."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"} | ({"Cookie": cookie} if cookie else {})
    client.request("POST", "/chat", json.dumps({"message": text}), headers)
    response = client.getresponse()
    body = response.read().decode()
    assert response.status == 200, (response.status, body)
    jar = http.cookies.SimpleCookie(response.getheader("Set-Cookie", ""))
    client.close()
    return body, "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items()) or cookie


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(server, port):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the demo ended with {server.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
