"""The page in headless Chromium, over a server whose engine writes prepared answers."""

import io
import re
import shutil
import time

import pytest
from scripted_engine import running, with_scripted_engine

from spatial_vlm import answers
from spatial_vlm.inference.questions import Recall
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.serving.app import make_app
from spatial_vlm.serving.http_guard import HttpGuard
from spatial_vlm.serving.sample_scenes import sample_scenes

sync_api = pytest.importorskip(
  "playwright.sync_api", reason="playwright is not installed (extra test)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")

TOKEN = "a-long-token-of-a-test"
BOXES = [("yellow circle", (480, 120, 680, 320)), ("white circle", (720, 720, 960, 960))]
CHAIN = answers.render_chain(
  "The yellow circle is above the white circle. True?",
  answers.render_boxes(BOXES),
  "yellow circle centre y=220; white circle centre y=840; y=220 < y=840, so it is above it.",
  1,
)
SHORT = answers.render_short("behavior_above", "yellow circle y=220 < white circle y=840", 0)
MARKUP = "Summary: <img src=x onerror=alert(1)><b>bold</b>\nCaption: a [1, 2, 3, 4]<script>alert(1)</script>"
ABOVE = Behavior(
  "behavior_above", "yes when X y < Y y", "above", ("The X is above the Y.",), ("t:1",), tokens=12
)


def written(prompt):
  """The answer of the model to a prompt."""
  if "markup" in prompt:
    return MARKUP
  return CHAIN if "four steps" in prompt else SHORT


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def serve(service_of, serving_policy):
  """(guard, pause_at) -> address of a server, and its engine; it has one behavior."""
  servers = []

  def start(guard=None, pause_at=""):
    index = BehaviorIndex(Handbook(9, 99, (ABOVE,)), LexicalEmbedder(), min_similarity=0.6)
    service = service_of("max_new_tokens=144", recall=Recall(index, 48))
    engine = with_scripted_engine(service, serving_policy, written, pause_at=pause_at)
    server = running(make_app(service, guard, sample_scenes(64)))
    servers.append(server)
    return server.__enter__(), engine

  yield start
  for server in servers:
    server.__exit__(None, None, None)


@pytest.fixture
def open_page(browser):
  """(address, settings of the context) -> the page, loaded; fails on errors and on requests that leave the server."""
  problems, contexts = [], []

  def load(address, **settings):
    context = browser.new_context(**settings)
    contexts.append(context)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if "Content Security" in m.text else None)
    page.on(
      "request",
      lambda r: problems.append(r.url) if not r.url.startswith((address, "data:")) else None,
    )
    page.goto(address + "/")
    return page

  yield load
  for context in contexts:
    context.close()
  assert problems == []


def ask(page, statement=None):
  page.wait_for_selector("#frame:not([hidden])")
  if statement is not None:
    page.fill("#statement", statement)
  page.click("#ask")


def until(page, expression):
  """Waits for a condition; the page's policy forbids Playwright's own way, which is to evaluate a text there."""
  for _ in range(600):
    if page.evaluate(expression):
      return
    page.wait_for_timeout(50)
  raise AssertionError(f"{expression} does not hold after 30 s")


def test_a_sample_is_answered_in_both_forms(serve, open_page):
  address, engine = serve(pause_at="white circle [720")
  page = open_page(address)
  ask(page)
  until(page, "document.querySelectorAll('#boxes .line').length === 1")
  assert page.locator("#chain .step.written h3").all_inner_texts() == ["Summary", "Caption"]
  assert page.get_attribute("#chain", "aria-busy") == "true"
  assert page.inner_text("#chain .verdict") == "" and page.is_visible("#stop")
  engine.resume.set()
  page.wait_for_selector("#comparison:not([hidden])")
  assert page.locator("#chain .step h3").all_inner_texts() == [
    *("Summary", "Caption", "Reasoning", "Conclusion")
  ]
  steps = dict(line.split(": ", 1) for line in CHAIN.splitlines())
  assert page.locator("#chain .step p").all_inner_texts() == [*steps.values()]
  assert page.inner_text("#chain .verdict") == "Yes" and page.inner_text("#short .verdict") == "No"
  assert page.inner_text("#short .behavior") == "behavior_above"
  tokens = [int(page.inner_text(f"#{id} [data-figure=tokens]")) for id in ("chain", "short")]
  assert tokens[0] > 2 * tokens[1] > 0
  for id in ("chain", "short"):
    assert re.fullmatch(r"\d+\.\d\d\u00a0s", page.inner_text(f"#{id} [data-figure=seconds]"))
  comparison = page.inner_text("#comparison")
  assert "times fewer" in comparison and "The two answers disagree." in comparison
  assert "In this scene the statement is true." in comparison
  assert page.inner_text("#status").startswith("Short answer: No, ")


def test_boxes_lie_on_the_image(serve, open_page):
  page = open_page(serve()[0], reduced_motion="reduce")
  ask(page)
  page.wait_for_selector("#comparison:not([hidden])")
  image = page.locator("#image").bounding_box()
  drawn = page.locator("#boxes .line").all()
  for rect, (_, (x1, y1, x2, y2)) in zip(drawn, BOXES, strict=True):
    box = rect.bounding_box()
    assert box["x"] - image["x"] == pytest.approx(x1 / 1000 * image["width"], abs=3)
    assert box["y"] - image["y"] == pytest.approx(y1 / 1000 * image["height"], abs=3)
    assert box["width"] == pytest.approx((x2 - x1) / 1000 * image["width"], abs=5)
    assert box["height"] == pytest.approx((y2 - y1) / 1000 * image["height"], abs=5)
  assert page.locator(".box-name").all_inner_texts() == [name for name, _ in BOXES]
  assert page.get_attribute("#boxes", "aria-label") == "2 boxes: yellow circle, white circle"


def test_what_a_model_writes_never_becomes_markup(serve, open_page):
  page = open_page(serve()[0])
  page.uncheck("#ask-short")
  ask(page, "<i>markup</i>")
  page.wait_for_selector("#chain .note:not([hidden])")
  first, second = MARKUP.split("\n")
  assert page.locator("#chain .step p").all_inner_texts()[:2] == [
    first.removeprefix("Summary: "),
    second.removeprefix("Caption: "),
  ]
  assert page.locator("#answers").locator("img, b, script, i").count() == 0
  assert page.inner_text("#chain .verdict") == "No verdict"


def test_an_image_of_the_reader_is_asked_about(serve, open_page, noise):
  address, _ = serve()
  page = open_page(address)
  page.wait_for_selector("#frame:not([hidden])")
  file = io.BytesIO()
  noise(size=(2000, 500)).save(file, "JPEG")
  page.set_input_files(
    "#file", {"name": "a<b>.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
  )
  until(page, "document.getElementById('image').naturalWidth === 1600")
  assert page.inner_text("#source") == "a<b>.jpg" and page.input_value("#statement") == ""
  assert page.locator("[name=sample]:checked").count() == 0
  with page.expect_request("**/v1/chat/completions") as request:
    ask(page, "The yellow circle is above the white circle.")
  image, text = request.value.post_data_json["messages"][0]["content"]
  assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
  assert text["text"] == "The yellow circle is above the white circle."
  page.wait_for_selector("#comparison:not([hidden])")
  assert "In this scene" not in page.inner_text("#comparison")
  text_file = {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"}
  page.set_input_files("#file", text_file)
  page.wait_for_selector("#error:not([hidden])")
  assert "a.png is no image that this browser can read" in page.inner_text("#error")


DROP = """([stage, kind]) => {
  const transfer = new DataTransfer();
  const canvas = document.createElement("canvas");
  canvas.width = 40; canvas.height = 20;
  return new Promise((done) => canvas.toBlob((blob) => {
    transfer.items.add(new File([blob], "dropped.png", {type: "image/png"}));
    const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true})
      : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
    stage.dispatchEvent(event);
    done();
  }, "image/png"));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(serve, open_page, kind):
  page = open_page(serve()[0])
  page.wait_for_selector("#frame:not([hidden])")
  page.evaluate(DROP, [page.query_selector("#stage"), kind])
  until(page, "document.getElementById('image').naturalWidth === 40")
  assert page.inner_text("#source") == "dropped.png"


def test_the_keyboard_alone_is_enough(serve, open_page):
  address, engine = serve(pause_at="Reasoning")
  page = open_page(address)
  page.wait_for_selector("#frame:not([hidden])")
  page.focus("#sample-0")
  page.keyboard.press("ArrowRight")
  assert page.input_value("#statement") == sample_scenes(8)[1]["statement"]
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.id") == "statement"
  page.keyboard.press("Enter")
  page.wait_for_selector("#chain .step.written")
  page.keyboard.press("Escape")
  page.wait_for_selector("#stop", state="hidden")
  assert page.inner_text("#status") == "Stopped." and page.inner_text("#chain .note") == "Stopped."
  deadline = time.monotonic() + 30
  while not engine.cancelled and time.monotonic() < deadline:
    time.sleep(0.05)
  assert len(engine.cancelled) == 1 and not engine.requests


def test_a_token_is_asked_for(serve, open_page):
  page = open_page(serve(HttpGuard(TOKEN))[0])
  page.wait_for_selector("#access:not([hidden])")
  assert "API key is missing" in page.inner_text("#error")
  page.fill("#token", TOKEN)
  page.keyboard.press("Enter")
  page.wait_for_selector("#frame:not([hidden])")
  assert page.is_hidden("#error")
  ask(page)
  page.wait_for_selector("#comparison:not([hidden])")
  assert TOKEN not in page.evaluate(
    "JSON.stringify([localStorage, sessionStorage, document.cookie])"
  )


def test_errors_of_the_server_are_shown(serve, open_page):
  page = open_page(serve()[0])
  page.route(
    "**/v1/chat/completions",
    lambda route: route.fulfill(
      status=429, json={"error": {"message": "too <b>many</b>"}}, headers={"Retry-After": "7"}
    ),
  )
  ask(page)
  page.wait_for_selector("#error:not([hidden])")
  assert page.inner_text("#error") == "too <b>many</b> Try again in 7 s."
  page.route("**/v1/chat/completions", lambda route: route.abort())
  ask(page)
  until(page, "document.getElementById('error').textContent.includes('does not answer')")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_wide_screen(serve, open_page, width, scheme):
  viewport = {"width": width, "height": 844}
  page = open_page(serve()[0], viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
  ask(page)
  page.wait_for_selector("#comparison:not([hidden])")
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
  assert (int(red) < 64) == (scheme == "dark")
  stage = page.locator("#stage").bounding_box()
  assert 0 <= stage["y"] < 400, "the image stays in view"
  for button in ("#ask", "label[for=file]"):
    assert page.locator(button).bounding_box()["height"] >= 44


READ = """async (texts) => {
  const {readBoxes} = await import("/page/grammar.js");
  return texts.map((text) => [...readBoxes(text)]);
}"""


def test_the_page_reads_boxes_as_the_package_does(serve, open_page):
  texts = [
    CHAIN,
    "cat [0, 20, 400, 600], red mug [500, 0, 1000, 80], cat [1, 1, 2, 2].",
    "a [5, 5, 5, 9], b [1, 2, 1001, 4], c-d_e 2 [1,2,3,4] f [1, 2, 3, 4",
    "man's hat [1, 2, 3, 4]; 2 cats [3, 4, 5, 6], 9 [1, 2, 3, 4], ' a & b’s [1, 2, 3, 4]",
    "Über Öl [1, 2, 3, 4] 9 lives [3, 4, 5, 6]\nx [7, 8, 9, 10]",
  ]
  page = open_page(serve()[0])
  read = page.evaluate(READ, texts)
  assert [[(n, tuple(b)) for n, b in boxes] for boxes in read] == [
    [*answers.parse_boxes(text).items()] for text in texts
  ]
