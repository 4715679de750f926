"""What was opened before a fork, in the child: no use, no hang, and no harm to the parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_pictures
from patience import slow_but_for

from alexdeploy.core.model_folder import ModelFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")

_SCRIPT = """
import os, sys
from alexdeploy import Predictor
from alexdeploy.core.errors import UsageError

folder, options, actions = sys.argv[1], eval(sys.argv[2]), sys.argv[3:]

def answers(predictor):
    return [(row.source, row.label) for row in predictor.predict(["pictures"])]

def refused(call):
    try:
        call()
    except UsageError as error:
        return str(error).startswith(
            f"the predictor was opened in process {os.getppid()}, and this is process {os.getpid()}, forked from it"
        )

with Predictor(folder, batch_size=2, **options) as predictor:
    expected = answers(predictor)
    assert len(expected) == 6
    rows = predictor.predict(["pictures"])
    assert next(rows).error is None
    picture = "pictures/000.png"
    assert [(row.source, row.label) for row in predictor.classify(picture)] == expected[:1]
    for action in actions:
        child = os.fork()
        if child == 0:
            if action == "use":
                assert refused(lambda: next(rows)) and refused(lambda: answers(predictor))
                assert refused(lambda: predictor.replicas) and refused(lambda: predictor.classify(picture))
                rows.close()
                predictor.close()
                predictor.__exit__(None, None, None)
                os._exit(7)
            if action == "open":
                with Predictor(folder, **options) as other:
                    assert answers(other) == expected
                os._exit(7)
            if action == "drop":
                del predictor, rows
            # Out of the block, as one does who knows of nothing, to the end of the interpreter.
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, action
        assert answers(predictor) == expected
    assert len(list(rows)) == 5
    assert [(row.source, row.label) for row in predictor.classify(picture)] == expected[:1]
    assert not any(replica.num_losses for replica in predictor.replicas)
"""

_OPTIONS = (
    {"backend": "openvino"},
    {"backend": "onnxruntime"},
    {"backend": "torch"},
    {"backend": "onnxruntime", "devices": "cpu,cpu"},
    {"placement": "towers", "devices": "cpu,cpu"},
)


@pytest.mark.parametrize(
    "options", slow_but_for([*_OPTIONS[:2], *_OPTIONS[3:]], _OPTIONS), ids=lambda options: " ".join(options.values())
)
def test_a_fork_neither_uses_nor_closes_what_its_parent_opened(
    tiny_model: ModelFolder, tmp_path: Path, options: dict[str, str]
) -> None:
    # PyTorch's OpenMP threads do not survive a fork.
    actions = ("use", "leave", "drop") if options.get("backend") == "torch" else ("use", "open", "leave", "drop")
    write_pictures(tmp_path / "pictures", 6)
    # Python 3.12 and later warn of forks beside threads.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _SCRIPT]
    words += [str(tiny_model.path), repr(options), *actions]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
