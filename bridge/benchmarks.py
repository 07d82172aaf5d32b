"""The paper's benchmarks in the formats people have: VLMEvalKit's TSV files, POPE's JSON lines.

    python -m bridge.benchmarks RUN MMBench_DEV_EN.tsv    multiple choice; SEED, MMMU, CV-Bench, ...
    python -m bridge.benchmarks RUN MME.tsv               yes or no, and acc+ for each picture
    python -m bridge.benchmarks RUN coco_pope_random.json --images val2014
    python -m bridge.benchmarks RUN TextVQA.tsv           short answers: VQA's soft accuracy

What a row holds decides how it is asked and scored: options in the columns A, B, ... are a choice;
of rows without them, answers that are all yes or no are yes/no; the rest are short answers. The
prompt, the decoding and the parse rule are printed with every score, since a number means nothing
without them. Scores are of this file's rows; a leaderboard's may be of hidden ones, or judged by
another model. Held to VLMEvalKit's exact matching; docs/weights.md says what differs, and why.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean

from bridge.benchmark_files import Question, read
from data import normalise
from data.text import LEAD, plain
from engine.answering import say_unread
from engine.asking import check_sees
from engine.options import Parser, positive
from engine.precision import check_device, default_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import markdown
from eval import answer_all, open_run

RULES = {
    "choice": "strict: the answer is an option's letter, bare or as in (A), A. or A:; lenient: or "
    "it is that option's text, or calls a letter the answer, or begins with one, or names exactly "
    "one (the article A is none), or holds the text of exactly one option; what stands behind a "
    "not, and a list of the options, does not count",
    "yes/no": "strict: the answer, normalised, is yes or no; lenient: or says that the answer is, "
    "or its first word is, or it holds just one of the two",
    "votes": "VQA's soft accuracy: the mean over the people, each left out in turn, of min(1, how "
    "many of the others gave this answer / 3)",
    "any": "right if equal to any of the accepted answers, which are too few, or too many, to be "
    "ten people's",
}
PEOPLE = range(8, 13)  # about ten
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(NUMBER_WORDS)}}  # as VQA's own
MME_COGNITION = {
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
}  # fmt: skip
MME = MME_COGNITION | {
    "OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position",
    "posters", "scene",
}  # fmt: skip
POPE_SETS = {"adversarial", "popular", "random"}

# --- Parsing

CHARACTER = r"[^\W\u2e80-\uffdc]"  # of a word; Chinese and its neighbours write no spaces
LETTER = rf"(?<!{CHARACTER})([A-Z]|[a-z](?=[)\]}}.,:;!]|$))(?!{CHARACTER}|'\w)"
ARTICLE = r"\b[AI](?= (?!is |or |and |because |since )[a-z]|')"  # "A dog", and the word "I"
WRONG = (
    rf"(?i:\b(?:not|nor|neither)|n't)(?: be)? \(?{LETTER}"
    rf"|{LETTER}\)? is (?:not|wrong|incorrect|false)"
)
ALONE = r"(?!\W*\bor\b|\W*(?:and\b|[,/&+])\W*[A-Z]\b)"  # not "A or B", "A, B"
IS_ANSWER = [  # the letter in a group
    rf"(?i:{LEAD}|\b(?:answer|option|choice)\b[^.:;!?\n]*(?: is|:)|\banswer|boxed\{{|\bchoose)\W*"
    rf"(?i:(?:option|choice|letter)\W+)?{LETTER}{ALONE}",
    rf"(?<!or )(?<!and ){LETTER}\)? is (?:the )?(?:correct|right|answer|best)",
    rf"^\W*(?i:(?:option|choice)\W+)?{LETTER}{ALONE}",
]
NAMED = rf"(?<!{CHARACTER})(?:([A-Z])(?!{CHARACTER}|'\w)|\(([a-z])\)|(?i:option ([a-z])\b))"


def letter_of(given: str, options: dict[str, str], lenient: bool) -> str | None:
    """The option that an answer names, or None."""
    text = plain(given)
    bare = re.fullmatch(r"\(?([A-Z])\)?[.:]?", text)
    if bare and bare[1] in options:
        return bare[1]
    if not lenient:
        return None
    # An option's text that is itself a letter, as of a question about one, is never looked for
    texts = {k: option for k, option in options.items() if normalise(option).upper() not in options}
    same = [letter for letter, option in texts.items() if form(option) == form(given)]
    if len(same) == 1 and normalise(given).upper() not in options:  # C is not C++
        return same[0]
    text, listed = without_list(text, options)
    text, shown = without_texts(text, texts)
    text = re.sub(f"{ARTICLE}|{WRONG}", " ", text).strip()
    for pattern in IS_ANSWER[: 2 if listed else 3]:
        found = [match[1].upper() for match in re.finditer(pattern, text)]
        if found and found[-1] in options:
            return found[-1]
    named = {"".join(match).upper() for match in re.findall(NAMED, text)} & set(options)
    if len(named) != 1:
        by_text = {normalise(option): letter for letter, option in options.items()}
        decided = by_text.get(yes_or_no(given, True)) if by_text.keys() == {"yes", "no"} else None
        named = {decided} if decided else set(shown)
    return named.pop() if len(named) == 1 and not listed else None


def without_list(text: str, options: dict[str, str]) -> tuple[str, int]:
    """The text less a list of options, as of a model that repeats the question: the first of them
    and others, each behind its letter; and how many lists it held."""
    lines = [rf"\b{letter}\W+{re.escape(plain(option))}" for letter, option in options.items()]
    listed = rf"{lines[0]}(?:[\s,.;]+(?:option )?(?:{'|'.join(lines)}))+"
    return re.subn(listed, " ", text, flags=re.IGNORECASE)


def without_texts(text: str, options: dict[str, str]) -> tuple[str, list[str]]:
    """The text less the options' own texts, and the letters of those that it held without a "not"
    before them. Of "black cat" and "cat" the longer is looked for first."""
    letters, shown = defaultdict(list), []
    for letter, option in options.items():
        words = re.sub(r"^(?:an?|the) (?=.)", "", plain(option.lower()))
        letters[words.strip(".,;:!?'\"() ") or words].append(letter)
    for option in sorted(letters, key=len, reverse=True):
        words = r"\s+".join(map(re.escape, option.split()))
        pattern = rf"(?:\b(?:an?|the) )?(?<![a-z0-9-])(?<!\d[.,]){words}(?:e?s)?(?![a-z0-9]|[.,]\d)"
        pattern = re.compile(rf"(\bnot |n't )?{pattern}", re.IGNORECASE)
        shown += letters[option] if "" in pattern.findall(text) else []
        text = pattern.sub(" ", text)
    return text, shown


def yes_or_no(given: str, lenient: bool) -> str | None:
    said = normalise(given)
    if said in ("yes", "no") or not lenient:
        return said if said in ("yes", "no") else None
    said = re.sub(r"\b(yes|no)(?: or | and | ?/ ?)(?!\1)(?:yes|no)\b", " ", said)  # "yes or no"
    words = re.findall(r"[^\W_]+", said)
    claimed = re.findall(r"\banswer(?: is)? (yes|no)\b", said)
    for decisive in (claimed[-1:], words[:1], words):
        held = {"yes", "no"} & {*decisive}
        if len(held) == 1:
            return held.pop()
    return None


def form(text: str) -> str:
    """normalise, and beyond that much of what VQA's own evaluation does."""
    text = re.sub(r"(?<!\d)\.(?!\d)", "", plain(text.lower()))  # u.s.
    text = re.sub(r"(?<=\w)'(?=(?:t|ve|d|ll|re|clock)\b)", "", text)  # don't
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)  # 1,000
    apart = re.sub(r"[/\[\]{}=+\\_<>@`]|-(?!\.?\d)|(?<=\w)-", " ", text).strip()
    words = normalise(apart or text).split()
    return " ".join(DIGITS.get(word, word) for word in words)


def rule_of(question: Question) -> str:
    """A key of RULES."""
    if question.kind != "short":
        return question.kind
    return "votes" if len(question.answers) in PEOPLE else "any"


def soft(given: str, answers: list[str]) -> float:
    """What a short answer is worth, 0 to 1: by the votes of about ten people (Antol et al. 2015),
    else by whether it is any of the accepted ones."""
    same = [form(answer) == form(given) for answer in answers]
    if len(answers) not in PEOPLE:
        return float(any(same))
    return fmean(min(1, (sum(same) - own) / 3) for own in same)


# --- Scoring


def score(questions: list[Question], given: list[str]) -> dict:
    """Every score of a file: shares as 0 to 1, MME's sums as it gives them, and the scores of each
    category under "categories", so that its name is never taken for a score's."""
    scores, judged = {"questions": len(questions)}, list(zip(questions, given))
    if all(q.kind == "short" for q in questions):
        measured = measures([judge(q, g, True) for q, g in judged])
        return {**scores, "soft accuracy": measured.pop("accuracy"), **measured}
    for rule in ("strict", "lenient"):
        by_rule = measures([judge(q, g, rule == "lenient") for q, g in judged])
        scores |= {f"{rule}: {name}": value for name, value in by_rule.items()}
    return scores


def judge(question: Question, given: str, lenient: bool) -> tuple[Question, str | None, float]:
    """The question, what the answer was taken for, and what it is worth."""
    true = question.answers[0]
    if question.kind == "short":
        return question, given.strip() or None, soft(given, question.answers)
    if question.kind == "choice":
        parsed = letter_of(given, question.options, lenient)
    else:
        parsed, true = yes_or_no(given, lenient), normalise(true)
    return question, parsed, parsed == true


def measures(judged: list[tuple]) -> dict:
    """The scores of all, and of each category, if there are several."""
    categories = defaultdict(list)
    for one in judged:
        name = one[0].example.family
        sets = name.split(",")
        for part in sets if POPE_SETS.issuperset(sets) else [name]:
            categories[part].append(one)
    # A question in several of POPE's sets counts in each, as in VLMEvalKit's measures
    scores = measures_of([one for part in categories.values() for one in part])
    if len(categories) == 1:
        return scores
    scores["categories"] = {}
    for name, part in sorted(categories.items()):
        by_name = {"questions": len(part), **measures_of(part)}
        scores["categories"][name] = by_name
        if "acc+" in scores and MME.issuperset(categories):
            by_name["MME score"] = 100 * by_name["accuracy"] + 100 * by_name["acc+"]
            total = "MME cognition" if name in MME_COGNITION else "MME perception"
            scores[total] = scores.get(total, 0.0) + by_name["MME score"]
    return scores


def measures_of(judged: list[tuple]) -> dict:
    """Of yes and no also POPE's: yes is the positive class, and what was not parsed is not a yes;
    and MME's acc+: the share of pictures whose questions are all right."""
    parsed = [parsed for _, parsed, _ in judged]
    scores = {"accuracy": fmean(worth for *_, worth in judged), "unparsed": parsed.count(None)}
    if any(question.kind != "yes/no" for question, *_ in judged):
        return scores
    count, pairs = Counter(), defaultdict(list)
    for question, said, right in judged:
        count[said == "yes", normalise(question.answers[0]) == "yes"] += 1
        pairs[question.about].append(right)
    hit, false, missed = count[True, True], count[True, False], count[False, True]
    precision, recall = hit / max(1, hit + false), hit / max(1, hit + missed)
    return scores | {
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(1e-12, precision + recall),
        "yes share": (hit + false) / len(judged),
        "acc+": fmean(map(all, pairs.values())),
    }


# --- The command


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder that --out named")
    add("file", type=Path, metavar="FILE", help="VLMEvalKit's .tsv, a .csv, or POPE's JSON lines")
    add("--images", type=Path, metavar="DIR", help="of image_path and POPE (default: FILE's)")
    add("--max-new-tokens", type=positive, default=16, metavar="N", help="default: 16")
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
        say_unread(answers, print, strict=all(answer["unread"] for answer in answers))
        given = [answer["given"] for answer in answers]
        scores, rule = score(questions, given), how(questions, args.max_new_tokens)
        print(tables(args.file.name, scores) + "\n")
        for name, text in rule.items():
            print(f"{name}: {text!r}" if name.startswith("prompt") else f"{name}: {text}")
        if args.json:
            write_json(args, questions, given, scores, rule)


if __name__ == "__main__":
    main()
