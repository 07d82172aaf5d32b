"""What a person sees and does in the playground's page, where a Chromium is installed: by mouse, by
keyboard, in a narrow window, in the dark. The page holds the runs of weights/: answers of random
weights seldom end, and every letter typed would wait for 32 tokens of each run."""

import re
from pathlib import Path

import pytest
import torch
from pages import opened, write_playground

import data
from lab import playground

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


@pytest.fixture(scope="module")
def half_runs():
    return [str(WEIGHTS / name) for name in ("shapes-causal", "shapes-mma")]


@pytest.fixture(scope="module")
def playground_page(half_runs, tmp_path_factory):
    return write_playground(tmp_path_factory.mktemp("page") / "page.html", *half_runs)


def answers(browser) -> list[str]:
    return browser.js("[...document.querySelectorAll('.answer b')].map(x => x.textContent)")


def expected_answers(browser, runs, kinds) -> list[str]:
    """What PyTorch says to the scene and the question that the page shows."""
    image = torch.tensor(browser.js("[...picture]"), dtype=torch.uint8).view(3, 64, 64)
    said = []
    for run, kind in zip(runs, kinds):
        model, tokenizer = opened(run)
        model.config.mask = kind
        e = data.Example([image], [(data.IMAGE_TOKEN + browser.js("$('text').value"), "")])
        batch = data.collate([data.encode(e, tokenizer, 16, upto=0)], tokenizer.pad, 64)
        ids = model.generate(**batch, eos=tokenizer.eos, max_new_tokens=32)[0]
        said.append(tokenizer.decode(ids).strip() or "(nothing)")
    return said


def check(browser, runs, kinds=("causal", "mma")):
    found = [text.strip() or "(nothing)" for text in answers(browser)]
    assert found == expected_answers(browser, runs, kinds)


def test_it_opens_with_a_question_that_the_two_answer_differently(shown, half_runs):
    """It says so, and no earlier scene has one."""
    causal, mma = answers(shown)
    assert causal != mma and shown.js("$('opening').offsetHeight > 0")
    check(shown, half_runs)
    earlier, runs = shown.js("world.scenes.slice(0, number)"), [("", *opened(r)) for r in half_runs]
    assert not (earlier and playground.opening(earlier, runs)["differ"])


def test_a_scene_is_built_by_clicks_and_a_question_typed(shown, half_runs):
    """Each time the page shows what PyTorch says."""
    b, was = shown, shown.js("cells")
    check(b, half_runs)
    b.click("#clear")
    assert b.js("cells") == [-1] * 16 and "0 objects" in b.js("$('objects').textContent")
    b.click("#brush input[value=blue]")
    b.click("#brush input[value=triangle]")
    b.click("#board button", 5)
    b.click("#board button", 6)
    b.click("#brush input[value=nothing]")
    b.click("#board button", 6)
    kind = 2 * 4 + 2
    assert b.js("cells") == [kind if i == 5 else -1 for i in range(16)] and was != b.js("cells")
    label = "document.querySelectorAll('#board button')[5].getAttribute('aria-label')"
    assert b.js(label) == "row 2, column 2: blue triangle"
    assert b.js("document.querySelectorAll('.picture img')[1].src === address")
    b.js("$('text').select()")
    b.click("#text")
    b.js("$('text').select()")
    b.type("how many blue triangles are there?")
    assert b.js("$('said').textContent") == "Right: 1."
    check(b, half_runs)
    b.click("#another")
    assert b.js("world.scenes.some(s => s.cells.join() === cells.join())")
    b.click("#suggestions button", 3)
    assert b.js("$('text').value === questions[3]") and "Right: " in b.js("$('said').textContent")
    check(b, half_runs)


def test_the_switch(shown, half_runs):
    """It opens and shuts the rectangle in the same weights: the mask, the answer and what it was
    likely to be change on that side alone."""
    b, text = shown, "$('answers').innerText"
    rims = "[...document.querySelectorAll('.rim')].map(x => x.getAttribute('d') !== '')"
    probabilities = "[...document.querySelectorAll('.bars')].map(x => x.innerText)"
    assert b.js(rims) == [False, True]
    before = b.js(probabilities)
    b.click(".switch", 1)
    assert b.js(rims) == [False, False] and "under mma" not in b.js(text)
    after = b.js(probabilities)
    assert before[0] == after[0] and before[1] != after[1]
    check(b, half_runs, ("causal", "causal"))
    b.click(".switch", 0)
    assert b.js(rims) == [True, False]
    check(b, half_runs, ("mma", "causal"))


def test_a_scene_by_keyboard_alone(shown):
    b = shown
    b.tab_to("#board button")
    b.press("ArrowRight")
    b.press("ArrowDown")
    assert b.js("cells")[5] != -1
    b.press("Delete")
    assert b.js("cells")[5] == -1
    b.press("Tab")
    b.press("ArrowRight")  # the second colour
    b.press("Tab")
    b.press("ArrowRight", 3)  # the fourth shape
    b.press("Tab", shift=True)
    b.press("Tab", shift=True)
    assert b.js("document.activeElement.getAttribute('aria-label')") == "row 2, column 2: nothing"
    b.press("Enter")
    assert b.js("cells")[5] == 1 * 4 + 3
    b.tab_to("#another")
    b.press(" ")
    b.tab_to("#clear")
    b.press("Enter")
    assert set(b.js("cells")) == {-1}


def test_all_else_by_keyboard_alone(shown, half_runs):
    b, weights = shown, "[...document.querySelectorAll('#runs .token')].map(x => x.dataset.weight)"
    b.tab_to("#clear")
    b.press("Enter")
    b.tab_to("#text")
    b.press("End")
    b.press("Home", shift=True)
    b.press("Backspace")
    assert b.js("$('text').value") == ""
    b.type("is there a green diamond?")
    assert b.js("$('said').textContent") == "Right: no."
    check(b, half_runs)
    b.tab_to("#suggestions button")
    b.press("Enter")
    assert b.js("$('text').value === questions[0]")
    b.tab_to(".switch input")
    b.press(" ")
    check(b, half_runs, ("mma", "mma"))
    b.tab_to("#controls input[name=layer]")
    before = b.js(weights)
    b.press("ArrowRight", 2)
    b.tab_to("#controls input[name=head]")
    b.press("ArrowRight")
    assert b.js("[state.layer, state.head]") == [1, 0]
    assert before != b.js(weights)
    b.tab_to("#runs .token")
    b.press("ArrowLeft")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert b.js("document.activeElement.matches('.here')") and "?" in b.js(focused)
    ring = b.js("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_what_is_shown_of_attention_and_of_the_first_token(shown):
    b = shown
    b.js("select(panels[0].row.name[3])")
    for r in (0, 1):
        row = b.js(f"(({{row}}) => ({{T: row.T, w: [...weights(row)]}}))(panels[{r}])")
        tokens = f"[...document.querySelectorAll('#runs .run')[{r}].querySelectorAll('.token')]"
        weights = b.js(f"{tokens}.map(x => +x.dataset.weight)")
        kinds = b.js(f"{tokens}.map(x => x.dataset.kind)")
        T = row["T"]
        assert max(abs(x - y) for x, y in zip(weights, row["w"][3 * T : 4 * T])) < 1e-4
        assert kinds[4:17] == ["shut"] * 13 and ("opened" in kinds) == (r == 1)
    found = b.js(
        "[...document.querySelectorAll('.bars small')].map(x => parseFloat(x.textContent))"
    )
    logits = b.js("sides.map(c => [...answer(c.run, c.run.config.mask, $('text').value).logits])")
    for r in (0, 1):
        expected = torch.tensor(logits[r]).softmax(0).topk(5).values
        shown_ = torch.tensor(found[5 * r : 5 * r + 5])
        assert (shown_ - 100 * expected).abs().max() < 0.06


def test_words_that_training_never_had_are_marked(shown):
    b = shown
    marks = "[...document.querySelectorAll('mark')].map(x => x.textContent)"
    assert b.js(marks) == []
    b.js("$('text').value = ''")
    b.click("#text")
    b.type("how many Red zebras are there!")
    assert b.js(marks) == ["Red", "zebras", "!"]
    assert b.js("document.querySelectorAll('.answer.unsure').length") == 2
    assert not re.search("[✓✗]", b.js("$('answers').textContent"))
    b.js("$('text').value = '<b>&'; update()")
    assert b.js("$('said').textContent").startswith("<b>&")
    b.js("$('text').value = 'there red many?'; update()")
    assert b.js(marks) == [] and "no answer is right" in b.js("$('said').textContent")


def test_one_run_stands_on_both_sides(browser, half_runs, tmp_path):
    browser.open(write_playground(tmp_path / "page.html", half_runs[1]))
    assert browser.js("sides.map(c => c.input.checked)") == [False, True]
    assert browser.js("$('opening').hidden && number === 0 && $('text').value === questions[0]")
    check(browser, [half_runs[1]] * 2)


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_in_the_light_and_in_the_dark(browser, playground_page, dark, tmp_path):
    browser.console.clear()
    browser.open(playground_page, width=390, height=800, dark=dark)
    wide = browser.js("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == 390
    beyond = """[...document.querySelectorAll("main *")].filter(x => {
      const box = x.getBoundingClientRect();
      return box.width && (box.right > innerWidth || box.left < 0);
    }).map(x => x.outerHTML.slice(0, 80))"""
    assert browser.js(beyond) == []
    back = browser.js("getComputedStyle(document.body).backgroundColor")
    ink = browser.js("getComputedStyle(document.body).color")
    assert (back, ink) == (
        ("rgb(19, 21, 24)", "rgb(233, 234, 236)")
        if dark
        else ("rgb(246, 246, 243)", "rgb(29, 31, 35)")
    )
    pixel = """(() => { const c = panels[1].canvas.getContext("2d");
      return [...c.getImageData(panels[1].row.T - 1, 0, 1, 1).data].slice(0, 3); })()"""
    assert (sum(browser.js(pixel)) < 3 * 128) == dark  # what the mask shuts, in the page's colour
    browser.click("#board button", 15)
    assert browser.js("document.activeElement.closest('#board') !== null")
    assert browser.console == []
