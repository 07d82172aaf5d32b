"""The arms of every table are set up and counted as they say; nobody's time is measured here."""

import types

import pytest

import bench
from model import MLLM


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Arm k takes k + 1 seconds; `called` are the arms that were really called once."""
    def turns(arms, repeats, warmup=2):
        return {name: 1.0 + k for k, name in enumerate(arms)}
    monkeypatch.setattr(bench, "turns", turns)
    return types.SimpleNamespace(repeats=1, target=0.8)


def test_turns_are_taken_and_the_warm_up_does_not_count(monkeypatch):
    monkeypatch.undo()
    calls, clock = [], iter(range(0, 10**6, 1))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    times = bench.turns({"a": lambda: calls.append("a"), "b": lambda: [calls.append("b"), [next(clock) for _ in range(len(calls))]]}, 3, 1)
    assert calls == ["a", "b"] * 4 and times == {"a": 1, "b": 7}


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
