"""The gateway's HTTP application, and the server that runs it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from llmagentos.agents.gateway.refusals import Refused, body_of, status_of
from llmagentos.streams.errors import InputError, LLMAgentOSError, SettingsError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llmagentos.agents.gateway.desk import Desk

__all__ = ["build", "run", "serve"]

#: What streams that are open have when the gateway is told to stop; their clients go on at another one.
GRACE_S: Final = 3


def build(settings: Settings, desk: Desk, *, cors: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        desk: started before the first request.
        cors: origins whose pages may call it from a browser.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import HTMLResponse, JSONResponse

    from llmagentos.agents.gateway import native, openai
    from llmagentos.agents.gateway.page import PAGE

    middleware = [Middleware(_Limited, most=settings.gateway_max_body_bytes)]
    if cors:
        exposed = ["X-Conversation-Id", "X-Message-Id", "Retry-After"]
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"],
                expose_headers=exposed,
            ),
        )  # fmt: skip
    app = FastAPI(
        title="LLMAgentOS gateway",
        version=version("llmagentos"),
        description="Conversations with agents; and OpenAI's interface, where the model is an agent.",
        middleware=middleware,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )

    async def page() -> Response:
        return HTMLResponse(PAGE)

    async def told(_: Request, error: Exception) -> Response:
        assert isinstance(error, LLMAgentOSError)
        headers = error.headers if isinstance(error, Refused) else None
        return JSONResponse(body_of(error), status_of(error), headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return await told(
            request,
            Refused(
                400,
                f"the request is wrong: {wrong}",
                fix="send JSON, and say so by `Content-Type: application/json`; /docs tells what there is",
            ),
        )

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return await told(request, Refused(error.status_code, str(error.detail), headers=error.headers))

    app.add_api_route("/docs", page, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(LLMAgentOSError, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.include_router(native.routes(desk))
    app.include_router(openai.routes(desk))
    return app


class _Limited:
    """Refuses bodies over a limit, by what they say of their length and by what comes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        refusal = Refused(
            413,
            f"the request's body is over {self._most:,} bytes",
            fix="send less, or raise LLMAGENTOS_GATEWAY_MAX_BODY_BYTES",
        )
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not told.isdigit() or int(told) > self._most:
            await JSONResponse(body_of(refusal), 413, {"Connection": "close"})(scope, receive, send)
            return
        came = 0

        async def limited() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                from starlette.exceptions import HTTPException

                raise HTTPException(413, f"{refusal.what}; {refusal.fix}")
            return message

        await self._app(scope, limited, send)


async def serve(
    settings: Settings,
    host: str,
    port: int,
    *,
    open_to_all: bool = False,
    cors: Sequence[str] = (),
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        port: 0: a free one.
        ready: told the URL once requests are answered.

    Raises:
        SettingsError: the gateway's packages are not installed, or it would be open to other machines.
        InputError: *host* and *port* can't be listened on.
        BrokerError, TopicError: Kafka is out of reach, or its topics are not as they must be.
    """
    try:
        import fastapi  # noqa: F401 # pyright: ignore[reportUnusedImport] - said here, before anything is opened
        import uvicorn
    except ImportError as error:
        raise SettingsError(
            f"the gateway needs packages that are not installed: {error.name}", fix="pip install 'llmagentos[gateway]'"
        ) from None
    if open_to_all and not _local(host):
        raise SettingsError(
            f"a gateway that listens on {host!r} can't be open to all: other machines could use every agent",
            fix="leave --open out, and make keys: `llmagentos key create`",
        )
    from llmagentos.agents.gateway.desk import Desk

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                where = f"[{host}]" if ":" in host else host
                ready(f"http://{where}:{listening.getsockname()[1]}")

    listening = _listen(host, port)
    desk = Desk(settings, open_to_all=open_to_all)
    try:
        await desk.start()
        config = uvicorn.Config(
            build(settings, desk, cors=cors),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        await Server(config).serve([listening])
    finally:
        listening.close()
        await desk.stop()


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1_024)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"the gateway can't listen on {host}:{port}: {error.strerror or error}",
            fix="give a free one: --port PORT, or --port 0",
        ) from None
    listening.setblocking(False)
    return listening


def run(settings: Settings, host: str, port: int, **options: Any) -> None:
    """As :func:`serve`, in a loop of its own."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, host, port, **options))
