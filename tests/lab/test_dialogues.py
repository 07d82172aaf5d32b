"""Dialogues: the same questions turn after turn, and a mask that opens in those of one turn."""

import json

import pytest
import torch
from helpers import TINY

import data
import train
from data.shapes import Shapes
from lab import dialogues
from lab.dialogues import FirstTurnMLLM, to_dialogues
from model import MLLM, Config


@pytest.mark.parametrize("again", [False, True])
def test_dialogues_ask_the_same_questions_about_the_same_pictures(again):
    alone = Shapes().draw("sft", 0, 4, 5, 0)
    made = to_dialogues(alone, again)
    asked, expected = (
        [(q.replace("<image>", ""), a) for e in some for q, a in e.turns] for some in (made, alone)
    )
    assert asked == expected
    shown = [[q.count("<image>") for q, _ in e.turns] for e in made]
    assert shown == [[1, int(again), int(again)], [1, int(again)]] * 4
    questions = range(20) if again else [i for i in range(20) if i % 5 in (0, 3)]
    pictures = [image for e in made for image in e.images]
    assert all(a is alone[i].images[0] for a, i in zip(pictures, questions, strict=True))


def test_every_second_step_has_dialogues_and_captions_stay():
    for wrap, turns in ((dialogues.half, (1, 1, 3, 1)), (dialogues.Dialogues, (1, 3, 3, 3))):
        source, steps = wrap(Shapes(), None), (("pt", 1), ("sft", 0), ("sft", 1), ("sft", 2))
        drawn = [source.draw(*step, 2, 6, 0) for step in steps]
        assert [{len(e.turns) for e in examples} for examples in drawn] == [{n} for n in turns]


def test_the_mask_of_the_first_turn_is_closed_where_a_dialogue_goes_on(tokenizer):
    examples = Shapes().draw("sft", 0, 2, 5, 0)[:5]  # dialogues of three turns and of two
    rows = [data.encode(e, tokenizer, 16) for e in (examples[0], *to_dialogues(examples))]
    config = Config(vocab_size=len(tokenizer), mask="mma", n_layer=1)
    for some in (rows, data.pack(rows, 1000)):
        batch = data.collate(some, tokenizer.pad, 64)
        columns = {name: batch[name] for name in ("role", "turn", "document") if name in batch}
        first, mma, causal = (
            model(config).context_of(mask, **columns).attention_mask[:, 0]
            for model, mask in ((FirstTurnMLLM, "mma"), (MLLM, "mma"), (MLLM, "causal"))
        )
        assert not torch.equal(mma, causal)
        document = columns.get("document", torch.zeros_like(columns["turn"]))
        for row, turns in enumerate(columns["turn"]):
            for token in range(len(turns)):
                last = int(turns[document[row] == document[row, token]].max())
                expected = causal if last > 1 else mma
                assert torch.equal(first[row, token], expected[row, token])


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("variant", ["dialogues-first", "dialogues-again"])
def test_a_run_is_asked_turn_by_turn(tmp_path, capsys, variant):
    run, file = tmp_path / "run", tmp_path / "turns.json"
    train.main([*TINY, "--variant", variant, "--mask", "mma", "--out", str(run)])
    capsys.readouterr()
    dialogues.main([str(run), "--limit", "12", "--device", "cpu", "--json", str(file)])
    (said,) = json.loads(file.read_text())["runs"]
    assert [*said["turns"]] == ["turn 1", "turn 2", "turn 3"] and 0 <= said["alone"] <= 100
    # Where the picture is shown once, two of three are saved; 16 tokens each
    saved = said["tokens"]["alone"] - said["tokens"]["dialogue"]
    assert saved > 2 * 16 - 9 if variant == "dialogues-first" else saved < 9
    assert "turn 3 " in capsys.readouterr().out
