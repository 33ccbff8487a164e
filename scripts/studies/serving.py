"""`flowleap serve` measured with the unmodified client of openpi: scores, CPU time a request, many clients for long.

The server is a process of its own, and so is the client, with a Python of its own (`openpi-client` wants numpy < 2):

    python3.11 -m venv ../openpi
    ../openpi/bin/pip install openpi-client==0.1.2 typing_extensions 'numpy<2'
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from omegaconf import DictConfig

from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.rollout import rollout
from flowleap.envs.statistics import bootstrap_mean
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.deploy import wire
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.scripts.common import plain, recorded_task, say, show_table, timed
from flowleap.scripts.studies.hostile_frames import HANDSHAKE, hostile_frames

ROBOT = Path(__file__).with_name("openpi_robot.py")
BLOCKS, CALLS = 12, 400
SETTLED = 0.05
_START_SECONDS = 60.0
_HOSTILE_SECONDS, _HOSTILE_PAUSE = 20.0, 0.05


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    if cfg.checkpoint is None:
        raise FlowleapError("no policy given: add checkpoint=EXPORTED_DIR, of a task that is installed")
    policy = ExportedPolicy.load(cfg.checkpoint)
    with Robot(cfg.client) as robot:
        results = {
            "config": {
                key: plain(cfg[key]) for key in ("checkpoint", "episodes", "clients", "hz", "load_seconds")
            },
            "client": robot.version,
            "scores": scores(cfg, policy, robot),
            "cpu": cpu(cfg, policy, robot),
            "hostile": hostile(cfg, policy, robot),
            "load": load(cfg, policy, robot),
        }
    return results


class Robot:
    """The other process, whose Python has openpi's client.

    Raises:
        FlowleapError: it has none.
    """

    def __init__(self, python: str) -> None:
        versions = "from importlib.metadata import version as v; print(v('openpi-client'), v('numpy'))"
        try:
            found = subprocess.run([python, "-c", versions], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FlowleapError(
                f"client={python} is no Python with openpi-client: python3.11 -m venv ENV; ENV/bin/pip install "
                "openpi-client==0.1.2 typing_extensions 'numpy<2'; then client=ENV/bin/python"
            ) from error
        self.version = dict(zip(("openpi-client", "numpy"), found.stdout.split(), strict=True))
        self._process = subprocess.Popen([python, str(ROBOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, do: str, **order: Any) -> Any:
        """Give an order and wait for what comes of it."""
        assert self._process.stdin
        assert self._process.stdout
        message = wire.encode({"do": do, **order})
        self._process.stdin.write(struct.pack("<I", len(message)) + message)
        self._process.stdin.flush()
        head = self._process.stdout.read(4)
        if len(head) < 4:
            raise FlowleapError(f"the client ended while it did '{do}': its error stands above")
        reply = wire.decode(self._process.stdout.read(*struct.unpack("<I", head)))
        packed = {name: value for name, value in reply.items() if isinstance(value, dict)}
        reply |= {name: wire.array(name, value) for name, value in packed.items()}
        return reply["reply"] if "reply" in reply else {k.removeprefix("reply/"): v for k, v in reply.items()}


class Running(NamedTuple):
    """A server that runs."""

    port: int
    process: psutil.Process

    def counter(self, name: str) -> float:
        """A number of its /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def serving(checkpoint: str, *words: str) -> Iterator[Running]:
    """`flowleap serve` in a process of its own, on a port that the system chooses."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        line = [
            sys.executable,
            "-m",
            "flowleap.scripts.serve",
            f"checkpoint={checkpoint}",
            "port=0",
            f"log={log}",
        ]
        process = subprocess.Popen(
            [*line, "rate=null", "stale_after=null", *words], stderr=subprocess.PIPE, text=True
        )
        try:
            end = time.monotonic() + _START_SECONDS
            while not (log.exists() and log.read_text().endswith("\n")):
                if process.poll() is not None or time.monotonic() > end:
                    reason = process.communicate()[1] if process.poll() is not None else "it took too long"
                    raise FlowleapError(f"flowleap serve did not start: {reason.strip()[-800:]}")
                time.sleep(0.05)
            yield Running(json.loads(log.read_text().splitlines()[0])["port"], psutil.Process(process.pid))
        finally:
            process.terminate()
            process.communicate()


def scores(cfg: DictConfig, policy: ExportedPolicy, robot: Robot) -> dict[str, Any]:
    """Paired episodes: in this process, as `flowleap eval` does, and through the client, in each way of history."""
    task, spec = recorded_task(policy.task), policy.spec
    if task is None:
        raise FlowleapError(
            f"{cfg.checkpoint} was trained without a task: serve one that was trained on pusht/keypoints"
        )
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    here = [episode.max_reward for episode in rollout(task, policy.act, spec, seeds).episodes]
    found: dict[str, Any] = {"task": task.name, "in_process": _mean(here)}
    rows = [("in this process", f"{np.mean(here):.4f}", "")]
    for history in ("client", "server", "repeat"):
        env = ChunkEnv(task, spec)
        with serving(cfg.checkpoint, f"history={history}") as server:
            robot("connect", port=server.port, execute=spec.n_action_steps)
            there = [_episode(env, robot, history, seed) for seed in seeds]
        env.close()
        same = int(np.sum(np.array(here) == np.array(there)))
        found[history] = {
            **_mean(there),
            "identical_episodes": same,
            "difference": float(np.mean(there) - np.mean(here)),
        }
        rows.append((f"history={history}", f"{np.mean(there):.4f}", f"{same} of {len(seeds)}"))
    show_table(
        ("openpi's client", "mean best reward", "identical episodes"), rows, f"{task.name}, paired episodes"
    )
    return found


def _mean(values: list[float]) -> dict[str, Any]:
    low, high = bootstrap_mean(values)
    return {"mean": float(np.mean(values)), "interval": [low, high], "episodes": len(values)}


def _episode(env: ChunkEnv, robot: Robot, history: str, seed: int) -> float:
    """The best reward of an episode whose actions come from the server."""
    obs, _ = env.reset(seed=seed)
    robot("reset", seed=seed)
    ended = False
    while not ended:
        frames = [{key: value[i] for key, value in obs.items()} for i in range(len(next(iter(obs.values()))))]
        if history == "server":
            for frame in frames[:-1]:
                robot("watch", obs=frame)
        chunk = robot("act", obs=obs if history == "client" else frames[-1])
        obs, _, ended, _, info = env.step(chunk)
    return float(info["max_reward"])


def cpu(cfg: DictConfig, policy: ExportedPolicy, robot: Robot) -> dict[str, Any]:
    """CPU time of the server for a request, less that of the policy in it.

    Beside it, that of the policy called in this process without a pause, block by block in turn: its caches stay warm.
    """
    obs = _some_observation(policy)
    batch = {key: value[None] for key, value in obs.items()}
    noise = episode_noise(0).standard_normal(
        (1, policy.spec.horizon, policy.spec.action_dim), dtype=np.float32
    )
    names = ("process_cpu_seconds_total", "flowleap_inference_cpu_seconds_total")
    served, called, latencies = [], [], []
    with serving(cfg.checkpoint, "history=client") as server:
        robot("connect", port=server.port, execute=policy.spec.n_action_steps)
        for _ in range(1 + BLOCKS):
            before = np.array([server.counter(name) for name in names])
            latencies.append(robot("ask", obs=obs, times=CALLS))
            served.append((np.array([server.counter(name) for name in names]) - before) / CALLS)
            called.append(timed(policy.chunk, batch, noise, times=CALLS)[2] / CALLS)
    # The first block warms up.
    request, acting = 1e3 * np.array(served[1:]).T
    alone = 1e3 * np.array(called[1:])
    numbers = {
        "requests": BLOCKS * CALLS,
        "request_ms": float(np.median(request)),
        "policy_ms": float(np.median(acting)),
        "added_ms": float(np.median(request - acting)),
        "added_ms_blocks": [float(np.min(request - acting)), float(np.max(request - acting))],
        "policy_alone_ms": float(np.median(alone)),
        "over_policy_alone_ms": float(np.median(request - alone)),
        "round_trip_ms": _percentiles(np.concatenate(latencies[1:])),
    }
    say(
        f"CPU time of a request: {numbers['request_ms']:.3f} ms, of which the policy {numbers['policy_ms']:.3f} ms "
        f"(called without a pause: {numbers['policy_alone_ms']:.3f} ms): the server adds {numbers['added_ms']:.3f} ms"
    )
    return numbers


def load(cfg: DictConfig, policy: ExportedPolicy, robot: Robot) -> dict[str, Any]:
    """Many clients at a control rate, for long: errors, latency, CPU, and what happens to memory."""
    obs = _some_observation(policy)
    with serving(cfg.checkpoint, "history=client") as server:
        resident: list[int] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(0.05, cfg.load_seconds / 600)):
                resident.append(server.process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            options = {"clients": cfg.clients, "hz": cfg.hz, "seconds": cfg.load_seconds}
            driven = robot("drive", obs=obs, port=server.port, **options)
        finally:
            ended.set()
            watching.join()
        spent = server.counter("process_cpu_seconds_total")
    settled = resident[int(SETTLED * len(resident)) :]
    numbers = {
        **options,
        "requests": len(driven["latencies"]),
        "errors": len(driven["errors"]),
        "messages": driven["errors"][:3],
        "late": driven["late"],
        "round_trip_ms": _percentiles(driven["latencies"]),
        "cpu_share": spent / cfg.load_seconds,
        "rss_mb": {"settled": settled[0] / 1e6, "end": settled[-1] / 1e6},
        "rss_growth_mb": (max(settled) - settled[0]) / 1e6,
    }
    trip = numbers["round_trip_ms"]
    say(
        f"{cfg.clients} clients at {cfg.hz:g} Hz for {cfg.load_seconds:g} s: {numbers['requests']} requests, "
        f"{numbers['errors']} errors, round trip p50 {trip['p50']:.2f} ms, p99 {trip['p99']:.2f} ms, memory grew by "
        f"{numbers['rss_growth_mb']:.2f} MB"
    )
    return numbers


def hostile(cfg: DictConfig, policy: ExportedPolicy, robot: Robot) -> dict[str, Any]:
    """Robots at their control rate, beside clients that send what no server may act on, or nothing."""
    obs = _some_observation(policy)
    frames = list(hostile_frames(next(iter(obs))).values())
    connect = optional_import("websockets.sync.client", extra="serve").connect
    closed = optional_import("websockets.exceptions", extra="serve").ConnectionClosed
    counts = {"frames": 0, "answered_with_an_error": 0, "hung_up": 0}
    ended = threading.Event()
    with serving(cfg.checkpoint, "history=client") as server:

        def attack() -> None:
            silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            for each in silent[:10]:
                each.sendall(HANDSHAKE[:-2])
            for frame in cycle(frames):
                if ended.wait(_HOSTILE_PAUSE):
                    break
                counts["frames"] += 1
                with suppress(closed), connect(f"ws://127.0.0.1:{server.port}") as client:
                    client.recv()
                    client.send(frame)
                    counts["answered_with_an_error"] += isinstance(client.recv(timeout=10), str)
                    continue
                counts["hung_up"] += 1
            for each in silent:
                each.close()

        attacking = threading.Thread(target=attack)
        attacking.start()
        options = {"clients": 2, "hz": cfg.hz, "seconds": min(cfg.load_seconds, _HOSTILE_SECONDS)}
        try:
            driven = robot("drive", obs=obs, port=server.port, **options)
        finally:
            ended.set()
            attacking.join()
        survived = server.process.is_running()
    numbers = {
        **options,
        **counts,
        "requests": len(driven["latencies"]),
        "errors": len(driven["errors"]),
        "late": driven["late"],
        "round_trip_ms": _percentiles(driven["latencies"]),
        "server_survived": survived,
    }
    say(
        f"beside {counts['frames']} hostile frames: {numbers['requests']} requests of robots, "
        f"{numbers['errors']} errors, slowest round trip {numbers['round_trip_ms']['p100']:.1f} ms"
    )
    return numbers


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{q}": 1e3 * float(np.percentile(seconds, q)) for q in (50, 99, 100)}


def _some_observation(policy: ExportedPolicy) -> dict[str, np.ndarray]:
    """An observation in the middle of the range of training, {key: [To, *shape]}."""
    spec, ranges = policy.spec, policy.inputs.range_of
    obs: dict[str, np.ndarray] = {}
    for key, known in spec.observations.items():
        shape = (spec.n_obs_steps, *known.shape)
        pair = None if known.image else ranges(key)
        middle = np.zeros(known.shape) if pair is None else -pair[1] / pair[0]
        obs[key] = np.broadcast_to(middle, shape).astype("uint8" if known.kind == "rgb" else "float32")
    return obs
