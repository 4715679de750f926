"""The figures of the peers as tables in Markdown: speed, engines, and the answers that differ from FP32's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from alexdeploy.core.metrics import paired_difference, wilson_interval
from benchmarks.process import median_ratio
from benchmarks.tables import loads, rate
from benchmarks.targets import (
    NNCF_SIDES,
    PEER_NAMES,
    PRECISION_NAMES,
    best_peer,
    fewest_changed,
    peer_parts,
    round_bounds,
    views_name,
    views_of,
)

_DRIFT = 0.15
"""A peer that is this much faster or slower in the rounds than it was as it was tuned is named."""

_SOFTWARE_NAMES = {"alexdeploy": "alexdeploy", "openvino": "OpenVINO", "pytorch": "PyTorch eager"}


def best_peer_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Each precision beside the fastest peer of that precision, in speed and in changed answers."""
    # Of each number of views the newest.
    measured = {views_of(results[part]): results[part] for part in peer_parts(results)}
    rows = [(peers, *found) for _, peers in sorted(measured.items()) for found in _pairs(peers)]
    if not rows:
        return
    model = _last_model(results.get("answers"))
    yield (
        "Each precision against the fastest peer of that precision, JPEG files to rows, images/s; ratios are medians "
        "of those within a round."
    )
    if model is not None:
        yield (
            f"Beside it, how many of {results['answers']['num_files']:,} held-back photographs get another class than "
            f"in FP32 of the same software ({model[0]}, a trained network), with 95 % intervals."
        )
    header = ["", "ours", "the peer", "its", "ratio", *(["our changed answers", "its"] if model else [])]
    yield from ("", f"| {' | '.join(header)} |", "|---" * len(header) + "|")
    for peers, precision, peer in rows:
        ours, its = peers["rates"][f"alexdeploy {precision}"], peers["rates"][peer]
        views = views_of(peers)
        cells = [f"{PRECISION_NAMES[precision]}, {views_name(views)}", rate(ours), PEER_NAMES[peer], rate(its)]
        cells.append(f"{median_ratio(ours, its):.2f}")
        if model is not None:
            sides = model[1]["views"][views]
            cells += [_changed(sides, side, results) for side in (f"alexdeploy {precision}", peer)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _pairs(peers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Precisions and their best peers."""
    for precision in PRECISION_NAMES:
        peer = best_peer(peers["rates"], precision)
        if peer is not None:
            yield precision, peer


def _last_model(answers: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]] | None:
    return None if answers is None else list(answers["models"].items())[-1]


def _changed(sides: Mapping[str, Any], side: str, results: Mapping[str, Any]) -> str:
    found = sides.get({"openvino int8": NNCF_SIDES[0]}.get(side, side))
    # FP32 itself has no cell, and a peer may not have been measured.
    return (
        "" if found is None or side.endswith("fp32") else _share(len(found["changed"]), results["answers"]["num_files"])
    )


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count, total)
    return f"{count:,} of {total:,} ({100 * low:.1f} to {100 * high:.1f} %)"


def answer_tables(answers: Mapping[str, Any] | None) -> Iterator[str]:
    if answers is None:
        return
    total = answers["num_files"]
    yield (
        f"Answers on {total:,} photographs that were in neither training nor calibration. Own FP32: that of the same "
        "software, on the same pixels; decoders differ in the last bits of pixels, and so near a tie in answers. NNCF "
        "and ours are calibrated on the same images. In parentheses 95 % intervals."
    )
    yield ""
    for name, model in answers["models"].items():
        titles = ["other than own FP32's", "other than our FP32's", "top-1 error"]
        columns = [f"{title}, {views_name(views)}" for views in model["views"] for title in titles]
        yield f"| {name}, {model['num_classes']} classes | {' | '.join(columns)} |"
        yield "|---" * (1 + len(columns)) + "|"
        for side in next(iter(model["views"].values())):
            cells = [_side_name(side)]
            for sides in model["views"].values():
                found = sides[side]
                cells.append("" if side.endswith("fp32") else _share(len(found["changed"]), total))
                cells.append("" if side == "alexdeploy fp32" else f"{found['num_other_than_ours']:,}")
                wrong = found["num_wrong"]
                cells.append("" if wrong is None else f"{100 * wrong / total:.1f} %")
            yield f"| {' | '.join(cells)} |"
        yield ""
        for views, sides in model["views"].items():
            nncf = fewest_changed(sides)
            if nncf is not None:
                yield _paired(views_name(views), sides["alexdeploy int8"]["changed"], sides[nncf]["changed"], total)
                yield ""


def _paired(views: str, ours: list[int], theirs: list[int], total: int) -> str:
    both = len(set(ours) & set(theirs))
    first, second = len(theirs) - both, len(ours) - both
    difference, (low, high) = paired_difference(both, first, second, total - both - first - second)
    return (
        f"{views.capitalize()}, share of the answers that our INT8 changes less that of NNCF's: "
        f"{100 * difference:+.2f} percentage points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}; "
        f"changed by both: {both}."
    )


def _side_name(side: str) -> str:
    """Of "software precision" and, for NNCF, its preset."""
    software, _, rest = side.partition(" ")
    precision, _, preset = rest.partition(", ")
    name = f"{_SOFTWARE_NAMES[software]}, {PRECISION_NAMES[precision]}"
    return f"{name} of NNCF, {preset} preset" if preset else name


def peer_tables(peers: Mapping[str, Any] | None) -> Iterator[str]:
    if peers is None:
        return
    rates, views = peers["rates"], views_of(peers)
    yield (
        f"{views_name(views).capitalize()}, JPEG files to rows: {peers['num_files']} photographs, medians of "
        f"{peers['num_rounds']} rounds in which all ran in turn{loads(peers)}. Ratios are medians of those within a "
        "round. MB: the most that a process and its workers held, where what workers share counts for each."
    )
    yield ""
    precisions = [key for key in PRECISION_NAMES if f"alexdeploy {key}" in rates]
    names = [PRECISION_NAMES[key] for key in precisions]
    ratios = " | ".join(f"our {name}, times it" for name in names)
    yield f"| | images/s | least to most | MB | answers of our FP32 | {ratios} |"
    yield "|---|---|---|---|---|" + "---|" * len(names)
    for key, name in zip(precisions, names, strict=True):
        yield _rate_row(f"alexdeploy, {name}", f"alexdeploy {key}", peers, precisions)
    for key, name in PEER_NAMES.items():
        if key in rates:
            yield _rate_row(f"{name} ({peers['chosen'][key]})", key, peers, precisions)
    yield ""
    if peers.get("nncf") is not None:
        yield f"INT8 by NNCF {peers['nncf']}, {NNCF_SIDES[0].split()[-1]} preset, else as it is by default."
        yield ""
    for key, ratio in peers["rounds_over_tuning"].items():
        if abs(ratio - 1) > _DRIFT:
            name = PEER_NAMES.get(key) or f"benchmark_app, {PRECISION_NAMES[key.split()[1]]}"
            yield f"{name}: in the rounds {ratio:.2f} times as fast as when it was tuned."
            yield ""
    raw = "benchmark_app" if peers["device"] == "cpu" else "raw enqueue"
    if raw == "benchmark_app":
        yield "benchmark_app runs four times as long as ours, since it also counts the end in which streams are idle."
        yield ""
    titles = (f"engine alone, {views_name(views)}, images/s", "ours", raw, "share", "bound with decoding")
    yield f"| {' | '.join(titles)} | files to rows, share of it |"
    yield "|---|---|---|---|---|---|"
    for key, name in zip(precisions, names, strict=True):
        engine, other = rates[f"engine {key}"], rates.get(f"raw {key}")
        bounds = round_bounds(rates, key, shares_cores=peers["device"] == "cpu")
        cells = [
            name,
            rate(engine),
            "" if other is None else f"{rate(other)} ({peers['chosen'].get(f'raw {key}', 'copies included')})",
            "" if other is None else f"{median_ratio(engine, other):.2f}",
            rate(bounds),
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
    cells = [title, rate(rates[key]), spread, "" if peak is None else f"{peak / 1e6:,.0f}", same, *ratios]
    return f"| {' | '.join(cells)} |"
