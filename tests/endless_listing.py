"""A bucket whose listing does not end."""

from __future__ import annotations

import pytest

from alexdeploy.core.stores import objects
from alexdeploy.core.stores.library import Entry, Page
from alexdeploy.core.stores.retrying import Deadline
from alexdeploy.images import named, stored


class Endless:
    """Pages of a thousand names."""

    lists_below = True

    def __init__(self) -> None:
        self.num_pages = 0

    def page(self, url: str, token: str | None, deadline: Deadline, *, below: bool) -> Page:
        self.num_pages += 1
        first = int(token or 0)
        names = range(first, first + 1000)
        return Page([Entry(f"{url}{number:010}.jpg", 100_000) for number in names], str(first + 1000))


def endless_listing(monkeypatch: pytest.MonkeyPatch) -> Endless:
    """The listing of every bucket, until the test ends."""
    listing = Endless()
    monkeypatch.setattr(objects, "_bucket", lambda url: listing)
    monkeypatch.setattr(stored, "check_url", lambda url: None)
    monkeypatch.setattr(named, "check_url", lambda url: None)
    return listing
