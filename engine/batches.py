"""The batch of every training step, made ahead of time by workers."""

import torch
from torch.utils.data import DataLoader, Dataset

import data
from engine.checkpoint import ignore_signals
from mma import Role


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
            few = f"{len(rows)} rows for {self.world_size} processes"
            raise data.DataError(f"step {step + 1} of stage {self.stage} has {few}")
        local, tokenizer = rows[self.rank :: self.world_size], self.tokenizer
        size = self.config.image_size
        local = [data.row_or_empty_prompt(row, tokenizer, size) for row in local]
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
        from data.pictures import can_open  # a built-in world has no files

        steps = range(step, step + self.TRIED)
        examples = (example for s in steps for example in self.examples(s))
        if not any(can_open(image) for example in examples for image in example.images):
            others = f"nor can a picture of the next {self.TRIED} steps be read"
            raise data.DataError(f"{unread[0].unread}; {others}")


def loader_of(batches: StepBatches, first_step: int, args) -> DataLoader:
    """The batches from first_step on, counted from 0."""
    on_gpu, order = args.device.startswith("cuda"), range(first_step, len(batches))
    return DataLoader(
        batches, batch_size=None, sampler=order, num_workers=args.workers, pin_memory=on_gpu,
        generator=torch.Generator(), worker_init_fn=ignore_signals,
    )  # fmt: skip


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
