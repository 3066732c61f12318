"""Who may talk to the server: those who know its token, by a name that is its own."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memcore.errors import ConfigError
from memcore.serving import errors

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that no other machine can claim."""

_LEAST_TOKEN: Final = 16
"""Characters of a token that a user chooses."""

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_READING: Final = ("GET", "HEAD")


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def check_token(token: str) -> str:
    """Return a token that a user chose, or raise ConfigError if it is none that keeps anybody out."""
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"a token must be at least {_LEAST_TOKEN} ASCII characters without spaces")
    return token


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach what listens on a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Stands before the application: turns away whom it does not know, and gives every answer its security headers.

    The token comes as ``Authorization: Bearer``, or as ``?token=`` once, which becomes a cookie. A request is refused

    - with 421 if its ``Host`` is no name of the server: a page elsewhere may point a name of its own at this machine;
    - with 403 if it changes something and its ``Origin`` is another;
    - with 401 if its token is missing or wrong.

    Args:
        app: what is guarded.
        token: what to know.
        host: what the server listens on.
        names: further names that it goes by.
    """

    def __init__(self, app: ASGIApp, *, token: str, host: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._app = app
        self._token = token.encode()
        self._names = {name.lower() for name in (*LOOPBACK, host, *names) if name}
        self._any_address = host in ("0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or turn it away."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        # Nothing else is served; a websocket is closed by the server when nobody accepts it.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        answer = self._refusal(request) or self._welcome(request)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self._is_own(host):
            return _refused(request, 421, f"this server does not go by the name {host!r}", "wrong_host")
        origin = request.headers.get("origin")
        if origin is not None and request.method not in _READING and _split(origin).netloc != host:
            return _refused(request, 403, f"requests from {origin!r} are not served", "wrong_origin")
        if not any(secrets.compare_digest(each.encode(), self._token) for each in _tokens(request)):
            return _refused(
                request,
                401,
                "the token is missing or wrong: open the address that the command printed, or send it as "
                "'Authorization: Bearer TOKEN'",
                "invalid_api_key",
            )
        return None

    def _welcome(self, request: Request) -> Response | None:
        """Take a token out of the address, where it might be seen, and into a cookie."""
        if "token" not in request.query_params or request.method not in _READING:
            return None
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(_cookie(request), self._token.decode(), httponly=True, samesite="strict")
        return response

    def _is_own(self, host: str) -> bool:
        name = _split(f"//{host}").hostname or ""
        if name in self._names:
            return True
        if not self._any_address:
            return False
        try:  # an address is no name that could be pointed elsewhere
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _split(address: str) -> SplitResult:
    """Return the parts of an address; of what is none, empty ones."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _tokens(request: Request) -> Iterable[str]:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield given.strip()
    if request.method in _READING:
        yield request.query_params.get("token", "")
    yield request.cookies.get(_cookie(request), "")


def _cookie(request: Request) -> str:
    """Return the cookie's name: browsers do not tell the ports of a machine apart."""
    server = request.scope.get("server")
    return f"memcore-{server[1] if server else 0}"


def _refused(request: Request, status: int, message: str, code: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    if request.scope["path"].startswith(("/api/", "/v1/")):
        return JSONResponse(errors.body(message, status, code=code), status, headers)
    return PlainTextResponse(message, status, headers)
