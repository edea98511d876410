"""Exports of a storage daemon that come and go at random, while others are under load."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.qmp_client import QmpClient
from vduse.testing.load import Report, Spec, VirtioDriver

MIB = 1 << 20
#: Exports that come and go, at a time.
_MOST = 16
#: Seconds of a round of a load.
_ROUND = 0.25
#: Seconds without any answer that are a hang.
_PATIENCE = 60.0


class Load:
    """Reads on a vhost-user export, round after round, from its making to :meth:`end`."""

    def __init__(self, path: str, depth: int) -> None:
        """``depth``: requests in flight."""
        self._depth = depth
        self._driver = VirtioDriver(path, depth=depth)
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self.rounds: list[Report] = []
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                spec = Spec(depth=self._depth, seconds=_ROUND, patience=_PATIENCE)
                self.rounds.append(self._driver.run(spec))
        except BaseException as error:
            self._failure = error

    def take(self) -> list[Report]:
        """The rounds since it was last asked."""
        rounds, self.rounds = self.rounds, []
        return rounds

    def end(self) -> None:
        """Whatever went wrong."""
        self._ending.set()
        self._thread.join()
        self._driver.close()
        if self._failure is not None:
            raise self._failure
        assert not any(report.errors for report in self.rounds)


@contextmanager
def loads(
    client: QmpClient, folder: Path, count: int, *, depth: int = 4, latency_ns: int = 0
) -> Iterator[Sequence[Load]]:
    """On exports of their own; without an error, or a hang, at the end. ``latency_ns``: what each
    disk takes for a request."""
    with ExitStack() as exits:
        found = []
        for number in range(count):
            name = f"steady{number}"
            node = {"driver": "null-co", "size": 64 * MIB, "latency-ns": latency_ns}
            client.call("blockdev-add", **node, node_name=name)
            exits.callback(client.call, "blockdev-del", node_name=name)
            address = {"type": "unix", "path": f"{folder}/{name}.sock"}
            client.call(
                "block-export-add", type="vhost-user-blk", id=name, node_name=name, addr=address
            )
            # That the driver has gone may not have been seen yet.
            exits.callback(client.call, "block-export-del", id=name, mode="hard")
            load = Load(address["path"], depth)
            exits.callback(load.end)
            found.append(load)
        yield found


class Churn:
    """What comes and goes: a node, on it perhaps a throttle node, on that an export."""

    def __init__(self, client: QmpClient, folder: Path, seed: int) -> None:
        """The daemon has an NBD server and a throttle group ``g``."""
        self._client = client
        self._folder = folder
        self._random = random.Random(seed)
        self._live: list[str] = []
        self._tops: dict[str, list[str]] = {}

    def run(self, exports: int) -> None:
        """Adds and removes so many, at random; none is left."""
        added = 0
        while added < exports or self._live:
            is_full = len(self._live) == _MOST or added == exports
            if is_full or (self._live and self._random.random() < 0.45):
                self._remove(self._live.pop(self._random.randrange(len(self._live))))
            else:
                self._add(f"x{added}")
                added += 1

    def _add(self, name: str) -> None:
        call, choose = self._client.call, self._random.choice
        image = self._folder / f"{name}.img"
        nodes = [f"{name}-disk"]
        if is_null := choose([True, False]):
            call("blockdev-add", driver="null-co", node_name=nodes[0], size=MIB)
        else:
            with image.open("wb") as file:
                file.truncate(MIB)
            call("blockdev-add", driver="file", node_name=nodes[0], filename=str(image))
        if choose([True, False]):
            filtered = {"driver": "throttle", "throttle-group": "g", "file": nodes[0]}
            nodes.append(f"{name}-slow")
            call("blockdev-add", node_name=nodes[-1], **filtered)
        self._tops[name] = nodes
        self._live.append(name)
        options: dict[str, Any] = {"type": "nbd"}
        if is_vhost := choose([True, False]):
            address = {"type": "unix", "path": f"{self._folder}/{name}.sock"}
            queues = choose([1, 4])
            options = {"type": "vhost-user-blk", "num-queues": queues, "addr": address}
        call("block-export-add", id=name, node_name=nodes[-1], writable=True, **options)
        if is_vhost and choose([True, False]):
            with VirtioDriver(f"{self._folder}/{name}.sock", depth=4) as driver:
                writes = Spec(op="randwrite", depth=4, requests=100, patience=_PATIENCE)
                spec = replace(writes, verify=not is_null)
                assert driver.run(spec).errors == 0

    def _remove(self, name: str) -> None:
        self._client.call("block-export-del", id=name, mode="hard")
        for node in reversed(self._tops.pop(name)):
            self._client.call("blockdev-del", node_name=node)
        (self._folder / f"{name}.img").unlink(missing_ok=True)
