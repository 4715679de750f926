"""Tokens that clients send as `Authorization: Bearer TOKEN`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from alexdeploy.core.errors import UsageError
from alexdeploy.serving.errors import UnauthorizedError

_MIN_LENGTH = 16


class Tokens:
    """The tokens that a server accepts; none: everybody is let in. Only their hashes are kept."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        """Raises UsageError for a token that is short, or has characters that no header can carry."""
        for number, token in enumerate(tokens, 1):
            _check(token, f"token {number}")
        self._hashes = [_hash(token) for token in tokens]

    @staticmethod
    def from_file(path: Path) -> Tokens:
        """One token a line; empty lines and lines that begin with # are skipped. Raises UsageError."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"--token-file {path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
        tokens = []
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                tokens.append(line.strip())
                _check(tokens[-1], f"--token-file {path}: the token in line {number}")
        if not tokens:
            raise UsageError(f"--token-file {path} has no token", hint="Write one token a line.")
        return Tokens(tokens)

    def __len__(self) -> int:
        return len(self._hashes)

    def client_of(self, authorization: str | None, peer: str) -> str:
        """Who is asking: the number of the token, or `peer` if there are not several. Raises UnauthorizedError.

        The time it takes does not depend on the token that was sent.
        """
        if not self._hashes:
            return peer
        scheme, _, token = (authorization or "").partition(" ")
        sent = _hash(token.strip())
        matches = [hmac.compare_digest(sent, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(matches):
            raise UnauthorizedError("this server needs a token: Authorization: Bearer TOKEN")
        return peer if len(matches) == 1 else f"token {matches.index(True) + 1}"


def _check(token: str, what: str) -> None:
    # The message must not contain the token.
    if len(token) < _MIN_LENGTH or not all("!" <= char <= "~" for char in token):
        raise UsageError(
            f"{what} is not {_MIN_LENGTH} or more visible ASCII characters without spaces",
            hint='Make one: python -c "import secrets; print(secrets.token_urlsafe())"',
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
