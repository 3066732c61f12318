"""The page in a real browser: open, ask, choose a token, see its passages; by keyboard, small, dark; and as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from browser import chromium, executable, violations
from playwright.sync_api import Browser, Page, Route, expect
from serving_memory import MARKUP

from memcore.serving.asking import Exchange, watching
from memcore.serving.report import ReportedSession, write_report
from memcore.serving.served_model import ServedModel
from memcore.session_contents import SessionContents

pytestmark = pytest.mark.skipif(
    executable() is None, reason="there is no Chromium on this machine: apt install chromium, or name one in CHROMIUM"
)

QUESTION = "abc?"
LONGEST = 5
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


class Visit:
    """A page, with what it asked for and complained of."""

    def __init__(self, browser: Browser, size: str = "desktop", scheme: Literal["light", "dark"] = "light") -> None:
        viewport: Any = SIZES[size]
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.asked_for: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    made = Visit(browser)
    yield made
    made.close()


@pytest.fixture
def page(visit: Visit, url: str) -> Page:
    """The session ``book``, open."""
    open_session(visit.page, url)
    return visit.page


@pytest.fixture(scope="module")
def exchange(model: ServedModel) -> Exchange:
    """What the page is expected to show of :data:`QUESTION`."""
    session = model.session("book")
    with watching(session.model, model.tokenizer) as watch:
        answer = session.ask(QUESTION, max_new_tokens=LONGEST, stopping_criteria=watch.criteria)
    return watch.exchange(QUESTION, answer)


def open_session(page: Page, url: str, name: str = "book") -> None:
    page.goto(url)
    page.locator("#sessions button", has_text=name).click()
    expect(page.locator("#session-name")).to_have_text(name)


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_role("spinbutton", name="Longest answer, tokens").fill(str(LONGEST))
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#progress")).to_have_text("Answered.")


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def test_open_ask_choose_a_token_and_see_its_passages(page: Page, visit: Visit, url: str, exchange: Exchange) -> None:
    assert "token" not in page.url
    assert page.title() == "book – memcore"
    ask(page)
    tokens = page.locator(".token")
    expect(tokens).to_have_count(LONGEST)
    assert "".join(tokens.all_text_contents()) == exchange.text.replace("\n", "↵")
    chosen = exchange.tokens[2]
    tokens.nth(2).click()
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    read = page.locator(".read:visible")
    shares = read.locator(".shares").text_content() or ""
    assert f"memory {percent(chosen.memory)}" in shares
    expect(read.locator("li").first).to_contain_text(percent(chosen.passages[0].share))
    expect(read.locator("li .quoted").first).not_to_be_empty()
    assert read.locator("li").count() == min(12, len(chosen.passages))
    lit = page.locator("#strip").get_attribute("data-lit") or ""
    assert sorted(map(int, lit.split())) == sorted(each.start for each in chosen.passages)
    base = url.partition("?")[0]
    assert all(each.startswith((base, "data:")) for each in visit.asked_for)
    assert visit.complaints == []


def test_the_passage_that_is_listed_is_the_one_in_the_text(
    page: Page, contents: SessionContents, exchange: Exchange
) -> None:
    ask(page)
    page.locator(".token").first.click()
    best = exchange.tokens[0].passages[0]
    sinks, size = (contents.session("book")["config"][name] for name in ("sinks", "chunk_size"))
    (text,) = contents.text("book", (best.start - sinks) // size + 1, 1)
    expect(page.locator(".read:visible li .quoted").first).to_have_text(text.strip())
    page.locator(".read:visible .where").first.click()
    expect(page.locator("#passage-where")).to_contain_text(f"Tokens {best.start} to {best.start + size - 1}")
    expect(page.locator("#passage-text")).to_have_text(text)


def test_everything_can_be_done_by_keyboard(page: Page, exchange: Exchange) -> None:
    page.get_by_role("spinbutton", name="Longest answer, tokens").fill(str(LONGEST))
    page.get_by_role("textbox", name="Question").focus()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_have_text("Answered.")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", LONGEST - 1), ("Home", 0)):
        page.keyboard.press(key)
        expect(page.locator(".token").nth(place)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".token").first).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".read:visible h5")).to_contain_text(f"token {exchange.tokens[0].position}")
    page.get_by_role("slider", name="Passage").focus()
    before = page.locator("#passage-where").text_content()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#passage-where")).not_to_have_text(before or "")


def test_a_screen_reader_hears_the_answer(page: Page, exchange: Exchange) -> None:
    ask(page)
    heard = page.locator("#heard")
    expect(heard).to_have_attribute("aria-live", "polite")
    expect(heard).to_have_text(exchange.text)
    label = page.locator(".token").first.get_attribute("aria-label")
    assert label is not None
    assert label.endswith(f"{percent(exchange.tokens[0].memory)} from memory")


def test_an_answer_can_be_stopped_and_the_next_one_comes(page: Page) -> None:
    page.get_by_role("spinbutton", name="Longest answer, tokens").fill("4096")
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".token").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#progress")).to_have_text("Stopped.")
    ask(page)


def test_markup_in_names_texts_and_questions_is_text(visit: Visit, url: str) -> None:
    page = visit.page
    open_session(page, url, MARKUP)
    page.get_by_role("slider", name="Passage").press("ArrowRight")
    expect(page.locator("#passage-text")).not_to_be_empty()
    ask(page, MARKUP)
    expect(page.locator(".question")).to_have_text(MARKUP)
    assert "img" in "".join(page.locator(".quoted").all_text_contents())
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 5
    assert page.title() == f"{MARKUP} – memcore"
    assert visit.complaints == []


def test_what_is_asked_while_a_session_is_opened_is_asked_of_that_session(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#session-name")).not_to_be_empty()
    held: list[Route] = []
    page.route("**/api/v1/session?*", lambda route: held.append(route))
    page.locator("#sessions button", has_text="book").click()
    page.get_by_role("spinbutton", name="Longest answer, tokens").fill("2")
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    with page.expect_request("**/api/v1/ask") as asked:
        held[0].continue_()
    request: Any = asked.value.post_data_json
    assert request["session"] == "book"
    expect(page.locator("#progress")).to_have_text("Answered.")
    expect(page.locator(".question")).to_have_text(QUESTION)


def test_what_goes_wrong_is_said(page: Page, model: ServedModel, url: str) -> None:
    model.memory.sessions.copy("book", "gone")
    try:
        open_session(page, url, "gone")
    finally:
        model.memory.sessions.drop("gone")
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("there is no session 'gone'")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    expect(page.locator(".exchange")).to_have_count(0)


def test_an_answer_that_the_server_does_not_end_is_complained_of(page: Page) -> None:
    told = 'data: {"type": "begin"}\n\n'
    page.route("**/api/v1/ask", lambda route: route.fulfill(content_type="text/event-stream", body=told))
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the server ended the answer")
    expect(page.locator("#progress")).to_be_empty()
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_passages_that_cannot_be_had_are_complained_of(page: Page, visit: Visit) -> None:
    ask(page)
    page.route("**/api/v1/text?*", lambda route: route.fulfill(status=500, json={"error": {"message": "it is gone"}}))
    page.locator(".token").first.click()
    expect(page.get_by_role("alert")).to_contain_text("it is gone")
    assert all(each.startswith("Failed to load resource") for each in visit.complaints)


def test_what_comes_late_of_a_session_is_not_shown_in_place_of_a_later_one(visit: Visit, url: str) -> None:
    held: list[Any] = []
    first = "**/api/v1/session?name=*img*"  # which opens by itself
    visit.page.route(first, lambda route: held.append(route))
    open_session(visit.page, url)
    with visit.page.expect_response(first):
        held[0].continue_()
    visit.page.evaluate("() => new Promise((done) => setTimeout(done, 100))")  # time to do the wrong thing
    expect(visit.page.locator("#session-name")).to_have_text("book")
    assert visit.page.title() == "book – memcore"


def test_without_its_token_the_page_stays_closed(visit: Visit, url: str) -> None:
    answer = visit.page.goto(url.partition("?")[0])
    assert answer is not None
    assert answer.status == 401
    assert visit.page.locator("#sessions").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible_and_fits(browser: Browser, url: str, size: str, scheme: Literal["light", "dark"]) -> None:
    visit = Visit(browser, size, scheme)
    open_session(visit.page, url)
    ask(visit.page)
    visit.page.locator(".token").nth(1).click()
    expect(visit.page.locator(".read:visible li .quoted").last).not_to_be_empty()
    assert violations(visit.page) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    visit.close()


def test_a_report_opens_from_a_file_without_a_network(
    browser: Browser, contents: SessionContents, exchange: Exchange, tmp_path: Path
) -> None:
    reported = [
        ReportedSession(session=contents.session(name), pieces=contents.text(name), exchanges=exchanges)
        for name, exchanges in (("book", [exchange]), (MARKUP, []))
    ]
    write_report(tmp_path / "report.html", reported, model="tiny", memory="a/memory")
    visit = Visit(browser, "phone")
    visit.context.set_offline(True)
    page, address = visit.page, (tmp_path / "report.html").as_uri()
    page.goto(address)
    expect(page.locator(".question")).to_have_text(QUESTION)
    expect(page.locator("#ask")).to_be_hidden()
    page.locator(".token").nth(2).click()
    expect(page.locator(".read:visible li")).to_have_count(min(12, len(exchange.tokens[2].passages)))
    expect(page.locator(".read:visible li .quoted").first).not_to_be_empty()
    assert violations(page) == []
    page.locator("#sessions button", has_text=MARKUP).click()
    expect(page.locator("#no-questions")).to_be_visible()
    assert page.title() == f"{MARKUP} – memcore"
    assert [each for each in visit.asked_for if not each.startswith("data:")] == [address]
    assert visit.complaints == []
    visit.close()
