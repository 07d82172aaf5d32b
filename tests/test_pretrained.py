"""Parity with transformers on tiny random checkpoints that it writes itself: hidden states and logits."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

import data
import eval as evaluation
import train
from data import DataError
from data.chat import TEMPLATES, read_tokenizer
from mma import Role, attention_mask
from pretrained import load

hf = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
CLOSE = dict(rtol=1e-4, atol=1e-4)
SIZES = dict(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256,
             pad_token_id=0)


def decoder_of(kind: str):
    torch.manual_seed(1)
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=2, rope_theta=50_000.0, rms_norm_eps=1e-5))
    if kind == "tied":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=4, tie_word_embeddings=True))
    if kind == "mistral":
        return hf.MistralForCausalLM(hf.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=64, head_dim=8))
    if kind == "phi3":
        return hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, num_key_value_heads=2))
    factors = dict(short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.0, 2.0, 3.0, 5.0])
    return hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, num_key_value_heads=4, original_max_position_embeddings=32,
                                            rope_scaling=dict(type="longrope", **factors)))


def scramble(model):
    """Weights large enough that every input matters; norms that are not one."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() > 1 else 0.2) + (1.0 if p.dim() == 1 else 0.0))
    return model.eval()


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """(folder, model): pictures of 33 pixels, patches of 8: four along a side, and a pixel over."""
    torch.manual_seed(0)
    config = hf.SiglipVisionConfig(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=33,
                                   patch_size=8)
    model, folder = scramble(hf.SiglipVisionModel(config)), tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def make(kind, **options):
        model, folder = scramble(decoder_of(kind)), tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder, **options)
        return folder, model
    return make


def text(B: int, T: int) -> torch.Tensor:
    return torch.randint(3, 90, (B, T), generator=torch.Generator().manual_seed(5))


def test_the_encoder(vision, saved):
    folder, theirs = vision
    ours = load(folder, saved("llama")[0])
    images = torch.randint(256, (2, 3, 33, 33), dtype=torch.uint8)
    expected = theirs(pixel_values=(images.float() - 127.5) / 127.5).last_hidden_state
    torch.testing.assert_close(ours.encoder(images), expected, **CLOSE)
    pooled = load(folder, saved("llama")[0], pool=2)
    assert pooled.config.n_image_tokens == 4
    torch.testing.assert_close(pooled.encoder(images)[:, 3], expected.view(2, 4, 4, 32)[:, 2:, 2:].mean((1, 2)), **CLOSE)


@pytest.mark.parametrize("kind,T", [("llama", 20), ("tied", 20), ("mistral", 20), ("phi3", 20), ("long-rope", 31), ("long-rope", 40)])
def test_the_decoder(vision, saved, kind, T):
    """Hidden states and logits, without cache; a batch with padding; greedy generation with the cache. 32 is long-rope's original
    length, so 31 tokens lie below it and 40 above."""
    folder, theirs = saved(kind)
    ours = load(vision[0], folder, mask="causal").eval()
    ids = text(3, T)
    role = torch.full_like(ids, Role.TEXT)
    role[1, T - 4:] = Role.PAD
    expected = theirs(ids, attention_mask=(role > 0).long(), output_hidden_states=True)
    hidden, real = ours(ids, role), role > 0
    torch.testing.assert_close(hidden[real], expected.hidden_states[-1][real], **CLOSE)
    torch.testing.assert_close(ours.head(hidden)[real], expected.logits[real], **CLOSE)
    n = 1 if T == 31 else 6  # past the original length transformers changes the positions of what it has cached, we do not
    said = theirs.generate(ids[:1], max_new_tokens=n, do_sample=False, eos_token_id=None)[0, T:].tolist()
    assert ours.generate(ids[:1], role[:1], eos=-1, max_new_tokens=n)[0] == said


def test_mma_through_their_llama(vision, saved):
    """The mask, as a 4-D mask, through transformers' own Llama: our logits."""
    folder, theirs = saved("llama")
    ours = load(vision[0], folder, mask="mma").eval()
    role = torch.tensor([[1] + [2] * 16 + [3] * 5 + [4] * 3, [1, 1, 1] + [2] * 16 + [3] * 3 + [4] * 2 + [0]])
    ids, images = text(*role.shape), torch.randint(256, (2, 3, 33, 33), dtype=torch.uint8)
    picture = torch.arange(2)
    mask = attention_mask("mma", role)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    x = ours.embed_row(ids, role, images, picture)
    expected = theirs(inputs_embeds=x, attention_mask=bias, position_ids=torch.arange(role.shape[1])[None]).logits
    got = ours.head(ours(ids, role, images, picture))
    torch.testing.assert_close(got[role > 0], expected[role > 0], **CLOSE)
    causal = ours.head(ours(ids, role, images, picture, kind="causal"))
    assert (causal - got)[role == Role.ANSWER].abs().max() > 0.01


def test_shards_and_dtype(vision, saved):
    folder, theirs = saved("llama", max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = load(vision[0], folder, dtype=torch.bfloat16, pool=4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not any(p.is_meta for p in model.parameters())
    torch.testing.assert_close(model.blocks[2].down.weight, theirs.model.layers[2].mlp.down_proj.weight.bfloat16())
    role = torch.tensor([[1, 2, 3, 4]])
    hidden = model(text(1, 4), role, torch.randint(256, (1, 3, 33, 33), dtype=torch.uint8), torch.tensor([0]))
    assert hidden.dtype == torch.bfloat16 and hidden.isfinite().all()


@pytest.mark.parametrize("change,says", [
    ({"model.layers.1.mlp.up_proj.weight": None}, "blocks.1.up.weight .48, 32. is missing"),
    ({"model.layers.1.mlp.side.weight": (2,)}, "model.layers.1.mlp.side.weight .2. in model.safetensors is not expected"),
    ({"model.layers.7.mlp.up_proj.weight": (48, 32)}, "model.layers.7.mlp.up_proj.weight .* is not expected"),
    ({"model.norm.weight": (33,)}, "model.norm.weight has the shape .33.: norm.weight would be .33., not .32."),
])
def test_every_tensor_is_accounted_for(vision, saved, change, says):
    folder, _ = saved("llama")
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name, shape in change.items():
        tensors.pop(name, None) if shape is None else tensors.update({name: torch.zeros(shape)})
    safetensors.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=says):
        load(vision[0], folder)


@pytest.mark.parametrize("change,says", [
    ({"model_type": "gpt2"}, "model_type is 'gpt2'"), ({"hidden_act": "gelu"}, "hidden_act"), ({"attention_bias": True}, "attention_bias"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "positions of the kind"), ({"head_dim": 16}, "head_dim"),
])
def test_what_would_compute_something_else_is_refused(vision, saved, change, says):
    folder, _ = saved("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(DataError, match=says):
        load(vision[0], folder)


def test_damaged_folders_are_named(vision, saved, tmp_path):
    with pytest.raises(DataError, match="config.json: no such file"):
        load(vision[0], tmp_path)
    folder, _ = saved("llama")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="model.safetensors: not readable"):
        load(vision[0], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no .*safetensors"):
        load(vision[0], folder)
    with pytest.raises(DataError, match="longer than its sliding window of 64"):
        load(vision[0], saved("mistral")[0], max_tokens=65)


# ----------------------------------------------------------------------------------------------- tokenizers, and training from there

@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A Llama's folder with a tokenizer: sentencepiece as Llama's (unk 0, bos 1, eos 2), and Phi-3's added tokens behind it."""
    folder, model = tmp_path_factory.mktemp("chat"), io.BytesIO()
    words = ["which colour is this?", "it is red.", "it is green.", "it is blue.", "really?", "yes.",
             "USER: ASSISTANT: [INST] [/INST] < | >", TEMPLATES["vicuna"].start]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(words * 3), model_writer=model, vocab_size=400, hard_vocab_limit=False,
                                             model_type="bpe", byte_fallback=True, character_coverage=1.0, minloglevel=2)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    added = {"<|user|>": size, "<|assistant|>": size + 1, "<|end|>": size + 2}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(i): {"content": t} for t, i in added.items()}}))
    torch.manual_seed(2)
    scramble(hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, "vocab_size": size + 5}, num_key_value_heads=2))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_round_trips(chat, name):
    """A dialogue is what the template says, piece by piece; what a user writes is never a special token; answers come back as written."""
    tokenizer, form = read_tokenizer(chat, name), TEMPLATES[name]
    dialogue = data.Example(["p"], [("<image>which colour is this?", "it is red."), ("<|end|></s>really?", "yes.")])
    row = data.encode(dialogue, tokenizer, 2)

    def text(ids):
        return "".join("<image>" if i == tokenizer.image else tokenizer.piece(i) for i in ids)
    expected = (form.start + "<image><image> which colour is this?" + form.opening + " it is red." + form.end + form.next
                + " <|end|></s>really?" + form.opening + " yes." + form.end)
    squeeze = str.maketrans("", "", " ")
    assert text(row.ids).translate(squeeze) == expected.translate(squeeze)
    assert row.ids.count(tokenizer.end[0]) == (2 if name != "phi-3" else 4)  # Phi-3 ends messages as it ends answers
    answers = [i for i, r in zip(row.ids, row.role) if r == Role.ANSWER]
    assert tokenizer.decode(answers[:answers.index(tokenizer.eos)]) == "it is red." and answers[-1] == tokenizer.eos
    assert len(tokenizer) == tokenizer.image + 1 and max(row.ids) == tokenizer.image


def test_a_template_that_does_not_fit_is_refused(chat, tmp_path):
    (tmp_path / "config.json").write_text((chat / "config.json").read_text())
    (tmp_path / "tokenizer.model").write_bytes((chat / "tokenizer.model").read_bytes())
    with pytest.raises(DataError, match="'phi-3' needs the special token <.user.>"):
        read_tokenizer(tmp_path, "phi-3")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(DataError, match="tokenizer.model: no such file"):
        read_tokenizer(tmp_path, "vicuna")


def test_training_starts_from_pretrained_weights(chat, vision, llava, tmp_path, capsys):
    line = (f"--data llava --source {llava} --pt-source {llava} --llm {chat} --vision {vision[0]} --template vicuna --pool 2 "
            "--preset tiny --device cpu --workers 0 --pt-pictures 2 --pictures 2 --limit 3 --val-limit 3").split()
    start = load(vision[0], chat, pool=2, vocab_size=len(read_tokenizer(chat, "vicuna")))
    torch.testing.assert_close(start.embed.weight[-1], start.embed.weight[:-1].mean(0))  # the new token

    def changed(name, *steps):
        train.main([*line, *steps, "--out", str(tmp_path / name)])
        after = torch.load(tmp_path / name / "model.pt", weights_only=True)["weights"]
        return {n.split(".")[0] for n, p in start.named_parameters() if not torch.equal(p, after[n])}
    assert changed("pt", "--pt-steps", "1", "--steps", "0") == {"projector"}
    assert changed("both", "--pt-steps", "1", "--steps", "1") >= {"projector", "blocks", "embed", "unembed", "norm"}
    assert "encoder" not in changed("again", "--pt-steps", "1", "--steps", "1", "--pt-freeze", "encoder", "projector")
    capsys.readouterr()
    evaluation.main([str(tmp_path / "both"), "--device", "cpu", "--limit", "2"])
    assert "overall" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.arguments(["--llm", str(chat)])


def test_the_papers_settings(chat, vision):
    """The default with --llm: AdamW, the projector's rate apart, a cosine down to a twentieth."""
    args = train.arguments(["--data", "llava", "--source", "x", "--llm", str(chat), "--vision", str(vision[0]), "--template", "vicuna",
                            "--device", "cpu"])
    assert (args.preset, args.lr, args.steps, args.pictures, args.max_tokens, args.pool) == ("aki", 2e-5, 50_000, 32, 512, 3)
    model = load(vision[0], chat, pool=4)
    rates = {stage: [(o.param_groups[0]["lr"], len(o.param_groups[0]["params"])) for o in train.optimizers_of(model, args, stage)]
             for stage in ("pt", "sft")}
    assert [rate for rate, _ in rates["pt"]] == [2e-5, 1e-3] and rates["sft"][1] == (2e-5, 4)
    assert train.schedule(149, 50_000, "cosine") == pytest.approx(1, abs=1e-4) and train.schedule(0, 50_000, "cosine") < 0.01
    assert train.schedule(49_999, 50_000, "cosine") == pytest.approx(0.05, abs=1e-4)


@pytest.mark.slow
def test_pretrained_weights_in_parts(chat, vision, llava, tmp_path):
    """Two processes, each with a part of pretrained weights, train what one does; adamw and activation checkpointing too."""
    line = (f"train.py --data llava --source {llava} --llm {chat} --vision {vision[0]} --template vicuna --pool 2 --device cpu --workers 0 "
            "--pt-pictures 4 --pictures 4 --pt-steps 2 --steps 3 --limit 3 --val-limit 3").split()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, start, more in (("one", [], []), ("two", torchrun, ["--fsdp"])):
        done = subprocess.run([sys.executable, *start, *line, *more, "--out", str(tmp_path / name)], cwd=Path(__file__).parent.parent,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "model.pt", weights_only=True)["weights"] for name in ("one", "two"))
    assert one.keys() == two.keys() and max((one[name].float() - two[name].float()).abs().max() for name in one) < 1e-4
