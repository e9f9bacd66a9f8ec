"""Swagger UI at /docs in headless Chromium, and what is there where it was not fetched."""

import shutil
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect, sync_playwright

from hosted import TOKEN, Hosted
from marship.engines import page as pages
from marship.packaging.step import PackageSettings, package
from versions import linear

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.slow
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium must be installed: apt install chromium"
)
needs_swagger = pytest.mark.skipif(
    not pages.SWAGGER_FOLDER.is_dir(), reason="Swagger UI must be fetched: make swagger"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """A host of a model of tensors."""
    folder = tmp_path_factory.mktemp("docs")
    archive = package(linear(folder / "lin.onnx", 1), PackageSettings(model_store=folder))
    (folder / "token").write_text(TOKEN)
    with Hosted(folder / "home", archive, "--require-token", folder / "token") as found:
        yield found.ready()


@pytest.fixture
def page(host: Hosted, tmp_path: Path) -> Iterator[Page]:
    """/docs at its sign-in; its policy may block nothing, and nothing may come from elsewhere."""
    address = f"http://{host.address[0]}:{host.address[1]}"
    wrong: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(base_url=address)
        found.set_default_timeout(20_000)
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        found.on(
            "request",
            lambda one: None if one.url.startswith(f"{address}/") else wrong.append(one.url),
        )
        found.goto("/docs")
        yield found
        found.screenshot(path=tmp_path / "docs.png", full_page=True)
        browser.close()
    refused = "the server responded with a status of 4"
    data = "data:"  # Swagger UI's own arrows
    assert not [one for one in wrong if refused not in one and not one.startswith(data)]


def sign_in(page: Page, token: str = TOKEN) -> None:
    """Sign in."""
    page.get_by_label("Inference token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def opened(page: Page, path: str) -> Locator:
    """An operation of the model, opened."""
    page.locator('h3[data-tag="lin"]').click()
    found = page.locator(".opblock-post", has=page.locator(f'[data-path="{path}"]'))
    found.locator(".opblock-summary-control").click()
    return found


def executed(operation: Locator) -> Any:
    """Its response, once it is there."""
    operation.get_by_role("button", name="Execute").click()
    found = operation.locator(".live-responses-table")
    expect(found).to_be_visible()
    return found


@needs_swagger
@needs_browser
def test_without_a_token_there_is_nothing_but_a_sign_in(page: Page) -> None:
    """No document and no link; a reload forgets the token."""
    expect(page.get_by_role("heading")).to_have_text("Sign in")
    assert page.get_by_role("link").count() == 0
    assert not Axe().run(page).response["violations"]
    sign_in(page, "wrong")
    expect(page.get_by_role("alert")).to_contain_text("does not accept this token")
    sign_in(page)
    expect(page.locator('h3[data-tag="lin"]')).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading")).to_have_text("Sign in")
    sign_in(page)
    expect(page.locator('h3[data-tag="lin"]')).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading")).to_have_text("Sign in")


@needs_swagger
@needs_browser
def test_the_model_answers_what_is_tried(page: Page) -> None:
    """The golden request, another one and a wrong one; the token is not on the page."""
    sign_in(page)
    operation = opened(page, "/predictions/lin")
    assert '"output"' in executed(operation).inner_text()
    operation.locator("textarea").fill('{"input": [[1, 2, 3]]}')
    answer = executed(operation)
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer).to_contain_text("server-timing")
    expect(answer).to_contain_text("22")
    operation.locator("textarea").fill('{"input": [[1, 2]]}')
    expect(executed(operation)).to_contain_text("invalid_input")
    expect(operation).to_contain_text("Authorization: Bearer YOUR-INFERENCE-TOKEN")
    assert TOKEN not in page.content()
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    assert page.context.cookies() == []


@needs_swagger
@needs_browser
def test_the_page_leads_to_it(page: Page) -> None:
    """For who has signed in, and back."""
    page.goto("/")
    assert page.get_by_role("link").count() == 0
    sign_in(page)
    page.get_by_role("link", name="Swagger UI").click()
    sign_in(page)
    page.get_by_role("link", name="Models").click()
    expect(page).to_have_url("/")


@needs_swagger
def test_its_policy_is_the_pages_but_for_arrows(host: Hosted) -> None:
    """Scripts, styles and HTML are as strict; pictures may be data in a style sheet."""
    line = HTTPConnection(*host.address, timeout=20)
    policies = []
    for path in ("/", "/docs"):
        line.request("GET", path)
        response = line.getresponse()
        response.read()
        policies.append(response.headers["content-security-policy"].split("; "))
    line.close()
    loosened = [rule for rule in policies[1] if rule not in policies[0]]
    assert loosened == ["img-src 'self' data: blob:"]
    assert len(policies[0]) == len(policies[1])


def test_what_was_not_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says how to get it; nothing leads there."""
    monkeypatch.setattr(pages, "SWAGGER_FOLDER", tmp_path / "none")
    files = pages.files.__wrapped__()
    reply = files[b"/docs"]
    assert (reply.status, reply.code) == (404, "not_found")
    assert b"make swagger" in reply.body
    assert b"/docs" not in files[b"/"].body
    assert [path for path in files if path.startswith(b"/docs")] == [b"/docs"]
