"""Takes the picture of docs/serve.md: Gemma 3 270M asked on the page for a fact hidden in the language reference.

Needs a Chromium; ``make page-picture`` has the rest.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import expect, sync_playwright

import memcore
from memcore.demo.text import choose_facts, first_tokens, hide, language_reference
from memcore.demo.weights import NAME, demo_model_path
from memcore.model_source import load_model
from memcore.serving.app import Application
from memcore.serving.guard import new_token
from memcore.serving.run import address, listening, serve
from memcore.serving.served_model import ServedModel
from memcore.serving.tokenizers import Tokenizers
from memcore.session_contents import SessionContents

PICTURE = Path(__file__).parents[1] / "docs" / "_assets" / "serve.png"
MILLISECONDS = 600_000


def main() -> None:
    """Read, serve, ask, choose a token, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=6_000, help="tokens of the text")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    model, tokenizer = load_model(str(demo_model_path()), dtype="float32")
    memcore.wrap(model, window=512, chunk_size=32, top_k=16)
    facts = choose_facts(4, 0, until=1 - 512 / given.tokens)
    text = hide(facts, first_tokens(language_reference(), given.tokens, tokenizer))
    memcore.Session(model, "language reference", tokenizer).ingest(text)
    served = ServedModel(model, tokenizer, NAME)
    contents = SessionContents(served.memory.sessions, Tokenizers(tokenizer))
    token, listener = new_token(), listening("127.0.0.1", 0)
    servers: list[Any] = []
    app = Application(contents, served, token=token)
    thread = threading.Thread(target=serve, args=(app, listener), kwargs={"begun": servers.append})
    thread.start()
    try:
        take(address("127.0.0.1", listener, token), facts[2].prompt, given.out)
    finally:
        servers[0].should_exit = True
        thread.join()


def take(url: str, question: str, out: Path) -> None:
    """Ask on the page, choose the first token of the answer, and take the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1200}, color_scheme="light")
        page.set_default_timeout(MILLISECONDS)
        page.goto(url)
        page.get_by_role("spinbutton").fill("8")
        page.get_by_role("textbox", name="Question").fill(question)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#progress")).to_have_text("Answered.", timeout=MILLISECONDS)
        page.locator(".token").first.click()
        expect(page.locator(".read:visible li .quoted").last).not_to_be_empty()
        page.locator(".read:visible .where").first.click()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
