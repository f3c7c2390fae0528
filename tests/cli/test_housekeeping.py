"""The commands on stored conversations, as an operator or a cron job runs them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sqlite3
import stat
import subprocess
import time
from contextlib import chdir, closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

import convmem.cli.housekeeping  # noqa: F401 - the commands join those of the app
from convmem import Message, SessionKey, SQLiteStore, open_conversation
from convmem.cli.commands import app
from tests.cli.test_commands import CHECKOUT, CONVMEM, KEY, run as run_installed
from tests.servers.processes import clean_environment

ADA, BOB = SessionKey.for_user("ada", "a"), SessionKey.for_user("bob", "b", tenant="acme")
SECRET = "what ada said"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, for speed; `run_installed` does it in one of its own."""
    ambient: dict[str, str | None] = dict.fromkeys(os.environ.keys() - clean_environment({}).keys())
    with chdir(folder):
        done = CliRunner().invoke(app, arguments, env={**ambient, **environment}, prog_name="convmem")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


async def fill(path: Path, *keys: SessionKey) -> None:
    """Store one turn in each conversation."""
    async with SQLiteStore(path) as store:
        for key in keys:
            async with open_conversation(key, store=store) as conversation:
                conversation.append(Message.user(SECRET))


async def present(path: Path) -> set[SessionKey]:
    """Return what is there."""
    async with SQLiteStore(path) as store:
        return {item.key for item in (await store.list(None, tenant=None)).items}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An app's folder, in which two people have talked."""
    asyncio.run(fill(tmp_path / "convmem.db", ADA, BOB))
    return tmp_path


def age(folder: Path, key: SessionKey, days: float) -> None:
    """Let a conversation have been written so long ago."""
    with closing(sqlite3.connect(folder / "convmem.db")) as link, link:
        written = time.time() - days * 86400
        link.execute("UPDATE conversation SET updated = ?, hour = ? WHERE owner = ?", (written, written // 3600, key.path[1]))


def there(folder: Path) -> set[SessionKey]:
    return asyncio.run(present(folder / "convmem.db"))


def on_a_terminal(folder: Path, *arguments: str, typed: str = "") -> tuple[str, int]:
    """Run a command where somebody sits, and return what they saw."""
    ours, theirs = pty.openpty()
    environment = clean_environment({"PYTHONPATH": CHECKOUT, "TERM": "xterm"})
    process = subprocess.Popen([*CONVMEM, *arguments], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, typed.encode())
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # Linux: the other end was closed
        pass
    finally:
        os.close(ours)
    return seen.decode(), process.wait(30)


class TestList:
    """``convmem list``."""

    def test_it_lists_an_owners_conversations(self, folder):
        """What support looks up first; never what was said."""
        done = run(folder, "list", "--owner", "user:ada")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("a  1  20")
        assert SECRET not in done.stdout
        (line,) = run(folder, "list", "--owner", "user:bob", "--tenant", "acme", "--json").stdout.splitlines()
        assert (json.loads(line)["session_id"], json.loads(line)["turns"]) == ("b", 1)
        assert run(folder, "list", "--owner", "user:bob").stdout == ""

    def test_what_is_no_owner_ends_with_2(self, folder):
        """With the forms there are, and no traceback."""
        done = run(folder, "list", "--owner", "ada")
        assert (done.returncode, done.stdout) == (2, "")
        assert "An owner is user:<identity>" in done.stderr
        assert "Traceback" not in done.stderr


class TestDelete:
    """``convmem delete``."""

    def test_it_deletes_an_owners_conversations_and_nobody_elses(self, folder):
        """The letter of a person who asks to be forgotten, answered with one line."""
        done = run(folder, "delete", "--owner", "user:ada", "--yes")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 conversation deleted.\n", "")
        assert there(folder) == {BOB}
        again = run(folder, "delete", "--owner", "user:ada", "--yes")
        assert (again.returncode, again.stdout) == (0, "0 conversations deleted.\n")

    def test_it_deletes_a_tenants(self, folder):
        """And an owner of another tenant is not meant."""
        assert run(folder, "delete", "--owner", "user:bob", "--yes").stdout == "0 conversations deleted.\n"
        assert run(folder, "delete", "--tenant", "acme", "--yes").stdout == "1 conversation deleted.\n"
        assert there(folder) == {ADA}

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "Say whose: --owner user:42, or --tenant NAME"),
            (("--yes",), "Say whose: --owner user:42, or --tenant NAME"),
            (("--owner", "user:ada"), "nobody is here to confirm it; add --yes"),
            (("--owner", "ada", "--yes"), "An owner is user:<identity>"),
            (("--tenant", "x" * 600, "--yes"), "tenant is longer than 512 bytes"),
        ],
    )
    def test_it_deletes_nothing_unless_it_is_sure(self, folder, arguments, sentence):
        """Nobody's conversations go because a variable of a script was empty."""
        done = run(folder, "delete", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in done.stderr
        assert there(folder) == {ADA, BOB}

    def test_it_asks_whoever_sits_there(self, folder):
        """And takes no for an answer."""
        seen, code = on_a_terminal(folder, "delete", "--owner", "user:ada", typed="n\n")
        assert "Delete every conversation of user:ada in sqlite:///" in seen
        assert (code, there(folder)) == (1, {ADA, BOB})
        seen, code = on_a_terminal(folder, "delete", "--owner", "user:ada", typed="y\n")
        assert "1 conversation deleted." in seen
        assert (code, there(folder)) == (0, {BOB})


class TestExport:
    """``convmem export``."""

    def test_it_writes_lines_of_json(self, folder):
        """To standard output they are nothing but that: what else there is to say goes elsewhere."""
        done = run_installed(folder, "export", "--owner", "user:ada")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["type"] for line in lines] == ["export", "conversation", "entry", "conversation_end", "end"]
        assert lines[2]["messages"][0]["content"] == SECRET
        assert done.stderr == "1 conversation with 1 messages exported.\n"

    def test_a_file_is_there_when_it_is_whole_and_readable_by_nobody_else(self, folder):
        """It holds what somebody said; and half of it would be taken for all."""
        file = folder / "bob.ndjson"
        assert run(folder, "export", "--tenant", "acme", "--output", "bob.ndjson").returncode == 0
        assert json.loads(file.read_text().splitlines()[-1])["conversations"] == 1
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with closing(sqlite3.connect(folder / "convmem.db")) as link:
            link.execute("DROP TABLE entry")
        done = run(folder, "export", "--tenant", "acme", "--output", "again.ndjson")
        assert done.returncode == 1
        assert "The export is not whole." in done.stderr
        assert [path.name for path in folder.glob("*.ndjson")] == ["bob.ndjson"]
        assert not list(folder.glob(".*"))

    def test_a_file_that_is_there_is_left_alone(self, folder):
        """It may be the only copy of what was deleted since."""
        (folder / "old.ndjson").write_text("old")
        done = run(folder, "export", "--owner", "user:ada", "--output", "old.ndjson")
        assert done.returncode == 2
        assert "old.ndjson exists; remove it, or name another file." in done.stderr
        assert (folder / "old.ndjson").read_text() == "old"
        nowhere = run(folder, "export", "--owner", "user:ada", "--output", "no/such/folder.ndjson")
        assert nowhere.returncode == 2
        assert "cannot be written: No such file or directory." in nowhere.stderr

    def test_one_conversation_can_be_named(self, folder):
        """By its owner and its session id; without the owner it is nobody's."""
        asyncio.run(fill(folder / "convmem.db", SessionKey.for_user("ada", "other")))
        done = run(folder, "export", "--owner", "user:ada", "--session", "a")
        assert json.loads(done.stdout.splitlines()[-1])["conversations"] == 1
        assert run(folder, "export", "--tenant", "", "--session", "a").returncode == 2

    def test_damage_is_told_of(self, folder):
        """The operator hears of it, and not only who reads the file some day."""
        with closing(sqlite3.connect(folder / "convmem.db")) as link, link:
            kept = link.execute("SELECT id, packed FROM entry").fetchall()
            link.executemany("UPDATE entry SET packed = ? WHERE id = ?", [(packed[:-1] + b"\xff", n) for n, packed in kept])
        done = run(folder, "export", "--owner", "user:ada")
        assert done.returncode == 0
        assert "1 entries could not be decoded; they are named, and their bytes are there." in done.stderr


class TestPrune:
    """``convmem prune``."""

    def test_what_is_older_goes(self, folder):
        """In every tenant."""
        age(folder, BOB, 100)
        done = run(folder, "prune", "--older-than", "90d")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "1 conversation deleted: not written for 90d, or expired.\n"
        assert there(folder) == {ADA}

    def test_the_retention_is_the_settings(self, folder):
        """The line in the crontab is two words."""
        age(folder, BOB, 100)
        assert run(folder, "prune", CONVMEM_RETENTION="P101D").stdout == "0 conversations deleted: not written for 101d, or expired.\n"
        assert run(folder, "prune", CONVMEM_RETENTION="90d").stdout == "1 conversation deleted: not written for 90d, or expired.\n"
        assert there(folder) == {ADA}

    def test_without_a_retention_it_says_what_it_does_not_do(self, folder):
        """A cron job that deletes nothing for a year is found out too late."""
        age(folder, BOB, 1000)
        done = run(folder, "prune")
        assert (done.returncode, done.stdout) == (0, "0 conversations deleted: expired.\n")
        assert "CONVMEM_RETENTION is unset: only what has outlived its TTL is deleted." in done.stderr
        assert there(folder) == {ADA, BOB}

    def test_a_dry_run_deletes_nothing(self, folder):
        """And says how many it would be."""
        age(folder, BOB, 100)
        done = run(folder, "prune", "--older-than", "90d", "--dry-run")
        assert done.stdout == "1 conversation would be deleted: not written for 90d, or expired.\n"
        assert there(folder) == {ADA, BOB}

    @pytest.mark.parametrize("older", ["90", "0d", "-1d", "soon", ""])
    def test_an_age_that_is_none_ends_with_2(self, folder, older):
        """Ninety of what? Of seconds, nearly everything would go."""
        done = run(folder, "prune", "--older-than", older)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("--older-than is ")
        assert there(folder) == {ADA, BOB}

    def test_a_cron_job_in_the_wrong_folder_is_told_so(self, tmp_path):
        """It would make an empty file, find nothing to delete in it, and say every night that all is well."""
        for command in (
            ["prune"],
            ["delete", "--owner", "user:ada", "--yes"],
            ["export", "--owner", "user:ada"],
            ["list", "--owner", "user:a"],
        ):
            done = run(tmp_path, *command)
            assert done.returncode == 2
            assert "convmem.db does not exist; run this in the app's working directory, or set CONVMEM_STORE" in done.stderr
        assert not list(tmp_path.iterdir())
        memory = run(tmp_path, "prune", CONVMEM_STORE="memory://")
        assert memory.returncode == 2
        assert "an app keeps that in its own process" in memory.stderr

    def test_a_store_that_does_not_answer_ends_it_with_1(self, tmp_path):
        """What was deleted stays deleted: the next night goes on."""
        (tmp_path / "convmem.db").write_text("this is no database" * 100)
        done = run(tmp_path, "prune", "--older-than", "90d")
        assert done.returncode == 1
        assert "The sqlite store failed in list" in done.stderr
        assert "What was deleted stays deleted; run it again." in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_log_holds_neither_names_nor_text_nor_secrets_nor_control_characters(self, folder):
        """A cron job's output is mailed around; a spinner is for a terminal."""
        age(folder, ADA, 100)
        done = run_installed(folder, "prune", "--older-than", "90d", CONVMEM_SECRET_KEY=KEY)
        assert done.returncode == 0
        shown = done.stdout + done.stderr
        assert not any(word in shown for word in ("ada", SECRET, KEY, "\x1b", "\r"))

    def test_a_terminal_sees_how_far_it_is(self, folder):
        """Something moves while a large store is gone through, and is gone at the end."""
        age(folder, ADA, 100)
        seen, code = on_a_terminal(folder, "prune", "--older-than", "90d")
        assert code == 0
        assert "\x1b[?25l" in seen, "no spinner"
        assert "1 conversation deleted" in seen


class TestImport:
    """``convmem import``."""

    def test_it_reads_an_export_back(self, folder, tmp_path_factory):
        """Into a store that is new, and once however often it is run; standard output has the sum, standard error what is wrong."""
        run(folder, "export", "--owner", "user:ada", "--output", "ada.ndjson")
        place, new = str(folder / "ada.ndjson"), tmp_path_factory.mktemp("new")
        done = run(new, "import", place)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 conversation here, 0 of them before; 1 messages stored.\n", "")
        assert there(new) == {ADA}
        again = run(new, "import", place)
        assert (again.returncode, again.stdout) == (0, "1 conversation here, 1 of them before; 0 messages stored.\n")
        assert run(new, "import", place, "--tenant", "acme", "--owner", "user:bob").returncode == 0
        assert there(new) == {ADA, SessionKey.for_user("bob", "a", tenant="acme")}

    def test_what_could_not_be_carried_is_named_and_ends_with_1(self, folder):
        """A script that moves house finds out, and a person can look at each."""
        run(folder, "export", "--tenant", "", "--output", "all.ndjson")
        run(folder, "delete", "--owner", "user:ada", "--yes")
        done = run(folder, "import", "all.ndjson")
        assert (done.returncode, done.stdout) == (1, "0 conversations here, 0 of them before; 0 messages stored.\n")
        assert "not carried: 'user:ada/a': it was deleted here on 20" in done.stderr
        assert "1 could not be carried" in done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert run(folder, "import", "all.ndjson", "--undelete").returncode == 0
        assert there(folder) == {ADA, BOB}

    def test_a_dry_run_stores_nothing(self, folder, tmp_path_factory):
        """It says what would be, and ends as the import would."""
        run(folder, "export", "--owner", "user:ada", "--output", "ada.ndjson")
        new = tmp_path_factory.mktemp("new")
        done = run(new, "import", str(folder / "ada.ndjson"), "--dry-run")
        assert (done.returncode, done.stdout) == (0, "1 conversation would be here, 0 of them before; 1 messages would be stored.\n")
        assert there(new) == set()

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (("x", "--from", "nowhere"), 2, "There is no source 'nowhere'; use convmem, langchain-redis"),
            (("x", "--from", "llamaindex-file"), 2, "Say once whose"),
            (("x", "--owner", "ada"), 2, "An owner is user:<identity>"),
            (("nothing.ndjson",), 1, "nothing.ndjson cannot be read: No such file or directory. What was stored stays stored"),
            (("convmem.db",), 1, "it is no export of convmem"),
        ],
    )
    def test_what_cannot_be_read_is_said_in_a_sentence(self, folder, arguments, code, sentence):
        """And no traceback."""
        done = run(folder, "import", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr

    def test_another_librarys_file(self, folder):
        """From the command line to the conversation."""
        messages = [{"role": "user", "blocks": [{"block_type": "text", "text": "hi"}], "additional_kwargs": {}}, {"role": "nobody"}]
        (folder / "store.json").write_text(json.dumps({"store": {"ada:chat": messages}}))
        done = run(folder, "import", "store.json", "--from", "llamaindex-file", "--ids", "{user}:{session}")
        assert (done.returncode, done.stdout) == (1, "1 conversation here, 0 of them before; 1 messages stored.\n")
        assert "not carried: 'ada:chat', message 2: " in done.stderr
        assert SessionKey.for_user("ada", "chat") in there(folder)
