"""Question before picture, both orders one after the other, and captions that leak: how rows look,
and what a run trains on."""

import json
import pickle

import pytest
from helpers import LETTERS, TINY

import data
import eval as evaluation
import train
from data import Example, encode
from engine import wings
from engine.options import arguments
from lab.variants import TextFirstTokenizer, text_first
from model import MLLM

pytestmark = pytest.mark.usefixtures("no_drawing")
TWO = Example(["a", "b"], [("is <image> the <image> red?", "no")])


def test_text_first_by_its_tokenizer_and_by_its_example(tokenizer, dialogues):
    """dot, whose tokenizer is the plain one, shows the rows of text-first in its first half."""
    ordering = TextFirstTokenizer(tokenizer.model)
    letters = {int(role): letter for letter, role in LETTERS.items()}
    assert "".join(letters[r] for r in encode(TWO, ordering, 2).role) == "tQQQQVVVVQAA"
    caption = Example(["a"], [("<image>\n", "red")])
    for example in (*dialogues, TWO, caption, Example(["a"], [("<image>\nis it?\n", "no")])):
        row, expected = encode(text_first(example), tokenizer, 3), encode(example, ordering, 3)
        assert (row.ids, row.role, row.turn) == (expected.ids, expected.role, expected.turn)
        assert all(a is b for a, b in zip(row.images, expected.images, strict=True))


@pytest.mark.parametrize("stage, first, last", [("pt", (0,), (1,)), ("sft", (0, 1), (2, 3))])
def test_both_orders_change_over_half_way(stage, first, last):
    """DOT: the first half of each stage is [question, picture], the second half [picture,
    question]; it answers the latter. The source can be sent to a worker."""
    args = arguments([*TINY, "--variant", "dot", "--steps", "4"])
    variant, plain = wings.get(args), data.load("shapes")
    source = pickle.loads(pickle.dumps(variant.wrap_source(plain, args)))
    for step in (*first, *last):
        drawn = plain.draw(stage, step, 2, 2, 0)
        expected = [text_first(e) if step in first else e for e in drawn]
        assert [e.turns for e in source.draw(stage, step, 2, 2, 0)] == [e.turns for e in expected]
    asked, same = ([e.turns for e in some.heldout("test", 3)] for some in (source, plain))
    assert asked == same and variant.tokenizer_class is data.Tokenizer


def test_both_orders_of_your_own_folder_are_checked_as_any(llava, tmp_path, capsys):
    (llava.parent / "2.png").write_bytes(b"broken")
    options = ["--data", "llava", "--source", str(llava), "--image-size", "32", "--variant", "dot"]
    train.main([*TINY, *options, "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "2 of 32 entries are damaged" in out and "0 training rows are longer" in out


@pytest.mark.parametrize("name", ["cca", "text-first", "leaky-captions"])
def test_a_run_of_a_variant_is_opened_with_its_classes(tmp_path, name, capsys):
    """The last one trains, though the picture reads its caption: an honest mask does not allow
    that."""
    out, file, variant = tmp_path / "run", tmp_path / "asked.json", wings.find(name)
    train.main([*TINY, "--variant", name, "--out", str(out)])
    assert ("the training loss says nothing" in capsys.readouterr().out) == ("leaky" in name)
    evaluation.main([str(out), "--device", "cpu", "--limit", "100", "--json", str(file)])
    record, (result,) = (
        json.loads((out / "run.json").read_text()),
        json.loads(file.read_text())["runs"],
    )
    assert record["args"]["variant"] == name and result["accuracy"] == record["accuracy"]
    model, tokenizer = evaluation.open_run(out)
    assert type(model) is (variant.model_class or MLLM)
    assert type(tokenizer) is variant.tokenizer_class
