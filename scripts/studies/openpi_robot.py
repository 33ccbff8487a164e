"""A robot's side of `flowleap speed what=serve`, run by the Python that has the unmodified `openpi-client`.

Orders come over standard input, replies go over standard output: four bytes of length, then a message in the client's
own packing. flowleap is not imported here.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from typing import Any

import numpy as np
from openpi_client import action_chunk_broker, msgpack_numpy, websocket_client_policy


class Robot:
    """The client, and its broker, which hands out a chunk's actions one by one."""

    def connect(self, port: int, execute: int) -> Any:
        """Connect; the metadata."""
        self.policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
        self.broker = action_chunk_broker.ActionChunkBroker(self.policy, execute)
        self.execute = execute
        return self.policy.get_server_metadata()

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        self.broker.reset()
        return self.policy.infer({"reset": True, "seed": seed})

    def watch(self, obs: Any) -> Any:
        """Show a frame between two chunks, history=server."""
        return self.policy.infer({**obs, "infer": False})

    def act(self, obs: Any) -> Any:
        """The actions [execute, A] that the broker hands out, step by step."""
        return np.stack([self.broker.infer(obs)["actions"] for _ in range(self.execute)])

    def ask(self, obs: Any, times: int) -> Any:
        """Ask so many times without a pause; the seconds of each."""
        seconds = np.empty(times)
        for i in range(times):
            start = time.perf_counter()
            self.policy.infer(obs)
            seconds[i] = time.perf_counter() - start
        return seconds

    def drive(self, obs: Any, port: int, clients: int, hz: float, seconds: float) -> Any:
        """Be so many robots at once, each asking at `hz`."""
        latencies: list[list[float]] = [[] for _ in range(clients)]
        errors: list[str] = []
        late = [0] * clients

        def one(index: int) -> None:
            try:
                policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
                begin = time.perf_counter() + index / clients / hz
                for tick in range(int(seconds * hz)):
                    wait = begin + tick / hz - time.perf_counter()
                    if wait > 0:
                        time.sleep(wait)
                    start = time.perf_counter()
                    reply = policy.infer(obs)
                    latencies[index].append(time.perf_counter() - start)
                    late[index] += latencies[index][-1] > 1 / hz
                    if not np.isfinite(reply["actions"]).all():
                        raise ValueError("actions that are not finite")
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=one, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"latencies": np.concatenate(latencies), "errors": errors, "late": sum(late)}


def main() -> None:
    """Do what is ordered, until standard input ends."""
    robot, source, sink = Robot(), sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        order = msgpack_numpy.unpackb(source.read(*struct.unpack("<I", head)))
        reply = msgpack_numpy.packb({"reply": getattr(robot, order.pop("do"))(**order)})
        sink.write(struct.pack("<I", len(reply)) + reply)
        sink.flush()


if __name__ == "__main__":
    main()
