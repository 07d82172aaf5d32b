"""What a person sees and does in the playground's page, where a Chromium is installed: by mouse, by
keyboard, in a narrow window, in the dark."""

import re

import pytest
import torch
from pages import opened, write_playground

import data
from lab import playground


def answers(browser) -> list[str]:
    said = browser.js("[...document.querySelectorAll('.answer b')].map(x => x.textContent)")
    return [text.strip() or "(nothing)" for text in said]


def check(browser, runs, kinds=("causal", "mma")) -> None:
    """The page says what PyTorch says to the scene and the question that it shows."""
    image = torch.tensor(browser.js("[...picture]"), dtype=torch.uint8).view(3, 64, 64)
    example = data.Example([image], [(data.IMAGE_TOKEN + browser.js("$('text').value"), "")])
    said = []
    for run, kind in zip(runs, kinds):
        model, tokenizer = opened(run)
        model.config.mask = kind
        batch = data.collate([data.encode(example, tokenizer, 16, upto=0)], tokenizer.pad, 64)
        ids = model.generate(**batch, eos=tokenizer.eos, max_new_tokens=32)[0]
        said.append(tokenizer.decode(ids).strip() or "(nothing)")
    assert answers(browser) == said


def test_it_opens_with_a_question_that_the_two_answer_differently(shown, half_runs):
    """It says so, and no earlier scene has one."""
    causal, mma = answers(shown)
    assert causal != mma and shown.js("$('opening').offsetHeight > 0")
    check(shown, half_runs)
    earlier, runs = shown.js("world.scenes.slice(0, number)"), [("", *opened(r)) for r in half_runs]
    assert not (earlier and playground.opening(earlier, runs)["differ"])


def test_a_scene_is_built_by_clicks_and_a_question_typed(shown, half_runs):
    b = shown
    b.click("#clear")
    assert b.js("cells") == [-1] * 16 and "0 objects" in b.js("$('objects').textContent")
    for selector, nth in (
        ("#brush input[value=blue]", 0), ("#brush input[value=triangle]", 0), ("#board button", 5),
        ("#board button", 6), ("#brush input[value=nothing]", 0), ("#board button", 6),
    ):  # fmt: skip
        b.click(selector, nth)
    assert b.js("cells") == [2 * 4 + 2 if i == 5 else -1 for i in range(16)]
    label = "document.querySelectorAll('#board button')[5].getAttribute('aria-label')"
    assert b.js(label) == "row 2, column 2: blue triangle"
    assert b.js("document.querySelectorAll('.picture img')[1].src === address")
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
    after = b.js(probabilities)
    assert b.js(rims) == [False, False] and "under mma" not in b.js(text)
    assert before[0] == after[0] and before[1] != after[1]
    check(b, half_runs, ("causal", "causal"))
    b.click(".switch", 0)
    assert b.js(rims) == [True, False]
    check(b, half_runs, ("mma", "causal"))


def test_by_keyboard_alone(shown, half_runs):
    b, weights = shown, "[...document.querySelectorAll('#runs .token')].map(x => x.dataset.weight)"
    focused = "document.activeElement.getAttribute('aria-label')"
    b.tab_to("#clear")
    b.press("Enter")
    assert set(b.js("cells")) == {-1}
    b.tab_to("#board button", back=True)
    for key in ("ArrowRight", "ArrowDown", "Tab", "ArrowRight", "Tab"):  # the second colour
        b.press(key)
    b.press("ArrowRight", 3)  # the fourth shape
    b.press("Tab", 2, shift=True)
    assert b.js(focused) == "row 2, column 2: nothing"
    b.press("Enter")
    assert b.js("cells")[5] == 1 * 4 + 3
    b.press("Delete")
    assert b.js("cells")[5] == -1
    b.tab_to("#text")
    b.press("End")
    b.press("Home", shift=True)
    b.type("is there a green diamond?")
    assert b.js("$('said').textContent") == "Right: no."
    b.tab_to("#suggestions button")
    b.press("Enter")
    assert b.js("$('text').value === questions[0]")
    b.tab_to(".switch input")
    b.press(" ")
    check(b, half_runs, ("mma", "mma"))
    before = b.js(weights)
    for name, times in (("layer", 2), ("head", 1)):
        b.tab_to(f"#controls input[name={name}]")
        b.press("ArrowRight", times)
    assert b.js("[state.layer, state.head]") == [1, 0] and before != b.js(weights)
    b.tab_to("#runs .token")
    b.press("ArrowLeft")
    assert b.js("document.activeElement.matches('.here')") and "?" in b.js(focused)
    assert b.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_shown_of_attention_and_of_the_first_token(shown):
    b = shown
    b.js("select(panels[0].row.name[3])")
    found = b.js("[...document.querySelectorAll('.bars small')].map(x => parseFloat(x.innerText))")
    logits = b.js("sides.map(c => [...answer(c.run, c.run.config.mask, $('text').value).logits])")
    for r in (0, 1):
        row = b.js(f"(({{row}}) => ({{T: row.T, w: [...weights(row)]}}))(panels[{r}])")
        tokens = f"[...document.querySelectorAll('#runs .run')[{r}].querySelectorAll('.token')]"
        read, kinds = (b.js(f"{tokens}.map(x => x.dataset.{of})") for of in ("weight", "kind"))
        expected = row["w"][3 * row["T"] : 4 * row["T"]]
        assert [float(x) for x in read] == pytest.approx(expected, abs=1e-4)
        assert kinds[4:17] == ["shut"] * 13 and ("opened" in kinds) == (r == 1)
        likely = 100 * torch.tensor(logits[r]).softmax(0).topk(5).values
        assert found[5 * r : 5 * r + 5] == pytest.approx(likely.tolist(), abs=0.06)


def test_words_that_training_never_had_are_marked(shown):
    b, marks = shown, "[...document.querySelectorAll('mark')].map(x => x.textContent)"
    ask = lambda text: b.js(f"$('text').value = '{text}'; update()")
    assert b.js(marks) == []
    ask("how many Red zebras are there!")
    assert b.js(marks) == ["Red", "zebras", "!"]
    assert b.js("document.querySelectorAll('.answer.unsure').length") == 2
    assert not re.search("[✓✗]", b.js("$('answers').textContent"))
    ask("<b>&")
    assert b.js("$('said').textContent").startswith("<b>&")
    ask("there red many?")
    assert b.js(marks) == [] and "no answer is right" in b.js("$('said').textContent")


def test_one_run_stands_on_both_sides(browser, half_runs, tmp_path):
    browser.open(write_playground(tmp_path / "page.html", half_runs[1]))
    assert browser.js("sides.map(c => c.input.checked)") == [False, True]
    assert browser.js("$('opening').hidden && number === 0 && $('text').value === questions[0]")
    check(browser, [half_runs[1]] * 2)


@pytest.mark.parametrize("dark, back, ink", [
    (False, "rgb(246, 246, 243)", "rgb(29, 31, 35)"),
    (True, "rgb(19, 21, 24)", "rgb(233, 234, 236)"),
])  # fmt: skip
def test_a_narrow_window_in_the_light_and_in_the_dark(browser, playground_page, dark, back, ink):
    browser.console.clear()
    browser.open(playground_page, width=390, height=800, dark=dark)
    beyond = """[...document.querySelectorAll("main *")].filter(x => {
      const box = x.getBoundingClientRect();
      return box.width && (box.right > innerWidth || box.left < 0);
    }).map(x => x.outerHTML.slice(0, 80))"""
    assert browser.js("document.documentElement.scrollWidth") <= 390 and browser.js(beyond) == []
    style = browser.js("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert style == [back, ink]
    pixel = """(() => { const c = panels[1].canvas.getContext("2d");
      return [...c.getImageData(panels[1].row.T - 1, 0, 1, 1).data].slice(0, 3); })()"""
    assert (sum(browser.js(pixel)) < 3 * 128) == dark  # what the mask shuts, in the page's colour
    assert browser.console == []
