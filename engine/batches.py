"""The batch of every training step, made ahead of time by workers, and its checks; and the examples
of an evaluation."""

import textwrap
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import data
from data.pictures import open_picture
from engine.answering import check_sees
from engine.checkpoint import ignore_signals
from engine.optimizers import describe_optimizers
from engine.options import WHOLE_WORDS
from mma import Role, leaks, supervised


class StepBatches(Dataset):
    """Item s is what step s reads: a list of `parts` batches, a function of (stage, s, seed) alone,
    so that a run can stop and go on anywhere. Trouble with the data is returned, not raised, so
    that it leaves a worker as one line. Of several processes, rank of world_size, each takes every
    world_size-th row. By default all rows are in one batch.

    A row whose picture cannot be read is left out: `unread` of the first batch, a list, says why,
    once a row. The loss is still divided by the number of all answer tokens that were drawn: the
    result is then the same for any number of processes, without their telling each other."""

    TRIED = 8  # steps whose pictures are tried, where none of a step's can be read

    def __init__(
        self, source, tokenizer: data.Tokenizer, config, stage: str, args, rank: int = 0,
        world_size: int = 1, parts: int = 1,
    ):  # fmt: skip
        self.source, self.tokenizer, self.config = source, tokenizer, config
        self.stage, self.args = stage, args
        self.rank, self.world_size, self.parts = rank, world_size, parts

    def __len__(self) -> int:
        return self.args.steps if self.stage == "sft" else self.args.pt_steps

    def __getitem__(self, step: int):
        try:
            return self.batches(step)
        except data.DataError as error:
            return error

    def examples(self, step: int) -> list[data.Example]:
        args = self.args
        pictures = args.pictures if self.stage == "sft" else args.pt_pictures
        return self.source.draw(self.stage, step, pictures, args.questions, args.seed)

    def rows(self, step: int) -> list[data.Row]:
        """Those of all processes."""
        n, longest = self.config.n_image_tokens, self.args.max_tokens
        return [data.encode(e, self.tokenizer, n, longest) for e in self.examples(step)]

    def batches(self, step: int, pack=data.pack) -> list[dict]:
        rows = self.rows(step)
        if len(rows) < self.world_size:
            raise data.DataError(
                f"step {step + 1} of stage {self.stage} has {len(rows)} rows for "
                f"{self.world_size} processes"
            )
        local = [
            data.row_or_empty_prompt(row, self.tokenizer, self.config.image_size)
            for row in rows[self.rank :: self.world_size]
        ]
        unread = [row for row in local if row.unread]
        if unread:
            self._check_unread(step, local, unread)
        n = min(self.parts, len(rows) // self.world_size)  # the same for all processes
        cuts = [len(local) * part // n for part in range(n + 1)]
        batches = [self.collate(pack(local[a:b])) for a, b in zip(cuts, cuts[1:])]
        if self.world_size > 1 or unread or n > 1:
            # the sum over batches, and the mean over processes, is then the mean over answer tokens
            num_targets = sum(role == Role.ANSWER for row in rows for role in row.role)
            for batch in batches:
                batch["num_targets"] = torch.tensor(max(1, num_targets) / self.world_size)
        if unread:
            batches[0]["unread"] = [row.unread for row in unread]
        return batches

    def collate(self, rows: list[data.Row]) -> dict:
        size = self.config.image_size
        batch = data.collate(rows, self.tokenizer.pad, size)
        if "images" not in batch:  # a picture that no row shows: DDP wants all parameters used
            batch["images"] = torch.zeros(1, 3, size, size, dtype=torch.uint8)
            batch["image_index"] = torch.zeros(0, dtype=torch.int64)
        return batch

    def _check_unread(self, step: int, local: list, unread: list) -> None:
        """DataError with --strict, and if no picture at all can be read: it is then not the
        pictures that are damaged."""
        if self.args.strict:
            raise data.DataError(f"{unread[0].id}: {unread[0].unread}".removeprefix(": "))
        if any(row.images for row in local):
            return
        steps = range(step, step + self.TRIED)
        examples = (example for s in steps for example in self.examples(s))
        if not any(data.can_open(image) for example in examples for image in example.images):
            raise data.DataError(
                f"{unread[0].unread}; nor can a picture of the next {self.TRIED} steps be read"
            )


def loader_of(batches: StepBatches, first_step: int, args) -> DataLoader:
    """The batches from first_step on, counted from 0."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, len(batches)),
        num_workers=args.workers,
        pin_memory=args.device.startswith("cuda"),
        generator=torch.Generator(),
        worker_init_fn=ignore_signals,
    )


def check_labels(mask: str, batch: dict, model, allow_leaks: bool) -> None:
    """DataError for rows that teach nothing: without a supervised token, or with labels that the
    mask gives away."""
    role = batch["role"]
    if not supervised(role).any():
        if "unread" in batch:
            raise data.DataError(f"no row of the first batch can be used: {batch['unread'][0]}")
        raise data.DataError("no row of the first batch keeps an answer token; raise --max-tokens")
    attention_mask = model.context_of(mask, role, batch["turn"]).attention_mask
    leaking = int(leaks(attention_mask, role).sum())
    if leaking:
        found = (
            f"under the mask {mask!r} {leaking} answer tokens of the first batch can be read "
            "instead of predicted (mma.leaks)"
        )
        if not allow_leaks:
            raise data.DataError(
                f"{found}; training on them would teach nothing. Choose another mask or mend roles "
                "and turns"
            )
        print(f"{found}; --variant allows it, so the training loss says nothing")


def check_source(source, stages: list[StepBatches], masks: dict, model, args, say) -> None:
    """Read every picture of a folder once, leave out what cannot be used and say so, and look at
    the first batch of each stage, under its mask."""
    config, tokenizer = model.config, stages[0].tokenizer
    is_folder = hasattr(source, "read_pictures")  # also where a variant wraps it
    if is_folder:
        if skipped := source.read_pictures(config.image_size):
            say(skipped)
        empty = [split for split, groups in source.splits.items() if not groups]
        if empty:
            raise data.DataError(
                f"{args.pt_source if empty == ['pt'] else args.source}: too few pictures; "
                "training, validation and test (and pt, the captions of --pt-source) need one "
                f"each; none is left for {', '.join(empty)}"
            )
        cut, dropped = source.drop_unusable(tokenizer, config.n_image_tokens, args.max_tokens)
        say(
            f"{cut} training rows are longer than {args.max_tokens} tokens and are cut; "
            f"{dropped} of them keep no answer and are left out"
        )
        say(describe_splits(source))
    for batches in stages:
        (batch,) = batches.batches(0, pack=list)  # unpacked: the same, sooner
        check_labels(masks[batches.stage], batch, model, args.allow_leaks)
        if is_folder:
            continue
        n, longest = config.n_image_tokens, args.max_tokens
        cut, without = map(len, data.unusable(batches.examples(0), tokenizer, n, longest))
        if cut:
            say(
                f"stage {batches.stage}: {cut} rows of the first batch are longer than {longest} "
                f"tokens and are cut; {without} of them keep no answer"
            )


def describe_splits(source) -> str:
    """One line: how a folder's data were split, and whether what is held out shows a picture."""
    counts, without = [], []
    for split, groups in source.splits.items():
        examples = [example for group in groups for example in group]
        n = sum(len(example.turns) for example in examples)
        # Crops of one file, such as NLVR's boxes, are one picture
        shown = {getattr(image, "path", image) for e in examples for image in e.images}
        what = "captions of" if split == "pt" else "about" if counts else "questions about"
        counts.append(f"{split}: {n:,} {what} {len(shown):,}{'' if counts else ' pictures'}")
        without += [split] if split in ("val", "test") and not shown else []
    line = "; ".join(counts)
    if without:
        line += f". No picture is left for {' and '.join(without)}"
    if source.final_split in without:
        line += ": example.png, a picture to ask about, is not written"
    return line


def not_asked(source, args, steps: int) -> list[str]:
    """The families of questions that training has not asked after `steps` steps of stage 2: their
    accuracy says nothing yet. Empty for a data set that does not say what its steps ask."""
    if not hasattr(source, "families_of"):
        return []
    done = [("pt", step) for step in range(args.pt_steps)]
    done += [("sft", step) for step in range(steps)]
    asked = {family for stage, step in done for family in source.families_of(stage, step)}
    return [family for family in source.families if family not in asked]


def plan_of(stages: list[StepBatches], model, args) -> str:
    """What a run will do, a line each: pictures, optimizer, stages; and what to expect where the
    encoder starts from nothing and has photographs to learn from."""
    config, shows, lines = model.config, data.WORLDS[args.data].shows, []
    pretrained = getattr(model.encoder, "pretrained", False)
    if shows:
        what = "spectrograms" if shows == "sounds" else shows
        lines.append(
            f"{what} of {config.image_size} x {config.image_size} pixels become "
            f"{config.n_image_tokens} tokens each; the vision encoder "
            f"{'is pretrained' if pretrained else 'starts from nothing'}"
        )
    lines.append(f"optimizer: {describe_optimizers(args)}")
    lines += [describe_stage(batches) for batches in stages if len(batches)]
    if shows == "pictures" and not pretrained and (sides := photographs(stages[-1])):
        lines.append(
            f"These are photographs, such as one of {sides} pixels. An encoder that starts from "
            "nothing learns little from a few thousand of them: expect answers that are hardly "
            "better than guesses. python -m bridge.finetune --llm DIR --vision DIR begins with "
            "pretrained weights (docs/weights.md)"
        )
    return "\n".join(textwrap.fill(line, 100, **WHOLE_WORDS) for line in lines)


def describe_stage(batches: StepBatches) -> str:
    """One line: how many steps of what, under which mask, what does not learn, what is asked
    late."""
    args, source, first = batches.args, batches.source, batches.stage == "pt"
    number, n_pictures, mask, frozen = (
        (1, args.pt_pictures, args.pt_mask, args.pt_freeze)
        if first
        else (2, args.pictures, args.mask, args.freeze)
    )
    captions = "pt" in getattr(source, "splits", ()) or batches.examples(0)[0].family == "caption"
    each = "captions" if first and captions else f"{args.questions} questions each"
    learns = f"{', '.join(frozen)} frozen" if frozen else "all parts learn"
    shown = data.WORLDS[args.data].shows or "texts"
    line = f"stage {number}: {len(batches):,} steps of {n_pictures} {shown} with {each}"
    line += f", mask {mask}, {learns}"
    for family in not_asked(source, args, 1) if not first else ():
        asks = (step for step in range(len(batches)) if family in source.families_of("sft", step))
        start = next(asks, None)
        line += f"; {family} " + (f"from step {start + 1:,} on" if start else "is not asked")
    return line


def photographs(batches: StepBatches, n_looked_at: int = 8) -> str:
    """Width x height of one of the first pictures, if most of them are photographs: files of many
    colours, far larger than the model's pictures; else nothing."""
    images = [image for example in batches.examples(0) for image in example.images]
    files = {getattr(image, "path", image): None for image in images if not torch.is_tensor(image)}
    found, looked_at = [], list(files)[:n_looked_at]
    for file in looked_at:
        try:
            picture = open_picture(file)
        except data.DataError:  # said where it is left out
            continue
        few_pixels = picture.resize((128, 128), 0)  # the nearest pixel, so that no colour is new
        if max(picture.size) >= 3 * batches.config.image_size and not few_pixels.getcolors(2048):
            found.append(f"{picture.width} x {picture.height}")
    return found[0] if 2 * len(found) > len(looked_at) else ""


def measure_pixels(encoder, steps: StepBatches) -> None:
    """Set the encoder's pixel_mean and pixel_std to those of the first training pictures, which
    stand for all; a pretrained encoder has its own."""
    if getattr(encoder, "pretrained", False):
        return
    some = (steps[step] for step in range(20))  # a step that cannot be read is said later
    batches = (batches[0] for batches in some if isinstance(batches, list))
    shown = (batch["images"] for batch in batches if len(batch["image_index"]))
    if (images := next(shown, None)) is not None:
        pixels = images.float()
        encoder.pixel_mean.copy_(pixels.mean((0, 2, 3)))
        encoder.pixel_std.copy_(pixels.std((0, 2, 3)).clamp(min=1))


def examples_of(trained: dict, args, image_size: int) -> tuple:
    """The data set, its examples that the options name, and what these are, for a record; by
    default those that the run with the arguments `trained` was tested on."""
    name = args.data or trained["data"]
    if shown := data.WORLDS[name].shows:
        check_sees(trained, trained.get("out", "the run"), shown)
    source, images = args.source, args.images
    known = name == trained["data"] and source is None  # training has said what is damaged
    if known:
        source, images = trained["source"], images or trained["images"]
    what = {"data": name, "source": source and str(source)}
    scenes = trained.get("scenes") if known else None
    options = {"images": images and Path(images), "scenes": scenes}
    source = data.load(name, source and Path(source), **options)
    if scenes:
        source.seed = trained["seed"]  # with another one training had other scenes
    names, split = source.split_names(), args.split or source.final_split
    if split not in (*names, "all"):
        raise data.DataError(f"{name} has no split {split!r}; there are {', '.join(names)}, all")
    splits = names if split == "all" else [split]
    if isinstance(source, data.Folder) and not source.skipped.strict:
        if skipped := source.read_pictures(image_size, brief=known):
            print(skipped)
    examples = [e for split in splits for e in source.heldout(split, args.limit)]
    if not examples:
        raise data.DataError(f"the split {split!r} of {name} is empty; try --split all")
    return source, examples, {**what, "split": split, "limit": args.limit}
