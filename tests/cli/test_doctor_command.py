from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core.errors import UsageError
from alexdeploy.diagnosis import doctor
from alexdeploy.diagnosis.gpu_checks import Finding
from alexdeploy.diagnosis.installation import installation_bill

WELL = (
    Finding(name="python", status="ok", found="3.11"),
    Finding(name="tensorrt", status="absent", found="not installed", hint="pip install \x1b[31mit"),
    Finding(name="memory", status="warning", found="little [bold]is[/bold] left"),
)
ILL = (*WELL, Finding(name="driver", status="problem", found="too old", hint="Install driver 580 or newer"))


@pytest.fixture
def run(program: Run) -> Run:
    """`alexdeploy doctor` in this process."""
    return partial(program, "doctor")


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> object:
    """Let it find what the test says, since machines differ."""
    return lambda found: monkeypatch.setattr(doctor, "examine", lambda *_: found)


@pytest.mark.slow
def test_this_machine_is_examined_without_a_traceback(run: Run) -> None:
    result = run()
    problems = re.findall(r"^problem ", result.stdout, re.MULTILINE)
    assert result.exit_code == (5 if problems else 0)
    assert all(
        re.search(rf"^(ok|warning|problem|absent) +{name} ", result.stdout, re.MULTILINE) for name in ("python",)
    )
    assert re.fullmatch(r"\d+ problems?, \d+ warnings?\n", result.stderr)
    assert "Traceback" not in result.stdout


def test_each_finding_is_a_line_with_its_cure_beneath(run: Run, finding) -> None:
    finding(ILL)
    result = run()
    assert result.stdout.splitlines() == [
        "ok       python    3.11",
        "absent   tensorrt  not installed",
        "                   pip install \\x1b[31mit",
        "warning  memory    little [bold]is[/bold] left",
        "problem  driver    too old",
        "                   Install driver 580 or newer",
    ]
    assert (result.exit_code, result.stderr) == (5, "1 problem, 1 warning\n")


def test_without_a_problem_the_exit_code_is_0(run: Run, finding) -> None:
    finding(WELL)
    assert run().exit_code == 0


def test_json_is_one_document_with_every_finding(run: Run, finding) -> None:
    finding(ILL)
    result = run("--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (5, "")
    assert found["num_problems"] == 1
    assert found["findings"][-1] == {
        "name": "driver",
        "status": "problem",
        "found": "too old",
        "hint": "Install driver 580 or newer",
    }


def test_the_bill_of_materials_of_the_installation(
    program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("cyclonedx_py")
    from cyclonedx.schema import SchemaVersion

    monkeypatch.setattr(doctor, "examine", lambda on_event: WELL)
    monkeypatch.chdir(tmp_path)
    # A package of the working folder is none of the installation.
    (tmp_path / "cyclonedx_py.py").write_text("raise SystemExit('not this one')")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert program("doctor", "--sbom", "bill.json").exit_code == 0
    content = Path("bill.json").read_text(encoding="utf-8")
    bill = json.loads(content)
    # All of them would take ten seconds.
    some = json.dumps({**bill, "components": bill["components"][:5], "dependencies": bill["dependencies"][:5]})
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(some) is None
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["timestamp"][:10]) == ("alexdeploy", "2023-11-14")
    listed = {each["name"].lower(): each["version"] for each in bill["components"]}
    expected = {name: importlib.metadata.version(name) for name in ("numpy", "onnx", "msgspec", "safetensors")}
    assert expected.items() <= listed.items()
    refused = program("doctor", "--sbom", "bill.json")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    assert Path("bill.json").read_text(encoding="utf-8") == content


def test_without_the_tool_the_extra_is_named_before_anything_is_examined(
    program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda on_event: pytest.fail("examined"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = program("doctor", "--sbom", tmp_path / "bill.json")
    assert (result.exit_code, "pip install 'alexdeploy[sbom]'" in result.stderr) == (2, True)


@pytest.mark.skipif(os.name != "posix", reason="a script for a POSIX shell")
def test_a_tool_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho it broke >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(UsageError, match=r"could not describe the installation: it broke\nSee what it says: "):
        installation_bill()
