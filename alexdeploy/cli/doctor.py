"""`alexdeploy doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, OverwriteOption, QuietOption, VerboseOption, check_not_there
from alexdeploy.core.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alexdeploy.diagnosis.gpu_checks import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "absent": "dim"}

EXAMPLES = (
    "alexdeploy doctor",
    "alexdeploy doctor --json",
    "alexdeploy doctor --sbom installation.cdx.json",
)


def doctor(
    sbom: Annotated[
        Path | None,
        typer.Option(
            "--sbom",
            metavar="FILE",
            help="Write the bill of materials of this installation, every package with its version, as CycloneDX, "
            "for example to installation.cdx.json.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Examine driver, GPUs, backends, memory and disk; say what is wrong and how to fix it.

    Missing optional items are reported as absent, not a problem. Ends with exit code 5 if there is a problem.
    """
    from alexdeploy.diagnosis.doctor import examine

    if sbom is not None:
        _write_bill(sbom, overwrite=overwrite)
    with output.status() as show:
        findings = examine(lambda event: show(event.message))
    num_problems = sum(finding.status == "problem" for finding in findings)
    if json:
        output.print_json(
            {"num_problems": num_problems, "findings": [dataclasses.asdict(finding) for finding in findings]}
        )
    else:
        _print(findings, num_problems)
    if num_problems:
        raise typer.Exit(DeviceError.exit_code)


def _write_bill(path: Path, *, overwrite: bool) -> None:
    from alexdeploy.core.files import atomic_write, check_output
    from alexdeploy.diagnosis.installation import check_installed, installation_bill

    check_installed()
    check_output(path)
    check_not_there(path, "--sbom", overwrite=overwrite)
    content = installation_bill()
    with atomic_write(path) as file:
        file.write(content)
    output.note(f"wrote {path}")


def _print(findings: Sequence[Finding], num_problems: int) -> None:
    from rich.text import Text

    width = max(len(finding.name) for finding in findings)
    with output.page() as console:
        for finding in findings:
            line = Text(f"{finding.status:8}", _STYLES[finding.status])
            line.append(output.printable(f" {finding.name:{width}}  {finding.found}"), "default not bold")
            console.print(line, soft_wrap=True)
            if finding.hint:
                # Below the finding that it fixes, and unfolded, so that it can be copied.
                console.print(Text(" " * (11 + width) + output.printable(finding.hint)), soft_wrap=True)
    num_warnings = sum(finding.status == "warning" for finding in findings)
    output.note(f"{output.count(num_problems, 'problem')}, {output.count(num_warnings, 'warning')}")
