from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from helpers import change_weights, replace_graph
from program import Run

from alexdeploy.cli.export_progress import watch
from alexdeploy.core.errors import StaleArtifactError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export import build, export
from alexdeploy.export.checked import kept_fp32
from alexdeploy.export.publish import read_network
from alexdeploy.graphs.freshness import load_metadata
from alexdeploy.graphs.metadata import INT8_WEIGHTS_KEY, PRECISION_KEY, SOURCE_KEY
from alexdeploy.importing.whole_folder import check_whole

sys.path.insert(0, str(Path(__file__).parents[1] / "placement"))
from imagined import machine


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy export` in this process, where models/tiny is."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "export")


def test_the_newest_model_is_exported_and_said_what_was_checked(run: Run, tiny_model: ModelFolder) -> None:
    for precision in ("fp32", "fp16"):
        tiny_model.onnx_path(precision).unlink()
    Path("images").mkdir()
    result = run("--fp16")
    assert result.exit_code == 0
    assert "model models/tiny\n" in result.stderr
    for precision in ("fp32", "fp16"):
        path = tiny_model.onnx_path(precision)
        assert f"wrote models/tiny/{path.name} (" in result.stderr
        assert f"sha256 {sha256_file(path)[:12]})" in result.stderr
    assert "6 of 6 answers the same" in result.stderr
    assert "next: alexdeploy predict images/ --tencrop --model models/tiny\n" in result.stderr


def test_a_graph_that_is_up_to_date_is_kept_and_overwrite_gives_the_same_bytes(
    run: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny_model.onnx_path().read_bytes()
    with monkeypatch.context() as patch:
        # Nothing is exported, so nothing of PyTorch is needed.
        patch.setitem(sys.modules, "alexdeploy.export.onnx_export", None)
        result = run("tiny", "--json")
    assert result.exit_code == 0
    (item,) = json.loads(result.stdout)
    assert (item["written"], item["parity"], item["sha256"]) == (False, None, sha256_file(tiny_model.onnx_path()))
    assert {check["problem"] for check in item["backends"]} == {None}
    inode = tiny_model.onnx_path().stat().st_ino
    (item,) = json.loads(run("tiny", "--json", "--overwrite").stdout)
    assert item["written"]
    assert tiny_model.onnx_path().stat().st_ino != inode
    assert tiny_model.onnx_path().read_bytes() == before


def test_graphs_made_from_the_model_onnx_that_was_replaced_are_named_with_what_renews_them(
    run: Run, tiny_model: ModelFolder
) -> None:
    assert run("tiny", "--overwrite", "--json").stderr.count("warning:") == 0
    # FP16 and INT8 of the graph that another PyTorch wrote.
    _other_exporter(tiny_model)
    earlier = sha256_file(tiny_model.onnx_path())
    for precision in ("fp16", "int8"):
        model = onnx.load(tiny_model.onnx_path("fp16"))
        for each in model.metadata_props:
            each.value = {PRECISION_KEY: precision, SOURCE_KEY: earlier}.get(each.key, each.value)
        if precision == "int8":
            model.metadata_props.add(key=INT8_WEIGHTS_KEY, value="7")
        replace_graph(tiny_model, precision, model)
    result = run("tiny", "--json")
    assert result.exit_code == 0
    (item,) = json.loads(result.stdout)
    now = sha256_file(tiny_model.onnx_path())
    assert item["warnings"] == [
        f"models/tiny/model.{precision}.onnx was made from model.onnx {earlier[:12]}, which is now {now[:12]}\n"
        f"Renew it: alexdeploy export models/tiny {options}"
        for precision, options in (("fp16", "--fp16"), ("int8", "--int8 --int8-weights 7"))
    ]
    assert all(f"warning: {warning}\n" in result.stderr for warning in item["warnings"])
    with pytest.raises(StaleArtifactError) as raised:
        check_whole(ModelFolder(Path("models/tiny")))
    told = [warning.split("\n") for warning in item["warnings"]]
    assert [raised.value.message, raised.value.hint] == ["\n".join(lines) for lines in zip(*told, strict=True)]


@pytest.mark.parametrize("build", ["", "+cpu", "+cu128"])
def test_the_build_of_pytorch_that_wrote_a_graph_does_not_matter(run: Run, tiny_model: ModelFolder, build: str) -> None:
    model = onnx.load(tiny_model.onnx_path())
    model.producer_version = model.producer_version.partition("+")[0] + build
    replace_graph(tiny_model, "fp32", model)
    assert [item["written"] for item in json.loads(run("tiny", "--json").stdout)] == [False]


def _other_weights(folder: ModelFolder) -> None:
    change_weights(folder, fc8__bias=lambda bias: bias + 1)


def _other_exporter(folder: ModelFolder) -> None:
    model = onnx.load(folder.onnx_path())
    model.producer_version = "2.0.0"
    replace_graph(folder, "fp32", model)


def _damaged(folder: ModelFolder) -> None:
    content = bytearray(folder.onnx_path().read_bytes())
    content[len(content) // 2] ^= 1
    folder.onnx_path().write_bytes(content)


def _without_hash(folder: ModelFolder) -> None:
    folder.sum_path().unlink()


@pytest.mark.parametrize("change", [_other_weights, _other_exporter, _damaged, _without_hash])
def test_a_graph_that_is_not_up_to_date_is_exported_again(
    tiny_model: ModelFolder, change: Callable[[ModelFolder], None]
) -> None:
    change(tiny_model)
    assert kept_fp32(tiny_model, read_network(tiny_model)) is None


def test_where_pytorch_is_not_installed_the_graph_of_another_version_is_what_is_converted(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _other_exporter(tiny_model)
    monkeypatch.setattr("alexdeploy.export.checked.package_version", lambda name: None)
    kept = kept_fp32(tiny_model, read_network(tiny_model))
    assert kept is not None
    assert kept.content is None
    _damaged(tiny_model)
    assert kept_fp32(tiny_model, read_network(tiny_model)) is None


def test_other_provenance_is_no_reason_to_export_again_which_would_leave_fp16_behind(
    run: Run, tiny_model: ModelFolder
) -> None:
    assert run("tiny", "--fp16").exit_code == 0
    tiny_model.write_spec(tiny_model.spec().replace_provenance(num_epochs=99))
    assert run("tiny").exit_code == 0
    assert load_metadata(tiny_model, "fp16", tiny_model.spec()).sha256


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ("conv9", "Layers: conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8"),
        ("conv1,CONV2", "Layers: conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8"),
        ("conv1,conv2,conv3,conv4,conv5,fc6,fc7,fc8", "--keep"),
    ],
)
@pytest.mark.parametrize("is_imported", [False, True])
def test_wrong_layers_to_keep_are_a_usage_error_before_any_work(
    run: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch, layers: str, told: str, is_imported: bool
) -> None:
    monkeypatch.setattr(export, "check_images", None)
    if is_imported:
        tiny_model.weights_path.unlink()
    result = run("tiny", "--int8", "--keep", layers, "--calibrate", "nowhere")
    assert result.exit_code == 2
    assert told in result.stderr


def test_views_without_a_deployment_graph_are_a_usage_error(run: Run) -> None:
    for words in (("--tencrop",), ("--views", "10")):
        result = run("tiny", *words)
        assert result.exit_code == 2
        assert f"{words[0]} is for --deployment" in result.stderr


def test_a_deployment_graph_is_named_with_its_check(run: Run, tiny_model: ModelFolder) -> None:
    result = run("tiny", "--deployment", "--tencrop")
    assert result.exit_code == 0
    assert "wrote models/tiny/deployment.tencrop.onnx (" in result.stderr
    assert "same answers with 10 views, logits off by" in result.stderr


def test_fp16_is_written_only_when_it_is_asked_for(run: Run, tiny_model: ModelFolder) -> None:
    tiny_model.onnx_path("fp16").unlink()
    assert run("models/tiny").exit_code == 0
    assert not tiny_model.onnx_path("fp16").exists()


def test_json_says_what_was_written_and_how_it_was_checked(run: Run, tiny_model: ModelFolder) -> None:
    result = run("tiny", "--json", "--overwrite")
    assert result.exit_code == 0
    (item,) = json.loads(result.stdout)
    assert item["sha256"] == sha256_file(tiny_model.onnx_path())
    assert Path(item["path"]).samefile(tiny_model.onnx_path())
    assert item["parity"]["same_answers"] == item["parity"]["num_images"] == 6


def test_an_unknown_model_is_a_usage_error_that_names_those_there_are(run: Run) -> None:
    result = run("other")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no model at other or models/other\nModels here: tiny\n"


def test_no_model_at_all_is_a_usage_error_that_says_how_to_get_one(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    result = run()
    assert result.exit_code == 2
    assert "Train one: alexdeploy train\nor import one: alexdeploy import FILE.onnx\n" in result.stderr


def test_damaged_weights_leave_the_old_graph(run: Run, tiny_model: ModelFolder) -> None:
    before = tiny_model.onnx_path().read_bytes()
    tiny_model.weights_path.write_bytes(tiny_model.weights_path.read_bytes()[:-1000])
    result = run("tiny")
    assert result.exit_code == 4
    assert "weights.safetensors" in result.stderr
    assert tiny_model.onnx_path().read_bytes() == before


def test_photographs_that_cannot_be_read_are_an_input_error(run: Run) -> None:
    Path("bad.jpg").write_bytes(b"no picture")
    result = run("tiny", "--images", "bad.jpg")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "bad.jpg" in result.stderr


def test_a_missing_pytorch_is_a_usage_error_with_the_command_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alexdeploy.export.onnx_export", None)
    result = run("tiny", "--overwrite")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: exporting weights needs the package torch, which is not installed\n"
        "Install it: pip install 'alexdeploy[train]'\n"
    )


# What `python -m alexdeploy build` is in these tests: it keeps its words, and ends with the code that is told for its
# device, negative for a signal, or else well.
STAND_IN = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open("builds.txt", "a") as file:
    file.write(" ".join(words[:6]) + "\\n")
codes = json.loads(Path("codes.json").read_text())
code = codes.get(words[5], 0)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def builds(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """`export` on a machine with an H100 and an A100, where each build ends with the code of its device."""
    package = Path("alexdeploy")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.setattr(build, "survey_gpus", lambda: machine((9, 0), (8, 0), (9, 0)))
    monkeypatch.setattr(build, "is_installed", lambda backend: True)
    monkeypatch.setattr(build, "_has_pycuda", lambda: True)
    return lambda: Path("builds.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("codes", "exit_code", "told"),
    [
        ({}, 0, ""),
        ({"cuda:0": 5}, 5, ""),
        ({"cuda:1": 4}, 4, ""),
        ({"cuda:0": 4, "cuda:1": 5}, 4, ""),
        (
            {"cuda:0": -9},
            5,
            "error: alexdeploy build --fp16 --views 10 --devices cuda:0 -- models/tiny was ended by SIGKILL\n",
        ),
        ({"cuda:0": -11, "cuda:1": 4}, 5, "was ended by SIGSEGV\nSee: alexdeploy doctor."),
    ],
)
def test_a_gpu_that_nothing_can_be_built_on_does_not_stop_the_others(
    builds: Callable[[], list[str]],
    codes: dict[str, int],
    exit_code: int,
    told: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("codes.json").write_text(json.dumps(codes))
    with watch() as show:
        built = build.build_engines(ModelFolder(Path("models/tiny")), ["fp16"], show)
    assert builds() == [
        f"build --fp16 --views {num_views} --devices cuda:{index}" for index in (0, 1) for num_views in (1, 10)
    ]
    assert built.exit_code == exit_code
    assert built.fit == ({("fp16", 1), ("fp16", 10)} if len(codes) < 2 else set())
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(
    ("codes", "precision", "exit_code"),
    [({"cuda:0": 5}, " --precision fp16", 5), ({"cuda:0": 4, "cuda:1": 5}, "", 4)],
)
def test_where_an_fp16_engine_was_built_the_next_command_asks_for_it_and_a_failure_is_the_exit_code(
    run: Run, builds: Callable[[], list[str]], codes: dict[str, int], precision: str, exit_code: int
) -> None:
    Path("codes.json").write_text(json.dumps(codes))
    Path("images").mkdir()
    result = run("tiny", "--fp16")
    assert len(builds()) == 4
    assert result.stderr.endswith(f"next: alexdeploy predict images/ --tencrop --model models/tiny{precision}\n")
    assert result.exit_code == exit_code
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("builds")
def test_tensorrt_without_pycuda_is_a_note_and_the_graphs_are_written(
    run: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_has_pycuda", lambda: False)
    tiny_model.onnx_path("fp16").unlink()
    result = run("tiny", "--fp16")
    assert result.exit_code == 0
    assert (
        "no TensorRT engine: TensorRT needs pycuda here, and it is not installed: pip install pycuda" in result.stderr
    )
    assert "error" not in result.stderr
    assert tiny_model.onnx_path("fp16").is_file()
    assert not Path("builds.txt").exists()


def test_only_precisions_that_are_exported_are_offered(run: Run) -> None:
    assert "bf16" not in run("--help").stdout
    result = run("tiny", "--precision", "bf16")
    assert result.exit_code == 2
    assert "expected any of fp32, fp16, int8" in result.stderr


def test_a_gpu_without_tensorrt_is_no_fault_of_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_installed", lambda backend: False)
    assert build.why_no_engines(machine((9, 0))) == (
        "TensorRT is not installed; the ONNX files run on every other backend"
    )
