"""The paper's benchmarks in the formats people have: VLMEvalKit's TSV files, and POPE's JSON lines.

    python benchmarks.py RUN MMBench_DEV_EN.tsv                   multiple choice: MMBench, SEED, MMMU, CV-Bench, RealWorldQA, ...
    python benchmarks.py RUN MME.tsv                              yes or no, and acc+ for each picture
    python benchmarks.py RUN coco_pope_random.json --images val2014
    python benchmarks.py RUN TextVQA.tsv                          short answers: VQA's soft accuracy

What a file holds decides how it is asked and scored: option columns A, B, ... are a choice; answers that are all yes or no are yes/no; the
rest are short answers. The prompt, the decoding and the parse rule are printed with every score, since a number means nothing without
them. Scores are of this file's rows; a leaderboard's may be of hidden ones, or judged by another model.

TSV columns: index, question, answer, image (base64, several as a list, or the index of a row that has it) or image_path, and where there
are any hint, A to Z, category. POPE: an object a line with image, text, label.
"""

import argparse
import ast
import base64
import binascii
import csv
import json
import re
import string
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import eval as evaluation
from data import IMAGE, DataError, Example

PROMPTS = {
    "choice": "{hint}{question}\n{options}\nAnswer with the option's letter from the given choices directly.",
    "yes/no": "{hint}{question}\nPlease answer yes or no.",
    "short": "{hint}{question}\nAnswer the question using a single word or phrase.",
}
RULES = {
    "choice": "strict: the answer is an option's letter, bare or as in (A), A. or A:; lenient: or it is that option's text, or names "
    "exactly one option's letter as a word by itself in capitals (the article A at its beginning does not count)",
    "yes/no": "strict: the answer, normalised, is yes or no; lenient: or its first word is, or it holds just one of the two",
    "short": "VQA's soft accuracy: the mean over the people, each left out in turn, of min(1, how many of the others gave this answer "
    "/ 3); with a single true answer, exact match; answers normalised (data.normalise)",
}
MME_COGNITION = {
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
}


@dataclass
class Question:
    example: Example
    kind: str  # a key of PROMPTS
    answers: list[str]  # a letter; yes or no; what people answered
    options: dict[str, str]
    picture: object  # the same for questions about the same picture


# --------------------------------------------------------------------------------------------------------------------
# Reading


def read(file: Path, images: Path | None = None) -> list[Question]:
    """The questions of a TSV or JSON lines file. Raises DataError with the line of what cannot be read."""
    rows = list(read_tsv(file) if file.suffix == ".tsv" else read_pope(file))
    if not rows:
        raise DataError(f"{file}: holds no question")
    answers = {data.normalise(str(row["answer"])) for _, row in rows}
    kind = (
        "choice"
        if any(row.get("A") for _, row in rows)
        else "yes/no"
        if answers <= {"yes", "no"}
        else "short"
    )
    inline = {row["index"]: row["image"] for _, row in rows if len(row.get("image", "")) > 64}
    return [question(where, row, kind, inline, images or file.parent) for where, row in rows]


def read_tsv(file: Path):
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with open(file, encoding="utf-8-sig", newline="") as f:
            lines = csv.DictReader(f, delimiter="\t")
            missing = {"index", "question", "answer"} - set(lines.fieldnames or ())
            if missing:
                raise DataError(
                    f"{file}: no column {', '.join(sorted(missing))}; a TSV as VLMEvalKit has it was expected"
                )
            for row in lines:
                yield (
                    f"{file}: row {row['index']}",
                    {name: value or "" for name, value in row.items() if name},
                )
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not readable as TSV ({error})") from None


def read_pope(file: Path):
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not readable ({error})") from None
    for number, line in enumerate(lines, 1):
        where = f"{file}: line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            yield (
                where,
                {
                    "index": str(number),
                    "question": entry["text"],
                    "answer": entry["label"],
                    "image_path": entry["image"],
                },
            )
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{where}: expected an object with image, text and label, got {line[:100]}"
            ) from None


def question(where: str, row: dict, kind: str, inline: dict[str, str], folder: Path) -> Question:
    field = row.get("image") or ""
    if field and len(field) <= 64 and field in inline:  # a row's index stands for its picture
        field = inline[field]
    texts = as_list(field) if field else as_list(row.get("image_path") or "")
    if not texts:
        raise DataError(f"{where}: no picture")
    try:
        pictures = (
            [base64.b64decode(text, validate=True) for text in texts]
            if field
            else [folder / text for text in texts]
        )
    except binascii.Error as error:
        raise DataError(f"{where}: its image is not base64 ({error})") from None
    options = (
        {
            letter: row[letter].strip()
            for letter in string.ascii_uppercase
            if row.get(letter, "").strip()
        }
        if kind == "choice"
        else {}
    )
    asked, answer = row["question"].strip(), row["answer"].strip()
    if kind == "choice" and answer not in options:
        raise DataError(
            f"{where}: its answer {answer!r} is none of the options {', '.join(options)}"
        )
    prompt = PROMPTS[kind]
    if kind == "yes/no" and "yes or no" in asked.lower():  # MME's questions say so themselves
        prompt = prompt.split("\n")[0]
    message = prompt.format(
        hint=f"{row['hint'].strip()}\n" if row.get("hint", "").strip() else "",
        question=asked.replace(IMAGE, " "),
        options="\n".join(f"{letter}. {text}" for letter, text in options.items()),
    )
    example = Example(
        pictures,
        [(IMAGE * len(pictures) + message, answer)],
        row.get("category", "").strip() or "all",
        where,
    )
    return Question(
        example, kind, as_list(answer) if kind == "short" else [answer], options, tuple(texts)
    )


def as_list(text: str) -> list[str]:
    """ "x" -> ["x"]; "['x', 'y']" -> ["x", "y"]; "" -> []."""
    if text.startswith("["):
        try:
            return [str(x) for x in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return [text] if text else []


# --------------------------------------------------------------------------------------------------------------------
# Parsing and scoring


def letter_of(given: str, options: dict[str, str], lenient: bool) -> str | None:
    """The option that an answer names, or None."""
    bare = re.fullmatch(r"\(?([A-Z])\)?[.:]?", given.strip())
    if bare and bare[1] in options:
        return bare[1]
    if not lenient:
        return None
    same = [
        letter for letter, text in options.items() if data.normalise(given) == data.normalise(text)
    ]
    letters = re.findall(
        r"(?<![A-Za-z])([A-Z])(?![A-Za-z'])", re.sub(r"^\s*A(?= (?!or |and |is )[a-z])", "", given)
    )
    named = set(letters) & set(options)
    return same[0] if len(same) == 1 else named.pop() if len(named) == 1 else None


def yes_or_no(given: str, lenient: bool) -> str | None:
    words = data.normalise(given).split()
    if words in (["yes"], ["no"]):
        return words[0]
    if not lenient or not words:
        return None
    held = {"yes", "no"} & set(words)
    return words[0] if words[0] in ("yes", "no") else held.pop() if len(held) == 1 else None


def soft(given: str, answers: list[str]) -> float:
    """VQA's accuracy of an answer (Antol et al. 2015): 0 to 1."""
    said, people = data.normalise(given), [data.normalise(a) for a in answers]
    if len(people) == 1:
        return float(said == people[0])
    return sum(
        min(1, sum(p == said for j, p in enumerate(people) if j != i) / 3)
        for i in range(len(people))
    ) / len(people)


def score(questions: list[Question], given: list[str]) -> dict[str, float]:
    """Every score of a file, shares as 0 to 1; MME's sums as it gives them."""
    kind, out = questions[0].kind, {"questions": len(questions)}
    if kind == "short":
        return {**out, "soft accuracy": mean(soft(g, q.answers) for q, g in zip(questions, given))}
    for rule in ("strict", "lenient"):
        lenient = rule == "lenient"
        parsed = [
            letter_of(g, q.options, lenient) if kind == "choice" else yes_or_no(g, lenient)
            for q, g in zip(questions, given)
        ]
        true = [
            q.answers[0] if kind == "choice" else data.normalise(q.answers[0]) for q in questions
        ]
        right = [p == t for p, t in zip(parsed, true)]
        out |= {f"{rule}: accuracy": mean(right), f"{rule}: unparsed": parsed.count(None)}
        families = sorted({q.example.family for q in questions})
        if len(families) > 1:
            out |= {
                f"{rule}: {f}": mean(r for q, r in zip(questions, right) if q.example.family == f)
                for f in families
            }
        if kind == "yes/no":
            out |= {f"{rule}: {name}": value for name, value in of_yes(parsed, true).items()}
            out |= {f"{rule}: {name}": value for name, value in plus(questions, right).items()}
    return out


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
    """MME: acc+ is the share of pictures whose questions are all right; a category's score is 100 (acc + acc+)."""
    pictures = defaultdict(list)
    for q, r in zip(questions, right):
        pictures[q.example.family, q.picture].append(r)
    out = {"acc+": mean(all(some) for some in pictures.values())}
    if MME_COGNITION & {family for family, _ in pictures}:
        for family in sorted({family for family, _ in pictures}):
            accuracy = mean(r for (f, _), some in pictures.items() if f == family for r in some)
            both = 100 * (
                accuracy + mean(all(some) for (f, _), some in pictures.items() if f == family)
            )
            part = "MME cognition" if family in MME_COGNITION else "MME perception"
            out[part] = out.get(part, 0.0) + both
    return out


def mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


# --------------------------------------------------------------------------------------------------------------------


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that train.py's --out named")
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a .tsv of VLMEvalKit's, or POPE's JSON lines"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="where image_path and POPE's pictures lie (default: beside FILE)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=16, help="longer answers are cut (default: 16)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions")
    parser.add_argument("--batch-size", type=int, default=64, help="default: 64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the scores and every answer here"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        evaluation.check_device(args.device)
        questions = read(args.file, args.images)[: args.limit]
        model, tokenizer, _ = evaluation.open_run(args.run, args.device)
        answers = evaluation.answer_all(
            model,
            tokenizer,
            [q.example for q in questions],
            None,
            args.batch_size,
            progress=True,
            max_new_tokens=args.max_new_tokens,
        )
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    kind, given = questions[0].kind, [r["given"] for r in answers]
    scores = score(questions, given)

    def written(name, value):
        return (
            f"{value:,.0f}"
            if name.endswith(("questions", "unparsed"))
            else f"{value:.1f}"
            if "MME" in name
            else f"{100 * value:.1f} %"
        )

    rule = {
        "prompt": questions[0].example.turns[0][0],
        "decoding": f"greedy, at most {args.max_new_tokens} tokens",
        "parse rule": RULES[kind],
    }
    print(
        evaluation.markdown(
            [
                ["score", args.file.name],
                *([name, written(name, value)] for name, value in scores.items()),
            ]
        )
        + "\n"
    )
    for name, text in rule.items():
        print(f"{name}: {text!r}" if name == "prompt" else f"{name}: {text}")
    if args.json:
        said = [
            {"id": q.example.id, "prompt": q.example.turns[0][0], "given": g, "answers": q.answers}
            for q, g in zip(questions, given)
        ]
        record = {
            "file": args.file.name,
            "run": str(args.run),
            "scores": scores,
            **rule,
            "answers": said,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
