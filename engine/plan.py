"""What a run checks before it trains, and what it says then: its data, its stages, its settings."""

import textwrap

import data
from engine.batches import StepBatches
from engine.optimizers import describe_optimizers
from mma import leaks, supervised

WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}


def check_source(source, stages: list[StepBatches], masks: dict, model, args, say) -> None:
    """Look at the first batch of each stage, under its mask, and count the rows that are cut;
    before, of a folder, read every picture once and leave out what cannot be used."""
    config, tokenizer = model.config, stages[0].tokenizer
    is_folder = hasattr(source, "read_pictures")  # also where a variant wraps it
    if is_folder:
        from engine.folders import check_folder

        check_folder(source, tokenizer, config, args, say)
    for batches in stages:
        (batch,) = batches.batches(0, pack=list)  # unpacked: the same, sooner
        check_labels(masks[batches.stage], batch, model, args.allow_leaks)
        if is_folder:
            continue
        n, longest = config.n_image_tokens, args.max_tokens
        cut, without = map(len, data.unusable(batches.examples(0), tokenizer, n, longest))
        if cut:
            say(f"stage {batches.stage}: {cut} rows of the first batch are longer than {longest} "
                f"tokens and are cut; {without} of them keep no answer")  # fmt: skip


def check_labels(mask: str, batch: dict, model, allow_leaks: bool) -> None:
    """DataError for rows that teach nothing: without a supervised token, or with labels that the
    mask gives away."""
    role = batch["role"]
    if not supervised(role).any():
        if "unread" in batch:
            raise data.DataError(f"no row of the first batch can be used: {batch['unread'][0]}")
        raise data.DataError("no row of the first batch keeps an answer token; raise --max-tokens")
    attention_mask = model.context_of(mask, role, batch["turn"]).attention_mask
    if leaking := int(leaks(attention_mask, role).sum()):
        found = f"under the mask {mask!r} {leaking} answer tokens of the first batch can be read "
        found += "instead of predicted (mma.leaks)"
        if not allow_leaks:
            advice = "Choose another mask or mend roles and turns"
            raise data.DataError(f"{found}; training on them would teach nothing. {advice}")
        print(f"{found}; --variant allows it, so the training loss says nothing")


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
    """What a run says of itself at its start: its mask and size, pictures, optimizer, stages, what
    to expect of photographs, and each setting with where it comes from."""
    config, shows = model.config, data.WORLDS[args.data].shows
    parameters = sum(p.numel() for p in model.parameters())
    lines = [f"{args.out}: mask {args.mask}, {parameters:,} parameters, on {args.device}"]
    pretrained = getattr(model.encoder, "pretrained", False)
    if shows:
        what = "spectrograms" if shows == "sounds" else shows
        side, encoder = config.image_size, "is pretrained" if pretrained else "starts from nothing"
        become = f"{what} of {side} x {side} pixels become {config.n_image_tokens} tokens each"
        lines.append(f"{become}; the vision encoder {encoder}")
    lines.append(f"optimizer: {describe_optimizers(args)}")
    lines += [describe_stage(batches) for batches in stages if len(batches)]
    if shows == "pictures" and not pretrained and not hasattr(stages[-1].source, "families_of"):
        from engine.folders import warn_of_photographs

        lines += warn_of_photographs(stages[-1])
    lines = [textwrap.fill(line, 100, **WHOLE_WORDS) for line in lines]
    return "\n".join([*lines, settings_table(args)])


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


def settings_table(args) -> str:
    """What a run is made with, a row for where it comes from: you, the recipe of the data, the
    preset, a variant, or the default."""
    rows = []
    for origin in ("you", "recipe", "preset", "variant", "default"):
        names = [name for name, of in args.origin.items() if of == origin and name != "origin"]
        pairs = ((name, getattr(args, name)) for name in names)
        words = [f"{name} {shown(value)}" for name, value in pairs if value is not None]
        if words:
            indent = {"initial_indent": f"{origin:9}", "subsequent_indent": 9 * " "}
            rows.append(textwrap.fill(", ".join(words), 100, **WHOLE_WORDS, **indent))
    return "\n".join(rows)


def shown(value) -> str:
    """A setting's value, as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(value) or "nothing" if isinstance(value, list) else f"{value}"
