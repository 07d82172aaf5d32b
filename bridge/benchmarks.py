"""The paper's benchmarks in the formats people have: VLMEvalKit's TSV files, POPE's JSON lines.

    python -m bridge.benchmarks RUN MMBench_DEV_EN.tsv    multiple choice; SEED, MMMU, CV-Bench, ...
    python -m bridge.benchmarks RUN MME.tsv               yes or no, and acc+ for each picture
    python -m bridge.benchmarks RUN coco_pope_random.json --images val2014
    python -m bridge.benchmarks RUN TextVQA.tsv           short answers: VQA's soft accuracy

What a file holds decides how it is asked and scored: option columns A, B, ... are a choice; answers
that are all yes or no are yes/no; the rest are short answers. The prompt, the decoding and the
parse rule are printed with every score, since a number means nothing without them. Scores are of
this file's rows; a leaderboard's may be of hidden ones, or judged by another model.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from bridge.benchmark_files import Question, read
from bridge.benchmark_scores import RULES, rule_of, score
from engine.answering import check_sees, say_unread
from engine.options import Parser, positive
from engine.precision import check_device, default_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import markdown
from eval import answer_all, open_run

# --- The command


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("run", type=Path, metavar="RUN", help="folder that --out named")
    add("file", type=Path, metavar="FILE", help="a .tsv of VLMEvalKit's, or POPE's JSON lines")
    add("--images", type=Path, metavar="DIR", help="of image_path and POPE (default: FILE's)")
    add(
        "--max-new-tokens",
        type=positive,
        default=16,
        metavar="N",
        help="longer answers are cut (default: 16)",
    )
    add("--limit", type=positive, metavar="N", help="the first N questions")
    add("--batch-size", type=positive, default=64, metavar="N", help="default: 64")
    add("--device", default=default_device(), metavar="NAME", help="cuda, mps or cpu")
    add("--json", type=Path, metavar="FILE", help="write the scores and every answer here")
    return parser.parse_args(argv)


def written(measure: str, value: float) -> str:
    measure = measure.removeprefix("strict: ").removeprefix("lenient: ")
    if measure in ("questions", "unparsed"):
        return f"{value:,}"
    return f"{value:.1f}" if measure.startswith("MME ") else f"{100 * value:.1f} %"


def tables(file: str, scores: dict) -> str:
    """The scores as Markdown: of all questions, and the accuracies of the categories."""
    overall = {name: x for name, x in scores.items() if not isinstance(x, dict)}
    by_rule = {name: x for name, x in scores.items() if isinstance(x, dict)}
    text = markdown([["score", file], *([name, written(name, x)] for name, x in overall.items())])
    if not by_rule:
        return text
    rows = [["category", "questions", *(n.replace("categories", "accuracy") for n in by_rule)]]
    for category, numbers in next(iter(by_rule.values())).items():
        accuracies = [written("accuracy", by[category]["accuracy"]) for by in by_rule.values()]
        rows.append([category or "(none)", written("questions", numbers["questions"]), *accuracies])
    return f"{text}\n\n{markdown(rows)}"


def write_json(args, questions: list[Question], given: list[str], scores: dict, rule: dict) -> None:
    answers = [
        {"id": q.example.id, "prompt": q.example.turns[0][0], "given": g, "answers": q.answers}
        for q, g in zip(questions, given)
    ]
    record = {"file": args.file.name, "run": str(args.run), "scores": scores, **rule}
    args.json.write_text(json.dumps({**record, "answers": answers}, indent=1) + "\n")


def how(questions: list[Question], max_new_tokens: int) -> dict[str, str]:
    """How the questions were asked and the answers judged: without it a score means nothing."""
    prompts = {q.kind: q.example.turns[0][0] for q in reversed(questions)}
    rules = Counter(map(rule_of, questions))
    first = questions[0].kind
    return {
        "prompt": prompts.pop(first),
        **{f"prompt ({kind})": prompt for kind, prompt in prompts.items()},
        "decoding": f"greedy, at most {max_new_tokens} tokens",
        "parse rule": "; ".join(f"{RULES[rule]} ({n:,} questions)" for rule, n in rules.items()),
    }


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json)
        check_sees(read_record(args.run)["args"], args.run)
        questions = read(args.file, args.images)[: args.limit]
        model, tokenizer = open_run(args.run, args.device)
        answers = answer_all(
            model, tokenizer, [q.example for q in questions], None, args.batch_size, progress=True,
            max_new_tokens=args.max_new_tokens,
        )  # fmt: skip
        say_unread(answers, print)
        given = [answer["given"] for answer in answers]
        scores, rule = score(questions, given), how(questions, args.max_new_tokens)
        print(tables(args.file.name, scores) + "\n")
        for name, text in rule.items():
            print(f"{name}: {text!r}" if name.startswith("prompt") else f"{name}: {text}")
        if args.json:
            write_json(args, questions, given, scores, rule)


if __name__ == "__main__":
    main()
