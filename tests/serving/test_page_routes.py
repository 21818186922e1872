"""The page's files as they are served, and the samples."""

import base64
import io
import re

import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from spatial_vlm.data.scenes.scene_layout import SPLITS, fingerprint
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.serving.http_guard import HttpGuard
from spatial_vlm.serving.page_routes import FOLDER, page_routes
from spatial_vlm.serving.sample_scenes import EXAMPLES, sample_scenes

FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
MARKUP_SINKS = (
  *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc"),
  *("eval(", "Function(", "setTimeout(", "createContextualFragment", "setHTML"),
)


@pytest.fixture(scope="module")
def page():
  return TestClient(Starlette(routes=page_routes(sample_scenes(64))))


def test_every_file_is_served_with_its_type_and_policy(page):
  types = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8"}
  types |= {"css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
  for file in FILES:
    response = page.get("/" if file.name == "index.html" else f"/page/{file.name}")
    assert response.content == file.read_bytes(), file.name
    assert response.headers["content-type"] == types[file.suffix[1:]]
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(p.split(" ", 1) for p in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'" and policy["frame-ancestors"] == "'none'"


def test_only_the_files_are_served(page):
  for path in (
    "/page/",
    "/page/../app.py",
    "/page/%2e%2e/app.py",
    "/page/nothing.js",
    "/index.html",
  ):
    assert page.get(path).status_code == 404, path
  assert page.post("/").status_code == 405


def test_nothing_comes_from_elsewhere():
  for file in FILES:
    addresses = re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"')]*""", file.read_text())
    assert [a for a in addresses if a != "http://www.w3.org/2000/svg"] == [], file.name


def test_scripts_and_styles_are_files_and_texts_stay_text():
  html = (FOLDER / "index.html").read_text()
  assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
  for script in SCRIPTS:
    source = script.read_text()
    assert [sink for sink in MARKUP_SINKS if sink in source] == [], script.name
    assert len(source.splitlines()) <= 250


def test_every_file_is_used():
  texts = {file.name: file.read_text() for file in FILES}
  for name in set(texts) - {"index.html"}:
    users = [user for user, text in texts.items() if user != name and f"/{name}" in text]
    assert users, f"{name} is used by no other file"


def test_samples_are_scenes_of_the_test_split(page):
  listed = page.get("/v1/spatial_vlm/samples").json()
  assert listed["object"] == "list" and len(listed["data"]) == len(EXAMPLES)
  source = SceneSource("test", seed=0, count=40)
  for sample, number in zip(listed["data"], EXAMPLES, strict=True):
    record, scene = source.describe(number)
    assert (sample["statement"], sample["label"]) == (record.caption, record.label)
    assert fingerprint(scene) % 16 in SPLITS["test"]
    head, _, content = sample["image"].partition(",")
    image = PIL.Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/png;base64" and image.size == (64, 64)
  assert {sample["label"] for sample in listed["data"]} == {0, 1}


def test_the_page_needs_no_token_and_its_samples_do(service_of, client_of):
  client = client_of(service_of(), HttpGuard("a-long-token-of-a-test"))
  assert client.get("/").status_code == 200 and client.get("/page/page.js").status_code == 200
  assert client.get("/v1/spatial_vlm/samples").status_code == 401
  headers = {"Authorization": "Bearer a-long-token-of-a-test"}
  assert client.get("/v1/spatial_vlm/samples", headers=headers).json()["data"] == []


def test_the_model_says_whether_it_has_behaviors(client):
  (model,) = client.get("/v1/models").json()["data"]
  assert model["spatial_vlm"] == {"behaviors": False}
