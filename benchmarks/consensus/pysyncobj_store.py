"""PySyncObj as is recommended: a journal without fsync, batches, three processes; the client is the first of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time

from pysyncobj import SyncObj, SyncObjConf, replicated

ADDRESSES = [f"127.0.0.1:{7400 + number}" for number in range(3)]


class Store(SyncObj):  # type: ignore[misc]  # pysyncobj has no types
    """A dictionary."""

    def __init__(self, number: int, folder: str) -> None:
        self.values: dict[str, str] = {}
        others = [address for at, address in enumerate(ADDRESSES) if at != number]
        journal = f"{folder}/{number}.journal"
        settings = SyncObjConf(journalFile=journal, appendEntriesUseBatch=True, commandsQueueSize=1_000_000)
        super().__init__(ADDRESSES[number], others, settings)

    @replicated  # type: ignore[untyped-decorator]  # pysyncobj has no types
    def put(self, key: str, value: str) -> int:
        """Set one."""
        self.values[key] = value
        return 1


def measure() -> list[tuple[int, float]]:
    """Writes a second by the number in flight."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        others = [subprocess.Popen([sys.executable, "-m", __name__, str(n), folder]) for n in (1, 2)]
        store = Store(0, folder)
        while not store.isReady():
            time.sleep(0.1)
        for window, count in ((16, 1_000), (256, 5_000), (1024, 10_000)):
            slots, finished, done = threading.Semaphore(window), threading.Event(), [0]

            def on_done(
                _result: object,
                _error: object,
                slots: threading.Semaphore = slots,
                finished: threading.Event = finished,
                done: list[int] = done,
                count: int = count,
            ) -> None:
                done[0] += 1
                slots.release()
                if done[0] == count:
                    finished.set()

            began = time.perf_counter()
            for _ in range(count):
                slots.acquire()
                store.put("temperature", "x" * 64, callback=on_done)
            finished.wait(60)
            found.append((window, done[0] / (time.perf_counter() - began)))
        store.destroy()
        for other in others:
            other.terminate()
            other.wait(10)
    return found


if __name__ == "__main__":
    Store(int(sys.argv[1]), sys.argv[2])
    threading.Event().wait()
