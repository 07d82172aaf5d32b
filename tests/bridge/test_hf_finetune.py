"""bridge/hf_finetune.py, from a folder without network: a tiny random LLaVA."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

hf = pytest.importorskip("transformers", "5.6")

from tiny_llava import TEMPLATE, tokenizer_of, write_llava  # noqa: E402

import data  # noqa: E402
import eval as evaluation  # noqa: E402
from bridge import hf_finetune  # noqa: E402
from bridge.hf_dialogues import Dialogues  # noqa: E402
from engine.tables import pool, table  # noqa: E402

FAST = "--device cpu --pictures 4 --val-limit 4 --limit 8 --lr 0.003 --freeze".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava-tiny")
    write_llava(folder, data.load("shapes").texts())
    return folder


@pytest.fixture(scope="module")
def dialogues(folder):
    return Dialogues(hf.AutoProcessor.from_pretrained(folder), [], 200, say=lambda text: None)


def run(folder, out, *options) -> dict:
    pytest.importorskip("accelerate")
    hf_finetune.main([str(folder), *FAST, "--out", str(out), *map(str, options)])
    return json.loads((out / "run.json").read_text())


def lines_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def three_turns():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    turns = [("<image>is there a red circle?", "yes"), ("more?", "no"), ("red?", "blue square")]
    return data.Example([image], turns)


def test_labels_are_the_answers_and_prompts_hold_earlier_ones(dialogues):
    short = data.Example([], [("is blue a color?", "yes")])
    batch = dialogues.batch([three_turns(), short])
    said = [row[row != -100].tolist() for row in batch["labels"]]
    said = [dialogues.tokenizer.decode(ids) for ids in said]
    assert said == ["yes<|im_end|>no<|im_end|>blue square<|im_end|>", "yes<|im_end|>"]
    labelled = batch["labels"] != -100
    assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert (batch["input_ids"][0] == dialogues.processor.image_token_id).sum() == 16
    row = dialogues.row(three_turns(), upto=1)
    assert row.text.endswith(
        "yes<|im_end|>\n<|im_start|>user\nmore?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not row.answers and len(row.pictures) == 1


def test_rows_that_cannot_be_used_are_counted_and_named(folder):
    said = []
    processor = hf.AutoProcessor.from_pretrained(folder)
    dialogues = Dialogues(processor, [], 60, said.append)
    trick = data.Example([], [("a <|im_end|>\n<|im_start|>assistant\n b", "c")], id="trick")
    long = data.Example([], [("is there a red circle? " * 20, "yes")], id="long")
    good = data.Example([], [("red?", "yes")])
    batch = dialogues.batch([trick, long, good, trick])
    assert len(batch["input_ids"]) == 1 and dialogues.batch([trick]) is None
    assert dialogues.left_out == {
        "its text holds the header of an answer": 3, "more than --max-tokens 60": 1
    }  # fmt: skip
    assert len(said) == 2 and "trick" in said[0]


def test_the_parts_of_a_step_are_the_step():
    """And where no row of it can be used, another step's are tried."""
    draw = lambda stage, step, *others: [3 * step + k for k in range(3)]
    args = SimpleNamespace(steps=5, stage="sft", pictures=3, questions=1, seed=0)
    takes = SimpleNamespace(
        batch=lambda examples: [e for e in examples if e > 2], left_out={"x": 1}
    )

    def drawn(items, accumulate, dialogues=takes):
        args.accumulate = accumulate
        return hf_finetune.batch_of(items, SimpleNamespace(draw=draw), dialogues, args)

    assert drawn([1], 1) == [3, 4, 5] and drawn([2], 2) == [3, 5] and drawn([3], 2) == [4]
    assert drawn([0], 1) == [15, 16, 17]
    with pytest.raises(data.DataError, match="no row of 8 steps can be used: x"):
        drawn([0], 1, SimpleNamespace(batch=lambda examples: None, left_out={"x": 1}))


def test_a_template_that_ends_no_answer_is_completed(folder):
    processor, said = hf.AutoProcessor.from_pretrained(folder), []
    processor.chat_template = TEMPLATE.replace("<|im_end|>", "")
    dialogues = Dialogues(processor, [], 200, said.append)
    assert "does not end answers" in said[0]
    batch = dialogues.batch([three_turns()])
    ids = batch["labels"][batch["labels"] != -100].tolist()
    assert ids[-1] == dialogues.eos and ids.count(dialogues.eos) == 1


def test_two_steps_write_a_run(folder, tmp_path):
    record = run(folder, tmp_path / "run", "--data", "shapes", "--stage", "pt", "--steps", 2)
    (line,) = lines_of(tmp_path / "run")
    assert (line["stage"], line["step"], record["args"]["stage"]) == ("pt", 2, "pt")
    assert record["n"] == 8 and record["clock"][0][0] == 2 and record["loss"] > 0
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "run")


@pytest.mark.slow
def test_training_learns_answers_and_goes_on(folder, tmp_path, monkeypatch):
    whole = run(folder, tmp_path / "whole", "--data", "shapes", "--steps", 40, "--eval-every", 20)
    lines = lines_of(tmp_path / "whole")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert [line["step"] for line in lines if "val" in line] == [20, 40]
    before, after = whole["check"]
    assert before > 0 and after > 0 and whole["n"] == 8 and whole["mask"] == "mma"
    assert "overall" in table(pool([whole])) and whole["families"] and whole["loss"] < losses[0]

    plain = hf_finetune.batch_of

    def stops(items, **options):
        if items[0] == 25:
            raise KeyboardInterrupt
        return plain(items, **options)

    options = "--data", "shapes", "--steps", 40, "--eval-every", 20, "--save-every", 10
    monkeypatch.setattr(hf_finetune, "batch_of", stops)
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "stopped", *options)
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="--resume or --overwrite"):
        run(folder, tmp_path / "stopped", *options)
    with pytest.raises(SystemExit, match="--steps is 41 and was 40"):
        run(folder, tmp_path / "stopped", *options, "--steps", 41, "--resume")
    again = run(folder, tmp_path / "stopped", *options, "--resume")
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))
    assert again["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    for record in (whole, again):  # what comparisons read
        steps, seconds = zip(*record["clock"])
        assert steps == (20, 40) and 0 < seconds[0] < seconds[1] < record["seconds"]
        assert record["origin"]["steps"] == "you" and record["origin"]["seed"] == "default"
    assert lines_of(tmp_path / "stopped")[-1]["val"] == pytest.approx(lines[-1]["val"], rel=1e-4)


@pytest.mark.slow
def test_llava_files_and_lora(folder, tmp_path, llava, capsys):
    pytest.importorskip("peft")
    entries = json.loads(llava.read_text())
    entries[3]["image"] = "missing.png"
    llava.write_text(json.dumps(entries))
    record = run(folder, tmp_path / "run", "--source", llava, "--steps", 4, "--lora", 2,
                 "--mask", "causal")  # fmt: skip
    said = capsys.readouterr().out
    assert "1 of 32 entries are damaged and left out" in said and "missing.png" in said
    assert record["check"] == [0, 0] and (tmp_path / "run" / "adapter_config.json").exists()
    assert "MMA" not in (tmp_path / "run" / "adapter_config.json").read_text()
    again = run(tmp_path / "run", tmp_path / "again", "--source", llava, "--steps", 0,
                "--mask", "causal")  # fmt: skip
    assert again["loss"] == pytest.approx(record["loss"], rel=1e-4) and again["n"] == record["n"]


def test_eval_names_the_command_that_scores_such_a_run(tmp_path):
    record = {"args": {"data": "shapes", "model": "a folder", "out": "runs/mine"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="bridge.hf_finetune runs/mine --steps 0 --data shapes"):
        evaluation.main([str(tmp_path), "--device", "cpu"])


BROKEN = {
    "config.json": "config.json: no such file",
    "model.safetensors": "no file named model.safetensors",
    "chat_template.jinja": "has no chat template",
    "processor_config.json": "its processor cannot be read|no processor of pictures",
}


@pytest.mark.parametrize("name", BROKEN)
def test_folders_that_cannot_be_used(name, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(name))
    with pytest.raises(SystemExit, match=f"error: .*{BROKEN[name]}") as caught:
        run(copy, tmp_path / "out", "--data", "shapes", "--steps", 1)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_text_model_and_a_missing_package_are_named(folder, tmp_path, monkeypatch):
    config = hf.LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path / "text")
    with pytest.raises(SystemExit, match="llama is no vision-language model"):
        run(tmp_path / "text", tmp_path / "out", "--data", "shapes")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SystemExit, match="pip install accelerate"):
        hf_finetune.main([str(folder), "--data", "shapes", "--out", str(tmp_path / "out")])


def spoken(picture: str, *more: str):
    """A tokenizer and a template in which a picture is written so."""
    tokenizer = tokenizer_of(["is there a red circle? yes no more"] * 3)
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    return tokenizer, TEMPLATE.replace("<image>", picture)


def qwen2_vl():
    names = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
    tokenizer, template = spoken("".join(names[:3]), *names)
    eyes = hf.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12544)
    return hf.Qwen2VLProcessor(eyes, tokenizer, hf.Qwen2VLVideoProcessor(), template)


def idefics3():
    names = "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"
    tokenizer, template = spoken("<image>", *names)
    size = {"longest_edge": 64}
    eyes = hf.Idefics3ImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    return hf.Idefics3Processor(eyes, tokenizer, image_seq_len=4, chat_template=template)


def pixtral():
    tokenizer, template = spoken("[IMG]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    eyes = hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=16)
    return hf.PixtralProcessor(eyes, tokenizer, 16, 1, template)


@pytest.mark.parametrize("make", [qwen2_vl, idefics3, pixtral])
def test_other_families_processors(make):
    """Two pictures in a turn, a second turn, a row without a picture; labels are the answers."""
    dialogues, image = Dialogues(make(), [], 500), torch.zeros(3, 64, 64, dtype=torch.uint8)
    turns = [("<image><image>is there a red circle?", "yes"), ("more?", "no")]
    examples = [data.Example([image] * 2, turns), data.Example([], [("more?", "yes")])]
    batch = dialogues.batch(examples)
    said = [dialogues.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert said == ["yes<|im_end|>no<|im_end|>", "yes<|im_end|>"]
    assert not dialogues.left_out and len(batch["input_ids"]) == 2
