"""Classifier in Ray Data: its rows are those of predict."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from colour import PICTURES
from helpers import write_pictures

pytest.importorskip("ray", reason="needs the extra ray: pip install 'alexdeploy[ray]'")

import pyarrow as pa
import pyarrow.parquet as pq

from alexdeploy.cluster.classifier import Classifier
from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.writers import Shape, write_rows
from alexdeploy.placement.options import PredictOptions

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
# Ray Data warns of its own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray\\..*")
OPTIONS = PredictOptions(num_threads=1, devices="cpu")


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """Eleven images in whole and partly filled batches of eight; the fourth is cut off, the last is not there."""
    folder = tmp_path / "photographs"
    write_pictures(folder, 9)
    (folder / "003-cut.jpg").write_bytes(PICTURES["green"][:300])
    paths = sorted(str(path) for path in folder.iterdir())
    return [*paths, str(folder / "not-there.png")]


def predicted(model: ModelFolder, paths: list[str], file: Path, options: PredictOptions = OPTIONS) -> pa.Table:
    """The Parquet file that predict writes, read back."""
    with Predictor(model, options) as predictor, file.open("wb") as sink:
        shape = Shape(classes=predictor.info.classes, top_k=predictor.top_k, num_views=predictor.info.num_views)
        write_rows(predictor.predict(paths), sink, "parquet", shape)
    return pq.read_table(file)


def test_rows_of_a_data_set_are_those_of_predict(
    cluster: Any, tiny_model: ModelFolder, photographs: list[str], tmp_path: Path
) -> None:
    expected = predicted(tiny_model, photographs, tmp_path / "rows.parquet")
    names = cluster.data.from_items([{"path": path, "index": n} for n, path in enumerate(photographs)])
    rows = names.map_batches(
        Classifier,
        fn_constructor_args=(tiny_model.path, PredictOptions()),
        batch_format="pyarrow",
        batch_size=4,
        num_cpus=1,
        compute=cluster.data.ActorPoolStrategy(size=2),
    )
    found = pa.concat_tables(cluster.get(rows.to_arrow_refs()))
    assert found.num_rows == len(photographs) == 11
    assert sum(error is not None for error in found["error"].to_pylist()) == 2
    assert found.sort_by("index").select(expected.column_names).to_pylist() == expected.to_pylist()
    assert found.schema.field("top") == expected.schema.field("top")


def test_recipes_of_the_page(cluster: Any, tiny_model: ModelFolder, photographs: list[str], monkeypatch: Any) -> None:
    root = tiny_model.path.parents[1]
    shutil.move(tiny_model.path, root / "models" / "flowers")
    monkeypatch.chdir(root)
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M):
        exec(compile(block, str(PAGE), "exec"), {})
    files = [path for path in photographs if Path(path).exists()]
    options = PredictOptions(num_views=10, num_threads=1, devices="cpu")
    expected = predicted(ModelFolder(root / "models" / "flowers"), files, root / "rows.parquet", options)
    found = pq.read_table(root / "rows")
    assert found.sort_by("source").to_pylist() == expected.drop_columns(["index"]).to_pylist()
    answers = pq.read_table(root / "answers" / "part-000000.parquet")
    assert [Path(source).name for source in answers["source"].to_pylist()] == [Path(file).name for file in files]


@pytest.fixture
def classifier(tiny_model: ModelFolder) -> Any:
    opened = Classifier(tiny_model, OPTIONS)
    yield opened
    opened.close()


def test_bytes_have_the_answers_of_their_files(
    classifier: Classifier, tiny_model: ModelFolder, photographs: list[str], tmp_path: Path
) -> None:
    files = photographs[:-1]
    expected = predicted(tiny_model, files, tmp_path / "rows.parquet").drop_columns(["index"])
    data = pa.array([Path(path).read_bytes() for path in files])
    assert classifier(pa.table({"bytes": data, "path": files})).to_pylist() == expected.to_pylist()
    nameless = classifier(pa.table({"bytes": data}))
    assert nameless["source"].to_pylist() == [None] * len(files)
    assert nameless.drop_columns(["source"]).to_pylist() == expected.drop_columns(["source"]).to_pylist()


def test_columns_of_ones_own_stay_in_front(classifier: Classifier, photographs: list[str]) -> None:
    batch = pa.table({"camera": ["a", None], "path": photographs[:2], "taken": [1, 2]})
    found = classifier(batch)
    assert found.column_names[:3] == ["camera", "taken", "source"]
    assert found.select(["camera", "taken"]) == batch.select(["camera", "taken"])
    assert classifier(batch.slice(0, 0)).schema == found.schema


def test_missing_values_are_rows_with_errors(classifier: Classifier) -> None:
    nulls = pa.nulls(2, pa.string())
    assert classifier(pa.table({"path": nulls}))["error"].to_pylist() == ["the column path has no value"] * 2
    rows = classifier(pa.table({"path": nulls, "bytes": pa.array([None, b""])}))
    assert rows["error"].to_pylist() == ["the column bytes has no value", "the file is empty"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"path": ["a.jpg"]}, "of type dict; expected a pyarrow.Table"),
        (pa.table({"file": ["a.jpg"]}), "the columns file; expected path, bytes or both"),
        (pa.table({"path": ["a.jpg"], "label": ["cat"], "error": [1]}), "rows have as well: error, label"),
    ],
    ids=["dict", "no images", "columns of rows"],
)
def test_other_batches_are_usage_errors(classifier: Classifier, batch: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        classifier(batch)
