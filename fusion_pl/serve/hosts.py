"""Refuse requests to other hosts: the defence against DNS rebinding.

The owner of a site can let its name point to this machine. The pages of the site may then read the answers of a server
that only this machine can reach, but their requests still have the name of the site in the header ``Host``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusion_pl.messages import truncate
from fusion_pl.types import UserError

LOCAL_ADDRESSES = ("127.0.0.1", "::1")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
PROBED = ("/health", "/ready")  # probes of containers send the address of the container, which nobody knows before
NAME = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[[\da-f:.]+\]", re.ASCII | re.IGNORECASE)


def allowed_hosts(address: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the hosts to which requests are answered; None = all.

    Args:
        address: address on which the server listens.
        names: further hosts; without them, a server that other machines can reach answers requests to all hosts.

    Raises:
        UserError: if a name cannot be the host of an address.
    """
    for name in names:
        if not NAME.fullmatch(name):
            expected = "expected a host without protocol and port, such as example.com, *.example.com or [2001:db8::1]"
            raise UserError(f"--allowed_hosts {name}: {expected}")
    return (*LOCAL_HOSTS, *names) if names or address in LOCAL_ADDRESSES else None


class HostCheck:
    """Middleware that answers requests to other hosts with one sentence; the comparison is that of Starlette.

    Args:
        app: the application.
        hosts: hosts to which requests are answered.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_allowed = scope["type"] != "http" or scope["path"] in PROBED

        async def allow(*_: object) -> None:
            nonlocal is_allowed
            is_allowed = True

        async def discard(_: Message) -> None:
            """Starlette's answer is not a sentence."""

        if not is_allowed:
            await TrustedHostMiddleware(allow, self.hosts, www_redirect=False)(scope, receive, discard)
        answer = self.app if is_allowed else self._refuse(scope)
        await answer(scope, receive, send)

    def _refuse(self, scope: Scope) -> JSONResponse:
        given = truncate(Headers(scope=scope).get("host", ""), 60)
        message = (
            f"the header Host is {given!r}, expected {', '.join(self.hosts)}: --allowed_hosts of the server adds hosts"
        )
        return JSONResponse({"error": message}, 400)
