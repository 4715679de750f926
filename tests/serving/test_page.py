"""The page without a browser: what its policy allows, that it needs nothing else, and what it draws."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx
import numpy as np
import pytest
from colour import PICTURES
from markup import Page
from patience import PATIENCE
from running import SERVING, running

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines.base import EngineInfo
from alexdeploy.serving.models import Repository
from alexdeploy.serving.page import page, views_of

BODY, HEADERS = page()
TEXT = BODY.decode("utf-8")
PARSED = Page(TEXT)


def policy() -> dict[str, list[str]]:
    parts = (part.split() for part in HEADERS["content-security-policy"].split(";"))
    return {name: values for name, *values in parts}


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page(tag: str) -> None:
    assert PARSED.tags.count(tag) == 1
    digest = hashlib.sha256("".join(PARSED.words_in[tag]).encode()).digest()
    assert policy()[f"{tag}-src"] == [f"'sha256-{base64.b64encode(digest).decode()}'"]


def test_the_policy_allows_nothing_else_but_pictures_in_memory_and_requests_to_the_server_itself() -> None:
    rest = {name: values for name, values in policy().items() if name not in ("style-src", "script-src")}
    assert rest == {
        "default-src": ["'none'"],
        "img-src": ["blob:", "data:"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_nothing_in_the_page_is_what_the_policy_would_block() -> None:
    names = [name for name, _ in PARSED.attributes]
    assert [name for name in names if name.startswith("on") or name == "style"] == []
    assert not {"iframe", "object", "embed", "base"} & set(PARSED.tags)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", TEXT)


def test_the_page_needs_nothing_from_elsewhere_and_works_under_a_prefix() -> None:
    assert set(re.findall(r"https?://[^\s\"'<]+", TEXT)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|\bimport\b", TEXT)
    assert [value for name, value in PARSED.attributes if name in ("src", "href", "action")] == ["data:,"]
    addresses = re.findall(r"\bask\([\"`]([^\"`]+)", TEXT)
    assert len(addresses) == 2
    assert not [address for address in addresses if address.startswith("/") or ":" in address]


def test_identifiers_are_unique_and_every_control_has_a_name() -> None:
    ids = [value for name, value in PARSED.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {value for name, value in PARSED.attributes if name == "for"}
    assert named <= set(ids)
    # The others stand inside of their labels.
    inside = re.findall(r"<label(?![^>]*\bfor=)[^>]*>(.*?)</label>", TEXT, re.DOTALL)
    controls = [attributes["id"] for tag, attributes in PARSED.elements if tag in ("input", "select")]
    assert controls
    for control in controls:
        assert control in named or any(f'id="{control}"' in label for label in inside), control


def test_the_views_of_a_row_are_the_crops_with_their_answers() -> None:
    info = EngineInfo(
        backend="openvino",
        device="CPU",
        precision="fp32",
        num_views=10,
        classes=("a", "b", "c"),
        artifact="0",
        batch_size=1,
        num_streams=1,
    )
    view_classes = np.array([0, 0, 1, 1, 2, 2, 1, 1, 0, 0], np.int32)
    found = views_of(view_classes, info, Preprocessing(resize="warp", crop=227))
    assert {name: value for name, value in found.items() if name != "boxes"} == {
        "resize": "warp",
        "image_size": 256,
        "size": 227,
    }
    assert found["boxes"][2] == {"top": 29, "left": 0, "mirror": False, "index": 1, "label": "b"}
    assert found["boxes"][9] == {"top": 14, "left": 14, "mirror": True, "index": 0, "label": "a"}
    assert [box["index"] for box in found["boxes"]] == view_classes.tolist()


def test_the_views_are_those_of_the_model_that_is_open_whatever_its_folder_has_become(tiny_model: ModelFolder) -> None:
    with running(Repository([tiny_model], SERVING)) as server:
        tiny_model.spec_path.unlink()
        answer = httpx.post(f"{server.url}/predict?views=true", content=PICTURES["red"], timeout=PATIENCE)
    (row,) = answer.json()["rows"]
    assert (row["views"]["resize"], row["views"]["size"], len(row["views"]["boxes"])) == ("crop", 227, 10)
