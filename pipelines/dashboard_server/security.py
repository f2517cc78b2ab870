"""Who may ask: the Host header, a token off loopback, no other site's requests; and the headers of every answer."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "darkroom_session"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


class Guard:
    """Lets a request through, or answers it: 421 for a foreign Host, 403 for another site's, 401 without the token."""

    def __init__(self, app: ASGIApp, *, names: Iterable[str], token: str | None) -> None:
        self._app = app
        self._names = {name.lower() for name in (*LOOPBACK_NAMES, *names)}
        self._token = token
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(f"//{host}") not in self._names:
            return PlainTextResponse("this host name is not one of the dashboard's: see --names", 421)
        if not _is_own(headers, host):
            return PlainTextResponse("requests of other sites are refused", 403)
        return None if self._token is None else self._without_session(scope, headers)

    def _without_session(self, scope: Scope, headers: Headers) -> Response | None:
        """Take the token from the address once; afterwards only the cookie counts."""
        assert self._token is not None
        asked = QueryParams(scope["query_string"])
        if "token" in asked:
            if not hmac.compare_digest(asked["token"].encode(), self._token.encode()):
                return PlainTextResponse("the token is not the one that was printed", 401)
            rest = urlencode([(key, value) for key, value in asked.multi_items() if key != "token"])
            answer = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/")
            return answer
        given = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if hmac.compare_digest(given.encode(), self._session.encode()):
            return None
        return PlainTextResponse("open the address with the token that the dashboard printed when it started", 401)


def _hostname(address: str) -> str:
    """Return the name in an address; an empty one where it makes no sense."""
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _is_own(headers: Headers, host: str) -> bool:
    """Return whether the page that asks is this one, or no page at all."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return False
    site = headers.get("sec-fetch-site")
    navigates = headers.get("sec-fetch-mode") == "navigate"
    return site in (None, "same-origin", "none") or navigates


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return sent
