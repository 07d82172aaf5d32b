"""Answers come in batches that fit the memory, and are the same in batches of any size; the loss of
held-out answers."""

import json

import pytest
from helpers import evaluated, lines_of, own_data, record_of, train_tiny

import data
import train
from data import Row
from engine import answering
from engine.answering import answer_loss, are_free, mean_loss, row_batches
from eval import answer_all
from mma import Role
from model import KVCache


def test_answers_do_not_depend_on_the_size_of_a_batch(model, tokenizer, dialogues, monkeypatch):
    generate, shapes = type(model).generate, []

    def spy(self, ids, role, *rest, max_new_tokens, **options):
        shapes.append((*ids.shape, max_new_tokens))
        return generate(self, ids, role, *rest, max_new_tokens=max_new_tokens, **options)

    def answers(**options) -> list[str]:
        shapes.clear()
        return [r["given"] for r in answer_all(model, tokenizer, dialogues, **options)]

    monkeypatch.setattr(type(model), "generate", spy)
    model.train()  # and goes on so
    expected = answers()
    assert model.training and len(set(expected)) > 3 and [rows for rows, *_ in shapes] == [9]
    assert answers(batch_size=2) == expected and max(shapes)[0] == 2
    one = KVCache(model, 1, 1)
    for tokens in (1, 150):  # of the cache of a batch
        monkeypatch.setattr(answering, "CACHE_BYTES", tokens * (one.k.nbytes + one.v.nbytes))
        assert answers() == expected
        assert all(B == 1 or B * (T + new) <= tokens for B, T, new in shapes)
    assert 1 < max(B for B, *_ in shapes) < 9  # 150 tokens are enough for two rows, or three


def test_cache_and_masks_of_a_batch_are_bounded_at_the_papers_size():
    """By hand: 32 layers of 32 heads of 96 numbers, keys and values, float32; 180 tokens asked and
    twice an answer of 120 and 4 tokens: 9.9 rows of 424 tokens in 4 GiB. Of 8,000 tokens asked one
    row's mask takes 61 MiB, and four times that while it is made: 16 of them are 3.8 GiB."""
    for rows, tokens, new, a_token, sizes in (
        (256, 180, 244, 32 * 32 * 96 * 2 * 4, [12] * 21 + [4]), (64, 8000, 4, 1, [16] * 4),
    ):  # fmt: skip
        prompts = [Row(ids=[1] * tokens, role=[1] * tokens)] * rows
        assert [len(some) for some in row_batches(prompts, new, 256, a_token)] == sizes


def test_the_loss_of_held_out_answers_is_that_of_a_loop_over_single_rows(
    model, tokenizer, dialogues, batch_of, losses_in_float64, tmp_path
):
    """In batches of any size and shared out among processes; without what cannot be read."""
    losses = [model.loss(**batch_of([e])).item() for e in dialogues]
    n = [int((batch_of([e])["role"] == Role.ANSWER).sum()) for e in dialogues]
    expected = sum(loss * tokens for loss, tokens in zip(losses, n)) / sum(n)
    unread = data.Example([tmp_path / "none.png"], [("<image>red?", "yes")])
    for batch_size, processes in ((1, 1), (2, 1), (256, 1), (256, 2)):
        shares = ([*dialogues, unread][rank::processes] for rank in range(processes))
        sums = [answer_loss(model, tokenizer, share, batch_size) for share in shares]
        assert sum(tokens for _, tokens in sums) == sum(n)
        assert mean_loss(sums) == {"loss": pytest.approx(expected, abs=1e-9)}
    assert mean_loss([answer_loss(model, tokenizer, [unread])]) == {}


@pytest.mark.usefixtures("no_drawing")
def test_free_text_is_judged_by_its_loss_and_shown_beside_the_truth(llava, tmp_path, capsys):
    """At every look, at the end, and by eval.py; --keep-best without a name goes by it."""
    entries = json.loads(llava.read_text())
    for i, e in enumerate(entries):
        e["conversations"] = [{"from": "human", "value": "<image>"}] if "image" in e else []
        e["conversations"] += [{"from": "gpt", "value": f"picture number {i} of many"}]
    llava.write_text(json.dumps(entries[:30]))
    train_tiny(tmp_path / "run", *own_data(llava), "--keep-best")
    said, record = capsys.readouterr(), record_of(tmp_path / "run")
    looks = [line["val"]["loss"] for line in lines_of(tmp_path / "run") if "val" in line]
    assert record["kept"]["by"] == "loss" and record["kept"]["val"] == min(looks)
    assert len(looks) == 2 and 0 < record["loss"] < 20
    assert said.out.count(", where the true answer is 'picture number") == 3
    assert f"| token loss  |     {record['loss']:.3f} |" in said.out
    assert "val loss=" in said.err
    assert evaluated(tmp_path / "run")[0]["loss"] == pytest.approx(record["loss"], abs=1e-5)


@pytest.mark.parametrize("n,shown", [(1, [0]), (2, [0, 1]), (4, [0, 1, 2]), (9, [0, 3, 6])])
def test_three_answers_are_shown_of_any_number(n, shown):
    results = [{"given": f"{i}{'图' * 80}", "answer": f"{i} is\nshort"} for i in range(n)]
    line = f"said '{{0}}{'图' * 55} ...', where the true answer is '{{0}} is short'"
    assert train.beside_true(results) == [line.format(i) for i in shown]


def test_answers_are_free_where_most_of_them_differ():
    assert are_free(["a", "b", "b"], None)
    assert not are_free(["a", "b", "c"], {"a"}) and not are_free(["a", "a"], None)
