"""A conversation over the cache is what the whole dialogue, read anew, would have given."""

import pytest

import data
import eval as evaluation
import train
from data import IMAGE, Row
from mma import Role
from talk import Conversation


@pytest.mark.parametrize("kind", ["mma", "causal", "prefix", "cca", "mma+cca"])
@pytest.mark.parametrize("text_first", [False, True])
def test_history_in_the_cache_is_history_read_again(model, tokenizer, pictures, kind, text_first):
    model.config.mask, model.config.text_first = kind, text_first
    asked = [(IMAGE + "is there a red circle?", [pictures[0]]), ("how many circles are there?", []),
             (f"{IMAGE}{IMAGE}what color is the square?", [pictures[1], pictures[2]]), ("is there a blue square?", [])]
    talk, whole = Conversation(model, tokenizer), Row()
    for turn, (message, images) in enumerate(asked, 1):
        said = "".join(talk.ask(message, images, max_new_tokens=5))
        row = data.encode(data.Example(images, [(message, "")]), tokenizer, model.config.n_image_tokens, upto=0, text_first=text_first)
        skip = 1 if turn > 1 else 0
        whole.ids, whole.role = whole.ids + row.ids[skip:], whole.role + row.role[skip:]
        whole.turn, whole.images = whole.turn + [turn] * len(row.ids[skip:]), whole.images + row.images
        answer = model.generate(**data.collate([whole], tokenizer.pad, 16), eos=tokenizer.eos, max_new_tokens=5)[0]
        assert said == tokenizer.decode(answer), turn
        whole.add(answer + ([] if answer[-1] == tokenizer.eos else [tokenizer.eos]), Role.ANSWER, turn)
    with pytest.raises(data.DataError, match="no room for more"):
        Conversation(model, tokenizer, room=12).ask(asked[0][0], asked[0][1])


def test_a_conversation_at_the_keyboard(tmp_path, monkeypatch, capsys):
    from PIL import Image
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    train.main(["--preset", "tiny", "--device", "cpu", "--workers", "0", "--pt-pictures", "2", "--pictures", "2", "--pt-steps", "1",
                "--steps", "1", "--limit", "5", "--val-limit", "5", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    lines = iter(["is there a red circle?", "/image none.png", f"/image {tmp_path / 'b.png'}", "and here?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    evaluation.main([str(tmp_path / "run"), "--device", "cpu", "--image", str(tmp_path / "a.png")])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and "none.png: no such picture" in out[1]
