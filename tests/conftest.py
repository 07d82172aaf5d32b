"""Small things that several tests use: a tokenizer, a model, pictures, data sets in their public layouts."""

import functools
import json

import pytest
import torch
from PIL import Image

import data
from data.shapes import Shapes
from model import MLLM, Config


torch.set_num_threads(1)  # for tensors as small as these, threads cost more than they give


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """The built-in world's text, its held-out scenes and a tokenizer of the same text are the same in every run: make them once."""
    texts = functools.cache(lambda: tuple(plain_texts(Shapes())))
    heldout = functools.cache(lambda split: plain_heldout(Shapes(), split))
    train = functools.cache(data.Tokenizer.train)
    plain_texts, plain_heldout = Shapes.texts, Shapes.heldout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "texts", lambda self: texts())
        patch.setattr(Shapes, "heldout", functools.wraps(plain_heldout)(lambda self, split, limit=None: heldout(split)[:limit]))
        patch.setattr(data.Tokenizer, "train", lambda texts, vocab_size: train(tuple(texts), vocab_size))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return data.Tokenizer.train(Shapes().texts(), 1024)


@pytest.fixture
def model(tokenizer):
    """Random weights, large enough that every input matters; float64, so that equal means equal to 1e-9."""
    torch.manual_seed(0)
    config = Config(vocab_size=len(tokenizer), image_size=16, patch_size=8, encoder_width=16, encoder_layers=1, encoder_heads=2,
                    d_model=32, n_layer=3, n_head=4, n_kv_head=2, d_ff=48)
    model = MLLM(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model


@pytest.fixture
def pictures():
    return torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def dialogues(pictures):
    """One to three turns, no picture to two pictures, one picture in two rows."""
    a, b, c, d = pictures
    return [data.Example([a], [("<image>is there a red circle?", "yes")]),
            data.Example([b], [("<image>", "blue square nothing")]),
            data.Example([a, c], [("<image>how many <image> circles are there?", "2"), ("more?", "no"), ("red?", "yes")]),
            data.Example([], [("is blue a color?", "yes"), ("is nothing?", "no")]),
            data.Example([d, b], [("<image>what shape is the red object?", "square"), ("<image>and here?", "circle")])]


@pytest.fixture
def batch_of(tokenizer, model):
    """batch_of(examples, upto=None, **encode arguments) -> the model's keyword arguments."""
    def make(examples, **kwargs):
        rows = [data.encode(e, tokenizer, model.config.n_image_tokens, **kwargs) for e in examples]
        return data.collate(rows, tokenizer.pad, model.config.image_size)
    return make


@pytest.fixture
def easy_vqa(tmp_path):
    """A folder in easy-VQA's layout."""
    root = tmp_path / "easy_vqa"
    for split, n in (("train", 40), ("test", 5)):
        (root / split / "images").mkdir(parents=True)
        questions = []
        for i in range(n):
            name = ("red", "blue")[i % 2]
            Image.new("RGB", (64, 64), name).convert("P").save(root / split / "images" / f"{i}.png")
            questions += [["what color is the shape?", name, i], ["is there a red shape?", "no" if i % 2 else "yes", i]]
        (root / split / "questions.json").write_text(json.dumps(questions))
    return root


@pytest.fixture
def llava(tmp_path):
    """A JSON file in LLaVA's layout beside its pictures: several turns, several pictures, none."""
    folder = tmp_path / "llava"
    folder.mkdir()
    entries = []
    for i in range(30):
        name = ("red", "green", "blue")[i % 3]
        Image.new("RGB", (50 + i, 40), name).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        entries.append({"id": str(i), "image": f"{i}.{'jpg' if i % 2 else 'png'}", "conversations": [
            {"from": "human", "value": "<image>\nWhich colour is this?"}, {"from": "gpt", "value": f"It is {name}."},
            {"from": "human", "value": "Really?"}, {"from": "gpt", "value": "Yes."}]})
    entries.append({"id": "two", "image": ["0.png", "2.png"], "conversations": [
        {"from": "human", "value": "<image>\n<image>\nAre these the same?"}, {"from": "gpt", "value": "No."}]})
    entries.append({"id": "none", "conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"
