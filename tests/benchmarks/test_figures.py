"""What `python -m benchmarks` makes of its measurements: ratios within rounds, bars, and the block of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.process import median_ratio, take_turns
from benchmarks.report import BEGIN, END, markdown, page, write_block
from benchmarks.results import read_machines
from benchmarks.startup import SCRIPT
from benchmarks.targets import bars, round_bounds

ROOT = Path(__file__).parents[2]


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine halves its speed in the second round: the ratio stays.
    assert median_ratio([20.0, 10.0, 21.0], [10.0, 5.0, 10.0]) == 2.0


def test_every_round_has_every_turn_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.process._PAUSE_SECONDS", 0.0)
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = take_turns({name: lambda name=name: turn(name) for name in "abcde"}, num_rounds=6, seed=1)
    rounds = [tuple(order[start : start + 5]) for start in range(0, 30, 5)]
    assert all(sorted(names) == list("abcde") for names in rounds)
    assert len(set(rounds)) > 1
    assert found["c"] == [1.0 + start + rounds[start // 5].index("c") for start in range(0, 30, 5)]


def test_decoding_and_engine_share_the_cores_of_a_cpu_and_not_those_of_a_gpu() -> None:
    rates = {"decode": [300.0, 100.0], "engine int8": [60.0, 400.0]}
    # 1/300 + 1/60 = 6/300; 1/100 + 1/400 = 5/400.
    assert round_bounds(rates, "int8", shares_cores=True) == pytest.approx([50.0, 80.0])
    assert round_bounds(rates, "int8", shares_cores=False) == [60.0, 100.0]


def _results(inputs: dict[str, list[float]]) -> dict[str, Any]:
    rates = {
        "decode": [300.0] * 3,
        "engine fp32": [30.0] * 3,
        "alexdeploy fp32": [27.0] * 3,
        "onnxruntime": [15.5, 14.0, 13.0],
        "raw fp32": [31.0] * 3,
    }
    peaks = {number: [1_000_000.0] for number in inputs}
    return {"peers": {"rates": rates, "device": "cpu"}, "inputs": {"seconds_per_image": inputs, "peak_bytes": peaks}}


def test_a_bar_is_met_or_missed_by_what_was_found() -> None:
    found = {bar.name: bar for bar in bars(_results({"100": [0.10], "1000": [0.105], "10000": [0.112]}))}
    times = found["FP32, 10 views, files to rows, times ONNX Runtime in FP32, crops stacked in NumPy"]
    assert (times.found, times.is_met) == (pytest.approx(27 / 14), True)
    bound = found["FP32, 10 views, files to rows, share of the bound"]
    assert (bound.found, bound.is_met) == (pytest.approx(0.99), True)
    engine = found["FP32, 10 views, engine alone, share of benchmark_app"]
    assert (engine.found, engine.is_met) == (pytest.approx(30 / 31), False)
    cost = found["cost of an image, dearest over cheapest number of inputs"]
    assert (cost.found, cost.is_met) == (pytest.approx(1.12), False)
    assert found["memory, most over fewest inputs"].is_met


def _startup(*ours: float) -> dict[str, Any]:
    return {
        "num_rounds": len(ours),
        "seconds": {SCRIPT: [0.5, 1.0, 0.5], "alexdeploy fp32": list(ours)},
        "same_answers": {SCRIPT: True, "alexdeploy fp32": False},
    }


def test_a_start_is_compared_with_the_script_in_the_same_round() -> None:
    (bar,) = bars({"startup": _startup(0.6, 1.3, 0.7)})
    assert (bar.found, bar.is_met) == (pytest.approx(1.3), True)
    (bar,) = bars({"startup": _startup(0.8, 1.3, 0.7)})
    assert (bar.found, bar.is_met) == (pytest.approx(1.4), False)


def test_parts_of_other_versions_are_told_apart_with_their_own_load() -> None:
    def of(version: str, load: float | None, commit: str = "abc1234") -> dict[str, Any]:
        facts = {"gpus": [], "processor": "A CPU", "num_processors": 2, "versions": {"openvino": version}}
        machine = facts | {"load_start": load, "load_end": load}
        return {"date": f"2026-01-0{version[0]}T", "commit": commit, "command": f"with {version}", "machine": machine}

    steps = {"num_rounds": 1, "batch_size": 4, "num_threads": 2, "device": "cpu", "float64_gradient_difference": 3e-6}
    steps |= {"rates": {"alexdeploy": [30.0], "plain loop": [20.0]}, "peak_bytes": {"alexdeploy": 1, "plain loop": 2}}
    text = markdown({"startup": _startup(0.6, 1.2, 0.7) | of("1.0", 0.25), "training": steps | of("2.0", None)})
    assert "startup: 2026-01-01, commit abc1234; A CPU, 2 processors; openvino 1.0.\n\n    with 1.0\n" in text
    assert "training: 2026-01-02, commit abc1234; A CPU, 2 processors; openvino 2.0.\n\n    with 2.0\n" in text
    assert "newest commit" not in text
    assert "(load 0.2 before anything ran, 0.2 with its own work). The script" in text
    assert "| alexdeploy, FP32 | 0.70 | 0.60 to 1.20 | 1.20 | no |" in text
    assert "| alexdeploy | 30.0 | 30.0 to 30.0 | 0 | 1.50 |" in text


def test_only_what_is_between_the_markers_of_a_page_is_written(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_block(target, "new\n")
    assert target.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


@pytest.mark.parametrize("content", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_the_markers_is_not_touched(tmp_path: Path, content: str) -> None:
    target = tmp_path / "page.md"
    target.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match="markers"):
        write_block(target, "new\n")
    assert target.read_text(encoding="utf-8") == content


def test_a_page_has_a_column_of_bars_and_a_section_for_each_machine() -> None:
    def of(processor: str, *ours: float) -> dict[str, Any]:
        facts = {"gpus": [], "processor": processor, "num_processors": 2, "versions": {}, "load_start": None}
        part = {"date": "2026-01-01T", "commit": "abc1234", "command": "", "machine": facts | {"load_end": None}}
        return {"startup": _startup(*ours) | part}

    text = page({"a": of("A CPU", 0.6, 1.2, 0.6), "b": of("Another", 0.8, 1.4, 0.7)})
    name = "FP32, one photograph from a cold process, times a bare OpenVINO script"
    assert text.startswith("| bar | wanted | A CPU, 2 processors | Another, 2 processors |\n|---|---|---|---|\n")
    assert f"| {name} | ≤ 1.3 | 1.20, met | 1.40, missed |\n" in text
    first, second = text.split("### Another, 2 processors\n")
    assert "### A CPU, 2 processors\n" in first
    assert "| alexdeploy, FP32 | 0.60 |" in first
    assert "| alexdeploy, FP32 | 0.80 |" in second


def test_the_page_says_what_the_files_of_figures_say() -> None:
    machines = read_machines(ROOT / "benchmarks" / "results")
    assert machines
    content = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert content.split(BEGIN)[1].split(END)[0].strip() == page(machines).strip()
