"""The commands, as somebody types them: in a folder of their own, with a clean environment."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from convmem import __version__
from tests.servers.processes import HOST, PYTHON, Server, clean_environment, free_port

CONVMEM = [PYTHON, "-c", "from convmem.cli import main; main()"]  # what the installed command runs
CHECKOUT = str(Path(__file__).resolve().parents[2])
KEY = "a-key-that-nobody-is-to-read-in-a-terminal-0123456789"


def run(folder, *arguments, **environment):
    return subprocess.run(
        [*CONVMEM, *arguments],
        cwd=folder,
        env=clean_environment({"PYTHONPATH": CHECKOUT, **environment}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def demo(folder, *arguments, port=None, **environment):
    argv = [*CONVMEM, "demo", "--no-browser", "--port", "{port}", *arguments]
    return Server(argv, {"PYTHONPATH": CHECKOUT, **environment}, port, cwd=folder, path="/health")


def test_version_is_the_packages(tmp_path):
    """For a bug report."""
    done = run(tmp_path, "version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"convmem {__version__} ")


def test_without_a_command_it_says_which_there_are(tmp_path):
    """Nobody has to guess."""
    shown = run(tmp_path).stdout + run(tmp_path, "--help").stdout
    assert all(f" {command} " in shown for command in ("demo", "check", "migrate", "version", "list", "delete", "export", "prune"))


def test_check_in_an_empty_folder_is_well(tmp_path):
    """The defaults work, and say where the conversations will be."""
    done = run(tmp_path, "check")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/convmem.db" in done.stdout
    assert "SQLite" in done.stdout
    assert "All is well." in done.stdout
    assert 'the user who is signed in (scope["user"]), else the visitor of the signed cookie convmem' in done.stdout
    assert "the header X-Session-ID; without it, the one called default" in done.stdout
    assert "signed with a key that is kept in the store" in done.stdout
    assert "CONVMEM_SECRET_KEY is unset" in done.stdout


def test_check_says_how_a_request_would_be_identified(tmp_path):
    """The settings as a reader of requests sees them."""
    done = run(
        tmp_path,
        "check",
        CONVMEM_IDENTITY="visitor",
        CONVMEM_COOKIE_SECURE="always",
        CONVMEM_COOKIE_NAME="chat",
        CONVMEM_SESSION_FROM="query:room,path:/rooms/{id}",
        CONVMEM_CLIENT_IDS="issued",
        CONVMEM_SECRET_KEY=KEY,
    )
    assert done.returncode == 0, done.stdout
    assert "Who: the visitor of the signed cookie __Host-chat or the header Convmem-Visitor." in done.stdout
    assert "?room= or the path /rooms/{id}" in done.stdout
    assert "Only ids that were handed out are accepted" in done.stdout
    assert "signed with CONVMEM_SECRET_KEY" in done.stdout


def test_check_hides_secrets(tmp_path):
    """Its output is pasted into tickets."""
    for arguments in (("check",), ("check", "--json")):
        shown = run(tmp_path, *arguments, CONVMEM_SECRET_KEY=KEY)
        assert shown.returncode == 0
        assert KEY not in shown.stdout + shown.stderr
        networked = run(tmp_path, *arguments, CONVMEM_SECRET_KEY=KEY, CONVMEM_STORE="redis://me:hunter2@127.0.0.1:1/0?connect_timeout=0.2s")
        assert networked.returncode == 1
        assert "hunter2" not in networked.stdout + networked.stderr


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CONVMEM_TURN_WAIT": "2s"}, "raise CONVMEM_TURN_WAIT or lower CONVMEM_LEASE"),
        ({"CONVMEM_STORE": "mongodb://x"}, "CONVMEM_STORE is 'mongodb'"),
        ({"CONVMEM_SECRET_KEY": "short"}, "CONVMEM_SECRET_KEY"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "CONVMEM_STORE is unset on Kubernetes"),
        ({"CONVMEM_TRUST_SESSION_HEADER": "true", "CONVMEM_SESSION_FROM": "query:id"}, "CONVMEM_TRUST_SESSION_HEADER"),
    ],
)
def test_a_setting_that_cannot_work_ends_check_with_2(tmp_path, environment, sentence):
    """With the sentence that says what to change, and no traceback."""
    done = run(tmp_path, "check", **environment)
    assert done.returncode == 2
    assert sentence in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    report = json.loads(run(tmp_path, "check", "--json", **environment).stdout)
    assert report["ok"] is False
    assert sentence in " ".join(report["problems"])


def test_a_store_that_does_not_answer_ends_check_with_1(tmp_path):
    """A deployment can wait for it."""
    (tmp_path / "convmem.db").mkdir()
    done = run(tmp_path, "check")
    assert done.returncode == 1, done.stdout
    assert "The sqlite store failed in check" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_unknown_setting_is_named_with_the_nearest_name(tmp_path):
    """A typo is otherwise a default nobody asked for."""
    done = run(tmp_path, "check", CONVMEM_STROE="sqlite:///other.db")
    assert done.returncode == 0
    assert "did you mean CONVMEM_STORE?" in done.stdout


def test_check_as_json_is_one_object(tmp_path):
    """For scripts: everything the text says."""
    done = run(tmp_path, "check", "--json", CONVMEM_WINDOW_TURNS="7")
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["exit_code"] == done.returncode == 0
    assert report["store"]["store"] == "sqlite"
    assert {"variable": "CONVMEM_WINDOW_TURNS", "value": "7", "source": "environment"} in report["settings"]
    assert report["identity"]
    assert report["problems"] == []


def test_migrate_makes_the_tables_once_and_prints_them_for_others(tmp_path, postgres_server):
    """A deployment runs it before the workers; an administrator runs what it prints."""
    url = postgres_server.database()
    asked = run(tmp_path, "check", CONVMEM_STORE=url, CONVMEM_SECRET_KEY=KEY, CONVMEM_MIGRATE="check")
    assert asked.returncode == 1
    assert "run: convmem migrate" in asked.stdout
    first, second = (run(tmp_path, "migrate", CONVMEM_STORE=url) for _ in range(2))
    assert (first.returncode, first.stdout) == (0, "Applied 001_log.sql.\n")
    assert (second.returncode, second.stdout) == (0, "The tables are up to date.\n")
    done = run(tmp_path, "check", CONVMEM_STORE=url, CONVMEM_SECRET_KEY=KEY, CONVMEM_MIGRATE="check")
    assert done.returncode == 0, done.stdout
    printed = run(tmp_path, "migrate", "--sql", CONVMEM_STORE="postgresql://nobody:hush@nowhere/none", CONVMEM_NAMESPACE="chat")
    assert printed.returncode == 0
    assert 'CREATE UNLOGGED TABLE "chat".convmem_lease' in printed.stdout
    assert "hush" not in printed.stdout


def test_migrate_says_what_is_wrong_or_that_there_is_nothing_to_do(tmp_path):
    """Without a traceback, and with an exit code for the deployment."""
    done = run(tmp_path, "migrate", CONVMEM_STORE=f"postgresql://somebody:hush@{HOST}:{free_port()}/none?timeout=1s")
    assert done.returncode == 1
    assert "The postgresql store failed in migrate: no connection" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
    nothing = run(tmp_path, "migrate", CONVMEM_STORE="sqlite:///x.db")
    assert nothing.returncode == 0
    assert "makes what it needs by itself" in nothing.stdout
    assert run(tmp_path, "migrate", CONVMEM_STORE="postgresql://h/db?wrong=1").returncode == 2


def test_demo_keeps_its_conversations_in_the_folder_it_is_started_in(tmp_path):
    """And says where, with the whole path, and where to look."""
    with demo(tmp_path) as server:
        assert httpx.get(f"{server.url}/health").json()["pid"] == server.pid
        assert f"sqlite:///{tmp_path}/convmem-demo.db" in server.log
        assert server.url in server.log
        assert str(server.pid) in server.log
        assert server.terminate() in (0, -15)
        assert "Traceback" not in server.log
        assert "SECRET_KEY" not in server.log  # nobody has to make a key to try it
    assert (tmp_path / "convmem-demo.db").exists()


def test_demo_takes_the_store_it_is_given(tmp_path):
    """The option beats the environment, the environment beats the default."""
    with demo(tmp_path, "--store", "sqlite:///mine.db", CONVMEM_STORE="sqlite:///other.db") as server:
        assert httpx.get(f"{server.url}/history").status_code == 200
    with demo(tmp_path, CONVMEM_STORE="sqlite:///other.db", CONVMEM_SECRET_KEY=KEY) as server:
        assert httpx.get(f"{server.url}/history").status_code == 200
        assert KEY not in server.log
    assert (tmp_path / "mine.db").exists()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "convmem-demo.db").exists()


def test_demo_takes_the_next_port_when_one_is_taken_and_says_so(tmp_path):
    """Another app on 8000 is no reason to fail."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo(tmp_path, port=port).start(wait=None) as server:
            server.wait_for_log("convmem demo")
            assert f"Port {port} is taken; this is on " in server.log
            assert f"http://{HOST}:{port}\n" not in server.log


def test_demo_on_port_0_takes_any(tmp_path):
    """For scripts that read the address from the output."""
    with Server([*CONVMEM, "demo", "--no-browser", "--port", "0"], {"PYTHONPATH": CHECKOUT}, cwd=tmp_path).start(wait=None) as server:
        server.wait_for_log("process ")
        (url,) = (word for word in server.log.split() if word.startswith("http://"))
        assert not url.endswith(":0")


def test_demo_with_a_wrong_setting_ends_with_the_sentence(tmp_path):
    """Before a port is taken, and without a traceback."""
    done = run(tmp_path, "demo", "--no-browser", "--port", str(free_port()), CONVMEM_TURN_WAIT="1s")
    assert done.returncode == 2
    assert "CONVMEM_TURN_WAIT" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(tmp_path, "demo", "--no-browser", "--store", "sqlite:////nowhere/at/all.db")
    assert done.returncode == 1
    assert "The sqlite store failed" in done.stderr
    done = run(tmp_path, "demo", "--no-browser", "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "Nothing can listen on 192.0.2.1" in done.stderr


def test_demo_warns_that_memory_is_not_shared(tmp_path):
    """Two workers and a store of one process: each would know half."""
    with demo(tmp_path, "--workers", "2", "--store", "memory://") as server:
        assert "2 workers will not see what the others store" in server.log
