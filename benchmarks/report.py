"""What the figures say: bars that are met or missed, and tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexdeploy.inference.bench_timing import bound
from benchmarks.process import median_ratio
from benchmarks.results import outdated
from benchmarks.startup import LEAN_SCRIPT, SCRIPT

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
"""What is between them in docs/performance.md is written by `python -m benchmarks --docs`."""

_PRECISION_NAMES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_PEER_NAMES = {
    "onnxruntime": "ONNX Runtime in FP32, crops stacked in NumPy",
    "onnxruntime int8": "ONNX Runtime, our INT8 graph as it is",
    "pytorch": "PyTorch eager in FP32, stacked crops",
    "pytorch bf16": "PyTorch eager, bfloat16, stacked crops",
    "dataloader": "PyTorch with a DataLoader, as timm",
}
_SPREAD = 0.10
"""Flat is what differs by no more than this."""

_DRIFT = 0.15
"""A peer that is this much faster or slower in the rounds than it was as it was tuned is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """Something that was set out to be reached. `found` and `wanted` are in the same unit; `at_most` turns it round."""

    name: str
    found: float
    wanted: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """Every bar for which there are figures."""
    return [bar for found in _bars_of_parts(results).values() for bar in found]


def _bars_of_parts(results: Mapping[str, Any]) -> dict[str, list[Bar]]:
    makers = {
        "peers": _peer_bars,
        "inputs": _input_bars,
        "sizes": _size_bars,
        "decisions": _decision_bars,
        "startup": _startup_bars,
    }
    return {part: list(bars_of(results.get(part))) for part, bars_of in makers.items()}


def _peer_bars(peers: Mapping[str, Any] | None) -> Iterator[Bar]:
    if peers is None:
        return
    rates = peers["rates"]
    wanted = (("fp32", "onnxruntime", 1.8), ("bf16", "onnxruntime", 3.0), ("int8", "onnxruntime", 4.5))
    for precision, peer, least in (*wanted, ("int8", "pytorch", 8.0)):
        ours = f"alexdeploy {precision}"
        if ours in rates and peer in rates:
            name = f"{_PRECISION_NAMES[precision]}, files to rows, times {_PEER_NAMES[peer]}"
            yield Bar(name=name, found=median_ratio(rates[ours], rates[peer]), wanted=least)
    for precision, name in _PRECISION_NAMES.items():
        if f"alexdeploy {precision}" in rates:
            bounds = round_bounds(rates, precision, shares_cores=peers["device"] == "cpu")
            found = median_ratio(rates[f"alexdeploy {precision}"], bounds)
            yield Bar(name=f"{name}, files to rows, share of the bound", found=found, wanted=0.9)
    raw = "benchmark_app" if peers["device"] == "cpu" else "a raw enqueue"
    for precision, name in _PRECISION_NAMES.items():
        if f"raw {precision}" in rates:
            found = median_ratio(rates[f"engine {precision}"], rates[f"raw {precision}"])
            yield Bar(name=f"{name}, engine alone, share of {raw}", found=found, wanted=0.97)


def round_bounds(rates: Mapping[str, list[float]], precision: str, *, shares_cores: bool) -> list[float]:
    """The most images/s that decoding and the engine allowed in each round, from what each reached alone in it."""
    pairs = zip(rates["decode"], rates[f"engine {precision}"], strict=True)
    return [bound(decode, engine, share_cores=shares_cores) for decode, engine in pairs]


def _input_bars(inputs: Mapping[str, Any] | None) -> Iterator[Bar]:
    if inputs is None:
        return
    costs = [statistics.median(found) for found in inputs["seconds_per_image"].values()]
    name = "cost of an image, dearest over cheapest number of inputs"
    yield Bar(name=name, found=max(costs) / min(costs), wanted=1 + _SPREAD, at_most=True)
    peaks = [statistics.median(found) for found in inputs["peak_bytes"].values() if None not in found]
    if peaks:
        name = "memory, most over fewest inputs"
        yield Bar(name=name, found=peaks[-1] / peaks[0], wanted=1 + _SPREAD, at_most=True)


def _size_bars(sizes: Mapping[str, Any] | None) -> Iterator[Bar]:
    if sizes is None:
        return
    rates = sizes["rates"]
    found = median_ratio(rates["decode, 24 megapixels"], rates["full decode, 24 megapixels"])
    yield Bar(name="enlarged to 24 megapixels, decoding, times decoding in full", found=found, wanted=4.0)


def _decision_bars(decisions: Mapping[str, Any] | None) -> Iterator[Bar]:
    if decisions is None:
        return
    share = decisions["num_same"] / decisions["num_images"]
    name = "enlarged to 24 megapixels, decisions equal to those of decoding in full"
    yield Bar(name=name, found=share, wanted=0.99)


def _startup_bars(startup: Mapping[str, Any] | None) -> Iterator[Bar]:
    if startup is None or "alexdeploy fp32" not in startup["seconds"]:
        return
    found = median_ratio(startup["seconds"]["alexdeploy fp32"], startup["seconds"][SCRIPT])
    name = "FP32, one photograph from a cold process, times a bare OpenVINO script"
    yield Bar(name=name, found=found, wanted=1.3, at_most=True)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, without the markers."""
    lines = [
        *_origins(results),
        *_bar_table(results),
        *_peer_tables(results.get("peers")),
        *_input_table(results.get("inputs")),
        *_batch_table(results.get("batches")),
        *_size_table(results.get("sizes"), results.get("decisions")),
        *_startup_table(results.get("startup")),
        *_loader_table(results.get("loader")),
        *_step_table(results.get("training")),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _origins(results: Mapping[str, Any]) -> Iterator[str]:
    """Which parts were measured with what, when and how; those with the same machine and versions together."""
    origins: dict[str, dict[str, str]] = {}
    for name, part in results.items():
        machine = part["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        devices = ", ".join([*machine["gpus"], machine["processor"]])
        when = f"{part['date'][:10]}, commit {part['commit']}"
        origin = f"{when}; {devices}, {machine['num_processors']} processors; {versions}"
        origins.setdefault(origin, {})[name] = part["command"]
    for origin, commands in origins.items():
        yield f"{', '.join(commands)}: {origin}."
        yield from ("", *(f"    {command}" for command in dict.fromkeys(commands.values())), "")
    old = outdated(results)
    if old:
        parts = ", ".join(f"{name} ({commit})" for name, commit in old.items())
        yield from (f"Not of the newest commit, and so perhaps no longer what the code does: {parts}.", "")


def _bar_table(results: Mapping[str, Any]) -> Iterator[str]:
    found, old = _bars_of_parts(results), outdated(results)
    if not any(found.values()):
        return
    yield from ("| bar | wanted | found | |", "|---|---|---|---|")
    for part, bar in ((part, bar) for part, of_part in found.items() for bar in of_part):
        sign = "≤" if bar.at_most else "≥"
        digits = 3 if bar.wanted == 0.99 else 2
        met = "met" if bar.is_met else "missed"
        age = f", at {old[part]}" if part in old else ""
        yield f"| {bar.name} | {sign} {bar.wanted:g} | {bar.found:.{digits}f} | {met}{age} |"
    yield ""


def _peer_tables(peers: Mapping[str, Any] | None) -> Iterator[str]:
    if peers is None:
        return
    rates = peers["rates"]
    yield (
        f"Ten views, JPEG files to rows: {peers['num_files']} photographs, medians of {peers['num_rounds']} rounds in "
        f"which all ran in turn{_loads(peers)}. Ratios are medians of those within a round. "
        "MB: the most that a process and its workers held, where what workers share counts for each."
    )
    yield ""
    precisions = [key for key in _PRECISION_NAMES if f"alexdeploy {key}" in rates]
    names = [_PRECISION_NAMES[key] for key in precisions]
    ratios = " | ".join(f"our {name}, times it" for name in names)
    yield f"| | images/s | least to most | MB | answers of our FP32 | {ratios} |"
    yield "|---|---|---|---|---|" + "---|" * len(names)
    for key, name in zip(precisions, names, strict=True):
        yield _rate_row(f"alexdeploy, {name}", f"alexdeploy {key}", peers, precisions)
    for key, name in _PEER_NAMES.items():
        if key in rates:
            yield _rate_row(f"{name} ({peers['chosen'][key]})", key, peers, precisions)
    yield ""
    for key, ratio in peers["rounds_over_tuning"].items():
        if abs(ratio - 1) > _DRIFT:
            name = _PEER_NAMES.get(key) or f"benchmark_app, {_PRECISION_NAMES[key.split()[1]]}"
            yield f"{name}: in the rounds {ratio:.2f} times as fast as when it was tuned."
            yield ""
    raw = "benchmark_app" if peers["device"] == "cpu" else "raw enqueue"
    if raw == "benchmark_app":
        yield "benchmark_app runs four times as long as ours, since it also counts the end in which streams are idle."
        yield ""
    yield f"| engine alone, images/s | ours | {raw} | share | bound with decoding | files to rows, share of it |"
    yield "|---|---|---|---|---|---|"
    for key, name in zip(precisions, names, strict=True):
        engine, other = rates[f"engine {key}"], rates.get(f"raw {key}")
        bounds = round_bounds(rates, key, shares_cores=peers["device"] == "cpu")
        cells = [
            name,
            _rate(engine),
            "" if other is None else f"{_rate(other)} ({peers['chosen'].get(f'raw {key}', 'copies included')})",
            "" if other is None else f"{median_ratio(engine, other):.2f}",
            _rate(bounds),
            f"{median_ratio(rates[f'alexdeploy {key}'], bounds):.2f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    decoding = f"{statistics.median(rates['decode']):,.0f} images/s"
    yield (
        f"Decoding alone, the pipeline of `predict` with an engine that answers at once: {decoding}. It, the engine "
        "alone and the bound of both are measured as by `alexdeploy bench`, so that the share of the bound says what "
        "decoding and engine lose together, and nothing of other decoders."
    )
    yield ""


def _rate_row(title: str, key: str, peers: Mapping[str, Any], precisions: list[str]) -> str:
    rates, peak = peers["rates"], peers["peak_bytes"][key]
    ratios = [f"{median_ratio(rates[f'alexdeploy {each}'], rates[key]):.2f}" for each in precisions]
    spread = f"{min(rates[key]):.1f} to {max(rates[key]):.1f}"
    same = f"{peers['same_answers'][key]} of {peers['num_files']}"
    cells = [title, _rate(rates[key]), spread, "" if peak is None else f"{peak / 1e6:,.0f}", same, *ratios]
    return f"| {' | '.join(cells)} |"


def _input_table(inputs: Mapping[str, Any] | None) -> Iterator[str]:
    if inputs is None:
        return
    precision = _PRECISION_NAMES[inputs["precision"]]
    yield (
        f"Inputs, ten views, {precision}, a process of its own for each run, medians of {inputs['num_rounds']} rounds"
        f"{_loads(inputs)}; numbers are rounded up to full batches on all streams, {inputs['wave']} images:"
    )
    yield from ("", "| inputs | ms an image | least to most | MB |", "|---|---|---|---|")
    for count, costs in inputs["seconds_per_image"].items():
        milliseconds = [1e3 * cost for cost in costs]
        peak = _megabytes(inputs["peak_bytes"][count])
        spread = f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
        yield f"| {int(count):,} | {statistics.median(milliseconds):.1f} | {spread} | {peak} |"
    yield ""


def _batch_table(batches: Mapping[str, Any] | None) -> Iterator[str]:
    if batches is None:
        return
    sizes = list(dict.fromkeys(name.split()[1] for name in batches["rates"]))
    yield (
        f"Images a batch, ten views, files to rows, images/s and MB, medians of {batches['num_rounds']} rounds"
        f"{_loads(batches)}:"
    )
    yield from ("", f"| | {' | '.join(sizes)} |", "|---|" + "---|" * len(sizes))
    for precision in dict.fromkeys(name.split()[0] for name in batches["rates"]):
        rates = [_rate(batches["rates"][f"{precision} {size}"]) for size in sizes]
        peaks = [_megabytes(batches["peak_bytes"][f"{precision} {size}"]) for size in sizes]
        yield f"| {_PRECISION_NAMES[precision]}, images/s | {' | '.join(rates)} |"
        yield f"| {_PRECISION_NAMES[precision]}, MB | {' | '.join(peaks)} |"
    yield ""


def _size_table(sizes: Mapping[str, Any] | None, decisions: Mapping[str, Any] | None) -> Iterator[str]:
    if sizes is not None:
        precision = _PRECISION_NAMES[sizes["precision"]]
        yield (
            f"Sizes of pictures, images/s, medians of {sizes['num_rounds']} rounds{_loads(sizes)}. 24 megapixels: "
            "photographs that were enlarged, with noise, quality 90. In full: all pixels, in a pool of as many threads."
        )
        yield ""
        yield f"| | a file | decoding | decoding in full | ratio | files to rows, {precision} |"
        yield "|---|---|---|---|---|---|"
        rates = sizes["rates"]
        for kind, num_bytes in sizes["mean_file_bytes"].items():
            ours, full = rates[f"decode, {kind}"], rates[f"full decode, {kind}"]
            rows = _rate(rates[f"files to rows, {kind}"])
            ratio = f"{median_ratio(ours, full):.1f}"
            yield f"| {kind} | {num_bytes / 1e3:,.0f} kB | {_rate(ours)} | {_rate(full)} | {ratio} | {rows} |"
        yield ""
    if decisions is not None:
        yield (
            f"Decisions on photographs enlarged to 24 megapixels ({decisions['judge']}, {decisions['num_classes']} "
            f"classes): {decisions['num_same']} of {decisions['num_images']} are those of decoding in full; "
            f"probabilities differ by {decisions['mean_difference']:.3f} on the average, "
            f"{decisions['largest_difference']:.3f} at most."
        )
        yield ""


def _startup_table(startup: Mapping[str, Any] | None) -> Iterator[str]:
    if startup is None:
        return
    seconds = startup["seconds"]
    yield (
        "One photograph, ten views, whole processes from a cold start to the end, everything cached: medians of "
        f"{startup['num_rounds']} rounds in which all ran in turn{_loads(startup)}. The script checks no file; "
        "it imports OpenVINO as everybody does, with its converter, and once more without that, as ours does. "
        "OpenVINO's telemetry, which the end of a program waits for, is switched off for all."
    )
    yield from ("", "| | seconds | least to most | times the script | class of the script |", "|---|---|---|---|---|")
    titles = {SCRIPT: "bare OpenVINO script, FP32", LEAN_SCRIPT: "the script without the converter, FP32"}
    for name, found in seconds.items():
        title = titles.get(name) or f"alexdeploy, {_PRECISION_NAMES[name.split()[1]]}"
        ratio = f"{median_ratio(found, seconds[SCRIPT]):.2f}"
        same = "yes" if startup["same_answers"][name] else "no"
        yield f"| {title} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} | {ratio} | {same} |"
    yield ""


def _loader_table(loader: Mapping[str, Any] | None) -> Iterator[str]:
    if loader is None:
        return
    yield (
        f"Training's loader alone, {loader['num_images']:,} of {loader['num_found']:,} photographs, batches of "
        f"{loader['batch_size']}, {loader['num_threads']} threads, medians of {loader['num_rounds']} rounds"
        f"{_loads(loader)}:"
    )
    yield from ("", "| | images/s | least to most | MB | times the files | made in |", "|---|---|---|---|---|---|")
    for name, rates in loader["rates"].items():
        made = loader["made"].get(name)
        cost = "" if made is None else f"{made['seconds']:.1f} s, {made['bytes'] / 1e6:,.0f} MB"
        yield f"| {name} | {_compared(loader, name, rates, 'files')} | {cost} |"
    yield ""


def _step_table(training: Mapping[str, Any] | None) -> Iterator[str]:
    if training is None:
        return
    yield (
        f"A training step of the full network, forward, backward and update, batches of {training['batch_size']}, "
        f"{training['num_threads']} threads, {training['device']}, medians of {training['num_rounds']} rounds"
        f"{_loads(training)}; the first gradients differ by "
        f"{training['gradient_difference']:.0e} of their norm at most:"
    )
    yield from ("", "| | images/s | least to most | MB | times the plain loop |", "|---|---|---|---|---|")
    for name, rates in training["rates"].items():
        yield f"| {name} | {_compared(training, name, rates, 'plain loop')} |"
    yield ""


def _compared(part: Mapping[str, Any], name: str, rates: list[float], base: str) -> str:
    """Cells: the rate, its spread, the memory, and the ratio to `base`."""
    ratio = f"{median_ratio(rates, part['rates'][base]):.2f}"
    spread = f"{_number(min(rates))} to {_number(max(rates))}"
    return f"{_rate(rates)} | {spread} | {_megabytes([part['peak_bytes'][name]])} | {ratio}"


def _rate(rates: list[float]) -> str:
    return _number(statistics.median(rates))


def _number(rate: float) -> str:
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


def _megabytes(peaks: list[int | None]) -> str:
    known = [peak for peak in peaks if peak is not None]
    return f"{statistics.median(known) / 1e6:,.0f}" if known else ""


def _loads(part: Mapping[str, Any]) -> str:
    """The load averages before the whole run, and after the part."""
    before, after = part["machine"]["load_start"], part["machine"]["load_end"]
    return "" if before is None else f" (load {before:.1f} before anything ran, {after:.1f} with its own work)"


def write_block(page: Path, text: str) -> None:
    """Put `text` between the markers of a page. Raises SystemExit if they are not there."""
    content = check_page(page)
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def check_page(page: Path) -> str:
    """The content of a page that has the markers. Raises SystemExit if it has not."""
    try:
        content = page.read_text(encoding="utf-8")
    except OSError as exc:
        raise SystemExit(f"{page} cannot be read: {exc.strerror}") from exc
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}, once each and in this order")
    return content
