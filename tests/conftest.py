"""Small things that several tests use: a tokenizer, a model, pictures, data sets in their public
layouts. What is no fixture stands in helpers.py. Names of test files are unique over all folders,
because pytest imports them by their name alone.
"""

import functools
import json
import os

import pytest
import torch
from helpers import enlarge, without_drawing, write_nlvr_split
from PIL import Image

import data
from data.nlvr.world import World
from data.shapes import Shapes
from model import MLLM, Config

torch.set_num_threads(1)  # for tensors as small as these, threads cost more than they give


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """The texts of the worlds, held-out scenes and a tokenizer of the same text are the same in
    every run: make them once."""
    plain_heldout = Shapes.heldout
    heldout = functools.cache(lambda split: plain_heldout(Shapes(), split))
    train = functools.cache(data.Tokenizer.train.__func__)  # of a class, its texts and a size

    @functools.wraps(plain_heldout)
    def some_heldout(self, split, limit=None):
        if self.n_blocks and split == "train":  # scenes of its own
            return plain_heldout(self, split, limit)
        return heldout(split)[:limit]

    def train_once(cls, texts, vocab_size):
        return train(cls, tuple(texts), vocab_size)

    with pytest.MonkeyPatch.context() as patch:
        for world in (Shapes, World):
            texts = functools.cache(lambda make=world.texts, world=world: tuple(make(world())))
            patch.setattr(world, "texts", lambda self, texts=texts: texts())
        # No test cuts the power: a disk that is waited for is most of a small checkpoint's time
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(Shapes, "heldout", some_heldout)
        patch.setattr(data.Tokenizer, "train", classmethod(train_once))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return data.Tokenizer.train(Shapes().texts(), 1024)


@pytest.fixture
def model(tokenizer):
    """Random weights, large enough that every input matters; float64, so that equal means equal to
    1e-9."""
    torch.manual_seed(0)
    config = Config(
        vocab_size=len(tokenizer), image_size=16, patch_size=8, encoder_width=16, encoder_layers=1,
        encoder_heads=2, d_model=32, n_layer=3, n_head=4, n_kv_head=2, d_ff=48,
    )  # fmt: skip
    return enlarge(MLLM(config))


@pytest.fixture
def losses_in_float64(monkeypatch):
    """The loss is taken in float32; here nothing is rounded to it, so that equal means equal."""
    plain = torch.Tensor.float
    keep = lambda x: x if x.dtype == torch.float64 else plain(x)
    monkeypatch.setattr(torch.Tensor, "float", keep)


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture
def dialogues(pictures):
    """One to three turns, no picture to two pictures, one picture in two rows."""
    a, b, c, d = pictures
    three = [("<image>how many <image> circles are there?", "2"), ("more?", "no"), ("red?", "yes")]
    return [
        data.Example([a], [("<image>is there a red circle?", "yes")]),
        data.Example([b], [("<image>", "blue square nothing")]),
        data.Example([a, c], three),
        data.Example([], [("is blue a color?", "yes"), ("is nothing?", "no")]),
        data.Example(
            [d, b],
            [("<image>what shape is the red object?", "square"), ("<image>and here?", "circle")],
        ),
    ]


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
            file = root / split / "images" / f"{i}.png"
            Image.new("RGB", (64, 64), name).convert("P").save(file)
            questions.append(["what color is the shape?", name, i])
            questions.append(["is there a red shape?", "no" if i % 2 else "yes", i])
        (root / split / "questions.json").write_text(json.dumps(questions))
    return root


@pytest.fixture
def llava(tmp_path):
    """A JSON file in LLaVA's layout beside its pictures: several turns, several pictures, none."""
    folder = tmp_path / "llava"
    folder.mkdir()

    def talk(*words):
        speakers = ("human", "gpt") * len(words)
        return [{"from": speaker, "value": value} for speaker, value in zip(speakers, words)]

    entries = []
    for i in range(30):
        colour, name = ("red", "green", "blue")[i % 3], f"{i}.{'jpg' if i % 2 else 'png'}"
        Image.new("RGB", (50 + i, 40), colour).save(folder / name)
        words = ("<image>\nWhich colour is this?", f"It is {colour}.", "Really?", "Yes.")
        entries.append({"id": str(i), "image": name, "conversations": talk(*words)})
    same = talk("<image>\n<image>\nAre these the same?", "No.")
    entries.append({"id": "two", "image": ["0.png", "2.png"], "conversations": same})
    entries.append({"id": "none", "conversations": talk("Hello.", "Hello.")})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


@pytest.fixture
def nlvr(tmp_path):
    """A folder in NLVR's layout, nlvr, as it lies in a clone."""
    root = tmp_path / "clone" / "nlvr"
    write_nlvr_split(root, "train", [(n, m) for n in range(40) for m in range(4)])
    write_nlvr_split(root, "dev", [(n, m) for n in range(5) for m in range(2)], orders=range(6))
    test = [(n, m) for n in range(3) for m in range(2)]
    write_nlvr_split(root, "test", test, flat=True, orders=(4, 2))
    write_nlvr_split(root, "hidden", [(7, 0)])
    (root / "hidden" / "hidden.json").rename(root / "hidden" / "hidden_final.json")
    return root


@pytest.fixture(scope="module")
def small(tokenizer):
    """Twenty held-out questions, a tokenizer that is there already, no pictures: for tests that
    start many runs (helpers.RUN)."""
    heldout = Shapes.heldout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "heldout", lambda self, split, limit=None: heldout(self, split, 20))
        patch.setattr(data.Tokenizer, "train", lambda texts, vocab_size: tokenizer)
        without_drawing(patch)
        yield


@pytest.fixture
def no_drawing(monkeypatch):
    """For runs whose pictures nobody looks at; fixtures of a module still draw."""
    without_drawing(monkeypatch)


@pytest.fixture(scope="module")
def nothing_drawn():
    """The same for all of a file, its fixtures too."""
    with pytest.MonkeyPatch.context() as patch:
        without_drawing(patch)
        yield
