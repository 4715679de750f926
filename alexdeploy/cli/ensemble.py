"""`alexdeploy ensemble`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import model_names
from alexdeploy.cli.options import JsonOption, OverwriteOption, QuietOption, VerboseOption

EXAMPLES = (
    "alexdeploy ensemble net1 net2 net3 --name three",
    "alexdeploy ensemble models/net1 models/net2 --name two --overwrite",
    "alexdeploy ensemble net1 net2 net3 --name three --json",
)


def ensemble(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", autocompletion=model_names, help="The members: model folders, or names under models/."
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name under models/. Always needed.")],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make one model of several: its answer is the mean of their probabilities.

    Its graphs contain those of the members, in every precision that all of them have; the members are not needed
    afterwards. They may differ in everything but their classes and how images are resized. The other commands take an
    ensemble as any other model.
    """
    from alexdeploy.cli.export_progress import watch
    from alexdeploy.importing.ensemble import ensemble as make_ensemble

    with watch() as on_event:
        made = make_ensemble(models, name, overwrite=overwrite, on_event=on_event)
    if json:
        graphs = [{**dataclasses.asdict(each), "path": each.path.as_posix()} for each in made.graphs]
        output.print_json({"model": made.path.as_posix(), "members": made.members, "graphs": graphs})
    files = ", ".join(each.path.name for each in made.graphs)
    output.note(f"wrote {made.path}: {len(made.members)} members, {files}")
    output.next_with_images(made.path)
