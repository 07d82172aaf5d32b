"""The arms of every table compute what it says; nobody's time is measured here."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import train
from data import DataError
from lab import bench, publish
from lab.experiments import Experiment

ARGS = SimpleNamespace(repeats=1, seeds=1)


@pytest.fixture
def losses(monkeypatch):
    """(mask, loss) of the training steps, in the order of the arms. Every arm is called once, and
    arm k takes k + 1 seconds."""
    found = []

    def turns(arms, repeats):
        for call in arms.values():
            call()
        return {name: 1.0 + k for k, name in enumerate(arms)}

    def step(loss_of, batches, mask, *rest):
        found.append((mask, train.forward_backward(loss_of, batches, mask, *rest)))

    monkeypatch.setattr(bench, "turns", turns)
    monkeypatch.setattr(bench, "forward_backward", step)
    return found


def test_turns_are_taken_and_the_warm_up_does_not_count(monkeypatch):
    calls, clock = [], iter(range(10**6))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))

    def b():
        calls.append("b")
        for _ in range(len(calls)):
            next(clock)

    times = bench.turns({"a": lambda: calls.append("a"), "b": b}, 3, 1)
    assert calls == ["a", "b", "b", "a"] * 2 and times == {"a": 1, "b": 7}


def test_a_timed_step_is_one_of_train():
    """Forward and backward pass, then the update; the encoder stays."""
    config = bench.tiny()
    model, batch = bench.trained(config), bench.random_batch(config, 2, 1, 3, 4)
    before = [p.clone() for p in model.parameters() if p.requires_grad]
    step = bench.training_step(model, batch)
    for _ in range(3):
        step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is None and not torch.equal(p, b) for p, b in zip(after, before))
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_the_arms_of_mask_compute_the_same(losses, monkeypatch):
    """causal by the kernel without a mask and by the dense mask; mma another thing."""
    monkeypatch.setattr(bench, "LENGTHS", ((2, 4, 2, 130),))
    header, *rows = bench.mask(ARGS)
    assert header[3:] == ["causal, no mask, ms", "causal, dense mask", "mma"]
    assert rows == [
        [T, B, what, "1000.0", "2.00", "3.00"]
        for T, B in (("34", "96"), ("130", "2"))
        for what in ("training step", "prefill")
    ]
    for (_, without), (_, causal), (mask, mma) in (losses[:3], losses[3:]):
        assert torch.allclose(without, causal) and not torch.equal(causal, mma) and mask == "mma"


def test_every_arm_of_the_comparison_is_timed_under_its_mask(losses, monkeypatch):
    lines = {"causal": "--mask causal", "rave": "--mask mma --variant rave", "t": "--mask prefix"}
    few = {name: f"{line} --pictures 2 --questions 2" for name, line in lines.items()}
    monkeypatch.setitem(bench.EXPERIMENTS, "shapes", Experiment(few))
    _, *rows = bench.arms(ARGS)
    assert rows == [["causal", "1000", "1.00"], ["rave", "2000", "2.00"], ["t", "3000", "3.00"]]
    assert [mask for mask, _ in losses] == ["causal", "mma", "prefix"]


def test_the_default_job_is_timed_from_its_command(monkeypatch):
    """The run's clock began when a minute less had passed than at the end."""
    curve = [{"step": k, "val": {"accuracy": a}} for k, a in ((20, 0.85), (40, 0.96))]
    run = {
        "accuracy": 0.5,
        "args": {"data": "shapes"},
        "seconds": 60,
        "clock": [[20, 10], [40, 30]],
    }

    def trained(command, cwd):
        out = Path(command[-1])
        out.mkdir()
        (out / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"step": 20}, *curve])))
        (out / "run.json").write_text(json.dumps(run))
        return Mock(returncode=0)

    monkeypatch.setattr(bench.subprocess, "run", trained)
    header, (_, first, second, *last), mean = bench.job(ARGS)
    assert header == ["seed", "to 80 %", "to 95 %", "to 97 %", "in all", "test, %"]
    assert float(second) - float(first) == pytest.approx(20, abs=0.2)
    assert float(last[1]) - float(second) == pytest.approx(30, abs=0.2)
    assert (last[0], last[2], mean[3]) == ("never", "50.0", "never by all")
    monkeypatch.setattr(bench.subprocess, "run", lambda *args, **options: Mock(returncode=2))
    with pytest.raises(DataError, match="ended with status 2"):
        bench.job(ARGS)


def test_docs_are_written_on_publish_alone(tmp_path, monkeypatch, capsys):
    table, published = [["a", "b"], ["1", "2"]], tmp_path / "published"
    monkeypatch.setattr(publish, "PUBLISHED", published)
    monkeypatch.setitem(bench.TOPICS, "mask", lambda args: table)
    call = ["mask", "--repeats", "3", "--results", str(tmp_path / "results")]
    bench.main(call)
    (file,) = (tmp_path / "results").glob("speed_mask*.json")
    assert json.loads(file.read_text())["table"] == table and not published.exists()
    assert re.search(r"\| 1 \| 2 \|\n\n.*torch .*; medians of 3, the arms", capsys.readouterr().out)
    bench.main([*call, "--publish"])
    assert (published / file.name).read_text() == file.read_text()
