"""Evaluate runs of train.py: answers are generated, then compared after normalisation.

    python eval.py RUN [RUN ...]                        accuracy by family, loss; seeds are pooled
    python eval.py RUN --data llava --source FILE.json  other data than the run was trained on
    python eval.py RUN --split dev                      another split: train, val, test, all, ...
    python eval.py RUN --mask v2v                       another mask at test time than in training
    python eval.py RUN --image FILE --question "..."    one answer; a conversation: lab/talk.py

Decoding is greedy. "unparsed" counts answers that cannot be right whatever the question: outside
the data set's closed list of answers, or, where it has none, empty or without an end.
"""

import argparse
import json
from pathlib import Path

import data
from data import normalise
from engine import code, wings
from engine.answering import answer_loss, encode_prompts, mean_loss, row_batches, say_unread
from engine.checkpoint import load_model
from engine.options import Parser, add_run_options, positive
from engine.precision import check_device, in_tf32
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import pool, table
from mma import EXTRA_PAIRS
from model import MLLM, KVCache


@in_tf32()
def answer_all(model: MLLM, tokenizer, examples: list[data.Example], known=None,
               batch_size: int = 256, progress: bool = False,
               max_new_tokens: int | None = None) -> list[dict]:  # fmt: skip
    """The model's answer to every turn of every example, earlier turns given with true answers.
    Returns a dict for each: id, group, family, question, answer (the true one), given, correct,
    unparsed, prompt (example, turn), unread: why its picture could not be read and no answer is
    given. known: the closed set of answers, if there is one. max_new_tokens: an answer is cut
    there (default: twice the longest true one and 4 more).
    """
    known = known and {normalise(answer) for answer in known}
    prompts = [(e, turn) for e in examples for turn in range(len(e.turns))]
    lengths = (len(tokenizer.encode(e.turns[turn][1])) for e, turn in prompts)
    limit = max_new_tokens or 2 * max(lengths, default=0) + 4  # what is longer is wrong
    was_training, todo, one_token = model.training, iter(prompts), KVCache(model, 1, 1)
    results, rows = [], encode_prompts(prompts, tokenizer, model.config, progress)
    model.eval()
    for encoded in row_batches(rows, limit, batch_size, one_token.k.nbytes + one_token.v.nbytes):
        batch = data.collate(encoded, tokenizer.pad, model.config.image_size)
        batch = {name: x.to(one_token.k.device) for name, x in batch.items()}
        answers = model.generate(**batch, eos=tokenizer.ends, max_new_tokens=limit)
        for row, ids in zip(encoded, answers):
            result = score(*next(todo), [] if row.unread else ids, tokenizer, known)
            results.append({**result, "unread": row.unread})
    model.train(was_training)
    return results


def score(example: data.Example, turn: int, ids: list[int], tokenizer, known) -> dict:
    """One answer, given as token ids, beside the true one; see answer_all."""
    (question, answer), given = example.turns[turn], tokenizer.decode(ids)
    said = normalise(given)
    correct = said == normalise(answer)
    unparsed = (said not in known) if known else (not said or ids[-1] not in tokenizer.ends)
    return dict(
        id=example.id, group=example.group, family=example.family,
        question=question.replace(data.IMAGE_TOKEN, " ").strip(), answer=answer, given=given,
        correct=correct, unparsed=unparsed and not correct, prompt=(example, turn),
    )  # fmt: skip


def summarise(results: list[dict]) -> dict:
    """{"accuracy", "families": {name: {"accuracy", "n"}}, "n", "unparsed"}; accuracy 0 to 1. Where
    examples have groups, also "consistency", the share of groups answered all correctly; where
    pictures could not be read, "unanswered", the number of questions about them."""

    mean = lambda of: {"accuracy": sum(r["correct"] for r in of) / max(1, len(of)), "n": len(of)}
    families, groups = sorted({r["family"] for r in results}), {}
    by_family = {f: mean([r for r in results if r["family"] == f]) for f in families}
    summary = {**mean(results), "families": by_family}
    summary["unparsed"] = sum(r["unparsed"] for r in results)
    for r in (r for r in results if r["group"]):
        groups[r["group"]] = groups.get(r["group"], True) and r["correct"]
    if unanswered := sum(bool(r.get("unread")) for r in results):
        summary["unanswered"] = unanswered
    if groups:
        summary["consistency"] = sum(groups.values()) / len(groups)
    return summary


def open_run(run: Path, device: str = "cpu", mask: str | None = None):
    """The model and tokenizer of a finished run, of the classes it was trained with (wings.py).
    mask: another one than it was trained with. DataError if it cannot be read."""
    variant = wings.variant_of(read_record(run)["args"])
    name = "tokenizer.json"  # of a tokenizer that came with pretrained weights
    try:
        extras = json.loads((run / name).read_text("utf-8")) if (run / name).exists() else {}
        name = "tokenizer.model"
        tokenizer = variant.tokenizer_class((run / name).read_bytes(), **extras)
        name = "model.pt"
        model = load_model(run / name, variant.model_class or MLLM, device)
    except Exception as error:  # sentencepiece and torch raise many kinds; code in a pickle is one
        raise data.DataError(f"{run / name} cannot be read: {data.reason(error)}") from None
    if (n := len(tokenizer)) > model.config.vocab_size:
        raise data.DataError(f"{run}: a tokenizer of {n} pieces belongs to another model")
    model.config.mask = mask or model.config.mask
    return model, tokenizer


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_run_options(parser)
    add = parser.add_argument
    add("--limit", type=positive, metavar="N", help="the first N examples (default: all)")
    add("--mask", choices=list(EXTRA_PAIRS), metavar="KIND", help="another one at test time only")
    add("--image", type=Path, metavar="FILE", help="a picture to ask --question about")
    add("--audio", type=Path, metavar="FILE", help="a WAV file to ask --question about")
    add("--question", action="append", help="may be given again")
    add("--json", type=Path, metavar="FILE", help="write the results here")
    add("--md", type=Path, metavar="FILE", help="write the table here")
    add("--batch-size", type=positive, default=256, metavar="N", help="default: 256")
    return parser.parse_args(argv)


def ask(model: MLLM, tokenizer: data.Tokenizer, image, questions: list[str]) -> list[str]:
    """The answers to questions about one picture, a file or uint8 [3, size, size]."""
    examples = [data.Example([image], [(data.about_picture(q), "")]) for q in questions]
    data.pixels_of(image, model.config.image_size, "")  # DataError, if it cannot be read
    return [r["given"] for r in answer_all(model, tokenizer, examples, max_new_tokens=128)]


def main(argv=None) -> None:
    from engine import asking  # training needs nothing of it

    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json, args.md)
        asking.check_asked(args)
        results = []
        for run in args.runs:
            record = read_record(run)
            model, tokenizer = open_run(run, args.device, args.mask)
            if args.question:
                label = f"{run}: " if len(args.runs) > 1 else ""
                about = asking.asked_picture(args, record["args"], run)
                answers = ask(model, tokenizer, about, args.question)
                print("\n".join(label + answer for answer in answers))
                continue
            source, examples, what = asking.examples_of(
                record["args"], args, model.config.image_size
            )
            answers = answer_all(model, tokenizer, examples, source.answers, args.batch_size, True)
            say_unread(answers, print)
            now = {"run": str(run), "mask": model.config.mask, "evaluated": what}
            loss = mean_loss([answer_loss(model, tokenizer, examples, args.batch_size)])
            results.append({**record, **summarise(answers), **loss, **now})
        if results:
            text = "\n\n".join(filter(None, [table(pool(results)), code.told_apart(results)]))
            print(text)
        if args.md:
            args.md.write_text(text + "\n", encoding="utf-8")
        if args.json:
            args.json.write_text(json.dumps({"runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
