"""What wraps every request: its id, and the last word on an exception nobody expected.

Pure ASGI: Starlette's BaseHTTPMiddleware would hide a client's disconnect from a stream.
"""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters_store.errors import ServerFault
from server.api.errors import error_response

REQUEST_ID = "x-request-id"

_LOG = logging.getLogger(__name__)
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


class RequestEnvelope:
    """Gives every reply an x-request-id and turns an unhandled exception into a plain 500.

    The client's own id is kept if it is short and safe to log; else one is made. It is at
    `scope["state"]["request_id"]` for those inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            _LOG.debug("request %s: the client went away", request_id)
        except Exception:
            _LOG.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # the server cuts the connection: the client must not take it for complete
            fault = ServerFault("internal error; the log has it under this reply's x-request-id")
            await error_response(fault)(scope, receive, send_named)


def request_id_of(offered: str | None) -> str:
    """The client's id if it is safe, else a new one."""
    if offered is not None and _SAFE_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"
