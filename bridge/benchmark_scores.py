"""What answers to a benchmark's questions are worth: letters, yes or no, and people's answers.

Held to VLMEvalKit's exact matching (tests/bridge/predictions.json). What differs, and why:

* A letter that is named as the answer decides, whatever else is said; there a second letter, or an
  article "A" beside it, leaves the answer unparsed, or takes the article for the letter.
* "Yes, there is no car" is yes; there it is unknown. Quotes, Markdown and a period after a number
  are no part of an answer; there they are.
* Of people's answers, -5 is not 5, nor 1,2 the number 12. Punctuation between words is a space;
  there some of it joins the words around it. Of contractions, that's and thats differ here.
* One to seven answers, or more than twelve, are spellings: one that is equal is right. There, ten
  people's votes or a data set's own measure, such as the edit distance of DocVQA.
"""

import re
from collections import Counter, defaultdict

from bridge.benchmark_files import Question
from data import normalise
from data.text import LEAD, plain

RULES = {
    "choice": "strict: the answer is an option's letter, bare or as in (A), A. or A:; lenient: or "
    "it is that option's text, or calls a letter the answer, or begins with one, or names exactly "
    "one (the article A is none), or holds the text of exactly one option",
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

# "A dog", "I think": words that are no letters of options
WORD = r"(?<![\w'])[AI](?= (?!is |or |and |because |since )[a-z]|')"
LETTER = r"[(\[{<\"']*([A-Z]|[a-z](?=[)\]}.,:;!]|$))(?![\w'])"
WRONG = rf"\b(?i:not|nor|neither) {LETTER}|(?<!\w){LETTER}[)\]]? is (?:not|wrong|incorrect|false)"
ALONE = r"(?!\W*\bor\b|\W*(?:and\b|[,/&+])\W*[A-Z](?!\w))"  # not "A or B", "A, B"
IS_ANSWER = [  # the letter in a group
    rf"(?i:{LEAD}|\b(?:answer|option|choice)\b[^.:;!?\n]*(?: is|:)\s*|\banswer |boxed\{{|\bchoose )"
    rf"(?i:(?:option|choice|letter) )?{LETTER}{ALONE}",
    rf"(?<!\w)(?<!or )(?<!and ){LETTER}[)\]]? is (?:the )?(?:correct|right|answer|best)",
    rf"^(?i:option |choice )?{LETTER}{ALONE}",
]
NAMED = r"(?<!\w)([A-Z])(?![\w'])|\(([a-z])\)|(?i:\boption ([a-z])(?!\w))"


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
    if len(same) == 1:
        return same[0]
    text, shown = without_texts(text, texts)
    text = re.sub(f"{WORD}|{WRONG}", " ", text).strip()
    for pattern in IS_ANSWER:
        found = [match[1].upper() for match in re.finditer(pattern, text)]
        if found and found[-1] in options:
            return found[-1]
    named = {"".join(match).upper() for match in re.findall(NAMED, text)} & set(options)
    named = named if len(named) == 1 else set(shown)
    return named.pop() if len(named) == 1 else None


def without_texts(text: str, options: dict[str, str]) -> tuple[str, list[str]]:
    """The text less the options' own texts, and the letters of those that it held. Of "black cat"
    and "cat" the longer is looked for first."""
    letters, shown = defaultdict(list), []
    for letter, option in options.items():
        words = re.sub(r"^(?:an?|the) (?=.)", "", plain(option.lower()))
        letters[words.strip(".,;:!?'\"() ") or words].append(letter)
    for option in sorted(letters, key=len, reverse=True):
        words = r"\s+".join(map(re.escape, option.split()))
        pattern = rf"(?:\b(?:an?|the) )?(?<![a-z0-9-])(?<!\d[.,]){words}(?:e?s)?(?![a-z0-9]|[.,]\d)"
        text, n = re.subn(pattern, " ", text, flags=re.IGNORECASE)
        shown += letters[option] if n else []
    return text, shown


def yes_or_no(given: str, lenient: bool) -> str | None:
    said = normalise(given)
    if said in ("yes", "no") or not lenient:
        return said if said in ("yes", "no") else None
    said = re.sub(r"\b(?:yes|no) ?(?:or|and|/) ?(?:yes|no)\b", " ", said)  # the question's words
    words = re.findall(r"\w+", said)
    if claimed := re.findall(r"\banswer(?: is)? (yes|no)\b", said) or words[:1]:
        if claimed[-1] in ("yes", "no"):
            return claimed[-1]
    held = {"yes", "no"} & set(words)
    return held.pop() if len(held) == 1 else None


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
    return mean(min(1, (sum(same) - own) / 3) for own in same)


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
    parsed = [parsed for _, parsed, _ in judged]
    scores = {"accuracy": mean(worth for *_, worth in judged), "unparsed": parsed.count(None)}
    if any(question.kind != "yes/no" for question, *_ in judged):
        return scores
    true = [normalise(question.answers[0]) for question, *_ in judged]
    return {**scores, **of_yes(parsed, true), "acc+": mean(pairs(judged))}


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


def pairs(judged: list[tuple]) -> list[bool]:
    """MME: of each picture, are its questions all right?"""
    pictures = defaultdict(list)
    for question, _, right in judged:
        pictures[question.pair].append(right)
    return list(map(all, pictures.values()))


def mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
