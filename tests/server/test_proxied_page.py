"""The page behind the proxy, where it is passed on: through nginx, in headless Chromium."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from hosted import TOKEN, Hosted
from marship.engines import page as pages
from marship.engines.torchserve import config
from marship.operate.proxy import ProxySettings
from marship.packaging.step import PackageSettings, package
from nginx import Door, free_port, in_front
from versions import linear

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A proxy that exposes one model of two, and the page."""
    folder = tmp_path_factory.mktemp("page")
    archives = [
        package(linear(folder / f"{name}.onnx", 1), PackageSettings(model_store=folder))
        for name in ("lin", "secret")
    ]
    (folder / "token").write_text(TOKEN)
    (folder / "home").mkdir()
    words = (*archives, "--require-token", folder / "token")
    with Hosted(folder / "hosted", *words) as host:
        address = "{}:{}".format(*host.ready().address)
        text = config.PACKAGED.read_text().replace("127.0.0.1:8079", address)
        (folder / "home" / "config.properties").write_text(text)
        settings = ProxySettings(
            home=folder / "home",
            out=folder / "proxy",
            listen=f"127.0.0.1:{free_port()}",
            self_signed=True,
            page=True,
        )
        with in_front(settings, ["lin"]) as found:
            yield found


@pytest.fixture
def page(door: Door, tmp_path: Path) -> Iterator[Page]:
    """A tab that has not gone there yet; no script may fail, and no policy block one."""
    if CHROMIUM is None:
        pytest.skip("chromium must be installed: apt install chromium")
    wrong: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(base_url=door.url, ignore_https_errors=True)
        found.set_default_timeout(20_000)
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        yield found
        found.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert not [line for line in wrong if "the server responded with a status of 4" not in line]


def sign_in(page: Page) -> None:
    """Sign in with the right token, once a wrong one was refused."""
    for token in ("wrong", TOKEN):
        page.get_by_label("Inference token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        if token == "wrong":
            expect(page.get_by_role("alert")).to_contain_text("does not accept this token")


def test_the_exposed_model_is_tried_on_the_page(page: Page) -> None:
    """After signing in; the other one is not there."""
    page.goto("/")
    expect(page.get_by_role("heading")).to_have_text("Sign in")
    sign_in(page)
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(re.compile("^lin"))
    for place, number in enumerate("123"):
        page.get_by_label(f"input {place}").fill(number)
    page.get_by_role("button", name="Send", exact=True).click()
    region = page.get_by_role("region", name="Response", exact=True)
    expect(region.get_by_role("table", name="output")).to_contain_text("22")
    assert "secret" not in page.content()


@pytest.mark.skipif(not pages.SWAGGER_FOLDER.is_dir(), reason="needs: make swagger")
def test_swagger_ui_shows_what_passes(page: Page) -> None:
    """Each operation that it has is one that nginx passes on."""
    page.goto("/docs")
    sign_in(page)
    page.locator('h3[data-tag="lin"]').click()
    paths = page.locator("[data-path]").all()
    assert [path.get_attribute("data-path") for path in paths] == [
        "/predictions/lin",
        "/predictions/lin/1.0",
    ]
    page.locator(".opblock-post .opblock-summary-control").first.click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert "secret" not in page.content()


def test_the_document_needs_the_token_and_names_no_other_model(door: Door) -> None:
    """Whatever the query asks; files of the page need none."""
    for query in ("", "?exposed=secret", "?,secret", "?&exposed=secret", "?exposed=", "?a=%26"):
        whole = door.ask("GET", f"/openapi.json{query}", Authorization=f"Bearer {TOKEN}")
        assert whole.status == 200
        assert b"secret" not in whole.body
        assert "/predictions/lin" in whole.json()["paths"]
    for given in (None, "Bearer wrong"):
        refused = door.ask("GET", "/openapi.json", Authorization=given)
        assert (refused.status, refused.json()["code"]) == (401, "token")
    for path, reply in pages.files().items():
        found = door.ask("GET", path.decode())
        assert found.status == reply.status
        if reply.status == 200:
            assert found.body == reply.body
            headers = dict(reply.headers)
            for name in ("content-security-policy", "x-content-type-options", "x-frame-options"):
                assert found.headers[name] == headers[name]


def test_the_page_may_be_asked_for_by_its_head(door: Door) -> None:
    """As programs do that look whether an address is alive (RFC 9110, 9.3.2)."""
    found = door.ask("HEAD", "/")
    assert (found.status, found.body) == (200, b"")
    assert int(found.headers["content-length"]) == len(door.ask("GET", "/").body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("POST", "/openapi.json", 405),
        ("OPTIONS", "/docs", 405),
        ("GET", "/page/none.js", 401),
        ("GET", "/page/", 404),
        ("GET", "/page/a/b.js", 404),
        ("GET", "/page/..%2fmetrics", 404),
        ("GET", "/page/..%2f..%2fmetrics", 400),
        ("GET", "/docs/../metrics", 404),
        ("GET", "/v2", 404),
        ("GET", "/v2/models/lin", 404),
        ("POST", "/predictions/secret", 404),
        ("GET", "/openapi.json/", 404),
    ],
)
def test_nothing_else_passes(door: Door, method: str, path: str, status: int) -> None:
    """The page opens no way to what the proxy keeps out."""
    answer = door.ask(method, path)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert set(json.loads(answer.body)) == {"code", "message"}
