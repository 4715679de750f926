"""A model that is handed on: its card read back as others read it, its hashes, its bill of materials."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from helpers import write_pictures
from made_engines import make_engine
from markdown_it import MarkdownIt
from scipy.stats import binomtest

from alexdeploy import (
    CardOptions,
    EvaluateOptions,
    ImportOptions,
    ModelFolder,
    PredictOptions,
    ensemble,
    evaluate,
    import_model,
    predict,
    write_card,
)
from alexdeploy.cards.markdown import code, plain
from alexdeploy.core.errors import ModelError, OutputError, StaleArtifactError, UsageError
from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.results import Evaluation, document
from alexdeploy.export.deployed import portable_graph
from alexdeploy.graphs.files import write_graphs
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.importing.whole_folder import BILL_NAME
from alexdeploy.training.events import EpochRecord
from alexdeploy.training.log import log_path

TRAINED = {
    "created": "2026-01-02T03:04:05+00:00",
    "alexdeploy_version": "0.1.0",
    "torch_version": "2.13.0+cpu",
    "data": "/home/somebody/photographs",
    "data_sha256": "ab" * 32,
    "num_train": 2934,
    "num_val": 736,
    "best_epoch": 2,
    "val_top1_error": 329 / 736,
    "val_top5_error": 0.0,
}


@pytest.fixture(scope="module")
def _root(_exported: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    shutil.copytree(_exported.path, root / "models" / "tiny")
    for number in range(5):
        write_pictures(root / "labelled" / f"class-{number}", 3, seed=number)
    # As `export --deployment` writes it, without its checks.
    folder = ModelFolder(root / "models" / "tiny")
    spec = folder.spec()
    network = load_graph(folder, "fp32", spec)
    _, content = portable_graph(network, "model.onnx", spec, "fp32", 10, folder.mean_image(spec))
    write_graphs({folder.onnx_path("fp32", 10): content}, {})
    return root


@pytest.fixture(scope="module")
def measured(_root: Path) -> Evaluation:
    """Of FP32 and FP16 with one view, on 15 images of which one is broken."""
    (_root / "labelled" / "class-0" / "broken.jpg").write_bytes(b"no image")
    options = EvaluateOptions(precisions=("fp32", "fp16"), num_views=(1,), backends=("onnxruntime",), num_threads=1)
    return evaluate(_root / "models" / "tiny", _root / "labelled", options)


@pytest.fixture
def tiny(_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """models/tiny in a working folder of the test's own, with a deployment graph of ten views."""
    shutil.copytree(_root / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return ModelFolder(Path("models/tiny"))


def change_spec(folder: ModelFolder, **facts: Any) -> None:
    folder.write_spec(folder.spec().replace_provenance(**facts))


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card, divided as the Hub does."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1]), found[2]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table as a renderer of GitHub's Markdown shows them."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level > 2 and found:
            found[-1][-1].append("".join(each.content for each in token.children or ()))
    return found


def test_the_errors_are_those_of_the_evaluation(tiny: ModelFolder, measured: Evaluation) -> None:
    written = write_card(tiny, "handed", CardOptions(license="Apache-2.0"), evaluation=measured)
    assert (written.path, written.measured_on) == (Path("handed"), "evaluation")
    metadata, text = card_of(written.path)
    result = metadata["model-index"][0]["results"][0]
    assert metadata["license"] == "apache-2.0"
    assert (result["task"]["type"], metadata["pipeline_tag"]) == ("image-classification", "image-classification")
    assert result["dataset"]["name"] == "labelled"
    wrong = [score.top1.num_errors for score in measured.scores]
    assert [each["value"] for each in result["metrics"]] == [(16 - number) / 16 for number in wrong]
    errors = tables(text)[0]
    assert errors[0][:4] == ["backend", "precision", "views", "top-1 error %"]
    for row, score, number in zip(errors[1:], measured.scores, wrong, strict=True):
        interval = binomtest(number, 16).proportion_ci(method="wilson")
        assert row[:3] == ["onnxruntime", score.configuration.precision, "1"]
        assert row[3] == f"{100 * number / 16:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    assert "on 16 labelled images of `labelled`, of which 1 could not be read and count as wrong" in text


def test_the_result_of_evaluate_in_a_file_gives_the_same_card(tiny: ModelFolder, measured: Evaluation) -> None:
    Path("result.json").write_text(json.dumps(document(measured), default=lambda content: ""))
    first = write_card(tiny, "first", evaluation=measured).path
    second = write_card(tiny, "second", evaluation=Path("result.json")).path
    assert (first / "README.md").read_bytes() == (second / "README.md").read_bytes()


def test_an_evaluation_of_something_else_is_refused(tiny: ModelFolder, measured: Evaluation) -> None:
    of_other_files = dataclasses.replace(measured.scores[0], artifact="0" * 64)
    for changed, kind, told in (
        (dataclasses.replace(measured, contract_sha256="0" * 64), StaleArtifactError, "is of another model"),
        (dataclasses.replace(measured, scores=(of_other_files,)), StaleArtifactError, "a file that the model does not"),
        (dataclasses.replace(measured, interrupted=True), UsageError, "was interrupted"),
    ):
        with pytest.raises(kind, match=told):
            write_card(tiny, "handed", evaluation=changed)
    Path("rows.json").write_text('{"source": "a.jpg"}')
    with pytest.raises(UsageError, match=r"rows\.json is not the result of an evaluation"):
        write_card(tiny, "handed", evaluation="rows.json")
    assert not Path("handed").exists()


@pytest.mark.parametrize(
    ("index", "path", "value"),
    [
        (0, ("top1", "percent"), 1.0),
        (0, ("top1", "num_errors"), 0),
        (0, ("top1", "num_images"), 1600),
        (0, ("top1", "low_percent"), 0.0),
        (1, ("versus", "num_flips"), -1),
        (1, ("versus", "difference_points"), -20.0),
        (1, ("versus", "low_points"), -20.0),
        (1, ("versus", "base", "precision"), "int8"),
        (1, ("configuration", "precision"), "fp32"),
        (1, ("configuration", "backend"), "tensorrt"),
        (1, ("configuration", "num_views"), 7),
        (1, ("versus",), None),
    ],
)
def test_a_figure_changed_in_the_file_is_refused(
    tiny: ModelFolder, measured: Evaluation, index: int, path: tuple[str, ...], value: object
) -> None:
    values = json.loads(json.dumps(document(measured), default=lambda content: ""))
    place = values["scores"][index]
    for name in path[:-1]:
        place = place[name]
    assert place[path[-1]] != value
    place[path[-1]] = value
    Path("result.json").write_text(json.dumps(values))
    with pytest.raises((UsageError, StaleArtifactError), match=r"contradict each other|does not have for it"):
        write_card(tiny, "handed", evaluation="result.json")
    assert not Path("handed").exists()


def test_an_engine_counts_only_if_it_was_built_from_the_graph_that_is_there(
    tiny: ModelFolder, measured: Evaluation
) -> None:
    spec = tiny.spec()
    graph = hashlib.sha256(tiny.onnx_path("fp16").read_bytes()).hexdigest()
    weights = hashlib.sha256(tiny.weights_path.read_bytes()).hexdigest()
    facts = {"contract_sha256": spec.contract_sha256, "weights_sha256": weights, "num_views": 1}
    way = Configuration(backend="tensorrt", precision="fp16", num_views=1)
    for plan, of_graph, is_right in ((b"old", "0" * 64, False), (b"new", graph, True)):
        path = make_engine(tiny, plan, graph_sha256=of_graph, **facts)
        artifact = hashlib.sha256(path.read_bytes()).hexdigest()
        score = dataclasses.replace(measured.scores[0], configuration=way, artifact=artifact)
        with nullcontext() if is_right else pytest.raises(StaleArtifactError, match="tensorrt fp16"):
            write_card(tiny, "handed", evaluation=dataclasses.replace(measured, scores=(score,)))


def test_data_have_a_name_or_none_and_never_the_query_of_a_url(tiny: ModelFolder, measured: Evaluation) -> None:
    for data, name in ((".", "not recorded"), ("../", "not recorded"), ("https://x.example/a.tar?sig=S3CRET", "a.tar")):
        changed = dataclasses.replace(measured, data=data, notes=(f"{data} is good.",))
        text = card_of(write_card(tiny, "handed", CardOptions(overwrite=True), evaluation=changed).path)[1]
        assert f"16 labelled images of `{name}" in text
        assert "S3CRET" not in text


def test_without_an_evaluation_the_card_has_what_training_recorded(tiny: ModelFolder) -> None:
    change_spec(tiny, **TRAINED)
    written = write_card(tiny)
    assert (written.path, written.measured_on) == (Path("hub/tiny"), "training")
    metadata, text = card_of(written.path)
    interval = binomtest(329, 736).proportion_ci(method="wilson")
    assert tables(text)[0][1][3] == f"{32900 / 736:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    assert [each["value"] for each in metadata["model-index"][0]["results"][0]["metrics"]] == [407 / 736]
    assert "on the 736 validation images of `photographs`. These images also chose the epoch" in text
    bill = (written.path / BILL_NAME).read_text()
    assert "somebody" not in text + bill
    assert any("/home/somebody/photographs" in note for note in written.notes)


def test_what_is_not_recorded_is_said_to_be_so(tiny: ModelFolder) -> None:
    written = write_card(tiny)
    metadata, text = card_of(written.path)
    assert written.measured_on is None
    assert metadata.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Licence: not stated." in text
    assert "## Errors\n\nNot recorded" in text
    assert "| how it was made | not recorded |" in text


def test_the_card_tells_how_to_run_the_files_that_are_there(tiny: ModelFolder) -> None:
    for name in ("model.onnx", "model.int8.onnx", "weights.safetensors"):
        (tiny.path / name).unlink(missing_ok=True)
    written = write_card(tiny)
    text = card_of(written.path)[1]
    assert "alexdeploy predict photo.jpg --model . --precision fp16\n" in text
    # `sha256sum -c *.sha256` on the card would fail.
    assert not [name for name in written.files if name.endswith(".sha256") and name[:-7] not in written.files]
    assert any("they are not there: model.onnx" in note for note in written.notes)
    for path in tiny.path.glob("*.sha256"):
        path.unlink()
    assert "sha256sum" not in card_of(write_card(tiny, "again").path)[1]


def test_a_folder_whose_name_is_no_text_has_a_card_and_a_bill(tiny: ModelFolder) -> None:
    folder = tiny.path.rename(os.fsdecode(b"models/fl\xff"))
    written = write_card(folder, "handed").path
    assert "\n# fl\\\\udcff\n" in card_of(written)[1]
    assert json.loads((written / BILL_NAME).read_text())["metadata"]["component"]["name"] == "fl\\udcff"


def test_hashes_are_those_of_the_files(tiny: ModelFolder) -> None:
    folder = write_card(tiny).path
    rows = tables(card_of(folder)[1])[-1][1:]
    bill = json.loads((folder / BILL_NAME).read_text())["metadata"]["component"]["components"]
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tiny.path.iterdir()}
    # What a machine found, not what the model is made of.
    del expected["backends.json"]
    assert {name: sha256 for name, _, sha256 in rows} == expected
    assert {each["name"]: each["hashes"][0]["content"] for each in bill} == expected
    copied = {*expected, "backends.json"}
    assert {path.name for path in folder.iterdir()} == {*copied, "README.md", ".gitattributes", BILL_NAME}
    assert all((folder / name).read_bytes() == (tiny.path / name).read_bytes() for name in copied)


def test_the_program_on_the_card_runs_without_alexdeploy(tiny: ModelFolder) -> None:
    folder = write_card(tiny).path
    shutil.copy(write_pictures(Path("pictures"), 1) / "000.png", folder / "photo.jpg")
    found = re.search(r"```python\n(.*?)```", card_of(folder)[1], re.DOTALL)
    assert found is not None
    program = found[1].replace("print(", "import sys\nassert 'alexdeploy' not in sys.modules\nprint(")
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    name, probability = done.stdout.split()
    (row,) = predict([folder / "photo.jpg"], folder, PredictOptions(num_views=10, backend="onnxruntime"))
    assert name == row.label
    assert float(probability) == pytest.approx(row.probability, abs=1e-6)


HOSTILE = (
    "a|b`c``d",
    "](javascript:alert(1)) <script>alert(1)</script>",
    "---\nlicense: mit\n---",
    "![x](http://x.example/p.png) www.x.example a@x.example",
    "\u202e\x1b[31m\x85\u2028",
    "\\|",
    "$\\int$ {{x}} @user #1 :smile:",
)


def test_names_can_be_no_markup_and_no_metadata(tiny: ModelFolder) -> None:
    folder = ModelFolder(Path("models/x"))
    folder.path.mkdir()
    shutil.copy(tiny.weights_path, folder.weights_path)
    shutil.copy(tiny.mean_path, folder.mean_path)
    # Without a graph, and with weights that record no contract, any classes will do.
    spec = dataclasses.replace(tiny.spec(), classes=HOSTILE[:5], recipe=HOSTILE[5])
    folder.write_spec(spec.replace_provenance(**{**TRAINED, "data": f"/x/{HOSTILE[0]}", "parent": HOSTILE[6]}))
    options = CardOptions(title=HOSTILE[1], author=HOSTILE[3])
    metadata, text = card_of(write_card(folder, "handed", options).path)
    assert metadata["model-index"][0]["name"] == HOSTILE[1]
    assert "license" not in metadata
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    inline = [each for token in parser.parse(text) for each in (token, *(token.children or ()))]
    kinds = {each.type for each in inline}
    assert kinds.isdisjoint({"html_block", "html_inline", "link_open", "image", "hr", "s_open"})
    shown = [each.content for each in inline if each.type == "code_inline"]
    assert {"a|b`c``d", HOSTILE[1], HOSTILE[3], HOSTILE[5], HOSTILE[6]} <= set(shown)
    assert text.isprintable() or not any(each in text for each in "\x1b\x85\u2028\u202e")


def test_code_and_text_come_out_of_a_renderer_as_they_went_in() -> None:
    parser = MarkdownIt("commonmark", {"html": True})
    for text in (*HOSTILE, "`", " `a` ", "``", "a`", "1. x", "- x", "# x", "a_b_c *d* ~e~"):
        if text.isprintable():
            (span,) = parser.parseInline(f"x {code(text)} y")[0].children[1:-1]
            assert (span.type, span.content) == ("code_inline", text)
            assert "".join(each.content for each in parser.parseInline(plain(text))[0].children) == text


def test_the_bill_of_materials_is_valid_and_the_same_each_time(tiny: ModelFolder, monkeypatch: Any) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    change_spec(tiny, **TRAINED, parent="other", parent_weights_sha256="cd" * 32)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    options = CardOptions(license="apache-2.0", author="A. Teacher", title="Flowers", dataset="owner/flowers")
    contents = [(write_card(tiny, name, options).path / BILL_NAME).read_text() for name in ("one", "two")]
    assert contents[0] == contents[1]
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(contents[0]) is None
    bill = json.loads(contents[0])
    model = bill["metadata"]["component"]
    refs = [each["bom-ref"] for each in (model, *model["components"], *bill["components"])]
    assert len(set(refs)) == len(refs)
    needed = [need for each in bill["dependencies"] for need in (each["ref"], *each["dependsOn"])]
    assert {*needed, *(each["ref"] for each in model["modelCard"]["modelParameters"]["datasets"])} <= set(refs)
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert model["type"] == "machine-learning-model"
    assert model["pedigree"]["ancestors"][0]["hashes"] == [{"alg": "SHA-256", "content": "cd" * 32}]
    metric = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    assert float(metric["value"]) == pytest.approx(32900 / 736)
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in [each.get("purl") for each in bill["components"]]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        write_card(tiny, "three", options)


def test_an_ensemble_names_its_members_and_an_import_its_file(tiny: ModelFolder) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    other = ModelFolder(Path("models/other"))
    shutil.copytree(tiny.path, other.path)
    change_spec(tiny, **TRAINED)
    change_spec(other, imported_from="theirs.onnx", imported_sha256="ef" * 32)
    ensemble(["tiny", "other"], "both")
    for name, ancestor in (("other", "theirs.onnx"), ("both", None)):
        folder = write_card(name).path
        content = (folder / BILL_NAME).read_text()
        assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(content) is None
        bill, text = json.loads(content), card_of(folder)[1]
        if ancestor is None:
            assert [each["name"] for each in bill["components"][:2]] == ["tiny", "other"]
            assert bill["dependencies"] == [
                {"ref": "model", "dependsOn": ["member-1", "member-2"]},
                {"ref": "member-1", "dependsOn": ["member-1-data"]},
                {"ref": "member-2", "dependsOn": []},
            ]
            assert "### Member 2: `other`" in text
        else:
            assert bill["metadata"]["component"]["pedigree"]["ancestors"][0]["name"] == ancestor
            assert "imported from `theirs.onnx`" in text


def test_the_hubs_own_library_reads_the_card(tiny: ModelFolder, measured: Evaluation) -> None:
    hub = pytest.importorskip("huggingface_hub")
    options = CardOptions(license="mit", language="en", dataset="owner/flowers", title="Flowers: five")
    found = hub.ModelCard.load(write_card(tiny, "handed", options, evaluation=measured).path / "README.md").data
    assert (found.license, found.language, found.datasets, found.model_name) == (
        *("mit", "en", ["owner/flowers"]),
        "Flowers: five",
    )
    assert [each.metric_value for each in found.eval_results] == [
        1 - score.top1.num_errors / 16 for score in measured.scores
    ]


def test_a_card_is_imported_again_and_a_damaged_one_refused(tiny: ModelFolder) -> None:
    folder = write_card(tiny).path
    shutil.rmtree(tiny.path)
    back = import_model(folder, on_warning=lambda text: None)
    assert back.path == Path("models/tiny")
    assert {path.name for path in back.path.iterdir()} == {
        path.name for path in folder.iterdir() if path.name not in ("README.md", ".gitattributes", BILL_NAME)
    }
    (folder / "model.fp16.onnx").unlink()
    (folder / "model.fp16.onnx.sha256").unlink()
    shutil.rmtree(back.path)
    told: list[str] = []
    import_model(folder, on_warning=told.append)
    assert told[0].endswith("not there: model.fp16.onnx, model.fp16.onnx.sha256")
    assert told[1:] == [f"not copied: README.md of {folder}"]
    # No other record has the hash of this text.
    spec = (folder / "spec.json").read_text()
    (folder / "spec.json").write_text(spec + "\n")
    shutil.rmtree(back.path)
    with pytest.raises(StaleArtifactError, match=rf"spec\.json .*, recorded .* in {BILL_NAME}"):
        import_model(folder)
    assert not back.path.exists()


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_card_folder_whose_backends_were_checked_again_is_imported(tiny: ModelFolder, is_listed: bool) -> None:
    folder = write_card(tiny).path
    bill = json.loads((folder / BILL_NAME).read_text())
    files = bill["metadata"]["component"]["components"]
    assert "backends.json" not in {each["name"] for each in files}
    if is_listed:
        # As bills of 0.1 do.
        digest = hashlib.sha256((folder / "backends.json").read_bytes()).hexdigest()
        files.append({"name": "backends.json", "hashes": [{"alg": "SHA-256", "content": digest}]})
        (folder / BILL_NAME).write_text(json.dumps(bill))
    # As any export writes it, on another machine.
    (folder / "backends.json").write_text("[]")
    told: list[str] = []
    back = import_model(folder, ImportOptions(name="got"), on_warning=told.append)
    assert (back.path / "backends.json").read_text() == "[]"
    assert told == [f"not copied: README.md of {folder}"]


def test_a_folder_that_is_there_is_replaced_only_if_asked(tiny: ModelFolder) -> None:
    folder = write_card(tiny).path
    with pytest.raises(UsageError, match="is a folder that is not empty"):
        write_card(tiny)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "notes.txt").write_text("mine")
    for name in ("checkpoints", "engines"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("mine")
    for path in tiny.path.glob("*fp16*"):
        path.unlink()
    write_card(tiny, folder, CardOptions(overwrite=True, title="New"))
    assert "# New" in (folder / "README.md").read_text()
    assert not list(folder.glob("*fp16*"))
    assert [path.parent.name for path in sorted(folder.glob("*/notes.txt"))] == ["checkpoints", "engines"]
    assert ((folder / "notes.txt").read_text(), (folder / ".git" / "config").read_text()) == ("mine", "x")
    Path("empty").mkdir()
    assert write_card(tiny, "empty").path == Path("empty")


def test_a_folder_that_cannot_be_written_or_is_the_models_own_is_refused(tiny: ModelFolder) -> None:
    Path("file").write_text("x")
    with pytest.raises(OutputError, match="file is not a folder"):
        write_card(tiny, "file/handed")
    with pytest.raises(UsageError, match="is in the model folder"):
        write_card(tiny, tiny.path / "handed")
    (tiny.path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        write_card(tiny, "handed")
    assert not Path("handed").exists()
    assert not list(Path().glob(".handed*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"license": "my licence"}, "is no identifier"),
        ({"dataset": "a/b/c"}, "is no identifier"),
        ({"language": "English"}, "is no identifier"),
        ({"title": "a\nb"}, "is not a line of text"),
        ({"author": " "}, "is not a line of text"),
    ],
)
def test_what_would_be_no_metadata_is_refused(options: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        CardOptions(**options)


def test_the_authors_text_is_part_of_the_card_as_it_is(tiny: ModelFolder) -> None:
    Path("about.md").write_text("## Intended use\n\nFor **lessons**.\n")
    text = card_of(write_card(tiny, "handed", CardOptions(about="about.md")).path)[1]
    assert "\n## Intended use\n\nFor **lessons**.\n" in text
    assert "not stated by its author" not in text
    with pytest.raises(UsageError, match=r"gone\.md.* cannot be read"):
        write_card(tiny, "again", CardOptions(about="gone.md"))


def test_epochs_of_the_log_are_shown_if_it_is_that_of_the_weights(tiny: ModelFolder) -> None:
    change_spec(tiny, **TRAINED)
    errors = (0.9, 329 / 736, 0.5)
    records = [
        EpochRecord(
            epoch=epoch,
            loss=2.0 / epoch,
            val_loss=1.5,
            val_top1_error=error,
            val_top5_error=0.0,
            learning_rate=0.01,
            images_per_second=10.0,
        )
        for epoch, error in enumerate(errors, 1)
    ]
    log_path(tiny).parent.mkdir(parents=True)
    log_path(tiny).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    shown = [table for table in tables(card_of(write_card(tiny).path)[1]) if table[0][0] == "epoch"]
    assert shown == [
        [
            ["epoch", "loss", "validation loss", "validation top-1 error %", "learning rate"],
            ["1", "2", "1.5", "90.00", "0.01"],
            ["2", "1", "1.5", f"{32900 / 736:.2f}", "0.01"],
            ["3", "0.6667", "1.5", "50.00", "0.01"],
        ]
    ]
    change_spec(tiny, val_top1_error=330 / 736)
    assert "From the log of its training" not in card_of(write_card(tiny, "other").path)[1]


def test_an_int8_graph_says_what_it_was_calibrated_on_and_a_backend_why_it_was_refused(int8_model: ModelFolder) -> None:
    checks = json.loads(int8_model.backends_path.read_text())
    refused = next(check for check in checks if check["precision"] == "int8" and check["backend"] == "onnxruntime")
    refused["problem"] = "gives other answers"
    int8_model.backends_path.write_text(json.dumps(checks))
    text = card_of(write_card(int8_model).path)[1]
    assert "calibrated on 40 images, method mse" in text
    (row,) = [row for table in tables(text) for row in table if "refused: gives other answers" in row]
    assert (row[0].partition(" ")[0], row[1]) == ("onnxruntime", "int8")


def test_what_is_not_told_of_training_is_not_recorded(tiny: ModelFolder) -> None:
    # An error that no whole number of these images has.
    change_spec(tiny, best_epoch=2, num_val=736, val_top1_error=0.44444)
    written = write_card(tiny)
    assert written.measured_on is None
    assert "| training data | not recorded |" in card_of(written.path)[1]
    assert (code(""), code(" ")) == ("(empty)", "(blank)")


def test_a_configuration_that_comes_twice_is_refused(tiny: ModelFolder, measured: Evaluation) -> None:
    twice = dataclasses.replace(measured, scores=(measured.scores[0], measured.scores[0]))
    with pytest.raises(UsageError, match="contradict each other"):
        write_card(tiny, "handed", evaluation=twice)
