"""A finite data set: examples grouped by picture, in splits, checked before anything is trained."""

from pathlib import Path

import torch

from data.draws import drawn_in_epochs, generator_of
from data.errors import DataError
from data.files import same_pictures
from data.pictures import check_head
from data.prompt import IMAGE_TOKEN, Example, Tokenizer, pixels_of, unusable

READ_FIRST = 8192  # pictures that are read before training; of more it would take minutes


class SkippedEntries:
    """The entries of a data set that cannot be used: counted and reported by kind, or, if strict,
    an error at the first."""

    def __init__(self, strict: bool = True):
        self.strict = strict
        self.by_kind: dict[str, list[str]] = {}  # kind of error -> messages
        self.held_out = 0  # captions not used: val or test show their pictures; nothing is wrong
        self.copies: str | None = None  # what is said of copies of pictures; None: not looked for

    def add(self, error: DataError) -> None:
        if self.strict:
            raise error
        self.by_kind.setdefault(error.kind, []).append(str(error))

    def count(self) -> int:
        return sum(map(len, self.by_kind.values()))

    def report(self, n_entries: int, brief: bool = False) -> str:
        """What was left out of n_entries, with the first three of each kind; empty if nothing.
        brief: one line, for those who have been told."""
        n = self.held_out
        unused = [f"{n:,} captions of held-out pictures are not used"] if n else []
        unused += [self.copies] if self.copies else []
        if not self.by_kind:
            return "\n".join(unused)
        head = f"{self.count():,} of {n_entries:,} entries are damaged and left out"
        by_number = sorted(self.by_kind.items(), key=lambda item: -len(item[1]))
        if brief:
            kinds = ", ".join(f"{len(messages):,} {kind}" for kind, messages in by_number)
            return "; ".join([f"{head} ({kinds})", *unused])
        lines = [f"{head} (train.py --strict makes them an error):"]
        for kind, messages in by_number:
            lines.append(f"  {len(messages):,} {kind}, such as")
            lines += [f"    {message}" for message in messages[:3]]
        return "\n".join([*lines, *unused])


class Folder:
    """A finite data set: examples of each split grouped by picture. `splits` maps train, val and
    test to a list of groups, and pt, where stage 1 has examples of its own; the examples of a group
    share a picture, so that a batch encodes it once."""

    final_split = "test"  # what train.py reports at its end
    whole = None  # the splits before read_pictures left examples out: a run is known by them

    def __init__(
        self, splits: dict[str, list[list[Example]]], answers: set[str] | None = None,
        skipped: SkippedEntries | None = None,
    ):  # fmt: skip
        self.splits, self.skipped = splits, skipped or SkippedEntries()
        self.answers = answers  # all possible answers, where they are a closed set

    def texts(self):
        """The text that the tokenizer is trained on: messages and answers of the training rows."""
        for group in self.splits["train"] + self.splits.get("pt", []):
            for message, answer in (turn for example in group for turn in example.turns):
                yield message.replace(IMAGE_TOKEN, " ").strip()
                yield answer

    def read_pictures(self, size: int, brief: bool = False) -> str:
        """Read every picture once, or, if there are more than READ_FIRST, the head of its file: a
        broken one is found now and not in an hour. Examples that show it are left out, or are an
        error (see SkippedEntries). Returns the report of what was left out; brief: in one line."""
        self.whole = self.whole or dict(self.splits)
        examples = [e for groups in self.splits.values() for group in groups for e in group]
        n_entries = len(examples) + self.skipped.count() + self.skipped.held_out
        images = dict.fromkeys(image for example in examples for image in example.images)
        broken = {}  # picture -> what is wrong with it
        for image in images:
            try:
                if len(images) <= READ_FIRST:
                    pixels_of(image, size, "")
                else:
                    check_head(image)
            except DataError as error:
                broken[image] = error
        self._leave_out(broken)
        if self.skipped.copies is None and not brief:
            self.skipped.copies = self._copies()
        return self.skipped.report(n_entries, brief)

    def _copies(self) -> str:
        """What to say of held-out pictures that training shows too, under other names: the splits
        are as published."""
        files = {}
        for split in ("train", "val", "test"):
            examples = [e for group in self.splits.get(split, []) for e in group]
            paths = {getattr(image, "path", image) for e in examples for image in e.images}
            files[split] = [path for path in paths if isinstance(path, Path)]
        same, _ = same_pictures(path for paths in files.values() for path in paths)
        trained, held_out = {same[path] for path in files["train"]}, files["val"] + files["test"]
        n = sum(same[path] in trained for path in held_out)
        return f"{n:,} of {len(held_out):,} held-out pictures are also in training" if n else ""

    def _leave_out(self, broken: dict) -> None:
        """Take out the examples that show one of the broken pictures, and count each once a split;
        broken: image -> what is wrong with it."""

        def error_of(example: Example) -> DataError | None:
            return next((broken[image] for image in example.images if image in broken), None)

        for split, groups in self.splits.items():
            errors = {e.id: error for group in groups for e in group if (error := error_of(e))}
            for name, error in errors.items():
                self.skipped.add(DataError(f"{name}: {error}".removeprefix(": "), error.kind))
            kept = ([e for e in group if not error_of(e)] for group in groups)
            self.splits[split] = [group for group in kept if group]

    def drop_unusable(
        self, tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int
    ) -> tuple[int, int]:
        """Take out the training rows that keep no answer token within max_tokens. Returns how many
        rows are cut, and how many of them were taken out; rows of val and test are only ever
        prompts, and are never cut."""
        n_cut = n_dropped = 0
        for split in [split for split in ("train", "pt") if split in self.splits]:
            kept = []
            for group in self.splits[split]:
                too_long, no_answer = unusable(group, tokenizer, n_image_tokens, max_tokens)
                n_cut, n_dropped = n_cut + len(too_long), n_dropped + len(no_answer)
                kept.append([example for i, example in enumerate(group) if i not in no_answer])
            self.splits[split] = [group for group in kept if group]
            if not self.splits[split]:
                why = f"no training row keeps an answer within {max_tokens} tokens"
                raise DataError(f"{why}; raise --max-tokens")
        return n_cut, n_dropped

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        """The examples of one training step, a list: a function of (stage, step, seed) alone, so
        that a run can stop and go on anywhere."""
        groups, chosen = self.splits.get(stage, self.splits["train"]), []
        choice = generator_of(stage, seed, step, "questions")
        for k in drawn_in_epochs(len(groups), step, pictures, stage, seed, "pictures"):
            order = torch.randperm(len(groups[k]), generator=choice)[:per_picture]
            chosen += [groups[k][i] for i in order]
        return chosen

    def split_names(self) -> list[str]:
        """The splits that eval.py may be asked for."""
        return list(self.splits)

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The examples of a split, or the first `limit` of them."""
        return [example for group in self.splits[split] for example in group][:limit]
