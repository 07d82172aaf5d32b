"""What the explorer's page does in a browser, where a Chromium is installed."""

import json

import pytest
import torch
from pages import L, contents, make_run, unpack, write

from mma import Role

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture
def browse(browser):
    """browse(page, script, ...) -> what the script returns in the page; in the console nothing may
    be said."""

    def browse(page, script, **window):
        browser.console.clear()
        browser.open(page, **window)
        result = browser.js(f"(() => {{{script}}})()")
        assert browser.console == []
        return result

    return browse


LOOK = """
const $ = (selector, from = document) => [...from.querySelectorAll(selector)];
const alpha = button => {  // of a patch's veil, or of a word's colour
  const style = getComputedStyle(button);
  const from = button.closest(".cells") ? style.backgroundColor : style.backgroundImage;
  const colour = from.match(/rgba?\\(([^)]*)\\)/);
  return colour && +(colour[1].split(/[ ,/]+/)[3] ?? 1);
};
const look = b => [+b.dataset.weight, b.dataset.kind, alpha(b), b.matches(".here")];
const pixels = canvas =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
const out = [];
for (const [example, question, layer, head, direction] of [
    [0, 0, "mean", "mean", "reads"], [0, 1, 0, 3, "reads"],
    [9, 1, 2, "mean", "read"], [4, 0, "mean", 1, "read"]]) {
  const choice = {example, question, layer, head, direction}, looks = [];
  for (const [name, value] of Object.entries(choice))
    $(`#controls input[name=${name}]`).find(input => input.value === String(value)).click();
  for (const r of [0, 1]) for (const i of [1, 8, 17, 20]) {
    const token = $(`.run[data-run="${r}"] .token`)[i];
    if (i % 2) token.focus();  // a window that is not yet in front sends no event by itself
    token.dispatchEvent(i % 2 ? new FocusEvent("focus") : new MouseEvent("mouseenter"));
    looks.push({i, panels: $(".run").map(run => $(".token", run).map(look))});
  }
  out.push({...choice, looks, masks: $(".run canvas").map(pixels),
    stops: $(".run").map(run => $(".token", run).filter(b => b.tabIndex === 0).length),
    changes: $(".run").map(run => $(".map i", run).map(i => +i.dataset.change)),
    said: $(".said").map(x => x.textContent), turns: $("#controls input[name=turn]").length,
    unnamed: $(".token").filter(b => !b.getAttribute("aria-label")).length});
}
return out;
"""


def check_panel(choice, i, row, panel) -> list[float]:
    """One run's tokens, as the page shows them, against its data: what token i reads of each, or
    each of it, mean over the layers and heads that were picked. Returns these values."""
    mask, w = unpack(row)
    w = w if choice["layer"] == "mean" else w[[choice["layer"]]]
    w = (w if choice["head"] == "mean" else w[:, [choice["head"]]]).mean((0, 1))
    values = (w[i] if choice["direction"] == "reads" else w[:, i]).tolist()
    is_patch = [role == Role.IMAGE for role in row["role"]]
    strongest = {
        patch: max(1 / len(values), *(x for x, p in zip(values, is_patch) if p == patch))
        for patch in (True, False)
    }
    for j, (value, kind, alpha, here) in enumerate(panel):
        a, b = (i, j) if choice["direction"] == "reads" else (j, i)
        assert kind == ("shut" if not mask[a, b] else "opened" if b > a else "past")
        assert here == (i == j) and abs(value - values[j]) < 1e-4
        shade = value / strongest[is_patch[j]]
        if is_patch[j] or kind != "shut":
            expected = 0.7 - 0.7 * shade if is_patch[j] else 0.55 * shade
            assert abs(alpha - expected) < 0.01
    return values


def test_in_a_browser(browse, page):
    examples, different = contents(page)["examples"], set()
    for choice in browse(page, LOOK, width=1280):
        question = examples[choice["example"]]["questions"][choice["question"]]
        rows = question["turns"][-1]["rows"]
        for look in choice["looks"]:  # prompts are alike, so both runs show the same token
            of_runs = zip(rows, look["panels"])
            shown = [check_panel(choice, look["i"], row, panel) for row, panel in of_runs]
            # Patch 8; the weights are alike, so some words read alike in the first layer
            assert look["i"] != 8 or shown[0] != shown[1]
            different.add(json.dumps(look["panels"]))
        for row, pixels in zip(rows, choice["masks"]):
            mask, _ = unpack(row)
            red, _, blue, _ = torch.tensor(pixels).view(*mask.shape, 4).unbind(-1)
            assert torch.equal(red > blue + 20, mask.triu(1))
            assert torch.equal(blue > red + 20, mask.tril())
        causal, mma = choice["changes"]
        assert set(causal) == {0} and min(mma) > 0
        assert len(mma) == len(causal) == 16 * L
        assert choice["stops"] == [1, 1] and choice["unnamed"] == 0
        assert choice["turns"] == 0  # of one turn, nothing to choose
        assert all(said.startswith("answers “") for said in choice["said"])
    assert len(different) == 4 * 4  # once from each run


TURNS = """
const inputs = name => [...document.querySelectorAll(`#controls input[name=${name}]`)];
const shown = () => [inputs("turn").findIndex(input => input.checked),
  document.querySelectorAll(".run .token").length, document.querySelectorAll(".picture").length,
  document.querySelector(".said").textContent];
const out = {first: shown(), seen: []};
for (const k of [0, 1, 2, 0]) {
  inputs("turn")[k].focus();
  inputs("turn")[k].click();
  out.held = document.activeElement === inputs("turn")[k];
  document.querySelector(".run .token").focus();
  out.seen.push(shown());
}
inputs("question")[0].focus();
inputs("question")[0].dispatchEvent(new Event("change"));
out.again = [shown()[0], document.activeElement === inputs("question")[0]];
return out;
"""


def test_turns_in_a_browser(browse, talk, tokenizer, tmp_path):
    """The last one is shown first; each has its own tokens, pictures and answer; the keyboard's
    place is kept; a long question fits a phone."""
    run, page = make_run(tmp_path / "run", tokenizer, "llava", talk), tmp_path / "page.html"
    write(run, "--out", page, "--split", "all")
    out, expected = browse(page, TURNS), []
    (example,) = contents(page)["examples"]
    for t, turn in enumerate(example["questions"][0]["turns"]):
        (row,) = turn["rows"]
        said = f"answers “{row['given']}” ✗ ({turn['answer']})"
        expected.append([t, len(row["tokens"]), 1 + (t == 2), said])
    assert out["seen"] == [*expected, expected[0]] and out["first"] == expected[2]
    assert out["held"] and out["again"] == [2, True]
    assert browse(page, "return document.documentElement.scrollWidth;", width=390) <= 390
