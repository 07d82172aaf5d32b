"""The paper's claims, one by one, tested over seeds.

"yes" and "no" rest on a two-sided t-test with p < 0.05. Arms with the same seeds and the same data
in the same order are paired seed by seed (scipy.stats.ttest_rel); others are compared by Welch's
test (ttest_ind, equal_var=False). One seed is no evidence: beside an arm of one seed stands the
same seed of the other. How much sooner one arm learns than another is a share of its steps, with a
bootstrap interval over seeds.
"""

import math
import random
import statistics
import warnings
from dataclasses import dataclass, replace

from engine.tables import markdown, parts_of
from lab.tables import first_look, in_percent, need

LEVEL = 0.05
CLAIMS = (
    ("mma", "causal"), ("mma", "dot"), ("dot", "causal"), ("mma", "cca"), ("mma", "prefix"),
    ("prefix", "causal"), ("mma", "v2v"), ("t&i", "causal"),
)  # fmt: skip
LARGEST = ("counting", "existence")  # where the paper sees mma's largest gains
NOTE = (
    "Two-sided t-tests over seeds, paired by seed where both arms have the same seeds and data, "
    f"else Welch's; yes and no below p = {LEVEL}, not corrected for the number of claims."
)


@dataclass(frozen=True)
class Verdict:
    word: str  # yes, no, not clear, one seed
    difference: float  # of the means
    p: float = math.nan
    test: str = ""  # paired, Welch
    unit: str = "points"

    def __str__(self) -> str:
        if self.word == "one seed":
            return f"one seed ({self.difference:+.1f} {self.unit})"
        if math.isnan(self.p):
            return "the same on every seed"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{self.word} ({self.difference:+.1f} {self.unit}, {p}, {self.test})"


def greater(a: dict[int, float], b: dict[int, float], same_data: bool = True) -> Verdict:
    """Is the mean of a above that of b? a, b: seed -> accuracy in %. same_data: a seed stands for
    the same data in the same order in both."""
    need("scipy", "the claims")
    from scipy import stats

    alone, common = min(len(a), len(b)) < 2, a.keys() & b.keys()
    if alone and same_data and common:
        a, b = ({seed: runs[seed] for seed in common} for runs in (a, b))
    difference = statistics.mean(a.values()) - statistics.mean(b.values())
    if alone:
        return Verdict("one seed", difference)
    paired = same_data and a.keys() == b.keys()
    with warnings.catch_warnings():  # no variance at all: p is 0, or not a number
        warnings.simplefilter("ignore", RuntimeWarning)
        if paired:
            p = float(stats.ttest_rel(list(a.values()), [b[seed] for seed in a]).pvalue)
        else:
            p = float(stats.ttest_ind([*a.values()], [*b.values()], equal_var=False).pvalue)
    word = "not clear" if not p < LEVEL else "yes" if difference > 0 else "no"
    return Verdict(word, difference, p, "paired" if paired else "Welch")


def steps_of(options: str) -> str:
    """The number of steps that an arm asks for: with another one, a step has other data."""
    words = options.split()
    return words[words.index("--steps") + 1] if "--steps" in words else ""


def claims(arms: dict[str, list[dict]], options: dict[str, str]) -> str:
    """The paper's pattern as a table, claim by claim, with what it rests on. options: of an arm."""
    rows = [["claim", "here"]]
    for better, worse in CLAIMS:
        if better in arms and worse in arms:
            same_data = steps_of(options.get(better, "")) == steps_of(options.get(worse, ""))
            verdict = greater(in_percent(arms[better]), in_percent(arms[worse]), same_data)
            rows.append([f"{better} > {worse}", str(verdict)])
    if "mma" in arms and "causal" in arms:
        rows += by_family(arms["mma"], arms["causal"])
        if set(LARGEST) <= set(arms["mma"][0]["families"]):
            claim = f"mma's gains are largest in {' and '.join(LARGEST)}"
            rows.append([claim, largest_gains(arms["mma"], arms["causal"])])
        share = f"{share_of_steps(arms['mma'], arms['causal'])}"
        rows.append(
            ["mma is at 80 % on validation after fewer steps", earlier(arms["mma"], arms["causal"])]
        )
        rows.append(["share of its steps after which mma is where causal ends (validation)", share])
        same = arms["mma"][0]["params"] == arms["causal"][0]["params"]
        rows.append(["mma has no parameters of its own", "yes" if same else "no"])
    return f"{markdown(rows)}\n\n{NOTE}" if len(rows) > 1 else ""


def by_family(mma: list[dict], causal: list[dict], suffix: str = "") -> list[list[str]]:
    """A row for each family of questions, or part of families, and for the consistency where there
    is one: is mma above causal? suffix: of the arms' names."""
    names = parts_of(mma[0]["families"])
    values = {name: (in_percent(mma, name), in_percent(causal, name)) for name in names}
    if all("consistency" in run for run in (*mma, *causal)):
        values["consistency"] = tuple(
            {run["seed"]: 100 * run["consistency"] for run in runs} for runs in (mma, causal)
        )
    return [
        [f"mma{suffix} > causal{suffix}, {name}", str(greater(*pair))]
        for name, pair in values.items()
    ]


def counted_claims(arms: dict[str, list[dict]], budget: bool) -> str:
    """For arms MASK@X: is mma above causal at the same X? budget: X counts training budgets, so
    also whether mma at a smaller one is above causal at a larger one; these see other data."""
    rows, counts = [["claim", "here"]], list(dict.fromkeys(arm.split("@")[1] for arm in arms))
    for i, count in enumerate(counts):
        for smaller in counts[: i + 1] if budget else [count]:
            pair = f"mma@{smaller}", f"causal@{count}"
            if all(arm in arms for arm in pair):
                runs = [in_percent(arms[arm]) for arm in pair]
                verdict = greater(*runs, same_data=smaller == count)
                rows.append([" > ".join(pair), str(verdict)])
        same = [arms.get(f"{mask}@{count}") for mask in ("mma", "causal")]
        if budget and all(same):
            claim = f"share of its steps after which mma@{count} is where causal@{count} ends"
            rows.append([claim, share_of_steps(*same)])
            claim = f"mma@{count} is at 95 % on validation after fewer steps than causal@{count}"
            rows.append([claim, earlier(*same, level=0.95)])
    return f"{markdown(rows)}\n\n{NOTE}" if len(rows) > 1 else ""


def earlier(mma: list[dict], causal: list[dict], level: float = 0.8) -> str:
    """Is mma at a level of accuracy (0 to 1) on validation at an earlier step than causal?"""
    steps = [
        {run["seed"]: first_look(run["curve"], level) for run in runs} for runs in (causal, mma)
    ]
    if any(None in taken.values() for taken in steps):
        return "not clear (a seed never is)"
    return str(replace(greater(*steps), unit="steps"))


def largest_gains(mma: list[dict], causal: list[dict]) -> str:
    """Are the gains in the families LARGEST above those in every other? yes if each of these
    comparisons says so (the weakest one is printed), no if one says the opposite."""
    gains = {family: gain_by_seed(mma, causal, family) for family in mma[0]["families"]}
    if not gains[LARGEST[0]]:
        return "not clear (no seed in common)"
    means = {family: statistics.mean(gain.values()) for family, gain in gains.items()}
    listed = ", ".join(f"{f} {means[f]:+.1f}" for f in sorted(means, key=means.get, reverse=True))
    pairs = {
        (a, b): greater(gains[a], gains[b]) for a in LARGEST for b in gains if b not in LARGEST
    }
    against = {pair: verdict for pair, verdict in pairs.items() if verdict.word == "no"}
    by_difference = sorted(against or pairs, key=lambda pair: pairs[pair].difference)
    in_doubt = [pair for pair in by_difference if pairs[pair].word != "yes"] or by_difference
    weakest = in_doubt[0]
    return f"{pairs[weakest]} for {weakest[0]} over {weakest[1]}; {listed}"


def step_of(curves: list[dict[int, float]], accuracy: float) -> float:
    """The step at which the mean of curves, {step: accuracy}, gets to an accuracy: between two
    looks that all of them have on a straight line; infinity, if it never does."""
    before = (0, 0.0)
    for step in sorted(set.intersection(*map(set, curves))):
        mean = statistics.mean(curve[step] for curve in curves)
        if mean >= accuracy:
            way = (accuracy - before[1]) / (mean - before[1]) if mean > before[1] else 0.0
            return before[0] + (step - before[0]) * way
        before = (step, mean)
    return math.inf


def written(share: float) -> str:
    return "never" if math.isinf(share) else f"{share:.2f}"


def share_of_steps(soon: list[dict], late: list[dict], samples: int = 2000) -> str:
    """After which share of its steps the first arm has the accuracy, on validation, that the second
    one has at its last look; with a 95 % interval by bootstrap over the seeds that both have, and
    seed by seed. Two seeds get no interval: its ends would be the two."""
    curves = []  # of each seed, both arms
    for a, b in ((a, b) for a in soon for b in late if a["seed"] == b["seed"]):
        curves.append(
            [{int(step): value for step, value in run["curve"].items()} for run in (a, b)]
        )
    if not curves:
        return "not clear (no seed in common)"
    steps = max(curves[0][0])

    def share(pairs: list) -> float:
        firsts, seconds = zip(*pairs)
        return step_of(firsts, statistics.mean(c[max(c)] for c in seconds)) / steps

    draw, here = random.Random(0), written(share(curves))
    if len(curves) < 2:
        return f"{here} (one seed)"
    by_seed = "by seed " + ", ".join(written(share([pair])) for pair in curves)
    if len(curves) == 2:
        return f"{here} ({by_seed})"
    shares = sorted(share(draw.choices(curves, k=len(curves))) for _ in range(samples))
    low, high = shares[round(0.025 * (samples - 1))], shares[round(0.975 * (samples - 1))]
    ends = f"{written(low)} to {written(high)}"
    interval = f"95 % interval {ends}, bootstrap over {len(curves)} seeds"
    return f"{here} ({interval}; {by_seed})"


def gain_by_seed(mma: list[dict], causal: list[dict], family: str | None) -> dict[int, float]:
    """seed -> mma's accuracy minus causal's, in points, for the seeds that both have. family: of
    questions (None: overall)."""
    a, b = in_percent(mma, family), in_percent(causal, family)
    return {seed: a[seed] - b[seed] for seed in a if seed in b}
