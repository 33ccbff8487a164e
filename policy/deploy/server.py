"""The websocket server of `flowleap serve`: the protocol of `openpi-client`, around any policy.

    service = Service(policy, actions=policy.actions)
    Server(service, port=8000).run()                    # until SIGTERM or Ctrl-C

One frame of metadata on connect, then one reply a request: a binary frame, or text that says what is wrong. Policies
act in one thread beside the event loop, which goes on to answer pings and other clients meanwhile. One whose answers
have taken no time worth speaking of for some hundred requests acts in the loop itself: the way to the thread and back
would cost a third as much as a small policy.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from flowleap.policy.core.errors import FlowleapError, optional_import, require_int
from flowleap.policy.deploy import wire
from flowleap.policy.deploy.metrics import CONTENT_TYPE, Metrics
from flowleap.policy.deploy.serving import Service, Session
from flowleap.policy.deploy.worker import Worker

if TYPE_CHECKING:
    from websockets import exceptions
    from websockets.asyncio import server as websockets
    from websockets.asyncio.server import Request, Response, ServerConnection
else:
    websockets = optional_import("websockets.asyncio.server", extra="serve")
    exceptions = optional_import("websockets.exceptions", extra="serve")
    ServerConnection = websockets.ServerConnection

LOG = "flowleap.serve"
MIN_KEY = 16
_SCHEME = "Api-Key"
_RESULTS = ("ok", "refused", "malformed", "too_fast", "failed")
_REFUSALS = ("key", "full", "stopping", "sockets")
_OPEN_SECONDS = 5.0
_PING_SECONDS = 20.0
_CLOSE_SECONDS = 2.0
_GRACE_SECONDS = 5.0
_BUSY_SOCKETS = 64
_MALFORMED = 100
_QUICK_SECONDS = 0.002
_FORGET = 0.98


@dataclass(frozen=True)
class Limits:
    """What one server and each of its connections may take.

    Attributes:
        connections: open at a time.
        megabytes: of a message.
        rate: requests a second of a connection, None for any; a second's worth may come at once.
    """

    connections: int = 16
    megabytes: float = 16.0
    rate: float | None = 500.0

    def __post_init__(self) -> None:
        require_int("connections", self.connections, 1, 10_000)
        for name in ("megabytes", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise FlowleapError(f"{name}={value} must be a number above 0")


class Server:
    """Serves one policy.

    Args:
        service: the policy and how it is asked.
        host: to listen at; an address other than this machine's own needs an API key.
        port: 0 lets the system choose one.
        api_key: what clients must send as `Authorization: Api-Key ...`; None for anyone who reaches the server.
        limits: of connections and messages.

    Attributes:
        port: once it listens, the one it listens at.
        metrics: what it counts.

    Raises:
        FlowleapError: another host without a key, a key that is too short, a port that is none.
    """

    def __init__(
        self,
        service: Service,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if api_key is None and not _is_local(host):
            raise FlowleapError(
                f"host={host} can be reached from other machines: set an API key, in the environment variable "
                "FLOWLEAP_API_KEY or by api_key_file=FILE"
            )
        if api_key is not None and (len(api_key) < MIN_KEY or not api_key.isascii()):
            raise FlowleapError(
                f"the API key must have {MIN_KEY} or more ASCII letters, such as those of `openssl rand -hex 16`"
            )
        self.service, self.host = service, host
        self.port = require_int("port", port, 0, 65535)
        self.limits = limits or Limits()
        self.metrics = Metrics(_RESULTS, _REFUSALS)
        self._key = None if api_key is None else f"{_SCHEME} {api_key}".encode()
        self._metadata = wire.encode(service.metadata())
        self._log = logging.getLogger(LOG)
        self._open: set[ServerConnection] = set()
        self._sockets = 0
        self._answering = 0
        # The longest answer, s, older ones forgotten by and by; nothing is quick before it was seen to be.
        self._slowest = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, on_listening: Callable[[], None] | None = None) -> None:
        """Serve until SIGTERM, Ctrl-C or `stop`; requests that are being answered then get their reply.

        Args:
            on_listening: called once connections are accepted, when `port` is known.

        Raises:
            FlowleapError: the address cannot be listened at.
        """
        asyncio.run(self._run(on_listening))

    def stop(self) -> None:
        """End `run`, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _run(self, on_listening: Callable[[], None] | None) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            # In another thread than the main one, and on Windows, signals take their usual way.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.add_signal_handler(number, self._stopping.set)
        server = await self._listen()
        self.port = server.sockets[0].getsockname()[1]
        self._worker = Worker("policy")
        self._say("listening", host=self.host, port=self.port, history=self.service.history)
        if on_listening:
            on_listening()
        try:
            await self._stopping.wait()
            self._say("stopping", connections=len(self._open))
            await self._until(lambda: not self._answering, _GRACE_SECONDS)
        finally:
            server.close()
            # A policy that does not return keeps nobody here; what it was asked for is cancelled.
            await self._until(lambda: not self.metrics.connections, _CLOSE_SECONDS + 1)
            self._worker.close(0.5)
        self._say("stopped", requests=self.metrics.requests["ok"])

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so, or for so long."""
        assert self._loop is not None
        end = self._loop.time() + seconds
        while not done() and self._loop.time() < end:
            await asyncio.sleep(0.01)

    async def _listen(self) -> websockets.Server:
        try:
            return await websockets.serve(
                self._converse,
                self.host,
                self.port,
                # Web pages name their origin, robots have none: no page that is open on this machine gets in.
                origins=[None],
                compression=None,
                process_request=self._welcome,
                server_header=None,
                open_timeout=_OPEN_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PING_SECONDS,
                close_timeout=_CLOSE_SECONDS,
                max_size=int(self.limits.megabytes * 1e6),
                # Messages that wait while one is answered: reading stops there, and the sender waits.
                max_queue=2,
                logger=_quiet(),
                create_connection=self._connection(),
            )
        except OSError as error:
            raise FlowleapError(
                f"cannot listen at {self.host}:{self.port} ({error.strerror or error}); choose another port=..."
            ) from error

    def _connection(self) -> type[ServerConnection]:
        """The class of connections: it counts sockets, also of those who connect and then say nothing."""
        owner = self

        class Counted(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                owner._sockets += 1
                if owner._sockets > owner.limits.connections + _BUSY_SOCKETS:
                    owner.metrics.refused["sockets"] += 1
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                owner._sockets -= 1
                owner._open.discard(self)
                super().connection_lost(exc)

        return Counted

    def _welcome(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP requests, and turn away whom the server does not serve."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return (
                connection.respond(503, "stopping\n")
                if self._stopping.is_set()
                else connection.respond(200, "OK\n")
            )
        if self._key is not None and not self._knows(request):
            response = self._refuse(connection, "key", 401, "the API key is missing or wrong\n")
            response.headers["WWW-Authenticate"] = _SCHEME
            return response
        if path == "/metrics":
            response = connection.respond(200, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if self._stopping.is_set():
            return self._refuse(connection, "stopping", 503, "the server is stopping\n")
        if len(self._open) >= self.limits.connections:
            return self._refuse(
                connection, "full", 503, f"{len(self._open)} clients are connected, no more may\n"
            )
        self._open.add(connection)
        return None

    def _knows(self, request: Request) -> bool:
        given = request.headers.get_all("Authorization")
        # Every byte is looked at, so that the time taken says nothing about the key.
        return len(given) == 1 and hmac.compare_digest(
            given[0].strip().encode(errors="replace"), self._key or b""
        )

    def _refuse(self, connection: ServerConnection, reason: str, status: int, text: str) -> Response:
        self.metrics.refused[reason] += 1
        self._say("refused", logging.WARNING, client=_address(connection), reason=reason)
        return connection.respond(status, text)

    async def _converse(self, connection: ServerConnection) -> None:
        """Serve a connection until it ends."""
        session, metrics, client = Session(self.service), self.metrics, _address(connection)
        metrics.accepted += 1
        metrics.connections += 1
        start, served, wrong, malformed = time.monotonic(), 0, 0, 0
        allowed = _Allowance(self.limits.rate)
        self._say("connected", client=client)
        try:
            await connection.send(self._metadata)
            async for message in connection:
                if self._stopping.is_set():
                    break
                arrived = time.monotonic()
                self._answering += 1
                try:
                    reply, result = await self._reply(session, message, allowed.take(arrived), arrived)
                    metrics.requests[result] += 1
                    await connection.send(reply)
                finally:
                    self._answering -= 1
                metrics.latency.add(time.monotonic() - arrived)
                served += result == "ok"
                wrong = 0 if result == "ok" else wrong + 1
                malformed = malformed + 1 if result == "malformed" else 0
                # A sensor that fails for minutes is no reason to fill the log, nor to hang up.
                if 1 <= wrong <= 3:
                    self._say("request", logging.WARNING, client=client, result=result, reason=reply)
                if result == "failed" or malformed >= _MALFORMED:
                    await connection.close(1011 if result == "failed" else 1008)
            if self._stopping.is_set():
                await connection.close(1001)
        except exceptions.ConnectionClosed:
            pass
        finally:
            metrics.connections -= 1
            seconds = round(time.monotonic() - start, 3)
            self._say(
                "disconnected",
                client=client,
                requests=served,
                seconds=seconds,
                code=connection.protocol.close_code,
            )

    async def _reply(
        self, session: Session, message: str | bytes, allowed: bool, arrived: float
    ) -> tuple[str | bytes, str]:
        """The reply to a message, and what became of it."""
        metrics = self.metrics
        metrics.received += len(message)
        if not allowed:
            return f"more than {self.limits.rate:g} requests a second", "too_fast"
        if isinstance(message, str):
            return "requests are binary frames of msgpack, this one is text", "malformed"
        episodes, restarts, cpu = session.episodes, session.restarts, session.infer_cpu
        answer = partial(_answer, session, message, arrived)
        try:
            # Never in both places at once: a policy need not be safe for threads.
            quick = self._slowest < _QUICK_SECONDS and not self._worker.jobs
            reply = answer() if quick else await self._worker.do(answer)
        except FlowleapError as error:
            result = "malformed" if isinstance(error, wire.WireError) else "refused"
            return " ".join(str(error).split()), result
        except Exception as error:
            self._log.exception("failed")
            return f"internal error ({type(error).__name__}); see the log of the server", "failed"
        finally:
            # Only an answer of the policy is a reason to think it quick: nonsense is refused in no time.
            known = self._slowest if session.infer_seconds is None else _FORGET * self._slowest
            self._slowest = max(session.seconds, known)
        metrics.episodes += session.episodes - episodes
        metrics.restarts += session.restarts - restarts
        if session.infer_seconds is not None:
            metrics.inference.add(session.infer_seconds)
        metrics.inference_cpu += session.infer_cpu - cpu
        return reply, "ok"

    def _say(self, event: str, level: int = logging.INFO, **data: Any) -> None:
        self._log.log(level, event, extra={"data": data})


class _Allowance:
    """Requests that a connection may send now: `rate` a second, of which a second's worth at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._left, self._since = rate, max(1.0, rate or 1.0), time.monotonic()

    def take(self, now: float) -> bool:
        if self._rate is None:
            return True
        self._left = min(max(1.0, self._rate), self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _answer(session: Session, message: bytes, arrived: float) -> bytes:
    """Decode, act and encode."""
    start = time.perf_counter()
    try:
        reply = session.answer(message, arrived)
    finally:
        session.seconds = time.perf_counter() - start
    timing = {"total_ms": 1e3 * session.seconds}
    if session.infer_seconds is not None:
        timing["infer_ms"] = 1e3 * session.infer_seconds
    return wire.encode({**reply, "server_timing": timing})


def _is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def _quiet() -> logging.Logger:
    """A logger for the library, whose errors are those of strangers who do not finish a handshake."""
    logger = logging.getLogger(f"{LOG}.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
