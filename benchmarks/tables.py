"""The figures of each part as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.process import median_ratio
from benchmarks.startup import LEAN_SCRIPT, SCRIPT
from benchmarks.targets import PRECISION_NAMES, RATE_NAMES, serving_name, views_name


def input_table(inputs: Mapping[str, Any] | None) -> Iterator[str]:
    if inputs is None:
        return
    precision = PRECISION_NAMES[inputs["precision"]]
    yield (
        f"Inputs, ten views, {precision}, a process of its own for each run, medians of {inputs['num_rounds']} rounds"
        f"{loads(inputs)}; numbers are rounded up to full batches on all streams, {inputs['wave']} images:"
    )
    yield from ("", "| inputs | ms an image | least to most | MB |", "|---|---|---|---|")
    for count, costs in inputs["seconds_per_image"].items():
        milliseconds = [1e3 * cost for cost in costs]
        peak = _megabytes(inputs["peak_bytes"][count])
        spread = f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
        yield f"| {int(count):,} | {statistics.median(milliseconds):.1f} | {spread} | {peak} |"
    yield ""


def batch_table(batches: Mapping[str, Any] | None) -> Iterator[str]:
    if batches is None:
        return
    sizes = list(dict.fromkeys(name.split()[1] for name in batches["rates"]))
    yield (
        f"Images a batch, ten views, files to rows, images/s and MB, medians of {batches['num_rounds']} rounds"
        f"{loads(batches)}:"
    )
    yield from ("", f"| | {' | '.join(sizes)} |", "|---|" + "---|" * len(sizes))
    for precision in dict.fromkeys(name.split()[0] for name in batches["rates"]):
        rates = [rate(batches["rates"][f"{precision} {size}"]) for size in sizes]
        peaks = [_megabytes(batches["peak_bytes"][f"{precision} {size}"]) for size in sizes]
        yield f"| {PRECISION_NAMES[precision]}, images/s | {' | '.join(rates)} |"
        yield f"| {PRECISION_NAMES[precision]}, MB | {' | '.join(peaks)} |"
    yield ""


def size_table(sizes: Mapping[str, Any] | None, decisions: Mapping[str, Any] | None) -> Iterator[str]:
    if sizes is not None:
        precision = PRECISION_NAMES[sizes["precision"]]
        yield (
            f"Sizes of pictures, images/s, medians of {sizes['num_rounds']} rounds{loads(sizes)}. 24 megapixels: "
            "photographs that were enlarged, with noise, quality 90. In full: all pixels, in a pool of as many threads."
        )
        yield ""
        yield f"| | a file | decoding | decoding in full | ratio | files to rows, {precision} |"
        yield "|---|---|---|---|---|---|"
        rates = sizes["rates"]
        for kind, num_bytes in sizes["mean_file_bytes"].items():
            ours, full = rates[f"decode, {kind}"], rates[f"full decode, {kind}"]
            rows = rate(rates[f"files to rows, {kind}"])
            ratio = f"{median_ratio(ours, full):.1f}"
            yield f"| {kind} | {num_bytes / 1e3:,.0f} kB | {rate(ours)} | {rate(full)} | {ratio} | {rows} |"
        yield ""
    if decisions is not None:
        yield (
            f"Decisions on photographs enlarged to 24 megapixels ({decisions['judge']}, {decisions['num_classes']} "
            f"classes): {decisions['num_same']} of {decisions['num_images']} are those of decoding in full; "
            f"probabilities differ by {decisions['mean_difference']:.3f} on the average, "
            f"{decisions['largest_difference']:.3f} at most."
        )
        yield ""


def storage_table(storage: Mapping[str, Any] | None) -> Iterator[str]:
    if storage is None:
        return
    yield (
        f"One view from {storage['num_files']} photographs in {PRECISION_NAMES[storage['precision']]}, by how they are "
        f"stored, files to rows, medians of {storage['num_rounds']} rounds{loads(storage)}:"
    )
    yield from ("", "| | kB an image | images/s | least to most | times the files |", "|---|---|---|---|---|")
    for name, found in storage["rates"].items():
        size = storage["bytes"][name] / storage["num_files"] / 1e3
        cells = f"{rate(found)} | {_number(min(found))} to {_number(max(found))}"
        yield f"| {name} | {size:,.0f} | {cells} | {median_ratio(found, storage['rates']['files as they are']):.2f} |"
    yield ""


def startup_table(startup: Mapping[str, Any] | None) -> Iterator[str]:
    if startup is None:
        return
    seconds = startup["seconds"]
    yield (
        "One photograph, ten views, whole processes from a cold start to the end, everything cached: medians of "
        f"{startup['num_rounds']} rounds in which all ran in turn{loads(startup)}. The script checks no file; "
        "it imports OpenVINO as everybody does, with its converter, and once more without that, as ours does. "
        "OpenVINO's telemetry, which the end of a program waits for, is switched off for all."
    )
    yield from ("", "| | seconds | least to most | times the script | class of the script |", "|---|---|---|---|---|")
    titles = {SCRIPT: "bare OpenVINO script, FP32", LEAN_SCRIPT: "the script without the converter, FP32"}
    for name, found in seconds.items():
        title = titles.get(name) or f"alexdeploy, {PRECISION_NAMES[name.split()[1]]}"
        ratio = f"{median_ratio(found, seconds[SCRIPT]):.2f}"
        same = "yes" if startup["same_answers"][name] else "no"
        yield f"| {title} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} | {ratio} | {same} |"
    yield ""


def loader_table(loader: Mapping[str, Any] | None) -> Iterator[str]:
    if loader is None:
        return
    yield (
        f"Training's loader alone, {loader['num_images']:,} of {loader['num_found']:,} photographs, batches of "
        f"{loader['batch_size']}, {loader['num_threads']} threads, medians of {loader['num_rounds']} rounds"
        f"{loads(loader)}:"
    )
    yield from ("", "| | images/s | least to most | MB | times the files | made in |", "|---|---|---|---|---|---|")
    for name, rates in loader["rates"].items():
        made = loader["made"].get(name)
        cost = "" if made is None else f"{made['seconds']:.1f} s, {made['bytes'] / 1e6:,.0f} MB"
        yield f"| {name} | {_compared(loader, name, rates, 'files')} | {cost} |"
    yield ""


def step_table(training: Mapping[str, Any] | None) -> Iterator[str]:
    if training is None:
        return
    yield (
        f"A training step of the full network, forward, backward and update, batches of {training['batch_size']}, "
        f"{training['num_threads']} threads, {training['device']}, medians of {training['num_rounds']} rounds"
        f"{loads(training)}; in float64 the first gradients "
        f"differ by {training['float64_gradient_difference']:.0e} of their norm at most:"
    )
    yield from ("", "| | images/s | least to most | MB | times the plain loop |", "|---|---|---|---|---|")
    for name, rates in training["rates"].items():
        yield f"| {name} | {_compared(training, name, rates, 'plain loop')} |"
    yield ""


def serving_tables(serving: Mapping[str, Any] | None, plot: str) -> Iterator[str]:
    if serving is None:
        return
    yield (
        f"`alexdeploy serve {serving['model']}` on {serving['num_files']} photographs, medians of "
        f"{serving['num_rounds']} rounds{loads(serving)}. CPU milliseconds an image, by the system's accounting, with "
        f"{serving['num_clients'][0]} clients, and of the engine and, for files, the decoder alone, on batches of the "
        "sizes that the server had:"
    )
    yield from ("", "| | server | least to most | alone | ratio |", "|---|---|---|---|---|")
    for name, server in serving["server_ms"].items():
        alone = serving["alone_ms"][name]
        cells = f"{statistics.median(server):.2f} | {min(server):.2f} to {max(server):.2f}"
        yield f"| {serving_name(name)} | {cells} | {statistics.median(alone):.2f} | {median_ratio(server, alone):.3f} |"
    yield ""
    few, many = serving["num_clients"]
    yield (
        f"Images/s of {many} clients with files, of `predict` on the same files, and of one Predictor whose `classify` "
        f"{few} threads call, and whose `aclassify` {few} tasks, a file at a time:"
    )
    yield from ("", "| | images/s | least to most | share of predict |", "|---|---|---|---|")
    for name, rates in serving["rates"].items():
        kind, _, views = name.partition(" ")
        share = median_ratio(rates, serving["rates"][f"predict {views}"])
        spread = f"{_number(min(rates))} to {_number(max(rates))}"
        yield f"| {RATE_NAMES[kind]}, {views_name(views)} | {rate(rates)} | {spread} | {share:.2f} |"
    yield ""
    yield (
        "Latency of requests with a file that come at random times, counted from the time at which they were due, at "
        "shares of that throughput:"
    )
    yield from ("", "| | of the throughput | requests/s | p50 ms | p99 ms | refused |", "|---|---|---|---|---|---|")
    for views, latencies in serving["latencies"].items():
        for share, found in latencies.items():
            refused = 1 - found["statuses"].get("200", 0) / sum(found["statuses"].values())
            cells = f"{_number(found['requests_per_second'])} | {found['p50_ms']:.1f} | {found['p99_ms']:.1f}"
            yield f"| {views_name(views)} | {float(share):.0%} | {cells} | {refused:.1%} |"
    yield from ("", f"![Latency against the requests that come]({plot})", "")


def endurance_table(endurance: Mapping[str, Any] | None) -> Iterator[str]:
    if endurance is None:
        return
    overload, long, killed = endurance["overload"], endurance["long"], endurance["killed"]
    restarts = endurance["restart_seconds"]
    yield f"`alexdeploy serve {endurance['model']}` with one view, requests with a file each{loads(endurance)}:"
    yield from ("", "| | answers | latency | MB |", "|---|---|---|---|")
    asked = (
        f"{_number(overload['requests_per_second'])} requests/s for {overload['seconds']:.0f} s, twice the throughput"
    )
    latency = (
        f"p50 {overload['p50_ms']:.0f} ms, p99 {overload['p99_ms']:.0f}; the queue's bound {overload['bound_ms']:.0f}"
    )
    yield f"| {asked} | {_answers(overload)} | {latency} | {_change(overload)} |"
    yield f"| many requests | {_answers(long)} | | {_change(long)} |"
    before, after = killed["num_replicas"]
    name = f"one of {before} replicas killed; {after} at the end"
    yield f"| {name} | {_answers(killed)} | longest {killed['longest_ms']:.0f} ms | |"
    yield ""
    yield (
        f"Ready {statistics.median(restarts):.2f} s after the start, {min(restarts):.2f} to {max(restarts):.2f}, where "
        f"the server before was killed (SIGKILL); the median of {len(restarts)}."
    )
    yield ""


def triton_table(triton: Mapping[str, Any] | None) -> Iterator[str]:
    if triton is None:
        return
    yield (
        f"`alexdeploy serve {triton['model']} --backend onnxruntime`, and nvidia-pytriton {triton['version']} with "
        "the same graph in ONNX Runtime in its Python backend: CPU milliseconds for a request with the pixels of one "
        f"image, medians of {triton['num_rounds']} rounds{loads(triton)}:"
    )
    yield from ("", "| clients | serve | least to most | Triton | least to most | ratio |", "|---|---|---|---|---|---|")
    costs = triton["server_ms"]
    for clients in ("1", "16"):
        pair = costs[f"serve {clients}"], costs[f"triton {clients}"]
        cells = (f"{statistics.median(each):.2f} | {min(each):.2f} to {max(each):.2f}" for each in pair)
        yield f"| {clients} | {' | '.join(cells)} | {median_ratio(*pair):.3f} |"
    yield ""


def _answers(part: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} times {status}" for status, count in part["statuses"].items())


def _change(part: Mapping[str, Any]) -> str:
    """The memory when a tenth was done, and at the end."""
    first, last = part["resident_bytes"]
    return f"{first / 1e6:,.0f} to {last / 1e6:,.0f}"


def _compared(part: Mapping[str, Any], name: str, rates: list[float], base: str) -> str:
    """Cells: the rate, its spread, the memory, and the ratio to `base`."""
    ratio = f"{median_ratio(rates, part['rates'][base]):.2f}"
    spread = f"{_number(min(rates))} to {_number(max(rates))}"
    return f"{rate(rates)} | {spread} | {_megabytes([part['peak_bytes'][name]])} | {ratio}"


def rate(rates: list[float]) -> str:
    return _number(statistics.median(rates))


def _number(rate: float) -> str:
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


def _megabytes(peaks: list[int | None]) -> str:
    known = [peak for peak in peaks if peak is not None]
    return f"{statistics.median(known) / 1e6:,.0f}" if known else ""


def loads(part: Mapping[str, Any]) -> str:
    """The load averages before the whole run, and after the part."""
    before, after = part["machine"]["load_start"], part["machine"]["load_end"]
    return "" if before is None else f" (load {before:.1f} before anything ran, {after:.1f} with its own work)"
