"""Training and evaluation as a user runs them, on small things."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attention
import data
import eval as evaluation
import mma
import muon
import train

ROOT = Path(__file__).parent.parent
TINY = ("--preset tiny --device cpu --workers 0 --pt-pictures 4 --pictures 4 --questions 2 --pt-steps 2 --steps 3 --eval-every 2 "
        "--limit 100 --val-limit 40").split()


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return torch.load(out / "model.pt", weights_only=True)["weights"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of the built-in world: two seeds of mma and one causal."""
    folder = tmp_path_factory.mktemp("runs")
    for name, args in (("mma-0", []), ("mma-1", ["--seed", "1"]), ("causal-0", ["--mask", "causal"])):
        train.main([*TINY, *args, "--out", str(folder / name)])
    return folder


def test_a_run_leaves_what_it_promises(runs):
    out = runs / "mma-0"
    assert {p.name for p in out.iterdir()} == {"model.pt", "tokenizer.model", "run.json", "metrics.jsonl", "curves.png", "sheet.png"}
    record = json.loads((out / "run.json").read_text())
    assert record["n"] == 100 and set(record["families"]) == {"existence", "counting", "attribute", "comparison", "spatial"}
    assert 0 <= record["accuracy"] <= 1 and record["mask"] == "mma" and record["seed"] == 0 and record["args"]["lr"]
    looks = lines(out)
    assert [(r["stage"], r["step"]) for r in looks] == [("pt", 2), ("sft", 2), ("sft", 3)] and looks[1]["val"]["n"] == 40
    from PIL import Image
    assert Image.open(out / "sheet.png").size > (900, 600)


def test_the_same_seed_gives_the_same_run_and_another_does_not(runs, tmp_path):
    train.main([*TINY, "--workers", "1", "--out", str(tmp_path / "again")])
    first, again, other = weights(runs / "mma-0"), weights(tmp_path / "again"), weights(runs / "mma-1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_the_arms_differ_by_the_mask_alone(runs):
    a, b = (json.loads((runs / name / "run.json").read_text()) for name in ("mma-0", "causal-0"))
    assert a["params"] == b["params"]
    assert {k for k in a["args"] if a["args"][k] != b["args"][k]} == {"mask", "out"}
    assert lines(runs / "mma-0")[0]["loss"] == lines(runs / "causal-0")[0]["loss"]  # stage 1 is the same


def test_the_encoder_is_frozen_in_stage_2_unless_thawed(tmp_path):
    def encoder(*args):
        out = tmp_path / "-".join(args).replace("--", "")
        train.main([*TINY, *args, "--out", str(out)])
        return {name: w for name, w in weights(out).items() if name.startswith("encoder.blocks")}
    short, long = encoder("--steps", "1"), encoder("--steps", "4")
    thawed = encoder("--steps", "4", "--train-encoder")
    assert all(torch.equal(short[name], long[name]) for name in short)
    assert not all(torch.equal(short[name], thawed[name]) for name in short)


def test_eval_table_and_json(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("mma-0", "mma-1", "causal-0")]
    evaluation.main([*names, "--device", "cpu", "--limit", "100", "--json", str(tmp_path / "r.json"), "--md", str(tmp_path / "r.md")])
    assert "mma (2 seeds)" in (tmp_path / "r.md").read_text(encoding="utf-8")
    table = capsys.readouterr().out
    assert "mma (2 seeds)" in table and "±" in table and " causal |" in table and "**overall**" in table
    result = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [set(r) for r in result] == [{"run", "accuracy", "families", "n", "unparsed", "params", "mask", "aif", "seed", "label"}] * 3
    for r, name in zip(result, names):
        record = json.loads((Path(name) / "run.json").read_text())
        assert r["run"] == name and r["accuracy"] == record["accuracy"] and r["families"] == record["families"]
        assert r["n"] == sum(f["n"] for f in r["families"].values())


def test_eval_of_another_split_mask_and_one_picture(runs, tmp_path, capsys):
    run = str(runs / "mma-0")
    evaluation.main([run, "--device", "cpu", "--split", "val", "--mask", "v2v", "--limit", "50", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["mask"] == "v2v"
    capsys.readouterr()
    from PIL import Image
    Image.new("RGB", (100, 50), "red").save(tmp_path / "x.jpg")
    evaluation.main([run, "--device", "cpu", "--image", str(tmp_path / "x.jpg"), "--question", "is there a red circle?"])
    assert capsys.readouterr().out.count("\n") == 1


def test_both_orders_change_over_half_way(monkeypatch, tmp_path):
    """DOT: the first half of each stage is [question, picture], the second half [picture, question]; it answers the latter."""
    orders = []
    encode = data.encode

    def spy(*args, text_first=False, **kwargs):
        orders.append(text_first)
        return encode(*args, text_first=text_first, **kwargs)
    monkeypatch.setattr(data, "encode", spy)
    args = train.arguments([*TINY, "--order", "both", "--steps", "4"])
    tokenizer = data.Tokenizer.train(data.load("shapes").texts(), 1024)
    batches = train.Steps(data.load("shapes"), tokenizer, train.config_of(args, tokenizer), "sft", args)
    for step, text_first in enumerate((True, True, False, False)):
        orders.clear()
        assert "ids" in batches[step] and set(orders) == {text_first}
    assert not train.config_of(args, tokenizer).text_first


def test_text_first_is_asked_as_it_was_trained(tmp_path, monkeypatch):
    out = tmp_path / "run"
    train.main([*TINY, "--mask", "causal", "--order", "text-first", "--out", str(out)])
    model, tokenizer, _ = evaluation.open_run(out, "cpu")
    roles = []
    generate = model.generate
    model.generate = lambda **batch: (roles.append(batch["role"]), generate(**batch))[1]
    evaluation.answer_all(model, tokenizer, data.load("shapes").heldout("test", 3))
    role = roles[0][0].tolist()
    assert role.index(mma.Role.QUESTION) < role.index(mma.Role.IMAGE) and role[-1] != mma.Role.IMAGE


def test_aif_blocks_the_share_whose_attention_is_spread_most_evenly(runs):
    model, tokenizer, _ = evaluation.open_run(runs / "mma-0", "cpu")
    some = data.load("shapes").heldout("test", 6)
    rows = [data.encode(e, tokenizer, 16, upto=0) for e in some]
    batch = data.collate(rows, tokenizer.pad, 64)
    for share, n in ((0.25, 4), (0.5, 8), (1.0, 16)):
        blocked = evaluation.aif_blocked(model, batch, share)
        assert blocked.sum(1).tolist() == [n] * 6 and not blocked[batch["role"] != mma.Role.IMAGE].any()
    weights = []
    model(**batch, weights=weights)
    entropy = []  # the definition, one image token at a time, of the first row
    for i in range(1, 17):
        d = [max(w[0].mean(0)[j, i].item() for j in range(17, len(rows[0].ids))) for w in weights]
        p = [x / sum(d) for x in d]
        entropy.append(-sum(x * math.log(x) for x in p))
    expected = sorted(range(16), key=lambda i: -entropy[i])[:8]
    assert (evaluation.aif_blocked(model, batch, 0.5)[0].nonzero()[:, 0] - 1).tolist() == sorted(expected)
    plain, half = (evaluation.answer_all(model, tokenizer, some, aif=aif) for aif in (0.0, 0.5))
    assert len(plain) == len(half) == 6
    with pytest.raises(SystemExit, match="--aif 2.0 is not a share"):
        evaluation.main([str(runs / "mma-0"), "--aif", "2"])


def test_easy_vqa_trains_and_evaluates(easy_vqa, tmp_path, capsys):
    train.main([*TINY, "--data", "easy_vqa", "--source", str(easy_vqa), "--out", str(tmp_path / "run")])
    evaluation.main([str(tmp_path / "run"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "0 training rows are longer" in out and "yes/no" in out and "color" in out


def test_your_own_folder_trains_and_evaluates(llava, tmp_path, capsys):
    train.main([*TINY, "--data", "llava", "--source", str(llava), "--images", str(llava.parent), "--image-size", "32",
                "--out", str(tmp_path / "run")])
    evaluation.main([str(tmp_path / "run"), "--device", "cpu", "--split", "all", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["n"] == 30 * 2 + 2


def test_two_pictures_are_enough_to_evaluate_but_not_to_train(llava, runs, tmp_path):
    llava.write_text(json.dumps(json.loads(llava.read_text())[:2]))
    with pytest.raises(SystemExit, match="too few pictures"):
        train.main([*TINY, "--data", "llava", "--source", str(llava), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="try --split all"):
        evaluation.main([str(runs / "mma-0"), "--device", "cpu", "--data", "llava", "--source", str(llava)])
    evaluation.main([str(runs / "mma-0"), "--device", "cpu", "--data", "llava", "--source", str(llava), "--split", "all",
                     "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["n"] == 4


@pytest.mark.parametrize("args,message", [
    (["--data", "easy_vqa"], "error: --data easy_vqa needs --source"),
    (["--data", "llava", "--source", "/nowhere.json"], "error: .*nowhere.json: no such file"),
    (["--max-tokens", "10"], "error: .*--max-tokens"),
    (["--image-size", "60"], "error: image_size=60 must be a multiple of patch_size=16"),
    (["--device", "nonsense"], "error: .*--device"),
])
def test_bad_input_is_one_clear_error(args, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train.main([*TINY, *args, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("args", [["--questions", "0"], ["--eval-every", "0"], ["--limit", "-1"], ["--patch-size", "0"], ["--steps", "x"],
                                  ["--resume", "--overwrite"]])
def test_flags_out_of_range_are_usage_errors(args, capsys):
    with pytest.raises(SystemExit):
        train.arguments(args)
    assert args[0] in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_that_breaks_under_way_is_one_clear_error(llava, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(data.Folder, "read_pictures", lambda *args: None)  # as for a set too large to read at the start
    data.read_picture.cache_clear()
    for i in range(1, 30, 2):
        (llava.parent / f"{i}.jpg").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"entry \d+ \(id '\d+'\): .*jpg: not a readable picture"):
        train.main([*TINY, "--data", "llava", "--source", str(llava), "--workers", workers, "--steps", "30",
                    "--out", str(tmp_path / "run")])


def test_a_failed_overwrite_leaves_no_mixture(runs, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train.main([*TINY, "--out", str(out)])
    kept = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(SystemExit, match="--max-tokens"):
        train.main([*TINY, "--out", str(out), "--overwrite", "--vocab-size", "300", "--max-tokens", "18"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == kept  # refused before anything was touched
    monkeypatch.setattr(train, "schedule", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*TINY, "--out", str(out), "--overwrite"])
    with pytest.raises(SystemExit, match="not a finished run"):
        evaluation.main([str(out)])


def test_cut_rows_of_the_built_in_world_are_reported(tmp_path, capsys):
    train.main([*TINY, "--max-tokens", "27", "--out", str(tmp_path / "run")])
    assert "stage sft: " in capsys.readouterr().out


def test_a_finished_run_is_not_overwritten(runs):
    with pytest.raises(SystemExit, match="holds a finished run"):
        train.main([*TINY, "--out", str(runs / "mma-0")])


def test_eval_names_what_is_not_a_run(tmp_path):
    with pytest.raises(SystemExit, match="not a finished run, model.pt is missing"):
        evaluation.main([str(tmp_path)])


def test_training_refuses_a_leaking_mask(tmp_path, monkeypatch):
    monkeypatch.setitem(mma.OPENS, "mine", lambda q, k: (q == mma.Role.IMAGE) & (k == mma.Role.ANSWER))
    for options in (["--mask", "mine"], ["--pt-mask", "leaky"]):
        with pytest.raises(SystemExit, match=f"{options[1]!r} .* answer tokens .* instead of predicted"):
            train.main([*TINY, *options, "--out", str(tmp_path / "run")])


def test_a_leak_can_be_watched_as_a_lesson(tmp_path, capsys):
    """With the flag it trains: the image reads the caption (its loss depends on the mask), which an honest mask does not allow."""
    train.main([*TINY, "--pt-mask", "leaky", "--allow-leaks", "--out", str(tmp_path / "lesson")])
    assert "watch the loss lie" in capsys.readouterr().out
    assert json.loads((tmp_path / "lesson" / "run.json").read_text())["args"]["pt_mask"] == "leaky"


def test_a_score_by_hand():
    def r(family, correct, unparsed=False):
        return dict(family=family, correct=correct, unparsed=unparsed, group="")
    s = evaluation.summarise([r("a", True), r("a", False), r("a", True), r("b", False, True)])
    assert s == {"accuracy": 0.5, "n": 4, "unparsed": 1, "families": {"a": {"accuracy": 2 / 3, "n": 3}, "b": {"accuracy": 0.0, "n": 1}}}


def test_pooled_seeds_by_hand():
    pooled = evaluation.pool

    def run(name, mask, seed, accuracy):
        return {"run": name, "accuracy": accuracy, "families": {"a": {"accuracy": accuracy, "n": 10}}, "n": 10, "unparsed": 0,
                "params": 1234, "mask": mask, "seed": seed, "args": {"mask": mask, "seed": seed, "out": name, "lr": 0.1}}
    table = evaluation.table(pooled([run("x", "mma", 0, .8), run("y", "mma", 1, .9), run("z", "causal", 0, .5)]))
    assert "85.0 ± 7.1" in table and "50.0" in table and "1,234" in table
    assert "seeds" not in evaluation.table(pooled([run("x", "mma", 0, .8), run("x", "mma", 0, .8)]))  # the same seed twice is one seed
    other = {**run("w", "mma", 0, .4), "families": {"b": {"accuracy": .4, "n": 10}}, "args": {"lr": 0.2}}
    assert "| -" in evaluation.table(pooled([run("x", "mma", 0, .8), other])).replace("|  ", "|").replace("|  ", "|").replace("  ", " ")


def test_muon_is_torchs_muon_without_the_rounding():
    torch.manual_seed(0)
    a = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((24, 16), (16, 40), (24, 16), (8, 8))]
    b = [torch.nn.Parameter(p.detach().clone()) for p in a]
    ours, theirs = muon.Muon(a, lr=0.1), torch.optim.Muon(b, lr=0.1, weight_decay=0.0)
    for step in range(3):
        for p, q in zip(a, b):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in a]
        ours.step(), theirs.step()
        for p, q, old in zip(a, b, before):
            assert (p - q).norm() < 0.02 * (step + 1) * (p - old).norm()  # theirs runs in bfloat16


def test_orthogonalise():
    m = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalise(m))
    assert values.min() > 0.5 and values.max() < 1.3


def test_schedule():
    shares = [train.schedule(step, 100) for step in range(100)]
    assert shares[0] < 0.05 and max(shares) == 1 and 0 < shares[-1] < 0.05 and shares[50] == 1


@pytest.mark.parametrize("options", [["--mask", "mma"], ["--mask", "cca"], ["--mask", "mma", "--gate", "rave"], ["--mask", "causal"]])
def test_the_host_never_waits_for_a_step(tokenizer, monkeypatch, options):
    """Meta tensors have no values: whatever would fetch one from a GPU fails on them. Rows count as long, where causal needs no mask."""
    monkeypatch.setattr(attention, "LONG", 1)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    args = train.arguments([*TINY, *options])
    config = train.config_of(args, tokenizer)
    batch = train.Steps(data.load("shapes"), tokenizer, config, "sft", args)[0]
    with torch.device("meta"):
        model = train.MLLM(config)
    with pytest.raises(RuntimeError):
        torch.ones(1, device="meta").item()
    train.update(model, train.optimizers_of(model, args), {k: x.to("meta") for k, x in batch.items()}, args.mask, [1e-3, 1e-3],
                 train.scaler_of("cpu"))


@pytest.mark.slow
def test_compiled_layers_learn_the_same(runs, tmp_path):
    """In a process of its own: what the compiler keeps would stay."""
    done = subprocess.run([sys.executable, "train.py", *TINY, "--compile", "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True,
                          text=True)
    if "No C++ compiler" in done.stderr or "InvalidCxxCompiler" in done.stderr:
        pytest.skip("no C++ compiler")
    assert done.returncode == 0, done.stderr
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
              for run in (tmp_path / "run", runs / "mma-0")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_training_learns(tmp_path):
    """30 steps of stage 1: well below the loss of the words' frequencies (2.2 nats a token)."""
    train.main([*TINY, "--pt-pictures", "32", "--pt-steps", "30", "--lr", "0.01", "--steps", "1", "--out", str(tmp_path / "run")])
    assert lines(tmp_path / "run")[2]["loss"] < 1.8


@pytest.mark.parametrize("script", [train, evaluation])
def test_the_scripts_help_themselves(script, capsys):
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    out = capsys.readouterr().out
    assert done.value.code == 0 and "usage" in out and script.__doc__.strip().splitlines()[0] in out
