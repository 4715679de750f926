"""What is refused whoever sends it: requests for pages of other sites, under a foreign name, and for other models."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal

from starlette.requests import Request

from alexdeploy.serving.errors import ForbiddenError

ModelControl = Literal["none", "explicit"]
"""Whether clients may load and unload models; the names are Triton's."""

_ANY_HOST = "*"


class Hosts:
    """The names under which a server answers: those that are given, localhost, and every IP address.

    A page can have the name of its own site lead to this machine (DNS rebinding), and then the browser takes the server
    for that site. It cannot do so with an address, or with localhost. None, or a name "*": all names.
    """

    def __init__(self, names: Iterable[str] | None) -> None:
        self._names = None if names is None else frozenset(name.lower().rstrip(".") for name in names)
        if self._names is not None and _ANY_HOST in self._names:
            self._names = None

    def check(self, host: str) -> None:
        """Raise ForbiddenError unless the header `Host`, with or without a port, has one of the names.

        A request without it is let through: browsers always send it.
        """
        if self._names is None or not host:
            return
        name = _name_of(host)
        if name in self._names or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return
        raise ForbiddenError(f"'{name}' is not among the allowed hosts of this server")


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_site(request: Request) -> None:
    """Raise ForbiddenError for what a page of another site has a browser send.

    A server that only this machine reaches is reached by all pages that are open in a browser on it. They cannot read
    the answers, but could unload models. Browsers name the relation in Sec-Fetch-Site where the server is on loopback
    or speaks TLS, and otherwise the page's Origin; other clients send neither.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is not None:
        # A proxy that changes Host passes on what it was.
        own = {request.headers.get("host"), request.headers.get("x-forwarded-host")}
        site = "same-origin" if origin.partition("://")[2] in own else "cross-site"
    if site not in (None, "none", "same-origin"):
        raise ForbiddenError("requests from pages of other sites need a server with tokens")


def check_control(control: ModelControl) -> None:
    """Raise ForbiddenError unless clients may load and unload models."""
    if control != "explicit":
        raise ForbiddenError("models are not loaded or unloaded on request: the model control mode is none")
