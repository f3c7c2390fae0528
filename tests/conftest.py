"""Rules of every run: what is only for ``--all``, and no test is skipped without a declared reason."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.wheels import valkey

pytest_plugins = ["tests.wheels.postgres"]
settings.register_profile("any machine", deadline=None)  # a deadline measures how busy the machine is
settings.load_profile("any machine")

DECLARED = "declared: "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--all`` and ``--seed``."""
    parser.addoption("--all", action="store_true", help="also run what takes long: tests marked all_only")
    parser.addoption("--seed", type=int, help="of what is drawn at random; without it each run draws another, and prints it")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and watch for undeclared skips."""
    config.addinivalue_line("markers", "all_only: only with --all, because it takes long")
    config.pluginmanager.register(Skips())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked ``all_only``, unless ``--all`` was given."""
    if config.getoption("--all"):
        return
    for item in items:
        if item.get_closest_marker("all_only"):
            item.add_marker(pytest.mark.skip(reason=f"{DECLARED}only with --all"))


class Skips:
    """What was skipped for a reason that does not begin with ``declared: ``, in whichever process of the run."""

    def __init__(self) -> None:
        self.undeclared: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that skipped itself, as ``pytest.importorskip`` does."""
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that would have passed in spite of an undeclared skip."""
        if self.undeclared and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the skips that failed the run."""
        if self.undeclared:
            terminalreporter.section("skipped without a declared reason: this run failed", red=True)
            for line in self.undeclared:
                terminalreporter.write_line(line)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.outcome != "skipped" or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(DECLARED):
            self.undeclared[f"{report.nodeid}: {reason}"] = None


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this test, and print it, so that a run that failed can be repeated."""
    given: int | None = request.config.getoption("--seed")
    seed = random.SystemRandom().randrange(2**32) if given is None else given
    print(f"--seed={seed}")
    return seed


@pytest.fixture
def longer(request: pytest.FixtureRequest) -> bool:
    """Return whether there is time: ``--all``."""
    return bool(request.config.getoption("--all"))


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[valkey.Valkey]:
    """Return a server that runs for the whole session; a test that hurts it starts its own."""
    with valkey.folder() as folder, valkey.server(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[valkey.Cluster]:
    """Return a cluster that runs for the whole session."""
    with valkey.folder() as folder, valkey.Cluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey_sentinels() -> Iterator[valkey.Sentinels]:
    """Return a replicated server behind Sentinels that runs for the whole session."""
    with valkey.folder() as folder, valkey.Sentinels(Path(folder)) as sentinels:
        yield sentinels
