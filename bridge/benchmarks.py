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
import re
from collections import Counter, defaultdict
from pathlib import Path

from bridge.benchmark_files import Question, read
from engine.answering import say_unread
from engine.options import Parser, positive
from engine.precision import check_device, default_device
from engine.run import check_writable, one_line_errors
from engine.tables import markdown
from eval import answer_all, normalise, open_run

RULES = {
    "choice": "strict: the answer is an option's letter, bare or as in (A), A. or A:; lenient: or "
    "it is that option's text, or names exactly one option's letter as a word by itself in "
    "capitals (the article A at its beginning does not count)",
    "yes/no": "strict: the answer, normalised, is yes or no; lenient: or its first word is, or it "
    "holds just one of the two",
    "short": "VQA's soft accuracy: the mean over the people, each left out in turn, of min(1, how "
    "many of the others gave this answer / 3); with a single true answer, exact match; answers "
    "normalised (eval.normalise), number words up to ten as digits, none as 0",
}
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(NUMBER_WORDS)}}  # as VQA's own
MME_COGNITION = {
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
}  # fmt: skip


# --- Parsing


def letter_of(given: str, options: dict[str, str], lenient: bool) -> str | None:
    """The option that an answer names, or None."""
    bare = re.fullmatch(r"\(?([A-Z])\)?[.:]?", given.strip())
    if bare and bare[1] in options:
        return bare[1]
    if not lenient:
        return None
    same = [letter for letter, text in options.items() if normalise(given) == normalise(text)]
    if len(same) == 1:
        return same[0]
    no_article = re.sub(r"^\s*A(?= (?!or |and |is )[a-z])", "", given)
    named = set(re.findall(r"(?<![A-Za-z])([A-Z])(?![A-Za-z'])", no_article)) & set(options)
    return named.pop() if len(named) == 1 else None


def yes_or_no(given: str, lenient: bool) -> str | None:
    words = normalise(given).split()
    if words in (["yes"], ["no"]):
        return words[0]
    if not lenient or not words:
        return None
    held = {"yes", "no"} & set(words)
    if words[0] in held:
        return words[0]
    return held.pop() if len(held) == 1 else None


# --- Scoring


def soft(given: str, answers: list[str]) -> float:
    """VQA's accuracy of an answer (Antol et al. 2015): 0 to 1."""

    def form(text: str) -> str:
        return " ".join(DIGITS.get(word, word) for word in normalise(text).split())

    said, people = form(given), [form(answer) for answer in answers]
    if len(people) == 1:
        return float(said == people[0])
    same = [person == said for person in people]
    return mean(min(1, (sum(same) - own) / 3) for own in same)


def score(questions: list[Question], given: list[str]) -> dict[str, float]:
    """Every score of a file, shares as 0 to 1; MME's sums as it gives them."""
    kind, scores = questions[0].kind, {"questions": len(questions)}
    if kind == "short":
        accuracies = (soft(g, q.answers) for q, g in zip(questions, given))
        return {**scores, "soft accuracy": mean(accuracies)}
    for rule in ("strict", "lenient"):
        by_rule = score_parsed(questions, given, rule == "lenient")
        scores |= {f"{rule}: {name}": value for name, value in by_rule.items()}
    return scores


def score_parsed(questions: list[Question], given: list[str], lenient: bool) -> dict[str, float]:
    """The scores of a choice or of yes and no under one parse rule."""
    if questions[0].kind == "choice":
        parsed = [letter_of(g, q.options, lenient) for q, g in zip(questions, given)]
        true = [q.answers[0] for q in questions]
    else:
        parsed = [yes_or_no(g, lenient) for g in given]
        true = [normalise(q.answers[0]) for q in questions]
    right = [p == t for p, t in zip(parsed, true)]
    scores = {"accuracy": mean(right), "unparsed": parsed.count(None)}
    by_family = defaultdict(list)
    for q, r in zip(questions, right):
        by_family[q.example.family].append(r)
    if len(by_family) > 1:
        scores |= {family: mean(by_family[family]) for family in sorted(by_family)}
    if questions[0].kind == "yes/no":
        scores |= {**of_yes(parsed, true), **plus(questions, right)}
    return scores


def of_yes(parsed: list, true: list[str]) -> dict[str, float]:
    """POPE's numbers: yes is the positive class; what was not parsed is not a yes."""
    count = Counter(zip((p == "yes" for p in parsed), (t == "yes" for t in true)))
    hit, false, missed = count[True, True], count[True, False], count[False, True]
    precision, recall = hit / max(1, hit + false), hit / max(1, hit + missed)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(1e-12, precision + recall),
        "yes share": (hit + false) / len(true),
    }


def plus(questions: list[Question], right: list[bool]) -> dict[str, float]:
    """MME: acc+ is the share of pictures whose questions are all right; a category's score is
    100 (acc + acc+)."""
    pictures = defaultdict(list)
    for q, r in zip(questions, right):
        pictures[q.example.family, q.picture].append(r)
    scores = {"acc+": mean(all(answers) for answers in pictures.values())}
    families = sorted({family for family, _ in pictures})
    if not MME_COGNITION & set(families):
        return scores
    for family in families:
        groups = [answers for (f, _), answers in pictures.items() if f == family]
        accuracy = mean(r for answers in groups for r in answers)
        part = "MME cognition" if family in MME_COGNITION else "MME perception"
        both = 100 * (accuracy + mean(map(all, groups)))
        scores[part] = scores.get(part, 0.0) + both
    return scores


def mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


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


def written(name: str, value: float) -> str:
    if name.endswith(("questions", "unparsed")):
        return f"{value:,.0f}"
    return f"{value:.1f}" if "MME" in name else f"{100 * value:.1f} %"


def write_json(args, questions: list[Question], given: list[str], scores: dict, rule: dict) -> None:
    answers = [
        {"id": q.example.id, "prompt": q.example.turns[0][0], "given": g, "answers": q.answers}
        for q, g in zip(questions, given)
    ]
    record = {"file": args.file.name, "run": str(args.run), "scores": scores, **rule}
    args.json.write_text(json.dumps({**record, "answers": answers}, indent=1) + "\n")


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.json)
        questions = read(args.file, args.images)[: args.limit]
        model, tokenizer = open_run(args.run, args.device)
        answers = answer_all(
            model, tokenizer, [q.example for q in questions], None, args.batch_size, progress=True,
            max_new_tokens=args.max_new_tokens,
        )  # fmt: skip
        say_unread(answers, print)
        given = [answer["given"] for answer in answers]
        scores = score(questions, given)
        rule = {
            "prompt": questions[0].example.turns[0][0],
            "decoding": f"greedy, at most {args.max_new_tokens} tokens",
            "parse rule": RULES[questions[0].kind],
        }
        rows = [[name, written(name, value)] for name, value in scores.items()]
        print(markdown([["score", args.file.name], *rows]) + "\n")
        for name, text in rule.items():
            print(f"{name}: {text!r}" if name == "prompt" else f"{name}: {text}")
        if args.json:
            write_json(args, questions, given, scores, rule)


if __name__ == "__main__":
    main()
