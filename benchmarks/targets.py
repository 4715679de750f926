"""What was set out to be reached, and what was found."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alexdeploy.benchmark.statistics import bound
from benchmarks.process import median_ratio
from benchmarks.startup import SCRIPT

PRECISION_NAMES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
PEER_NAMES = {
    "openvino fp32": "OpenVINO in FP32, tuned, views cut in NumPy",
    "openvino bf16": "OpenVINO in bfloat16, tuned, views cut in NumPy",
    "openvino int8": "OpenVINO with NNCF's INT8, tuned, views cut in NumPy",
    "onnxruntime": "ONNX Runtime in FP32, crops stacked in NumPy",
    "onnxruntime int8": "ONNX Runtime, our INT8 graph as it is",
    "pytorch": "PyTorch eager in FP32, stacked crops",
    "pytorch bf16": "PyTorch eager, bfloat16, stacked crops",
    "dataloader": "PyTorch with a DataLoader, as timm",
}
_OF_PRECISION = {
    "fp32": ("openvino fp32", "onnxruntime", "pytorch", "dataloader"),
    "bf16": ("openvino bf16", "pytorch bf16"),
    "int8": ("openvino int8", "onnxruntime int8"),
}
_TIMES_BEST = {"1": {"fp32": 1.0, "bf16": 1.0, "int8": 1.0}, "10": {"fp32": 1.15, "bf16": 1.45, "int8": 1.75}}
"""By the number of views, how many times the fastest peer of a precision ours should reach."""

NNCF_SIDES = ("openvino int8, performance", "openvino int8, mixed")
"""Of the answers; the first is what the peer `openvino int8` runs."""

RATE_NAMES = {"serve": "serve", "predict": "predict", "threads": "classify, threads", "tasks": "aclassify, tasks"}
_SPREAD = 0.10
"""Flat is what differs by no more than this."""


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
    return [bar for found in bars_of_parts(results).values() for bar in found]


def bars_of_parts(results: Mapping[str, Any]) -> dict[str, list[Bar]]:
    makers = {
        **dict.fromkeys(peer_parts(results), _peer_bars),
        "answers": _answer_bars,
        "inputs": _input_bars,
        "sizes": _size_bars,
        "decisions": _decision_bars,
        "startup": _startup_bars,
        "serving": _serving_bars,
        "endurance": _endurance_bars,
        "triton": _triton_bars,
    }
    return {part: list(bars_of(results.get(part))) for part, bars_of in makers.items()}


def peer_parts(results: Mapping[str, Any]) -> list[str]:
    """The parts about peers: with all of them, and with those that `--peers` named; the newest last."""
    parts = [part for part in results if part.startswith(("peers", "one-view"))]
    return sorted(parts, key=lambda part: str(results[part].get("date")))


def _peer_bars(peers: Mapping[str, Any] | None) -> Iterator[Bar]:
    if peers is None:
        return
    rates, views = peers["rates"], views_of(peers)
    for precision, least in _TIMES_BEST[views].items():
        best = best_peer(rates, precision)
        if best is not None:
            found = median_ratio(rates[f"alexdeploy {precision}"], rates[best])
            name = f"{PRECISION_NAMES[precision]}, {views_name(views)}, files to rows, times its fastest peer"
            yield Bar(name=name, found=found, wanted=least)
    wanted = (("fp32", "onnxruntime", 1.8), ("bf16", "onnxruntime", 3.0), ("int8", "onnxruntime", 4.5))
    for precision, peer, least in (*wanted, ("int8", "pytorch", 8.0)) if views == "10" else ():
        ours = f"alexdeploy {precision}"
        if ours in rates and peer in rates:
            name = f"{PRECISION_NAMES[precision]}, {views_name(views)}, files to rows, times {PEER_NAMES[peer]}"
            yield Bar(name=name, found=median_ratio(rates[ours], rates[peer]), wanted=least)
    for precision, name in PRECISION_NAMES.items():
        if f"alexdeploy {precision}" in rates:
            bounds = round_bounds(rates, precision, shares_cores=peers["device"] == "cpu")
            found = median_ratio(rates[f"alexdeploy {precision}"], bounds)
            yield Bar(name=f"{name}, {views_name(views)}, files to rows, share of the bound", found=found, wanted=0.9)
    raw = "benchmark_app" if peers["device"] == "cpu" else "a raw enqueue"
    for precision, name in PRECISION_NAMES.items():
        if f"raw {precision}" in rates:
            found = median_ratio(rates[f"engine {precision}"], rates[f"raw {precision}"])
            yield Bar(name=f"{name}, {views_name(views)}, engine alone, share of {raw}", found=found, wanted=0.97)


def best_peer(rates: Mapping[str, list[float]], precision: str) -> str | None:
    """The peer of that precision that is fastest in the rounds; None if ours or OpenVINO was not among them."""
    if f"openvino {precision}" not in rates or f"alexdeploy {precision}" not in rates:
        return None
    measured = [peer for peer in _OF_PRECISION[precision] if peer in rates]
    return max(measured, key=lambda peer: statistics.median(rates[peer]))


def views_of(peers: Mapping[str, Any]) -> str:
    """ "1" or "10"; figures from before there was a choice are of ten views."""
    return str(peers.get("num_views", 10))


def _answer_bars(answers: Mapping[str, Any] | None) -> Iterator[Bar]:
    if answers is None:
        return
    for model, found in answers["models"].items():
        for views, sides in found["views"].items():
            nncf = fewest_changed(sides)
            if nncf is not None:
                ours, wanted = (len(sides[side]["changed"]) for side in ("alexdeploy int8", nncf))
                name = f"INT8 of {model}, {views_name(views)}, changed answers, and NNCF's"
                yield Bar(name=name, found=ours, wanted=wanted, at_most=True)


def fewest_changed(sides: Mapping[str, Any]) -> str | None:
    """NNCF's side with the fewest answers that are not FP32's; None if there is none to compare with."""
    measured = [side for side in NNCF_SIDES if side in sides]
    if not measured or "alexdeploy int8" not in sides:
        return None
    return min(measured, key=lambda side: len(sides[side]["changed"]))


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


def _serving_bars(serving: Mapping[str, Any] | None) -> Iterator[Bar]:
    if serving is None:
        return
    for name, most in (("pixels 1", 1.10), ("JPEG 1", 1.10), ("JPEG 10", 1.03)):
        found = median_ratio(serving["server_ms"][name], serving["alone_ms"][name])
        yield Bar(
            name=f"{serving_name(name)}, CPU over the same without a server", found=found, wanted=most, at_most=True
        )
    for num_views in ("1", "10"):
        for kind, least in (("serve", 0.9), ("threads", 0.95), ("tasks", 0.95)):
            found = median_ratio(serving["rates"][f"{kind} {num_views}"], serving["rates"][f"predict {num_views}"])
            name = f"{RATE_NAMES[kind]}, {views_name(num_views)}, share of the images/s of predict"
            yield Bar(name=name, found=found, wanted=least)


def _endurance_bars(endurance: Mapping[str, Any] | None) -> Iterator[Bar]:
    if endurance is None:
        return
    overload, long, killed = endurance["overload"], endurance["long"], endurance["killed"]
    refused = num_failed(overload["statuses"], but=("200", "503"))
    name = "serve, at twice the throughput"
    yield Bar(name=f"{name}, answers other than 200 and 503", found=refused, wanted=0, at_most=True)
    p99 = overload["p99_ms"] / overload["bound_ms"]
    yield Bar(name=f"{name}, p99 of the answers, times the queue's bound", found=p99, wanted=1, at_most=True)
    for case, grown, most in ((name, overload, 10), ("serve, 100,000 requests", long, 50)):
        first, last = grown["resident_bytes"]
        yield Bar(name=f"{case}, MB more at the end", found=(last - first) / 1e6, wanted=most, at_most=True)
    failed = num_failed(long["statuses"]) + num_failed(killed["statuses"])
    name = "serve, requests that failed in those, and as a replica was killed"
    yield Bar(name=name, found=failed, wanted=0, at_most=True)
    seconds = statistics.median(endurance["restart_seconds"])
    yield Bar(name="serve, seconds from the start to ready after kill -9", found=seconds, wanted=2, at_most=True)


def _triton_bars(triton: Mapping[str, Any] | None) -> Iterator[Bar]:
    if triton is None:
        return
    for clients, most in (("1 client", 1.1), ("16 clients", 1.05)):
        ours, theirs = (triton["server_ms"][f"{name} {clients.split()[0]}"] for name in ("serve", "triton"))
        found = median_ratio(ours, theirs)
        yield Bar(name=f"serve, ONNX Runtime, {clients}, CPU over Triton's", found=found, wanted=most, at_most=True)


def num_failed(statuses: Mapping[str, int], but: Collection[str] = ("200",)) -> int:
    """Requests with another status."""
    return sum(count for status, count in statuses.items() if status not in but)


def serving_name(name: str) -> str:
    """Of requests with `kind views`, such as "JPEG 10"."""
    kind, _, num_views = name.partition(" ")
    return f"serve, {kind}, {views_name(num_views)}"


def views_name(num_views: str) -> str:
    return "one view" if num_views == "1" else f"{num_views} views"


def _startup_bars(startup: Mapping[str, Any] | None) -> Iterator[Bar]:
    if startup is None or "alexdeploy fp32" not in startup["seconds"]:
        return
    found = median_ratio(startup["seconds"]["alexdeploy fp32"], startup["seconds"][SCRIPT])
    name = "FP32, one photograph from a cold process, times a bare OpenVINO script"
    yield Bar(name=name, found=found, wanted=1.3, at_most=True)
