"""The arms of every table are set up and counted as they say; nobody's time is measured here."""

import queue
import threading
import types

import pytest
import torch
import torch.nn.attention
import torch.utils.flop_counter

import bench
from model import MLLM


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Every arm is called once, and arm k takes k + 1 seconds."""
    def turns(arms, repeats, warmup=2):
        for call in arms.values():
            call()
        return {name: 1.0 + k for k, name in enumerate(arms)}
    monkeypatch.setattr(bench, "turns", turns)
    return types.SimpleNamespace(repeats=1, target=0.8)


def test_turns_are_taken_and_the_warm_up_does_not_count(monkeypatch):
    monkeypatch.undo()
    calls, clock = [], iter(range(0, 10**6, 1))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    times = bench.turns({"a": lambda: calls.append("a"), "b": lambda: [calls.append("b"), [next(clock) for _ in range(len(calls))]]}, 3, 1)
    assert calls == ["a", "b", "b", "a"] * 2 and times == {"a": 1, "b": 7}


def test_mask(no_clock, monkeypatch):
    monkeypatch.setattr(bench, "LENGTHS", ((2, 4, 2, 100),))
    used, attend = [], bench.attention.attend
    monkeypatch.setattr("model.attend", lambda *x: used.append(isinstance(x[3], bench.attention.Opened)) or attend(*x))
    monkeypatch.setattr(bench.attention, "LONG", 100)
    table = bench.mask(no_clock)
    assert [row[:3] + row[4:] for row in table[1:]] == [[T, B, what, "2.00", "3.00"] for T, B in (("30", "128"), ("100", "2"))
                                                        for what in ("training step", "prefill")]
    layers = bench.tiny().n_layer
    # of the long rows causal and mma need no mask but for the last layer's few queries; the third arm does
    assert used == [False] * 6 * layers + 2 * (2 * ([True] * (layers - 1) + [False]) + [False] * layers)


@pytest.mark.parametrize("topic", [bench.generate, bench.train_step])
def test_against_transformers(no_clock, monkeypatch, topic):
    pytest.importorskip("transformers")
    monkeypatch.setattr(bench, "peak_of", lambda arm, out: out.put(1.0))
    here = types.SimpleNamespace(Queue=queue.Queue, Process=threading.Thread)
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda how: here)
    assert {len(row) for row in topic(no_clock)} == {8 if topic is bench.generate else 4}


def test_packing(no_clock):
    table = bench.packing(no_clock)
    padded, packed = table[1:]
    assert padded[1].startswith("64 x ") and float(padded[2][:-1]) < 70 and float(packed[2][:-1]) >= 95 and packed[4] == "0.50"


def test_loader(no_clock):
    assert [row[2] for row in bench.loader(no_clock)[1:]] == ["2.0", "1.0"]


def test_a_report_is_its_record():
    record = {"topic": "mask", "where": "here", "repeats": 3, "table": [["a", "b"], ["1", "2"]]}
    assert bench.report(record) == "| a | b |\n|---|--:|\n| 1 | 2 |\n\nhere; medians of 3, the arms taking turns."


def test_the_same_architecture_has_the_same_number_of_parameters():
    """Theirs has a position for each patch where ours has one for each row and column, and nothing else differs."""
    pytest.importorskip("transformers")
    config = bench.tiny()
    ours, other = (sum(p.numel() for p in model.parameters()) for model in (MLLM(config), bench.theirs(config, 2)))
    assert other - ours == (config.n_image_tokens - 2 * config.grid) * config.encoder_width


def test_the_papers_shapes():
    """Counted by hand from the configurations of SigLIP-so400m (without its pooling head) and Phi-3.5-mini."""
    config = bench.Config(vocab_size=32_064, **bench.train.PRESETS["paper"]["own"], **bench.train.PRESETS["paper"]["model"])
    assert config.n_image_tokens == 81
    held = bench.plan(config, 32, 262)
    block = 4 * 3072 * 3072 + 3 * 3072 * 8192 + 2 * 3072
    assert held["blocks parameters"] == 32 * block and held["embed parameters"] == held["unembed parameters"] == 32_064 * 3072
    assert abs(held["encoder parameters"] - 27 * (4 * 1152 * 1152 + 2 * 1152 * 4304)) < 0.01 * held["encoder parameters"]
    assert 40 * 2**30 < sum(x for name, x in held.items() if not name.endswith("parameters")) < 80 * 2**30


def test_flops_are_those_that_torch_counts():
    config = bench.tiny(d_model=64, n_head=4, n_kv_head=2, d_ff=96, n_layer=2, encoder_width=64)
    rows, question, answer = 3, 1, 90
    model, _ = bench.trained(config)
    batch = bench.batch_of(config, bench.rows_of(config, [(question, answer)] * rows))
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # torch 2.11 does not count the CPU's flash kernel
    with plain, torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.loss(**batch).backward()
    T = batch["ids"].shape[1]
    assert counter.get_total_flops() == pytest.approx(bench.flops(config, rows, T, answer), rel=0.1)
