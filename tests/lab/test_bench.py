"""The arms of every table are set up and counted as they say; nobody's time is measured here."""

import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.attention
import torch.utils.flop_counter

from data import DataError
from lab import (
    bench,
    bench_job,
    bench_limit,
    bench_model,
    bench_shared,
    bench_size,
    bench_theirs,
    bench_timing,
    results,
)
from mma import attention_mask
from model import MLLM, DecoderBlock, attention


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Every arm is called once, and arm k takes k + 1 seconds."""

    def turns(arms, repeats, warmup=2):
        for call in arms.values():
            call()
        return {name: 1.0 + k for k, name in enumerate(arms)}

    monkeypatch.setattr(bench_timing, "turns", turns)
    return types.SimpleNamespace(repeats=1, seeds=1, peak=989)


def test_turns_are_taken_and_the_warm_up_does_not_count(monkeypatch):
    monkeypatch.undo()
    calls, clock = [], iter(range(0, 10**6, 1))
    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: next(clock))

    def b():
        calls.append("b")
        for _ in range(len(calls)):
            next(clock)

    times = bench_timing.turns({"a": lambda: calls.append("a"), "b": b}, 3, 1)
    assert calls == ["a", "b", "b", "a"] * 2 and times == {"a": 1, "b": 7}


def test_a_timed_step_is_one_of_train_at_a_constant_rate(monkeypatch):
    """Forward and backward pass under the mask that is named, then the update."""
    config = bench_timing.tiny()
    model, optimizers = bench_timing.trained(config)
    batch = bench_timing.batch_of(config, bench_timing.rows_of(config, [(3, 4)] * 2))
    masks, loss = [], model.loss
    spy = lambda mask, **batch: masks.append(mask) or loss(mask=mask, **batch)
    monkeypatch.setattr(model, "loss", spy)
    before = [p.clone() for p in model.parameters() if p.requires_grad]
    step = bench_timing.training_step(model, optimizers, "mma", batch)
    for _ in range(3):
        step()
    assert masks == ["mma"] * 3 and all(p.grad is None for p in model.parameters())
    assert all(o.param_groups[0]["lr"] == bench_timing.RATE for o in optimizers)
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(after, before))
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_mask(no_clock, monkeypatch):
    monkeypatch.setattr(bench_model, "LENGTHS", ((2, 4, 2, 100),))
    used = []

    def recorder(name, function):
        def inner(q, k, v, mask):
            used.append((name, q.shape[-2] == k.shape[-2]))
            return function(q, k, v, mask)

        return inner

    without = recorder("no mask", bench_model.causal_without_mask)
    monkeypatch.setattr(bench_model, "causal_without_mask", without)
    monkeypatch.setattr("model.attention", recorder("mask", attention))
    table = bench_model.mask(no_clock)
    assert [row[:3] + row[4:] for row in table[1:]] == [
        [T, B, what, "2.00", "3.00"]
        for T, B in (("34", "96"), ("100", "2"))
        for what in ("training step", "prefill")
    ]
    layers = bench_timing.tiny().n_layer

    def call(name):  # the last layer computes only the rows that are read
        return [(name, True)] * (layers - 1) + [(name, False)]

    assert used == 4 * (call("no mask") + call("mask") + call("mask"))


def test_causal_without_a_mask_is_causal():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    for rows in (slice(None), slice(5, 6)):  # all, and one of the last layer's
        some = (q[:, :, rows], k, v, mask[:, :, rows])
        expected, given = attention(*some), bench_model.causal_without_mask(*some)
        assert torch.allclose(given, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_in_blocks_is_that_of_the_dense_mask():
    torch.manual_seed(0)
    T, blocks = 300, bench_model.BlockAttention(compiled=False)
    q, k, v = torch.randn(2, 4, T, 16), torch.randn(2, 2, T, 16), torch.randn(2, 2, T, 16)
    role = torch.tensor([1] + [2] * 100 + [3] * 50 + [4] * 149).repeat(2, 1)
    role[1, -60:] = 0
    for kind in ("mma", "causal"):  # another mask makes other blocks
        mask = attention_mask(kind, role)
        for rows in (slice(None), slice(5, 6)):  # all, and one of the last layer's
            results = [f(q[:, :, rows], k, v, mask[:, :, rows]) for f in (attention, blocks)]
            assert torch.allclose(*results, atol=1e-5)


def test_last_layer_times_where_it_is_read_against_everywhere(no_clock, monkeypatch):
    losses, columns, forward = [], [], DecoderBlock.forward

    def spy(loss_of, batches, mask, autocast, scaler):
        losses.append(forward_backward(loss_of, batches, mask, autocast, scaler))

    def count(self, x, context, read_at=None):
        columns.append(read_at is not None)
        return forward(self, x, context, read_at)

    forward_backward = bench_timing.forward_backward
    monkeypatch.setattr(bench_timing, "forward_backward", spy)
    monkeypatch.setattr(DecoderBlock, "forward", count)
    table = bench_model.last_layer(no_clock)
    assert [row[0] for row in table[1:]] == ["everywhere", "read_at"]
    assert [row[2] for row in table[1:]] == ["1.00", "2.00"] and "96 rows of 34" in table[0][0]
    layers = bench_timing.tiny().n_layer
    assert columns == [False] * (2 * layers - 1) + [True]  # the last layer, of read_at alone
    assert len(losses) == 2 and torch.allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("topic", [bench_theirs.generate, bench_theirs.train_step])
def test_against_transformers(no_clock, monkeypatch, topic):
    pytest.importorskip("transformers")
    monkeypatch.setattr(bench_theirs, "BATCHES", (8,))
    monkeypatch.setattr(bench_theirs, "peak_of", lambda arm: 1.0)
    here = lambda n, mp_context: ThreadPoolExecutor(n)
    monkeypatch.setattr(bench_theirs, "ProcessPoolExecutor", here)
    assert {len(row) for row in topic(no_clock)} == {8 if topic is bench_theirs.generate else 4}


@pytest.mark.parametrize("topic", ["train", "generate"])
def test_a_missing_transformers_is_named(topic, monkeypatch, tmp_path):
    monkeypatch.setattr(results.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="transformers: pip install transformers"):
        bench.main([topic, "--results", str(tmp_path)])


def test_packing(no_clock, monkeypatch):
    monkeypatch.setattr(bench_model, "tiny", lambda **sizes: bench_timing.tiny(n_layer=1, **sizes))
    padded, packed = bench_model.packing(no_clock)[1:]
    assert padded[1].startswith("64 x ") and float(padded[2][:-1]) < 70
    assert float(packed[2][:-1]) >= 95 and packed[4] == "0.50"


def test_shared(no_clock, monkeypatch):
    monkeypatch.setattr(bench_shared, "SIZES", (("tiny", 2, 3, 2),))
    table = bench_shared.shared(no_clock)
    times = ["1000.0", "2000.0", "2.00"]
    assert table[1:] == [["4", what, *times, "4", "40"] for what in ("prefill", "training step")]
    assert {len(row) for row in table} == {7}


def test_loader(no_clock):
    assert [row[2] for row in bench_model.loader(no_clock)[1:]] == ["2.0", "1.0"]


def test_code_counts_every_file():
    table = {row[0]: row for row in bench.code(None)}
    lines = len((results.ROOT / "mma.py").read_text(encoding="utf-8").splitlines())
    assert f"mma.py {lines}" in table["the four"][2] and "arms.py " in table["lab/"][2]
    assert table["tests/"][2].endswith(" files")
    record = {"topic": "code", "table": list(table.values())}
    assert bench.report(record).startswith(f"* the four ({table['the four'][1]}): ")


def test_a_report_is_its_record():
    record = {"topic": "mask", "where": "here", "repeats": 3, "table": [["a", "b"], ["1", "2"]]}
    expected = "| a | b |\n|---|--:|\n| 1 | 2 |\n\nhere; medians of 3, the arms taking turns."
    assert bench.report(record) == expected


def test_docs_are_written_on_publish_alone(tmp_path, monkeypatch, capsys):
    table = [["a", "b"], ["1", "2"]]
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    monkeypatch.setitem(bench.TOPICS, "last-layer", lambda args: table)
    call = ["last-layer", "--repeats", "3", "--results", str(tmp_path / "results")]
    bench.main(call)
    record = json.loads((tmp_path / "results" / "speed_last_layer.json").read_text())
    assert record["table"] == table and not (tmp_path / "published").exists()
    bench.main([*call, "--publish"])
    text = (tmp_path / "published" / "speed_last_layer.md").read_text(encoding="utf-8")
    assert text == bench.report(record) + "\n"
    with pytest.raises(SystemExit):
        bench.main(["mask", "--results", str(tmp_path / "published")])
    assert "written by --publish alone" in capsys.readouterr().err


def test_the_same_architecture_has_the_same_number_of_parameters():
    """Theirs has a position for each patch where ours has one for each row and column, and nothing
    else differs."""
    pytest.importorskip("transformers")
    config = bench_timing.tiny()
    models = MLLM(config), bench_theirs.theirs(config, 2)
    ours, other = (sum(p.numel() for p in model.parameters()) for model in models)
    assert other - ours == (config.n_image_tokens - 2 * config.grid) * config.encoder_width


def test_the_papers_shapes(no_clock):
    """Counted by hand from the configurations of SigLIP-so400m (without its pooling head) and
    Phi-3.5-mini."""
    config, model_class = bench_size.paper_config()
    assert config.n_image_tokens == 81
    held = bench_size.plan(config, 32, 262, model_class=model_class)
    block = 4 * 3072 * 3072 + 3 * 3072 * 8192 + 2 * 3072
    assert held["blocks parameters"] == 32 * block
    assert held["embed parameters"] == held["unembed parameters"] == 32_064 * 3072
    encoder = held["encoder parameters"]
    assert abs(encoder - 27 * (4 * 1152 * 1152 + 2 * 1152 * 4304)) < 0.01 * encoder
    assert 40 * 2**30 < bench_size.memory(held)["in all"] < 80 * 2**30
    # Muon: q, k, v and out, gate, up and down of each layer, and the projector
    square, wide = 5 * 6 * 3072**3, 5 * 2 * 3072**2 * (2 * 8192 + 3072)
    projector = square + 5 * 2 * 1152**2 * (2 * 3072 + 1152)
    by_muon = bench_size.muon_flops(config, model_class)
    assert by_muon == 32 * (4 * square + 3 * wide) + projector
    table = bench_size.size(no_clock)
    assert ["Muon's FLOPs of a step", "289 T", "0 T", "0 T", "0 T"] in table
    assert {len(row) for row in table} == {5} and table[-1][1] == "-"


def test_what_a_gpu_measured_stands_in_the_column_of_its_optimizer():
    table = [["rows", *bench_size.ARMS], ["planned", "1", "2", "3", "4"]]
    bench_size.add_measured(table, {"measured: mma": "5"}, 1)
    bench_size.add_measured(table, {"measured: mma": "6", "peak": "7"}, 3)
    assert table[2:] == [["measured: mma", "5", "", "6", ""], ["peak", "", "", "7", ""]]
    assert list(bench_size.ARMS)[0].endswith("Muon") and list(bench_size.ARMS)[2].endswith("2")


def test_limit_sets_a_step_beside_its_own_products(no_clock, monkeypatch):
    monkeypatch.setattr(bench_limit, "LARGE", 64)
    alone, seen = bench_limit.alone, []
    monkeypatch.setattr(bench_limit, "alone", lambda found: seen.append(found) or alone(found))
    table = bench_limit.limit(no_clock)
    assert [row[0] for row in table[1:]] == [
        "a training step", "its matrix products alone", "a product of 64 x 64",
    ]  # fmt: skip
    flops = float(table[1][1])
    assert table[2][1] == table[1][1] and 5 < flops < 20 and table[1][3] == f"{flops:.1f}"
    assert [row[4] for row in table[1:3]] == ["100%", "200%"]
    again, counted = bench_limit.products_of(alone(seen[0]))
    assert again == seen[0] and counted / 1e9 == pytest.approx(flops, abs=0.01)


def test_limit_counts_every_product_of_a_step():
    def call():
        x = torch.ones(2, 3, 4)
        torch.addmm(torch.ones(5), x[0], torch.ones(4, 5)), x[0] @ x[0].T, x @ x.mT

    found, flops = bench_limit.products_of(call)
    assert sum(found.values()) == 3 and flops == 2 * (3 * 4 * 5 + 3 * 4 * 3 + 2 * 3 * 4 * 3)
    assert ((3, 4), (4, 1), torch.float32) in [x for _, operands in found for x in operands]


def test_flops_are_those_that_torch_counts():
    sizes = dict(d_model=64, n_head=4, n_kv_head=2, d_ff=96, n_layer=2, encoder_width=64)
    config = bench_timing.tiny(**sizes)
    rows, question, answer = 3, 1, 90
    model, _ = bench_timing.trained(config)
    lengths = [(question, answer)] * rows
    batch = bench_timing.batch_of(config, bench_timing.rows_of(config, lengths))
    # torch 2.11 does not count the CPU's flash kernel
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain, torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.loss(**batch).backward()
    expected = bench_size.flops(config, rows, batch["ids"].shape[1], answer)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


# What train.py writes, in its format (tests/test_train.py), without training
A_RUN = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
with open(out / "metrics.jsonl", "w") as file:
    for stage, steps in (("pt", 20), ("sft", 40)):
        for step in range(1, steps + 1):
            time.sleep(0.02)
            look = {"val": {"accuracy": 0.5}} if stage == "sft" and step % 20 == 0 else {}
            print(json.dumps({"stage": stage, "step": step, **look}), file=file, flush=True)
(out / "run.json").write_text(json.dumps({"accuracy": 0.5, "args": {"data": "shapes"}}))
"""


def test_the_default_job_is_watched_to_its_end(no_clock, monkeypatch):
    monkeypatch.setattr(bench_job, "TRAIN", [sys.executable, "-c", A_RUN])
    header, seed, mean = bench_job.job(no_clock)
    taken = dict(zip(header, seed))
    assert taken["seed"] == "0" and taken["to 97 %"] == "never"
    assert mean[header.index("to 97 %")] == "never by all"
    parts = ("start", "stage 1", "steps of stage 2", "looks", "end")
    assert abs(sum(float(taken[part]) for part in parts) - float(taken["in all"])) < 0.3
    assert 0 <= float(taken["test, %"]) <= 100


def test_how_the_time_of_a_job_divides():
    """10 s of start, 2 s for ten steps of stage 1, 3 s for ten of stage 2, a look of 1 s after
    every twenty, 4 s at the end."""
    look = {"val": {"accuracy": 0.96}}
    lines = [(12, "pt", {}), (14, "pt", {}), (17, "sft", {}), (21, "sft", look), (24, "sft", {})]
    lines = [(at, {"stage": stage, "step": 0, **more}) for at, stage, more in lines]
    taken = bench_job.divide(lines, end=28, accuracy=0.5)
    assert taken == {
        **{"to 80 %": 21, "to 95 %": 21, "to 97 %": None, "in all": 28, "start": 10, "stage 1": 4},
        **{"steps of stage 2": 9, "looks": 1, "end": 4, "test, %": 50},
    }


def test_a_job_that_fails_is_an_error(no_clock, monkeypatch):
    monkeypatch.setattr(bench_job, "TRAIN", [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(DataError, match="ended with status"):
        bench_job.job(no_clock)


def test_a_table_of_times_names_the_format_of_training():
    assert bench_timing.where("float32").endswith(", float32")
    assert bench_timing.where("bfloat16").endswith("training in bfloat16, answering in float32")
