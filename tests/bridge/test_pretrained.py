"""Parity with transformers on tiny random checkpoints that it writes itself: hidden states, logits
and answers. Long-rope's original length is 32 tokens here, windows are of 7 or 8
(decoder_kinds.py)."""

from dataclasses import asdict, replace

import pytest
import torch
from decoder_kinds import DECODERS

import data
from bridge.pretrained import PretrainedConfig, PretrainedMLLM, load
from data.packing import first_fit
from engine.checkpoint import load_model, save_model
from mma import Role

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
CLOSE = dict(rtol=1e-4, atol=1e-4)


def text(B: int, T: int) -> torch.Tensor:
    return torch.randint(3, 90, (B, T), generator=torch.Generator().manual_seed(5))


def some_pictures(N: int) -> torch.Tensor:
    return torch.randint(256, (N, 3, 33, 33), dtype=torch.uint8)


def test_the_encoder(vision, saved):
    folder, theirs = vision
    ours, images = load(folder, saved("llama")[0]), some_pictures(2)
    expected = theirs(pixel_values=(images.float() - 127.5) / 127.5).last_hidden_state
    torch.testing.assert_close(ours.encoder(images), expected, **CLOSE)
    for wrong in (images[..., 1:], images.float()):
        with pytest.raises(ValueError, match=r"images must be uint8 \[N, 3, 33, 33\], got"):
            ours.encoder(wrong)
    pooled = load(folder, saved("llama")[0], pool=2)
    assert pooled.config.n_image_tokens == 4
    last = expected.view(2, 4, 4, 32)[:, 2:, 2:].mean((1, 2))
    torch.testing.assert_close(pooled.encoder(images)[:, 3], last, **CLOSE)


KINDS = [(kind, 20) for kind in DECODERS]
KINDS += [("long-rope", 31), ("long-rope", 32), *((kind, 40) for kind in ("long-rope", "llama3"))]


@pytest.mark.parametrize("kind,T", KINDS)
def test_the_decoder(vision, saved, kind, T):
    """Hidden states and logits, without cache; a batch with padding; greedy generation with the
    cache, a batch of ragged prompts as each alone; past sliding windows and the original lengths
    of ropes."""
    folder, theirs = saved(kind)
    ours = load(vision[0], folder, mask="causal").eval()
    ids = text(3, T)
    role = torch.full_like(ids, Role.TEXT)
    role[1, T - 4 :] = Role.PAD
    expected = theirs(ids, attention_mask=(role > 0).long(), output_hidden_states=True)
    hidden, real = ours(ids, role), role > 0
    torch.testing.assert_close(hidden[real], expected.hidden_states[-1][real], **CLOSE)
    torch.testing.assert_close(ours.head(hidden)[real], expected.logits[real], **CLOSE)
    greedy = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    said = ours.generate(ids, role, eos=-1, max_new_tokens=6)
    for row, length, answer in zip(ids, real.sum(1).tolist(), said):
        prompt = row[None, :length]
        assert theirs.generate(prompt, **greedy)[0, length:].tolist() == answer


# --- Long-rope is chosen by the dialogue itself


@pytest.fixture
def model(vision, saved):
    """Of long-rope, with image tokens pooled to one a picture."""
    return load(vision[0], saved("long-rope")[0], pool=4).eval()


def rows_of(*lengths: int) -> list[data.Row]:
    """A picture, a question of the rest but the three tokens of its answer."""
    rows = []
    for k, (ids, length) in enumerate(zip(text(len(lengths), max(lengths)).tolist(), lengths)):
        role = [Role.TEXT, Role.IMAGE, *[Role.QUESTION] * (length - 5), *[Role.ANSWER] * 3]
        picture = torch.full((3, 33, 33), 40 * k, dtype=torch.uint8)
        rows.append(data.Row(ids[:length], role, [0] + [1] * (length - 1), [picture]))
    return rows


def batch_of(rows: list[data.Row]) -> dict:
    return data.collate(rows, 0, 33)


def states(model, rows: list[data.Row]) -> torch.Tensor:
    """The hidden states of all tokens, one dialogue after the other."""
    batch = batch_of(rows)
    return model(**batch)[batch["role"] != Role.PAD]


@pytest.mark.parametrize("kind", ["long-rope", "mistral"])
def test_a_dialogue_does_not_look_at_its_neighbours(vision, saved, kind):
    """Short and long ones alone, padded to the longest, and packed into one row, the longest first:
    the same states. Together they are longer than long-rope's original length, alone only one of
    them is."""
    model, rows = load(vision[0], saved(kind)[0], pool=4).eval(), rows_of(33, 32, 20, 12)
    alone = torch.cat([states(model, [row]) for row in rows])
    torch.testing.assert_close(states(model, rows), alone, **CLOSE)
    packed = first_fit(rows, 100)
    torch.testing.assert_close(states(model, packed), alone, **CLOSE)
    shorter = first_fit(rows[3:], 100)  # a packed row with pads behind it
    torch.testing.assert_close(states(model, packed + shorter)[97:], alone[85:], **CLOSE)


def test_long_rope_factors_are_not_rounded_with_the_weights(model):
    position = torch.arange(40)[None]
    before = model.frequencies(position)
    assert before[0, 0, 0, 1] == model.config.rope[1][1]  # of long rows
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        after = model.to(dtype).frequencies(position)
        assert after.dtype == torch.float32 and torch.equal(after, before)
    assert "rope" not in model.state_dict()


def test_a_window_hides_the_past_and_nothing_that_a_mask_opens(vision, saved):
    """The last token is out of reach of the third one, three windows of 8 back, which the picture
    before it reads."""
    folder, (row,) = saved("mistral")[0], rows_of(33)
    changed = data.Row([*row.ids[:2], 89, *row.ids[3:]], row.role, row.turn, row.images)

    def moved(**changes):
        model = load(vision[0], folder, pool=4, **changes).eval()
        return (states(model, [row]) != states(model, [changed])).any(1)

    assert moved()[1:3].all() and not moved()[2 + 3 * 7 + 1 :].any() and moved(windows=())[-1]


@pytest.mark.parametrize("limit", [3, 30])
def test_long_rope_answers_do_not_look_at_neighbours_or_the_cache(model, limit):
    """Prompts below, at and above the original length, together and alone; and as without a cache,
    where the whole row is computed for every token."""
    rows = [row for length in (20, 31, 34, 36, 43) for row in rows_of(length)]
    for row in rows:
        row.ids, row.role, row.turn = (x[:-3] for x in (row.ids, row.role, row.turn))
    for row, said in zip(rows, model.generate(**batch_of(rows), eos=-1, max_new_tokens=limit)):
        assert model.generate(**batch_of([row]), eos=-1, max_new_tokens=limit) == [said]
        for token in said:
            assert int(model.head(states(model, [row])[-1]).argmax()) == token
            row.add([token], Role.ANSWER, 1)


def test_long_rope_answers_end(model):
    """A limit for each row; a row that ended before the original length does not go on past it."""
    batch = batch_of(rows_of(28, 28, 28))
    free = model.generate(**batch, eos=-1, max_new_tokens=12)
    said = model.generate(**batch, eos=-1, max_new_tokens=[2, 5, 12])
    assert said == [free[0][:2], free[1][:5], free[2]]
    ends = [free[0][1], free[1][7]]
    for said, full in zip(model.generate(**batch, eos=ends, max_new_tokens=12), free):
        n = next((n for n, token in enumerate(full, 1) if token in ends), len(full))
        assert said == full[:n]


def test_a_model_is_saved_and_read_again(model, tmp_path):
    with open(tmp_path / "model.pt", "wb") as file:
        save_model(file, model)
    again = load_model(tmp_path / "model.pt", PretrainedMLLM)
    assert again.config == model.config and type(again.config) is PretrainedConfig
    rows = rows_of(20, 40)
    assert torch.equal(states(again, rows), states(model, rows))


# --- Sizes


SIZES = dict(vocab_size=9, image_size=33, patch_size=8)


@pytest.mark.parametrize("change,says", [
    ({"pool": 3}, "patches=4 must be a multiple of pool=3"), ({"pool": 0}, "pool=0"),
    ({"patch_size": 0}, "patch_size must be above 0, not 0"),
    ({"image_size": 7}, "image_size must be above 0, not 0"),
    ({"d_head": 7}, "even width of a head, not 7"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        PretrainedConfig(**{**SIZES, **change})


def test_a_copy_of_a_config_has_its_derived_sizes():
    config = PretrainedConfig(**SIZES, pool=2, d_head=12)
    sizes = dict(image_size=33, patches=4, grid=2, n_image_tokens=4, head_width=12)
    assert vars(config) == asdict(config) | sizes == vars(replace(config))
