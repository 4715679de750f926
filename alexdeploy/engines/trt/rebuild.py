"""What the names of engine files say, and the command that builds one again: from its sidecar, else from its name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy.core.model_folder import VIEW_WORDS, ModelFolder
from alexdeploy.engines.base import EngineBackend

if TYPE_CHECKING:
    from alexdeploy.engines.trt.files import EngineKey

VERSION_WORDS: dict[EngineBackend, str] = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}

_NAME = re.compile(
    rf".*?(?P<capabilities>(-sm\d+)+)-(?P<version>{'|'.join(VERSION_WORDS.values())})[\d.]+"
    rf"-(?P<precision>fp32|fp16|int8)-(?P<views>{'|'.join(VIEW_WORDS.values())})-.*"
)


def rebuild_hint(path: Path, key: EngineKey | None = None) -> str:
    """The hint for an unusable engine file. Without its key, the name tells all but the batch size and the builder."""
    num_views: int
    words = ["alexdeploy build"]
    found = _NAME.fullmatch(path.name)
    if key is not None:
        backend, precision, num_views = key.backend, str(key.precision), key.num_views
        capabilities = [f"sm{major}{minor}" for major, minor in key.compute_capabilities]
    elif found is not None:
        backend = next(each for each, word in VERSION_WORDS.items() if word == found["version"])
        num_views = next(each for each, word in VIEW_WORDS.items() if word == found["views"])
        precision, capabilities = found["precision"], found["capabilities"].strip("-").split("-")
    else:
        return f"Build it again: {' '.join(words)}"
    words += [ModelFolder(path.parent.parent).quoted if path.parent.name == "engines" else "MODEL"]
    words += [f"--{precision}"] * (precision != "fp32") + [f"--views {num_views}"] * (num_views != 1)
    if key is not None:
        words += [f"--max-batch {key.profile[2]}"]
        # A sidecar that is not trusted may have anything there.
        if isinstance(workspace := key.builder.get("workspace_bytes"), int) and workspace > 0:
            words += [f"--workspace {workspace >> 20}"]
        if tactics := str(key.builder.get("tactic_sources", "")):
            words += [f"--tactic-sources {shlex.quote(tactics)}"]
    if backend == "tensorrt-rtx":
        words += ["--backend tensorrt-rtx", f"--for {','.join(capabilities)}"]
    return f"Build it again: {' '.join(words)}"
