"""The secret with which this installation signs its engine files. Anyone who can sign can run code here."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shlex
import stat
import tempfile
from pathlib import Path

from alexdeploy.core.cache import user_folder
from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import output_error
from alexdeploy.core.reading import open_regular

_SECRET_BYTES = 32


def state_folder() -> Path:
    """The folder of the secret. Raises ModelError for a user without a home folder who sets no other."""
    try:
        return user_folder("state")
    except RuntimeError as exc:
        raise ModelError(
            f"there is no home folder for the secret that signs engines: {exc}",
            hint="Set a folder for it: ALEXDEPLOY_STATE=/some/folder",
        ) from exc


def is_own(path: Path) -> bool:
    """Whether this file or folder exists, and only this user or root may write it."""
    try:
        status = path.stat()
    except OSError:
        return False
    return os.name != "posix" or not _is_open(status)


def read_secret() -> bytes | None:
    """The secret, None if none exists yet. Writes nothing. Raises ModelError if others could read or change it."""
    path = state_folder() / "engine.key"
    remedy = f"Delete it, and build the engines again: rm {shlex.quote(str(path))}"
    try:
        with open_regular(path) as file:
            folder, status = path.parent.stat(), os.fstat(file.fileno())
            content = file.read(_SECRET_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    if os.name == "posix":
        user = os.geteuid()
        # A user who can write to the folder could replace the secret.
        if _is_open(folder):
            raise ModelError(
                f"{path.parent} has {_owned(folder)}, expected 0700 and {user}: others could sign engines",
                hint=f"If nobody did: chmod 700 {shlex.quote(str(path.parent))}\n"
                "Else delete it, and build the engines again.",
            )
        if status.st_mode & 0o077 or status.st_uid != user:
            raise ModelError(
                f"{path} has {_owned(status)}, expected 0600 and {user}: others could have signed engines with it",
                hint=remedy,
            )
    if len(content) != _SECRET_BYTES:
        raise ModelError(f"{path} is damaged: expected {_SECRET_BYTES} bytes", hint=remedy)
    return content


def own_secret() -> bytes:
    """The secret, created at the first use. Raises OutputError, and ModelError as `read_secret` does."""
    found = read_secret()
    if found is None:
        _make_secret(state_folder() / "engine.key")
        found = read_secret()
    if found is None:
        raise ModelError(f"{state_folder()} cannot store engine.key", hint="Set another folder: ALEXDEPLOY_STATE")
    return found


def name_of(secret: bytes) -> str:
    """The public identifier of this installation."""
    return hashlib.sha256(b"alexdeploy engine key\0" + secret).hexdigest()[:16]


def signature_of(content: bytes, secret: bytes) -> str:
    """HMAC-SHA256, as 64 hexadecimal digits."""
    return hmac.new(secret, content, hashlib.sha256).hexdigest()


def _is_open(status: os.stat_result) -> bool:
    """Whether others may write."""
    return bool(status.st_mode & 0o022) or status.st_uid not in (os.geteuid(), 0)


def _owned(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o} and owner {status.st_uid}"


def _make_secret(path: Path) -> None:
    """Write it under another name and link it, so that two processes at once both use the first one's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp creates it accessible only by this user.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".engine.key.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    except OSError as exc:
        raise output_error(path, exc) from exc
