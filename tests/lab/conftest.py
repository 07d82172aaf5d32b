"""Pages of small runs, of the explorer and of the playground, and a browser."""

import json
import os

import pytest
from helpers import ROOT
from pages import CHROMIUM, make_run, write, write_playground

from lab import explore


@pytest.fixture(scope="module")
def short_answers():
    """What random weights say seldom ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "LONGEST", 8)
        yield


@pytest.fixture
def talk(llava):
    """One dialogue of three turns, with a second picture in the last."""
    said = "<image>Which colour is this?", "Red.", "And " + "this one over there " * 9 + "?", "No."
    words = [*said, "<image>And here?", "Green."]
    speakers = ("human", "gpt") * 3
    messages = [{"from": speaker, "value": value} for speaker, value in zip(speakers, words)]
    entry = {"id": "talk", "image": ["0.png", "2.png"], "conversations": messages}
    llava.write_text(json.dumps([entry]))
    return llava


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("explore")
    return [make_run(folder / mask, tokenizer, mask=mask) for mask in ("causal", "mma")]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write(*runs, "--out", path)
    return path


@pytest.fixture(scope="session")
def half_runs():
    """For the playground: causal and mma, which lie in half precision in the repository. Answers of
    random weights seldom end."""
    return [str(ROOT / "weights" / name) for name in ("shapes-causal", "shapes-mma")]


@pytest.fixture(scope="session")
def playground_page(half_runs, tmp_path_factory):
    return write_playground(tmp_path_factory.mktemp("page") / "new" / "page.html", *half_runs)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH")
    if os.name != "posix":
        pytest.skip("Chromium's pipe is opened the POSIX way")
    from browser import Browser

    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, playground_page):
    """The browser with the playground, freshly opened; nothing may go wrong in its console."""
    browser.console.clear()
    browser.open(playground_page)
    yield browser
    assert browser.console == []
