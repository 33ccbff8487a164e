"""`flowleap serve`: the wire format, sessions, the server among hostile clients, and the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

msgpack = pytest.importorskip("msgpack")
pytest.importorskip("websockets")

import torch  # noqa: E402
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402

from flowleap.policy.core.errors import FlowleapError  # noqa: E402
from flowleap.policy.core.noise import episode_noise  # noqa: E402
from flowleap.policy.core.spec import ObsKey, Spec  # noqa: E402
from flowleap.policy.core.views import View  # noqa: E402
from flowleap.policy.deploy import wire  # noqa: E402
from flowleap.policy.deploy.export import export  # noqa: E402
from flowleap.policy.deploy.runtime import ExportedPolicy  # noqa: E402
from flowleap.policy.deploy.server import Limits, Server  # noqa: E402
from flowleap.policy.deploy.serving import Service, Session  # noqa: E402
from flowleap.policy.policy import Policy  # noqa: E402
from flowleap.scripts import serve as serve_script  # noqa: E402
from flowleap.scripts.cli.run import compose  # noqa: E402
from flowleap.scripts.studies.hostile_frames import HANDSHAKE, hostile_frames  # noqa: E402

TOP = ObsKey((8, 8, 3), "uint8", "rgb", views=(View((16, 16), (0, 0, 16, 16), (8, 8)),))
SPEC = Spec({"state": ObsKey((3,)), "top": TOP}, 2, 2, 4, 3, 10.0)
KEY = "a-key-of-some-length"
HOSTILE = hostile_frames("state")


def pack(message: Any) -> bytes:
    """As `openpi_client.msgpack_numpy` packs."""

    def array(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            parts = (True, value.tobytes(), value.dtype.str, value.shape)
            return dict(zip((b"__ndarray__", b"data", b"dtype", b"shape"), parts, strict=True))
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}

    return msgpack.packb(message, default=array)


def unpack(frame: bytes | str) -> Any:
    """As `openpi_client.msgpack_numpy` unpacks; text is an error."""

    def array(value: Any) -> Any:
        if b"__ndarray__" in value:
            return np.ndarray(buffer=value[b"data"], dtype=value[b"dtype"], shape=value[b"shape"])
        return value

    assert isinstance(frame, bytes), frame
    return msgpack.unpackb(frame, object_hook=array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy with a state and a camera: its checkpoint, and its export below."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("serve")
    config = {
        "objective": {"name": "isd"},
        "backbone": {"name": "mlp", "width": 16, "depth": 1},
        "encoder": {"name": "cnn"},
    }
    policy = Policy(SPEC, config)
    rng = np.random.default_rng(0)
    columns = {"state": rng.uniform(-1, 1, (50, 3)), "action": rng.uniform(-2, 2, (50, 2))}
    policy.normalizer.fit({key: value.astype(np.float32) for key, value in columns.items()})
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save(root / "checkpoint")
    export(root / "checkpoint", root / "export", steps=1)
    return root


@pytest.fixture(scope="module")
def policy(folder: Path) -> ExportedPolicy:
    return ExportedPolicy.load(folder / "export")


def frame(seed: int, camera: bool = False) -> dict[str, np.ndarray]:
    """An observation of one step."""
    rng = np.random.default_rng(seed)
    side = 16 if camera else 8
    return {
        "state": rng.uniform(-1, 1, 3).astype(np.float32),
        "top": rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
    }


def stacked(*frames: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: np.stack([one[key] for one in frames]) for key in frames[0]}


def expected(policy: ExportedPolicy, rng: np.random.Generator, *frames: dict[str, np.ndarray]) -> np.ndarray:
    """What the policy does about these frames with the next noise of `rng`, [H, A]."""
    noise = rng.standard_normal((1, 4, 2), dtype=np.float32)
    return policy.chunk({key: value[None] for key, value in stacked(*frames).items()}, noise)[0]


@contextmanager
def running(
    policy: Any, limits: Limits | None = None, api_key: str | None = None, **options: Any
) -> Iterator[Server]:
    """A server in a thread of this process, on a port that the system chooses."""
    server = Server(Service(policy, 4, **options), port=0, api_key=api_key, limits=limits)
    listening = threading.Event()
    thread = threading.Thread(target=server.run, args=(listening.set,))
    thread.start()
    assert listening.wait(10)
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def client(server: Server, **options: Any) -> Iterator[Callable[[Any], Any]]:
    """A client that has read the metadata, and asks; text in a reply is a RuntimeError."""
    uri = f"ws://127.0.0.1:{server.port}"
    with connect(uri, compression=None, max_size=None, **options) as connection:
        metadata = unpack(connection.recv())

        def ask(message: Any) -> Any:
            connection.send(message if isinstance(message, bytes | str) else pack(message))
            reply = connection.recv(timeout=10)
            if isinstance(reply, str):
                raise RuntimeError(reply)
            return unpack(reply)

        ask.metadata, ask.connection = metadata, connection  # type: ignore[attr-defined]
        yield ask


def get(server: Server, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


ARRAYS = [
    *(
        np.arange(6, dtype=code).reshape(2, 3)
        for code in ("<f4", ">f4", "<f8", "<f2", "|u1", "<i8", ">i2", "<u4")
    ),
    np.array([True, False]),
    np.array(1.5),
    np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_arrive_as_they_were_sent(array: np.ndarray) -> None:
    got = wire.array("x", wire.decode(pack({"x": array}))["x"])
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype.newbyteorder("=")
    back = unpack(wire.encode({"x": array, "n": {"y": [1, "a"]}}))
    np.testing.assert_array_equal(back["x"], array)
    assert back["n"] == {"y": [1, "a"]}


def test_numbers_lists_and_names_of_other_libraries() -> None:
    message = {"a": {"b": [1, 2.5], "c": {"d": True}}, "e": np.float32(2), "f": 7}
    values = wire.decode(pack(message))
    assert {name: wire.array(name, value).tolist() for name, value in values.items()} == {
        "a/b": [1.0, 2.5],
        "a/c/d": True,
        "e": 2.0,
        "f": 7,
    }
    text = {"__ndarray__": True, "data": struct.pack("<2f", 1, 2), "dtype": "<f4", "shape": [2]}
    assert wire.array("x", wire.decode(msgpack.packb({"x": text}))["x"]).tolist() == [1, 2]
    with pytest.raises(TypeError, match="cannot be sent"):
        wire.encode({"x": np.array([object()])})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_are_refused(name: str, policy: ExportedPolicy) -> None:
    session, start = Session(Service(policy, 4)), time.perf_counter()
    with pytest.raises(FlowleapError) as error:
        session.answer(HOSTILE[name], 0.0)
    assert len(str(error.value)) < 1000
    assert time.perf_counter() - start < 1
    assert session.answer(pack(frame(0)), 0.0)["actions"].shape == (4, 2)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_frames_are_refused_or_answered(data: st.DataObject, policy: ExportedPolicy) -> None:
    good = pack({**frame(0), "prompt": "push", "nested": {"x": np.zeros((2, 2))}, "reset": True, "seed": 3})
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    for one in (bytes(mutated), data.draw(st.binary(max_size=200))):
        with suppress(FlowleapError):
            reply = Session(Service(policy, 4)).answer(one, 0.0)
            assert not reply or np.isfinite(reply["actions"]).all()


def test_history_from_the_client(policy: ExportedPolicy) -> None:
    with running(policy, history="client", seed=5) as server, client(server) as ask:
        about = ask.metadata
        assert (about["history"], about["n_obs_steps"], about["action_horizon"]) == ("client", 2, 4)
        assert about["observations"]["state"] == {"shape": [2, 3], "dtype": "float32", "kind": "lowdim"}
        assert about["observations"]["top"] == {"shape": [2, 16, 16, 3], "dtype": "uint8", "kind": "rgb"}
        rng = episode_noise(5)
        for step in range(3):
            reply = ask(stacked(frame(step), frame(step + 1)))
            # openpi's broker slices every array, so that there may be no other than the actions.
            assert [key for key, value in reply.items() if isinstance(value, np.ndarray)] == ["actions"]
            assert reply["server_timing"].keys() == {"total_ms", "infer_ms"}
            np.testing.assert_array_equal(
                reply["actions"], expected(policy, rng, frame(step), frame(step + 1))
            )
        with pytest.raises(RuntimeError, match=r"'state': got \[3\], but history=client .*takes \[2, 3\]"):
            ask(frame(0))


def test_the_current_frame_is_repeated(policy: ExportedPolicy) -> None:
    with running(policy, history="repeat", seed=5) as server, client(server) as ask:
        assert ask.metadata["observations"]["state"]["shape"] == [3]
        rng = episode_noise(5)
        for step in (0, 8, 16):
            np.testing.assert_array_equal(
                ask(frame(step))["actions"], expected(policy, rng, frame(step), frame(step))
            )


def test_the_server_keeps_the_history_of_every_step(policy: ExportedPolicy) -> None:
    session, rng = Session(Service(policy, 4, "server", seed=5)), episode_noise(5)

    def act(step: int, now: float, **more: Any) -> Any:
        return session.answer(pack({**frame(step), **more}), now).get("actions")

    np.testing.assert_array_equal(act(0, 0.0), expected(policy, rng, frame(0), frame(0)))
    np.testing.assert_array_equal(act(1, 0.1), expected(policy, rng, frame(0), frame(1)))
    assert act(2, 0.2, infer=False) is None
    np.testing.assert_array_equal(act(3, 0.3), expected(policy, rng, frame(2), frame(3)))
    # A broker that asks once a chunk: its frames are further apart than those of training.
    np.testing.assert_array_equal(act(4, 1.1), expected(policy, rng, frame(4), frame(4)))
    np.testing.assert_array_equal(act(5, 1.9), expected(policy, rng, frame(5), frame(5)))
    assert session.restarts == 2
    # A frame that is refused leaves a gap, over which nothing is stacked.
    with pytest.raises(FlowleapError, match="NaN"):
        session.answer(pack({**frame(6), "state": np.full(3, np.nan)}), 2.0)
    np.testing.assert_array_equal(act(7, 2.1), expected(policy, rng, frame(7), frame(7)))
    # An episode begins with its first frame.
    session.answer(pack({"reset": True}), 2.2)
    rng = episode_noise(6)
    np.testing.assert_array_equal(act(8, 2.2), expected(policy, rng, frame(8), frame(8)))
    # One frame as the policy sees it, the next as the camera takes it.
    rng, mixed = episode_noise(3), Session(Service(policy, 4, "server", seed=3))
    expected(policy, rng, frame(0), frame(0))
    mixed.answer(pack(frame(0)), 0.0)
    large = frame(1, camera=True)
    small = {**large, "top": TOP.see(large["top"])}
    np.testing.assert_array_equal(
        mixed.answer(pack(large), 0.1)["actions"], expected(policy, rng, frame(0), small)
    )
    slow = Session(Service(policy, 4, "server", seed=5, stale_after=None))
    slow.answer(pack(frame(0)), 0.0)
    rng = episode_noise(5)
    expected(policy, rng, frame(0), frame(0))
    np.testing.assert_array_equal(
        slow.answer(pack(frame(1)), 60.0)["actions"], expected(policy, rng, frame(0), frame(1))
    )


def test_episodes_and_their_noise(policy: ExportedPolicy) -> None:
    with running(policy, seed=7) as server:
        with client(server) as ask:
            first = ask(frame(0))["actions"]
            np.testing.assert_array_equal(first, expected(policy, episode_noise(7), frame(0), frame(0)))
            assert not np.array_equal(ask(frame(0))["actions"], first)
            # The next episode has the next seed, and one that nothing was asked of is no episode.
            for _ in range(2):
                assert "actions" not in ask({"reset": True})
            second = ask(frame(0))["actions"]
            np.testing.assert_array_equal(second, expected(policy, episode_noise(8), frame(0), frame(0)))
            own = ask({**frame(0), "reset": np.True_, "seed": np.int64(99)})["actions"]
            np.testing.assert_array_equal(own, expected(policy, episode_noise(99), frame(0), frame(0)))
        with client(server) as ask:
            np.testing.assert_array_equal(ask(frame(0))["actions"], first)
    with running(policy) as server, client(server) as ask, client(server) as other:
        assert not np.array_equal(ask(frame(0))["actions"], other(frame(0))["actions"])
        for each in (ask, other):
            each({"reset": True, "seed": 3})
        np.testing.assert_array_equal(ask(frame(0))["actions"], other(frame(0))["actions"])


def test_the_noise_of_an_episode_is_the_evaluators() -> None:
    noise = episode_noise(100000).standard_normal(3, dtype=np.float32)
    np.testing.assert_array_equal(
        noise, np.random.default_rng([100000, 0xF10]).standard_normal(3, dtype=np.float32)
    )


def test_names_of_the_client(policy: ExportedPolicy) -> None:
    keys = {"observation/state": "state", "images/cam_high": "top"}
    with running(policy, keys=keys, seed=1) as server, client(server) as ask:
        assert set(ask.metadata["observations"]) == set(keys)
        want = expected(policy, episode_noise(1), frame(0), frame(0))
        unknown = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}
        message = {
            "observation/state": frame(0)["state"].astype(float),
            "images": {"cam_high": frame(0)["top"], "cam_low": np.zeros((4, 4, 3), np.uint8)},
            "prompt": "open the door",
            "other": unknown,
        }
        np.testing.assert_array_equal(ask(message)["actions"], want)
        with pytest.raises(RuntimeError, match="'observation/state' is missing"):
            ask(frame(0))
    for wrong, why in (
        ({"a": "stat"}, "did you mean 'state'"),
        ({"a": "state", "b": "state"}, "two names"),
        ({"top": "state"}, "one name"),
    ):
        with pytest.raises(FlowleapError, match=why):
            Service(policy, 4, keys=wrong)


def test_cameras_own_frames_and_advice(policy: ExportedPolicy) -> None:
    with running(policy, seed=1) as server, client(server) as ask:
        large = frame(0, camera=True)
        small = {**large, "top": TOP.see(large["top"])}
        want = expected(policy, episode_noise(1), small, small)
        np.testing.assert_array_equal(ask(large)["actions"], want)
        for top, why in (
            (np.moveaxis(large["top"], -1, 0), "channels last"),
            (np.zeros((9, 9, 3), np.uint8), "16 x 16 px"),
            (small["top"] / np.float32(255), "uint8"),
        ):
            with pytest.raises(RuntimeError, match=why):
                ask({**large, "top": top})


def test_errors_are_text_and_the_connection_goes_on(policy: ExportedPolicy) -> None:
    with running(policy, seed=1) as server, client(server) as ask:
        for message, why in (
            ({"state": np.zeros(3)}, "'top' is missing"),
            ({**frame(0), "state": np.zeros(4)}, r"got \[4\]"),
            ({**frame(0), "state": np.array([0, np.inf, 0])}, "check the sensor"),
            ("text", "binary"),
            (b"\xc1", "cannot be unpacked"),
        ):
            with pytest.raises(RuntimeError, match=why) as error:
                ask(message)
            assert "Traceback" not in str(error.value)
        want = expected(policy, episode_noise(1), frame(0), frame(0))
        np.testing.assert_array_equal(ask(frame(0))["actions"], want)
        assert server.metrics.requests == {"ok": 1, "refused": 3, "malformed": 2, "too_fast": 0, "failed": 0}


def test_who_sends_nothing_but_nonsense_is_hung_up_on(policy: ExportedPolicy) -> None:
    with running(policy) as server, client(server) as ask, client(server) as robot:
        for _ in range(100):
            with pytest.raises(RuntimeError, match="unpacked"):
                ask(b"\xc1")
            # A broken sensor is none.
            with pytest.raises(RuntimeError, match="sensor"):
                robot({**frame(0), "state": np.full(3, np.nan)})
        with pytest.raises(ConnectionClosed):
            ask(frame(0))
        robot(frame(0))


def test_a_policy_that_fails_is_said_so(policy: ExportedPolicy) -> None:
    def fail(obs: Any, noise: Any) -> Any:
        raise ZeroDivisionError("secret")

    with running(SimpleNamespace(spec=SPEC, chunk=fail)) as server, client(server) as ask:
        with pytest.raises(RuntimeError, match=r"internal error \(ZeroDivisionError\)") as error:
            ask(frame(0))
        assert "secret" not in str(error.value)
        with pytest.raises(ConnectionClosed):
            ask(frame(0))
        assert get(server, "/healthz") == (200, "OK\n")
    nan = SimpleNamespace(spec=SPEC, chunk=lambda obs, noise: np.full((1, 4, 2), np.nan))
    with running(nan) as server, client(server) as ask, pytest.raises(RuntimeError, match="returned NaN"):
        ask(frame(0))


def test_health_and_metrics(policy: ExportedPolicy) -> None:
    with running(policy) as server:
        assert get(server, "/healthz") == (200, "OK\n")
        assert get(server, "/")[0] == 426
        with client(server) as ask:
            ask(frame(0))
            ask({**frame(0), "reset": True})
            text = get(server, "/metrics")[1]
    lines = text.splitlines()
    for line in (
        'flowleap_requests_total{result="ok"} 2',
        "flowleap_connections 1",
        "flowleap_episodes_total 2",
        "flowleap_inference_seconds_count 2",
        'flowleap_request_seconds_bucket{le="+Inf"} 2',
    ):
        assert line in lines
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == {
        line.partition("{")[0].split()[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        for line in lines
        if not line.startswith("#")
    }


def test_the_api_key(policy: ExportedPolicy) -> None:
    with running(policy, api_key=KEY) as server:
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/metrics", Authorization=f"Api-Key {KEY}")[0] == 200
        wrong = (None, f"Bearer {KEY}", f"Api-Key {KEY}x", f"Api-Key {KEY[:-1]}", KEY, "Api-Key ")
        for header in wrong:
            headers = {"Authorization": header} if header else {}
            with pytest.raises(InvalidStatus) as error, client(server, additional_headers=headers):
                pass
            assert error.value.response.status_code == 401
        assert server.metrics.refused["key"] == len(wrong) + 1
        with client(server, additional_headers={"Authorization": f"Api-Key {KEY}"}) as ask:
            assert ask(frame(0))["actions"].shape == (4, 2)


def test_other_hosts_need_a_key(policy: ExportedPolicy) -> None:
    service = Service(policy, 4)
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.local", ""):
        with pytest.raises(FlowleapError, match="FLOWLEAP_API_KEY"):
            Server(service, host)
        Server(service, host, api_key=KEY)
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        Server(service, host)
    with pytest.raises(FlowleapError, match="16 or more"):
        Server(service, api_key="short")


def test_web_pages_do_not_get_in(policy: ExportedPolicy) -> None:
    with (
        running(policy) as server,
        pytest.raises(InvalidStatus) as error,
        client(server, origin="http://evil.example"),
    ):
        pass
    assert error.value.response.status_code == 403


def test_limits(policy: ExportedPolicy) -> None:
    with running(policy, Limits(connections=2, megabytes=0.01, rate=20)) as server:
        with client(server) as first, client(server) as second:
            with pytest.raises(InvalidStatus) as error, client(server):
                pass
            assert error.value.response.status_code == 503
            for _ in range(20):
                first(frame(0))
            with pytest.raises(RuntimeError, match="more than 20 requests a second"):
                all(first(frame(0)) for _ in range(20))
            time.sleep(0.2)
            first(frame(0))
            with pytest.raises(ConnectionClosed) as closed:
                second({**frame(0), "x": bytes(20_000)})
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        time.sleep(0.1)
        with client(server) as again:
            again(frame(0))


class Slow:
    """A policy that takes its time."""

    spec = SPEC

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, threading.Event()
        self.thread = ""

    def chunk(self, obs: Any, noise: Any) -> Any:
        self.asked.set()
        self.thread = threading.current_thread().name
        time.sleep(self.seconds)
        return np.zeros((1, 4, 2), np.float32)


def test_pings_are_answered_while_the_policy_acts() -> None:
    slow = Slow(1.0)
    with running(slow) as server, client(server) as ask:
        connection: ClientConnection = ask.connection
        connection.send(pack(frame(0)))
        assert slow.asked.wait(5)
        start = time.perf_counter()
        assert connection.ping().wait(0.8)
        assert get(server, "/healthz")[0] == 200
        assert time.perf_counter() - start < 0.8
        assert unpack(connection.recv())["actions"].shape == (4, 2)


def test_a_quick_policy_needs_no_thread_until_it_is_slow() -> None:
    policy = Slow(0.0)
    with running(policy) as server, client(server) as ask, client(server) as other:
        ask(frame(0))
        assert policy.thread == "policy"
        for _ in range(
            5000
        ):  # more than it takes alone: beside other work some are slow, and the count begins again
            ask(frame(0))
            if policy.thread != "policy":
                break
        assert policy.thread != "policy"
        policy.seconds = 0.2
        ask(frame(0))  # nobody could know
        ask(frame(0))
        assert policy.thread == "policy"
        policy.asked.clear()
        connection: ClientConnection = other.connection
        connection.send(pack(frame(0)))
        assert policy.asked.wait(5)
        assert connection.ping().wait(0.15)


def test_requests_without_inference_do_not_make_a_policy_quick() -> None:
    policy = Slow(0.05)
    with running(policy) as server, client(server) as ask:
        connection: ClientConnection = ask.connection
        for _ in range(3):
            for _ in range(200):
                connection.send(msgpack.packb({"nothing": 1}))
                assert isinstance(connection.recv(), str)
            ask(frame(0))
            assert policy.thread == "policy"


def test_a_request_in_progress_is_answered_before_the_server_stops() -> None:
    slow = Slow(0.5)
    with running(slow) as server, client(server) as ask, client(server) as idle:
        connection: ClientConnection = ask.connection
        connection.send(pack(frame(0)))
        assert slow.asked.wait(5)
        server.stop()
        assert unpack(connection.recv())["actions"].shape == (4, 2)
        for each in (ask, idle):
            with pytest.raises(ConnectionClosed):
                each(frame(0))


def test_hostile_clients_neither_kill_nor_stall(policy: ExportedPolicy) -> None:
    """One robot is served at 50 Hz while others send what they like, or nothing, or do not read."""
    stop, latencies, failures = threading.Event(), [], []
    with running(policy, Limits(connections=24, megabytes=4)) as server:
        address = ("127.0.0.1", server.port)

        def robot() -> None:
            try:
                with client(server) as ask:
                    while not stop.wait(0.02):
                        start = time.perf_counter()
                        assert ask(frame(0))["actions"].shape == (4, 2)
                        latencies.append(time.perf_counter() - start)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=robot)
        thread.start()
        sockets = [socket.create_connection(address) for _ in range(30)]
        try:
            # Half-open: silence, half a request, garbage.
            for half in sockets[:10]:
                half.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            for half in sockets[10:20]:
                half.sendall(os.urandom(1000))
            slow = sockets[20:26]
            for each in slow:
                each.sendall(HANDSHAKE)
                # A frame of 3 MB is announced.
                each.sendall(b"\x82\xff" + struct.pack(">Q", 3_000_000) + bytes(4))
            for frames in HOSTILE.values():
                for each in slow:
                    each.sendall(b"\x91")
                with client(server) as ask, suppress(ConnectionClosed), pytest.raises(RuntimeError):
                    ask(frames)
            # Frames that the protocol forbids.
            for raw in (b"\x82\x05hello", b"\xff\xff" + bytes(20), b"\x88\x80", b"\x82\xff" + b"\x7f" * 12):
                with closing(socket.create_connection(address)) as rude:
                    rude.sendall(HANDSHAKE + raw)
                    rude.settimeout(1)
                    with suppress(OSError):
                        while rude.recv(4096):
                            pass
            # A client that asks and does not read.
            deaf = socket.create_connection(address)
            sockets.append(deaf)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(HANDSHAKE)
            deaf.setblocking(False)
            message = pack(frame(0))
            header = b"\x82\xfe" + struct.pack(">H", len(message)) + bytes(4)
            with suppress(BlockingIOError, ConnectionError):
                for _ in range(3000):
                    deaf.sendall(header + message)
            time.sleep(0.3)
        finally:
            stop.set()
            thread.join(10)
            for each in sockets:
                each.close()
        assert not failures
        assert len(latencies) > 30
        assert max(latencies) < 1.0
        assert get(server, "/healthz") == (200, "OK\n")
        with client(server) as ask:
            assert ask(frame(0))["actions"].shape == (4, 2)


def test_sockets_that_say_nothing_are_counted(policy: ExportedPolicy) -> None:
    with running(policy, Limits(connections=1)) as server, client(server) as ask:
        sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        ask(frame(0))
        time.sleep(0.2)
        assert server.metrics.refused["sockets"] >= 30
        for each in sockets:
            each.close()


def test_a_checkpoint_acts_like_its_export(folder: Path, policy: ExportedPolicy) -> None:
    served, actions = serve_script.load(
        compose("serve", [f"checkpoint={folder / 'checkpoint'}", "device=cpu"])
    )
    assert (actions, served.spec) == (4, policy.spec)
    noise = episode_noise(0).standard_normal((1, 4, 2), dtype=np.float32)
    obs = {key: value[None] for key, value in stacked(frame(0), frame(1)).items()}
    np.testing.assert_allclose(served.chunk(obs, noise), policy.chunk(obs, noise), atol=1e-4)
    with pytest.raises(FlowleapError, match="exported at NFE 1"):
        serve_script.load(compose("serve", [f"checkpoint={folder / 'export'}", "steps=3"]))


def test_the_key_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    assert serve_script.api_key(str(file)) == KEY
    monkeypatch.setenv("FLOWLEAP_API_KEY", "from-the-environment")
    assert serve_script.api_key(str(file)) == KEY
    assert serve_script.api_key(None) == "from-the-environment"
    monkeypatch.setenv("FLOWLEAP_API_KEY", "")
    assert serve_script.api_key(None) is None
    if os.name == "posix":
        file.chmod(0o644)
        with pytest.raises(FlowleapError, match="chmod 600"):
            serve_script.api_key(str(file))
    file.write_text("")
    file.chmod(0o600)
    with pytest.raises(FlowleapError, match="empty"):
        serve_script.api_key(str(file))
    with pytest.raises(FlowleapError, match="cannot be read"):
        serve_script.api_key(str(tmp_path / "none"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_command_serves_without_torch_logs_json_and_stops(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from flowleap.scripts.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [
        f"checkpoint={folder / 'export'}",
        "port=0",
        f"log={log}",
        "keys={observation/state:state}",
        "seed=2",
    ]
    words.append("metadata={reset_pose:[0,0.5]}")
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", *words], stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 60
        while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        port = json.loads(log.read_text())["port"]
        with client(SimpleNamespace(port=port)) as ask:  # type: ignore[arg-type]
            assert ask.metadata["reset_pose"] == [0, 0.5]
            far = {"observation/state": np.full(3, 1e6), "top": frame(0)["top"]}
            assert ask(far)["actions"].shape == (4, 2)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                ask.connection.recv(timeout=10)
        assert process.wait(20) == 0
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert not errors
    events = [json.loads(line) for line in log.read_text().splitlines()]
    names = [event["event"] for event in events]
    assert [name for name in names if "far outside" not in name] == [
        "listening",
        "connected",
        "stopping",
        "disconnected",
        "stopped",
    ]
    assert sum("far outside" in name for name in names) == 1


def test_the_example_client(policy: ExportedPolicy) -> None:
    example = Path(__file__).resolve().parent.parent.parent / "examples" / "serve_client.py"
    for history in ("repeat", "client"):
        with running(policy, history=history, api_key=KEY) as server:
            result = subprocess.run(
                [sys.executable, str(example), f"ws://127.0.0.1:{server.port}"],
                env={**os.environ, "FLOWLEAP_API_KEY": KEY},
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert result.returncode == 0, result.stderr
        assert [line.partition(",")[0] for line in result.stdout.splitlines()[1:]] == [
            f"chunk {i}: actions (4" for i in range(3)
        ]


def test_the_unmodified_client_of_openpi(policy: ExportedPolicy) -> None:
    """With `FLOWLEAP_OPENPI`, the Python of an environment that has openpi-client."""
    from flowleap.scripts.studies.serving import Robot

    python = os.environ.get("FLOWLEAP_OPENPI")
    if not python:
        pytest.skip("needs FLOWLEAP_OPENPI, a Python with openpi-client")
    with running(policy, history="client", seed=4) as server, Robot(python) as robot:
        assert robot("connect", port=server.port, execute=3)["history"] == "client"
        robot("reset", seed=4)
        obs = stacked(frame(0), frame(1))
        np.testing.assert_array_equal(
            robot("act", obs=obs), expected(policy, episode_noise(4), frame(0), frame(1))[:3]
        )
