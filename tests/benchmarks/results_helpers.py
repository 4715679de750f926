"""What parts of a results file have in common."""

from __future__ import annotations

MACHINE = {
    "gpus": [],
    "processor": "A CPU",
    "num_processors": 2,
    "versions": {},
    "load_start": None,
    "load_end": None,
}
