"""The page on models of odd kinds and changing versions: the real page and document, no server."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from marship.contract import Contract, TensorSpec
from marship.engines import page as pages
from marship.serving.openapi import schemas, tensors
from marship.serving.openapi.document import ServedModel, document
from marship.serving.openapi.interface import (
    HISTORY,
    OTHER,
    PICTURE,
    RECORDING,
    TEXT,
    BodyForm,
    Interface,
)

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium must be installed: apt install chromium"),
]
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
HOST = "http://localhost:9"
JSON_TYPE = "application/json"
LARGE = 9007199254740993
"""2**53 + 1, which is no double."""
ANSWER = BodyForm(JSON_TYPE, {})


class Site:
    """A server of the page: what it serves may change, and what it was sent is kept."""

    def __init__(self) -> None:
        self.models: list[ServedModel] = []
        self.has_tokens = False
        self.token = ""
        self.answer: Any = {}
        self.asked: list[tuple[str, str, str]] = []

    def serve(self, *models: tuple[str, str, bool, Any]) -> None:
        """Serve models: name, version, whether it is the default, and its facts."""
        self.models = [ServedModel(name, v, first, True, facts) for name, v, first, facts in models]

    def handle(self, route: Route) -> None:
        """Respond to a request of the browser."""
        request = route.request
        path = request.url.removeprefix(HOST)
        if path.startswith("/predictions"):
            kind = request.headers["content-type"]
            self.asked.append((path, kind, request.post_data or ""))
            text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
            route.fulfill(content_type=JSON_TYPE, body=text)
        elif path == "/openapi.json":
            is_known = request.headers.get("authorization", "") == self.token
            whole = document(self.models, "1", has_tokens=bool(self.token))
            route.fulfill(status=200 if is_known else 401, body=json.dumps(whole))
        else:
            file = pages.files()[path.encode()]
            headers = {**dict(file.headers), "content-type": file.content_type}
            route.fulfill(body=file.body, headers=headers)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser with a microphone that beeps."""
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield found
        found.close()


@pytest.fixture
def site() -> Site:
    """A server without models."""
    return Site()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A tab that has not gone to the page yet, with a clock that a test moves."""
    context = browser.new_context(
        permissions=["microphone"], viewport={"width": 360, "height": 740}
    )
    found = context.new_page()
    found.set_default_timeout(15_000)
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.route("**/*", site.handle)
    found.clock.install()
    yield found
    context.close()
    assert not wrong


def facts(kind: str, request: BodyForm, response: BodyForm = ANSWER, *parameters: Any) -> Any:
    """What a worker says of a model with a handler of its own."""
    declared = Interface(kind, (request,), (response,), parameters=parameters).facts()
    return {**declared, "inputs": [], "outputs": []}


def of_tensors(dtype: str, *shapes: tuple[int | str, ...], example: Any = None) -> Any:
    """What a worker says of a model of tensors, an input of each shape."""
    inputs = tuple(TensorSpec(f"x{n}", dtype, shape) for n, shape in enumerate(shapes))
    output = TensorSpec("y", dtype, ("batch",))
    axis = "batch" if all(shapes) else None
    contract = Contract(inputs, (output,), ("m.onnx",), "", 17, batch_axis=axis)
    found = tensors.interface(contract, {}, dict).facts()
    if example is not None:
        found["requests"][0]["examples"] = {"golden": example}
    sides = [
        {"name": one.name, "dtype": one.dtype, "shape": one.shape, "takes_missing": False}
        for one in inputs
    ]
    return {**found, "inputs": sides, "outputs": []}


def send(page: Page) -> Any:
    """Send the request; the region of the response."""
    page.get_by_role("button", name="Send", exact=True).click()
    region = page.get_by_role("region", name="Response", exact=True)
    expect(region.get_by_role("table", name="Latency")).to_be_visible()
    return region


def refresh(page: Page) -> None:
    """Let the page look at the server again."""
    with page.expect_response("**/openapi.json"):
        page.clock.run_for(16_000)


def test_a_version_is_asked_whichever_is_the_default(page: Page, site: Site) -> None:
    """Before the page knows of the new default, and after; what was typed stays."""
    lin = of_tensors("float32", ("batch", 1))
    site.serve(("lin", "1.0", True, lin))
    page.goto(HOST)
    page.get_by_label("x0 0").fill("5")
    site.serve(("lin", "1.0", False, lin), ("lin", "2.0", True, lin))
    send(page)
    refresh(page)
    expect(page.locator(".title")).to_contain_text("version 1.0")
    expect(page.locator(".title")).not_to_contain_text("default")
    expect(page.get_by_label("x0 0")).to_have_value("5")
    region = send(page)
    assert {path for path, _, _ in site.asked} == {"/predictions/lin/1.0"}
    expect(region.get_by_role("region", name="Code", exact=True)).to_contain_text("lin/1.0")


def test_a_version_with_other_inputs_has_another_form(page: Page, site: Site) -> None:
    """It was registered again meanwhile; the old form comes back with the old inputs."""
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch", 1))))
    page.goto(HOST)
    page.get_by_label("x0 0").fill("5")
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch", 2))))
    refresh(page)
    expect(page.get_by_label("x0 1")).to_be_visible()
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch", 1))))
    refresh(page)
    expect(page.get_by_label("x0 0")).to_have_value("5")


def test_a_model_that_is_gone_is_missed(page: Page, site: Site) -> None:
    """No other model takes its place; the same for an address that names none."""
    lin = of_tensors("float32", ("batch", 1))
    site.serve(("lin", "1.0", True, lin), ("other", "1.0", True, lin))
    page.goto(HOST)
    page.get_by_label("x0 0").fill("5")
    site.serve(("other", "1.0", True, lin))
    refresh(page)
    expect(page.locator("main")).to_contain_text("lin/1.0 is not on this server. Choose a model.")
    assert page.get_by_role("heading", level=1).count() == 0
    site.serve(("lin", "1.0", True, lin), ("other", "1.0", True, lin))
    refresh(page)
    expect(page.get_by_label("x0 0")).to_have_value("5")
    page.evaluate("location.hash = '#nothing%'")
    expect(page.locator("main")).to_contain_text("nothing% is not on this server")


def test_integers_have_all_their_digits(page: Page, site: Site) -> None:
    """Those of a golden case, those typed and those of a response; in tables, JSON and code."""
    example = {"x0": [[LARGE, -LARGE, 2**64 - 1]]}
    site.serve(("ids", "1.0", True, of_tensors("int64", ("batch", 3), example=example)))
    site.answer = {"y": [[LARGE, 1, 0.5]], "z": {"deep": [LARGE]}}
    page.goto(HOST)
    region = send(page)
    assert json.loads(site.asked[0][2]) == example
    page.get_by_label("x0 2").fill(str(LARGE + 2))
    send(page)
    assert json.loads(site.asked[1][2])["x0"] == [[LARGE, -LARGE, LARGE + 2]]
    expect(region.get_by_role("region", name="Code", exact=True)).to_contain_text(str(LARGE + 2))
    expect(region.get_by_role("table", name="y", exact=True)).to_contain_text(str(LARGE))
    region.get_by_text("Response as JSON").click()
    shown = region.get_by_role("region", name="Response as JSON").inner_text()
    assert json.loads(shown) == site.answer
    page.get_by_label("JSON", exact=True).check()
    area = page.get_by_label("Request as JSON").input_value()
    assert json.loads(area)["x0"] == [[LARGE, -LARGE, LARGE + 2]]


@pytest.mark.parametrize(("typed", "sent"), [("1e3", 1000), ("-0.5", -0.5), (".5", 0.5)])
def test_numbers_are_json(typed: str, sent: float, page: Page, site: Site) -> None:
    """Also as no JSON has them."""
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch",))))
    page.goto(HOST)
    page.get_by_label("x0 0").fill(typed)
    send(page)
    assert json.loads(site.asked[0][2]) == {"x0": [sent]}


def test_each_rank_has_its_brackets(page: Page, site: Site) -> None:
    """A scalar is no list; its golden value is in its field."""
    example = {"x0": [[1, 2]], "x1": [3], "x2": 4}
    shapes = (("batch", 2), ("batch",), ())
    site.serve(("scal", "1.0", True, of_tensors("float32", *shapes, example=example)))
    page.goto(HOST)
    send(page)
    assert json.loads(site.asked[0][2]) == example


def test_a_model_without_inputs_can_be_asked(page: Page, site: Site) -> None:
    """With an empty object."""
    site.serve(("noin", "1.0", True, of_tensors("float32")))
    page.goto(HOST)
    send(page)
    assert json.loads(site.asked[0][2]) == {}


def test_what_is_typed_stays_over_another_form(page: Page, site: Site) -> None:
    """JSON, numbers and JSON again; numbers that were changed are taken over."""
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch", 1), example={"x0": [[1]]})))
    page.goto(HOST)
    area = page.get_by_label("Request as JSON")
    page.get_by_label("JSON", exact=True).check()
    area.fill("[[9], [8]]")
    page.get_by_label("Numbers", exact=True).check()
    page.get_by_label("JSON", exact=True).check()
    expect(area).to_have_value("[[9], [8]]")
    page.get_by_label("Numbers", exact=True).check()
    page.get_by_label("x0 0").fill("7")
    page.get_by_label("JSON", exact=True).check()
    assert json.loads(area.input_value()) == {"x0": [[7]]}


def test_what_is_typed_stays_over_a_new_token(page: Page, site: Site) -> None:
    """It expires in the middle; who signs out leaves nothing."""
    site.token = "Bearer a"
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch", 1))))
    page.goto(HOST)
    for token in ("a", "b"):
        page.get_by_label("Inference token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        if token == "a":
            page.get_by_label("x0 0").fill("5")
            site.token = "Bearer b"
            refresh(page)
            expect(page.get_by_role("alert")).to_contain_text("expired")
    expect(page.get_by_label("x0 0")).to_have_value("5")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Inference token").fill("b")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("x0 0")).to_have_value("0")


PLAIN = BodyForm("text/plain", schemas.TEXT, "a letter", {"golden": "a"})
JSON_TEXT = BodyForm(JSON_TYPE, schemas.record(text=schemas.TEXT))
OWN = BodyForm(JSON_TYPE, schemas.record(n=schemas.NUMBER), "", {"golden": {"n": 1}})
DECLARED = {
    "text/plain of a text": (facts(TEXT, PLAIN), "text/plain", "a"),
    "text/plain of another": (facts(OTHER, PLAIN), "text/plain", "a"),
    "a text in JSON": (facts(TEXT, JSON_TEXT), JSON_TYPE, '{"text":"@hello"}'),
    "a text in JSON of its own": (facts(TEXT, OWN), JSON_TYPE, '{\n "n": 1\n}'),
    "a history of its own": (facts(HISTORY, OWN), JSON_TYPE, '{\n "n": 1\n}'),
    "bytes": (facts(OTHER, BodyForm("application/x-own", {})), "application/x-own", "some bytes"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_request_is_of_the_declared_type(name: str, page: Page, site: Site) -> None:
    """Of a handler's own interface; its response is shown by name and value."""
    about, kind, body = DECLARED[name]
    site.serve(("own", "1.0", True, about))
    site.answer = {"vowel": True}
    page.goto(HOST)
    if name == "a text in JSON":
        page.get_by_label("Text", exact=True).fill("@hello")
    if name == "bytes":
        file = {"name": "f", "mimeType": "", "buffer": b"some bytes"}
        page.get_by_label("File", exact=True).set_input_files(file)  # type: ignore[arg-type]
    region = send(page)
    assert site.asked == [("/predictions/own/1.0", kind, body)]
    if about["kind"] == TEXT:
        assert region.get_by_role("table", name="Facts").inner_text().split() == [
            *("Facts", "Name", "Value", "vowel", "true")
        ]
    page.get_by_label("curl", exact=True).check()
    code = region.get_by_role("region", name="Code", exact=True).inner_text()
    assert "-d '@" not in code


def test_parameters_are_fields_of_their_types(page: Page, site: Site) -> None:
    """Choices, texts, flags and numbers, of any kind of model; what is empty is not sent."""
    kinds = {
        "mode": {"enum": ["fast", "best"]}, "a b": schemas.TEXT, "is_x": {"type": "boolean"},
        "share": schemas.NUMBER, "k": {"type": "integer", "minimum": 1}, "any": True,
    }  # fmt: skip
    parameters = [{"name": name, "in": "query", "schema": one} for name, one in kinds.items()]
    site.serve(("own", "1.0", True, facts(TEXT, PLAIN, ANSWER, *parameters)))
    page.goto(HOST)
    send(page)
    page.get_by_label("Parameter mode").select_option("best")
    page.get_by_label("Parameter a b").fill("ü&")
    page.get_by_label("Parameter is_x").select_option("false")
    page.get_by_label("Parameter share").fill("0.25")
    page.get_by_label("Parameter k").fill("3")
    send(page)
    paths = [path for path, _, _ in site.asked]
    query = "mode=best&a%20b=%C3%BC%26&is_x=false&share=0.25&k=3"
    assert paths == ["/predictions/own/1.0", f"/predictions/own/1.0?{query}"]


KEPT = """const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.tracks = [];
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await get(wanted);
  window.tracks.push(...stream.getTracks());
  return stream;
};"""
ALL_OFF = "window.tracks.length > 0 && window.tracks.every((one) => one.readyState === 'ended')"


@pytest.mark.parametrize("way", ["another model", "signed out", "gone"])
def test_the_microphone_is_off_where_nobody_sees_it(way: str, page: Page, site: Site) -> None:
    """Its button has left the page."""
    sound = facts(RECORDING, BodyForm("audio/wav", schemas.BINARY))
    picture = facts(PICTURE, BodyForm("image/png", schemas.BINARY))
    site.token = "Bearer a"
    site.serve(("ear", "1.0", True, sound), ("eye", "1.0", True, picture))
    page.add_init_script(KEPT)
    page.goto(HOST)
    page.get_by_label("Inference token").fill("a")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_text("Recording …")).to_be_visible()
    assert not page.evaluate(ALL_OFF)
    if way == "another model":
        page.get_by_role("navigation").get_by_role("link", name="eye").click()
    elif way == "signed out":
        page.get_by_role("button", name="Sign out").click()
    else:
        site.serve(("eye", "1.0", True, picture))
        refresh(page)
    page.wait_for_function(ALL_OFF)


def test_long_rows_wrap(page: Page, site: Site) -> None:
    """A vector of many digits is no wider than a telephone."""
    site.serve(("fixed", "1.0", True, of_tensors("float32", ("batch",))))
    site.answer = {"y": [0.123456789012345] * 40}
    page.goto(HOST)
    send(page)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_copying_without_a_clipboard_selects(page: Page, site: Site) -> None:
    """Browsers have none on plain http of another machine."""
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined });")
    site.serve(("lin", "1.0", True, of_tensors("float32", ("batch",))))
    page.goto(HOST)
    region = send(page)
    region.get_by_role("button", name="Copy").click()
    expect(region).to_contain_text("Selected: copying needs https")
    assert "curl" in page.evaluate("getSelection().toString()")
