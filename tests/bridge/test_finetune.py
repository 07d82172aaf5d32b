"""Training from pretrained weights: what is trained, with which settings, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, Crash, at_steps, crash, weights_of
from PIL import Image

import eval as evaluation
from bridge import benchmarks, finetune
from bridge.chat import read_tokenizer
from bridge.pretrained import load
from engine.optimizers import make_optimizers

pytestmark = pytest.mark.usefixtures("nothing_drawn")

pytest.importorskip("transformers")
TINY = (
    "--pool 2 --preset tiny --device cpu --workers 0 --pt-pictures 2 "
    "--pictures 2 --limit 3 --val-limit 3"
).split()


@pytest.fixture
def command(chat, vision, llava) -> list[str]:
    folders = f"--data llava --source {llava} --llm {chat} --vision {vision[0]}".split()
    return [*folders, "--pt-source", str(llava), *TINY]


def test_a_run_starts_from_pretrained_weights_and_is_opened_by_eval_and_benchmarks(
    command, chat, vision, tmp_path, monkeypatch, capsys
):
    """Stage 1 moves the projector alone, stage 2 all but the encoder, at rates of --schedule."""
    seen, vocab_size = [], len(read_tokenizer(chat))
    monkeypatch.setitem(finetune.SCHEDULES, "cosine", lambda *at: seen.append(at) or 0.5)
    start = load(vision[0], chat, pool=2, vocab_size=vocab_size)
    new_token, others = start.embed.weight[-1], start.embed.weight[:-1]
    torch.testing.assert_close(new_token, others.mean(0))

    def changed(steps: int, *more) -> set:
        out = tmp_path / f"{steps}{len(more)}"
        line = [*command, "--pt-steps", "1", "--steps", str(steps), *more, "--out", str(out)]
        finetune.main(line)
        after = weights_of(out)
        parts = start.named_parameters()
        return {n.split(".")[0] for n, p in parts if not torch.equal(p, after[n])}

    assert changed(0) == {"projector"} and not seen
    all_but_encoder = {"projector", "blocks", "embed", "unembed", "norm"}
    assert changed(2, "--schedule", "cosine") >= all_but_encoder
    assert list(dict.fromkeys(seen)) == [(0, 1), (0, 2), (1, 2)]
    assert "encoder" not in changed(1, "--pt-freeze", "encoder", "projector")
    out = tmp_path / "22"
    record = json.loads((out / "run.json").read_text())["args"]
    sizes = [record[name] for name in ("n_layer", "image_size", "patch_size", "vocab_size", "pool")]
    assert sizes == [3, 33, 8, vocab_size, 2]  # those of the folders, not of the preset
    capsys.readouterr()
    evaluation.main([str(out), "--device", "cpu", "--limit", "2"])
    assert "overall" in capsys.readouterr().out
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    line = {"image": "a.png", "text": "Is it red?", "label": "yes"}
    (tmp_path / "pope.json").write_text(json.dumps(line))
    benchmarks.main([str(out), str(tmp_path / "pope.json"), "--device", "cpu"])
    assert "strict: accuracy" in capsys.readouterr().out


def test_a_stopped_run_goes_on(command, tmp_path):
    """--resume takes a run that was stopped; the sizes of the folders make no other run of it."""
    line = [*command, "--pt-steps", "2", "--steps", "2", "--save-every", "1"]
    finetune.main([*line, "--out", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, lambda step: step == 4, crash)
        with pytest.raises(Crash):
            finetune.main([*line, "--out", str(tmp_path / "parts")])
    finetune.main([*line, "--out", str(tmp_path / "parts"), "--resume"])
    one, two = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_tied_decoder_has_no_head_to_freeze(command, chat, tmp_path):
    """The default of --pt-freeze names parts that exist."""
    folder = shutil.copytree(chat, tmp_path / "tied")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    args = finetune.options([*command, "--llm", str(folder)])
    assert finetune.model_config(args, read_tokenizer(folder)).tied
    assert args.pt_freeze == ["encoder", "embed", "blocks", "norm"]


@pytest.mark.parametrize("change,says", [
    (["--source", "none.json"], "none.json: no such file"),
    (["--pool", "3"], "patches=4 must be a multiple of pool=3"),
    (["--template", "no.jinja"], "--template no.jinja cannot be read"),
    (["--scenes", "5"], "--scenes belongs to --data shapes, not to llava"),
    (["--llm", "nowhere"], "config.json: no such file"),
    (["--n-layer", "4"], "--n-layer cannot be given: it is that of the folders"),
    (["--variant", "4"], "--variant cannot be given: it belongs to train.py"),
])  # fmt: skip
def test_mistakes_are_found_before_weights_are_read(
    command, tmp_path, monkeypatch, capsys, change, says
):
    monkeypatch.setattr(finetune, "load", lambda *args, **options: pytest.fail("weights"))
    with pytest.raises(SystemExit) as exit:
        finetune.main([*command, *change, "--out", str(tmp_path / "run")])
    assert says in f"{exit.value} {capsys.readouterr().err}"


def test_the_papers_settings(command, chat, vision, capsys):
    """The default: AdamW, the projector's rate apart, a cosine down to a twentieth."""
    line = command[: -len(TINY)]
    args = finetune.options([*line, "--device", "cpu"])
    expected = dict(
        preset="aki", lr=2e-5, steps=50_000, pictures=32, max_tokens=512, pool=3, schedule="cosine",
        checkpointing=True, pt_freeze=finetune.PT_FREEZE, freeze=["encoder"],
    )  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    model = load(vision[0], chat, pool=4)
    for stage, rates in (("pt", [2e-5, 1e-3]), ("sft", [2e-5, 2e-5])):
        groups = [o.param_groups[0] for o in make_optimizers(model, args, stage)]
        assert [group["lr"] for group in groups] == rates
        assert len(groups[1]["params"]) == 4  # the projector's
    cosine = finetune.SCHEDULES[args.schedule]
    assert cosine(149, 50_000) == pytest.approx(1, abs=1e-4) and cosine(0, 50_000) < 0.01
    assert cosine(49_999, 50_000) == pytest.approx(0.05, abs=1e-4)
    other = finetune.options([*line, "--preset", "tiny", "--pt-freeze"])
    assert (other.schedule, other.optimizer, other.pool) == ("linear", "muon", 1)
    assert other.pt_freeze == []
    with pytest.raises(SystemExit):
        finetune.options(["--help"])
    said = capsys.readouterr().out
    assert "--pool " in said and "--n-layer " not in said and "--variant " not in said


@pytest.mark.slow
def test_pretrained_weights_in_parts(command, tmp_path):
    """Two processes, each with a part of pretrained weights, train what one does; adamw and
    activation checkpointing too."""
    more = "--preset aki --pool 2 --pt-pictures 4 --pictures 4 --pt-steps 2 --steps 3".split()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, start, parts in (("one", [], []), ("two", torchrun, ["--fsdp"])):
        line = [*command, *more, *parts, "--out", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, *start, "-m", "bridge.finetune", *line],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max((one[name].float() - two[name].float()).abs().max() for name in one) < 1e-4
