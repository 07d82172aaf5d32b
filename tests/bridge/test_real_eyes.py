"""A decoder from a Hugging Face folder gets the eyes of a run: a small random one, with a tokenizer
of SmolLM2's kind."""

import json

import pytest
import torch
from helpers import ROOT, weights_of

import data
from bridge.chat import ChatTokenizer
from bridge.pretrained import OwnEncoderMLLM
from engine.optimizers import freeze, make_optimizers
from eval import open_run
from lab import eyes, talk, text_loss
from mma import Role

hf = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from families import write_folder  # noqa: E402 - needs tokenizers

pytestmark = pytest.mark.usefixtures("nothing_drawn")

SEEING = ROOT / "weights" / "shapes-causal"
FEW = (
    "--preset smollm2 --device cpu --workers 0 --pt-pictures 2 --pictures 2 --pt-steps 2 --steps 2 "
    "--limit 2 --val-limit 2 --save-every 1 --lr 0.01"
).split()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """(folder, transformers' model)."""
    folder = tmp_path_factory.mktemp("smol")
    size = write_folder(folder, "smollm2")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
        max_position_embeddings=512,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return folder, model


def line_of(llm, *more) -> list[str]:
    return ["--encoder", str(SEEING), "--llm", str(llm[0]), *FEW, *more]


@pytest.fixture(scope="module")
def run(llm, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    eyes.main(line_of(llm, "--out", str(out)))
    return out


def test_it_is_put_together_from_a_run_and_a_folder(llm, run):
    """Encoder and embedding stay as they are in stage 2; the projector's rate is apart."""
    args = eyes.options(line_of(llm, "--lr", "0.00005"))
    model, tokenizer = eyes.put_together(args)
    saved = torch.load(SEEING / "model.pt", weights_only=True)["weights"]
    for name, values in model.encoder.state_dict().items():
        assert torch.equal(values, saved[f"encoder.{name}"])
    assert type(model) is OwnEncoderMLLM and type(tokenizer) is ChatTokenizer
    ids = torch.tensor([tokenizer.encode("which colour is this? it is red.")])
    with torch.no_grad():
        ours = model.head(model(ids, torch.full_like(ids, int(Role.TEXT))))[..., :-1]
        torch.testing.assert_close(ours, llm[1](ids).logits, rtol=0, atol=1e-4)
    before, after = model.state_dict(), weights_of(run)
    moved = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"projector", "blocks", "norm"}
    for stage, rates in (("pt", [5e-5, 1e-3]), ("sft", [5e-5, 2e-4])):
        freeze(model, args.freeze)
        optimizers = make_optimizers(model, args, stage)
        assert [o.defaults["lr"] for o in optimizers] == pytest.approx(rates)
        assert len(optimizers[1].param_groups[0]["params"]) == 4  # the projector's


@pytest.mark.parametrize("other_end", [False, True])
def test_talk_over_the_cache_says_what_the_dialogue_read_anew_gives(run, other_end):
    """A picture first, then questions without one, in the template's form; also where another id
    ends an answer (the first of the first one): the template's end stands in its place."""
    model, tokenizer = open_run(run)
    conversation, whole, pending = talk.Conversation(model, tokenizer), data.Row(), []
    for turn, question in enumerate(("is there a red circle?", "What is red?", "And blue?"), 1):
        images = [] if turn > 1 else [SEEING / "example.png"]
        message = data.IMAGE_TOKEN * len(images) + question
        row = data.encode(data.Example(images, [(message, "")]), tokenizer, 16, upto=0)
        if turn > 1:
            whole.add(pending, Role.ANSWER, turn - 1)
            whole.add(tokenizer.next, Role.TEXT, turn)
        first = len(tokenizer.start) if turn > 1 else 0
        for i, role in zip(row.ids[first:], row.role[first:]):
            whole.add([i], Role(role), turn)
        whole.images += row.images
        batch = data.collate([whole], tokenizer.pad, 64)
        if other_end and turn == 1:
            tokenizer.ends += model.generate(**batch, eos=-1, max_new_tokens=1)[0]
        answer = model.generate(**batch, eos=tokenizer.ends, max_new_tokens=6)[0]
        said = "".join(conversation.ask(message, images, max_new_tokens=6))
        assert said == tokenizer.decode(answer)
        assert conversation.T == len(whole.ids) + len(answer) - 1  # its last id is not read yet
        assert len(answer) == 1 or not other_end or turn > 1
        pending = [i for i in answer if i not in tokenizer.ends] + tokenizer.end


def test_the_loss_on_plain_text_before_and_after(llm, run, capsys, tmp_path):
    (file := tmp_path / "text.txt").write_text("it is red.\n\nwhich colour is this? it is blue.\n")
    before, after = text_loss.measure([run], file.read_text(), "cpu")
    total = 0.0
    _, tokenizer = open_run(run)
    for text in ("it is red.", "which colour is this? it is blue."):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():  # theirs has no row for <image>: add ours, the mean of the others
            logits = llm[1](ids).logits[0, :-1]
            logits = torch.cat([logits, logits.mean(-1, keepdim=True)], -1)
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    assert before["loss"] == pytest.approx(total / before["tokens"], abs=1e-4)
    assert before["mask"] == "before" and after["mask"] == "mma"
    assert after["loss"] != before["loss"]
    numbers = tmp_path / "numbers.json"
    text_loss.main([str(run), "--text", str(file), "--device", "cpu", "--json", str(numbers)])
    assert f"{after['loss']:.3f}" in capsys.readouterr().out
    assert json.loads(numbers.read_text()) == [before, after]


def test_it_rehearses_what_it_said(llm, monkeypatch, tmp_path):
    """Its answers are written down and drawn in every step; one that says nothing cannot."""
    said, drawn = [data.Example([], [("what is red?", "it is red.")])], []
    monkeypatch.setattr(eyes, "own_answers", lambda model, tokenizer: said)
    monkeypatch.setattr(eyes.Rehearsal, "draw", lambda *args: drawn.append(args[1]) or said)
    eyes.main(line_of(llm, "--rehearse", "2", "--out", str(tmp_path / "run")))
    assert json.loads((tmp_path / "run" / "rehearsal.json").read_text()) == {
        "what is red?": "it is red."
    }
    assert {*drawn} == {"pt", "sft"}
    said.clear()
    with pytest.raises(SystemExit, match="answers none of the prompts"):
        eyes.main(line_of(llm, "--rehearse", "2", "--out", str(tmp_path / "none")))


@pytest.mark.parametrize("command,says", [
    (lambda llm, out: eyes.main(line_of(llm, "--fresh", "--out", out)), "--fresh belongs to runs"),
    (lambda llm, out: eyes.main(line_of(llm, "--template", "no", "--out", out)), "cannot be read"),
    (lambda llm, out: text_loss.main([str(SEEING)]), "not a run of lab.eyes"),
    (lambda llm, out: text_loss.main([str(SEEING), "--text", out]), "cannot be read"),
])  # fmt: skip
def test_mistakes_are_one_line(llm, tmp_path, command, says):
    with pytest.raises(SystemExit, match=says) as exit:
        command(llm, str(tmp_path / "none"))
    assert "\n" not in str(exit.value)
