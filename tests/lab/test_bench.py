"""The arms of every table compute what it says; nobody's time is measured here."""

import json
import re
import sys
import types

import pytest
import torch
from torch.nn.attention import flex_attention

import train
from data import DataError
from engine.options import arguments
from lab import bench, results, size, theirs, timing
from mma import PAD
from model import DecoderBlock


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Every arm is called once, and arm k takes k + 1 seconds."""

    def turns(arms, repeats, warmup=2):
        for call in arms.values():
            call()
        return {name: 1.0 + k for k, name in enumerate(arms)}

    monkeypatch.setattr(timing, "turns", turns)
    return types.SimpleNamespace(repeats=1, seeds=1)


@pytest.fixture
def losses(monkeypatch):
    """The losses of the training steps, in the order of the arms."""
    found = []
    step = lambda *given: found.append(train.forward_backward(*given))
    monkeypatch.setattr(timing, "forward_backward", step)
    return found


# --- Times


def test_turns_are_taken_and_the_warm_up_does_not_count(monkeypatch):
    monkeypatch.undo()
    calls, clock = [], iter(range(0, 10**6, 1))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

    def b():
        calls.append("b")
        for _ in range(len(calls)):
            next(clock)

    times = timing.turns({"a": lambda: calls.append("a"), "b": b}, 3, 1)
    assert calls == ["a", "b", "b", "a"] * 2 and times == {"a": 1, "b": 7}


def test_a_timed_step_is_one_of_train_at_a_constant_rate(monkeypatch):
    """Forward and backward pass under the mask that is named, then the update."""
    assert timing.forward_backward is train.forward_backward
    assert timing.clip_and_step is train.clip_and_step
    config = timing.tiny()
    model, optimizers = timing.trained(config)
    batch, masks, loss = timing.random_batch(config, [(3, 4)] * 2), [], model.loss
    spy = lambda mask, **batch: masks.append(mask) or loss(mask=mask, **batch)
    monkeypatch.setattr(model, "loss", spy)
    before = [p.clone() for p in model.parameters() if p.requires_grad]
    step = timing.training_step(model, optimizers, "mma", batch)
    for _ in range(3):
        step()
    assert masks == ["mma"] * 3 and all(p.grad is None for p in model.parameters())
    assert all(o.param_groups[0]["lr"] == timing.RATE for o in optimizers)
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(after, before))
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_a_table_of_times_names_the_format_of_training():
    assert timing.where("float32").endswith(", float32")
    assert timing.where("bfloat16").endswith("training in bfloat16, answering in float32")


# --- Arms


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("gpu", [False, True])
@torch.no_grad()
def test_the_arms_of_mask_compute_the_same(no_clock, losses, monkeypatch, gpu):
    """With FlexAttention on a GPU alone; it has no backward pass on a CPU."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(bench, "CUDA", gpu)
    monkeypatch.setattr(bench, "LONG", 100)
    monkeypatch.setattr(bench, "LENGTHS", ((2, 4, 2, 130),))
    monkeypatch.setattr(bench.Flex, "function", staticmethod(flex_attention.flex_attention))
    header, *rows = bench.mask(no_clock)
    assert header[3:] == ["causal, no mask, ms", *list(bench.MASKS)[1 : 4 if gpu else 3]]
    cells = {"34": ["-"] * gpu, "130": ["4.00"] * gpu}
    assert rows == [
        [T, B, what, "1000.0", "2.00", "3.00", *cells[T]]
        for T, B in (("34", "96"), ("130", "2"))
        for what in ("training step", "prefill")
    ]
    for start, n in ((0, 3), (3, 3 + gpu)):
        without, causal, *mma = losses[start : start + n]
        assert torch.allclose(without, causal) and torch.allclose(mma[0], mma[-1])
        assert not torch.equal(causal, mma[0])
    assert len(losses) == 6 + gpu


def test_last_layer_times_where_it_is_read_against_everywhere(no_clock, losses, monkeypatch):
    columns, forward = [], DecoderBlock.forward

    def count(self, x, context, read_at=None):
        columns.append(read_at is not None)
        return forward(self, x, context, read_at)

    monkeypatch.setattr(DecoderBlock, "forward", count)
    header, *rows = bench.last_layer(no_clock)
    assert "96 rows of 34" in header[0]
    assert rows == [["everywhere", "1000.0", "1.00"], ["read_at", "2000.0", "2.00"]]
    layers = timing.tiny().n_layer
    assert columns == [False] * (2 * layers - 1) + [True]  # the last layer, of read_at alone
    assert len(losses) == 2 and torch.allclose(*losses, rtol=1e-5)


def test_the_kernels_of_a_step_are_few():
    """A GPU waits for Python at this size. Views start none."""
    _, (_, total), *frequent = bench.kernels()
    assert 600 < int(total) <= 750
    assert "mm" in dict(frequent) and "view" not in dict(frequent)


# --- Against transformers


NAMES = (  # of a tensor, from theirs to ours
    (r"model\.vision_tower\.(encoder\.)?", "encoder."),
    (r"model\.language_model\.", ""),
    (r"model\.multi_modal_projector\.linear_1", "projector.0"),
    (r"model\.multi_modal_projector\.linear_2", "projector.2"),
    (r"embeddings\.patch_embedding", "patch"),
    (r"(lm_head|embed_tokens)", "embed"),
    (r"layers", "blocks"),
    (r"input_layernorm", "norm1"),
    (r"post_attention_layernorm", "norm2"),
    (r"(post_layer|layer_)norm", "norm"),
    (r"mlp\.fc1", "up"),
    (r"mlp\.fc2", "down"),
    (r"mlp\.(gate|up|down)_proj", r"\1"),
    (r"self_attn\.out_proj", "out"),
    (r"self_attn\.o_proj", "attention.out"),
    (r"^(encoder.*)self_attn\.([qkv])_proj(.*)", r"\1qkv\3 \2"),  # a third of ours
    (r"self_attn\.([qkv])_proj", r"attention.\1"),
)


@pytest.fixture
def both():
    """Our model under the causal mask and theirs with its weights; prompts of two lengths."""
    pytest.importorskip("transformers")
    config = timing.tiny(mask="causal")
    model, other = timing.trained(config)[0], theirs.theirs(config, image=2).eval()
    ours = model.state_dict()
    model.encoder.norm = torch.nn.Identity()  # LLaVA reads what comes before it
    grid = ours["encoder.row"][:, None] + ours["encoder.column"]
    ours["encoder.embeddings.position_embedding.weight"] = grid
    for name, tensor in other.state_dict().items():
        for theirs_name, our_name in NAMES:
            name = re.sub(theirs_name, our_name, name)
        name, _, part = name.partition(" ")
        values = ours[name].chunk(3)["qkv".index(part)] if part else ours[name]
        tensor.copy_(values.reshape(tensor.shape))
    return model, other, timing.random_batch(config, [(9, 4), (3, 7)])


def test_theirs_computes_our_logits_loss_and_answers(both):
    model, other, batch = both
    kept = batch["role"] != PAD
    with torch.no_grad():
        found = other(**theirs.as_theirs(batch))
        logits, loss = model.head(model(**batch))[kept], model.loss(**batch)
    torch.testing.assert_close(found.logits[kept], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, loss)
    answers = model.generate(**batch, eos=-1, max_new_tokens=[5, 3])
    assert theirs.answerer(other, batch)([5, 3]) == answers
    assert [len(answer) for answer in answers] == [5, 3]


def test_steps_against_transformers(no_clock, losses, monkeypatch):
    """In float32 and, where ours trains in a shorter format, in that one too."""
    pytest.importorskip("transformers")
    _, *rows = theirs.train(no_clock)
    assert [row[2] for row in rows] == ["1.00", "0.50", "0.33"]
    assert losses[1] == losses[2] and torch.allclose(losses[0], losses[1], rtol=0.2)
    monkeypatch.setattr(theirs, "USUAL", arguments([*theirs.ADAMW, "--precision", "bfloat16"]))
    assert list(theirs.train_arms())[1] == "transformers, AdamW, bfloat16"


def test_answers_against_transformers(no_clock, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(theirs, "BATCHES", (2,))
    _, *rows = theirs.generate(no_clock)
    assert [row[:2] for row in rows] == [["2", w] for w in ("prefill", "decoding", "in all")]
    assert [row[3:] for row in rows] == [
        ["1000.0", "2000.0", "2.0"], ["2000.0", "2000.0", "1.0"], ["3000.0", "4000.0", "1.3"],
    ]  # fmt: skip


@pytest.mark.parametrize("topic", ["train", "generate"])
def test_a_missing_transformers_is_named(topic, monkeypatch, tmp_path):
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="transformers: pip install transformers"):
        bench.main([topic, "--results", str(tmp_path)])


# --- What fits


def test_the_papers_shapes():
    """Counted by hand from the configurations of SigLIP-so400m (without its pooling head) and
    Phi-3.5-mini."""
    config = size.paper_config()
    assert config.n_image_tokens == 81
    model = size.on_meta(config)
    counts, held = size.parameters(model), size.memory(model, 32, 262, optimizer="muon")
    block = 4 * 3072 * 3072 + 3 * 3072 * 8192 + 2 * 3072
    assert counts["blocks"] == 32 * block
    assert counts["embed"] == counts["unembed"] == 32_064 * 3072
    layer = 4 * 1152 * 1152 + 2 * 1152 * 4304
    assert counts["encoder"] == pytest.approx(27 * layer, rel=0.01)
    assert held["weights"] * 2**30 == 4 * sum(counts.values())
    assert 40 < sum(held.values()) < 80
    passes, update = size.flops(model, 32, 262, 120, ["encoder"], "muon")
    # Muon: five steps of Newton-Schulz for q, k, v and out, gate, up and down, and the projector
    square, wide = 5 * 6 * 3072**3, 5 * 2 * 3072**2 * (2 * 8192 + 3072)
    assert update == 32 * (4 * square + 3 * wide) + square + 5 * 2 * 1152**2 * (2 * 3072 + 1152)
    # two for each weight and token, three times where it is trained, and attention's scores
    tokens, patches = 32 * 262, 32 * 27 * 27
    decoder = tokens * 32 * (block + 2 * 262 * 3072) + 32 * 120 * counts["unembed"]
    encoder = patches * 27 * (layer + 2 * 27 * 27 * 1152)
    assert passes == pytest.approx(6 * decoder + 2 * encoder, rel=0.01)


def test_the_table_of_sizes_has_a_column_for_each_arm(monkeypatch):
    monkeypatch.setattr(size, "flops", lambda *given: (0, 289e12 * (given[-1] == "muon")))
    header, *rows = size.size()
    assert header == ["32 rows of 262 tokens", *size.ARMS]
    table = {name: cells for name, *cells in rows}
    assert table["memory in all, GiB"] == ["51.4", "22.3", "65.0", "11.2"]
    assert table["Muon, TFLOP"] == ["289", "0", "0", "0"]


# --- The job


# What train.py writes, in its format (tests/test_train.py), without training
A_RUN = """
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
lines = [{"stage": "pt", "step": 10}, {"stage": "sft", "step": 10}]
for step, accuracy in ((20, 0.85), (40, 0.96)):
    lines.append({"stage": "sft", "step": step, "val": {"accuracy": accuracy}})
(out / "metrics.jsonl").write_text("\\n".join(map(json.dumps, lines)))
run = {"accuracy": 0.5, "args": {"data": "shapes"}, "seconds": 60, "clock": [[20, 10], [40, 30]]}
(out / "run.json").write_text(json.dumps(run))
"""


def test_the_default_job_is_timed_from_its_command(no_clock, monkeypatch):
    """The run's clock began when a minute less had passed than at the end."""
    monkeypatch.setattr(bench, "TRAIN", [sys.executable, "-c", A_RUN])
    header, seed, mean = bench.job(no_clock)
    assert header == ["seed", "to 80 %", "to 95 %", "to 97 %", "in all", "test, %"]
    in_all = float(seed[4])
    assert in_all < 30
    assert [float(x) for x in seed[1:3]] == pytest.approx([in_all - 50, in_all - 30], abs=0.2)
    assert seed[3] == "never" and seed[5] == "50.0" and mean[3] == "never by all"


def test_a_job_that_fails_is_an_error(no_clock, monkeypatch):
    monkeypatch.setattr(bench, "TRAIN", [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(DataError, match="ended with status 2"):
        bench.job(no_clock)


# --- The command


def test_code_counts_every_file():
    table = {name: cells for name, *cells in bench.code()}
    lines = len((results.ROOT / "mma.py").read_text("utf-8").splitlines())
    assert table["mma.py"] == [str(lines), "1"]
    assert int(table["engine"][1]) == len(list((results.ROOT / "engine").glob("*.py")))


def test_a_report_is_its_record():
    record = {"topic": "mask", "where": "here", "repeats": 3, "table": [["a", "b"], ["1", "2"]]}
    table = "| a | b |\n|---|--:|\n| 1 | 2 |"
    assert bench.report(record) == f"{table}\n\nhere; medians of 3, the arms taking turns."
    assert bench.report({**record, "topic": "job"}) == f"{table}\n\nhere."
    assert bench.report({**record, "topic": "code"}) == table


@pytest.mark.parametrize("gpu", [False, True])
def test_docs_are_written_on_publish_alone(tmp_path, monkeypatch, capsys, gpu):
    table, name = [["a", "b"], ["1", "2"]], "speed_last_layer" + "_gpu" * gpu
    monkeypatch.setattr(bench, "CUDA", gpu)
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    monkeypatch.setitem(bench.TOPICS, "last-layer", lambda args: table)
    call = ["last-layer", "--repeats", "3", "--results", str(tmp_path / "results")]
    bench.main(call)
    record = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert record["table"] == table and not (tmp_path / "published").exists()
    bench.main([*call, "--publish"])
    text = (tmp_path / "published" / f"{name}.md").read_text(encoding="utf-8")
    assert text == bench.report(record) + "\n"
    with pytest.raises(SystemExit):
        bench.main(["mask", "--results", str(tmp_path / "published")])
    assert "written by --publish alone" in capsys.readouterr().err
