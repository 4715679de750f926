"""The INT8 graph of NNCF, calibrated on the images that ours is calibrated on, preprocessed as for ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from alexdeploy import ModelFolder
from alexdeploy.core.recipe import load_calibration
from alexdeploy.export.quantize.calibrate import choose_images, read_photographs
from alexdeploy.images.preprocess import network_input
from benchmarks.process import ROOT, WITHOUT_TELEMETRY

PRESETS = ("performance", "mixed")
"""Symmetric activations, NNCF's default, and asymmetric ones where they are signed."""


def is_nncf_here() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("nncf", "openvino"))


def nncf_version() -> str | None:
    return importlib.metadata.version("nncf") if is_nncf_here() else None


def write_calibration(folder: ModelFolder, images: str, path: Path) -> Path:
    """float32 [N, 3, 227, 227] as a .npy file: of `images` those that `alexdeploy calibrate` takes by default."""
    spec, recipe = folder.spec(), load_calibration()
    mean = folder.mean_image(spec)
    names, _ = choose_images(images, recipe)
    photographs = read_photographs(images, names, spec, {})
    views = [network_input(each.pixels, spec.preprocessing, recipe.num_views, mean) for each in photographs]
    np.save(path, np.concatenate(views))
    return path


def quantize(folder: ModelFolder, calibration: Path, preset: str, path: Path) -> Path:
    """Run the script of a user in a process of its own; `path` ends with .xml. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "benchmarks.peer_nncf"]
    command += [str(folder.onnx_path()), str(calibration), preset, str(path)]
    environment = os.environ | WITHOUT_TELEMETRY
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not path.is_file():
        raise SystemExit(f"nncf ended with exit code {run.returncode}:\n{run.stderr[-2000:]}")
    return path
