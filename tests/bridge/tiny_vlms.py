"""Tiny random vision-language models of transformers' families, without network, and batches of
dialogues whose roles are known beforehand."""

from copy import deepcopy
from dataclasses import dataclass

import torch
import transformers as hf

from bridge.hf import apply_mma
from mma import ANSWER, IMAGE, PAD, QUESTION, TEXT

# Ids: a user message, the two that open an answer, the end of an answer, a picture
BOS, EOS, USER, HEADER, PICTURE, VIDEO = 1, 2, 5, [7, 8], 10, 11
SPECIAL = dict(pad_token_id=0, bos_token_id=BOS, eos_token_id=EOS)
WINDOW = 6  # of the families that have one
EYES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
TEXT_SIZES = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    initializer_range=0.3, **SPECIAL,
)  # fmt: skip
QWEN_EYES = dict(
    hidden_size=32, num_heads=4, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, depth=1
)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def eyes(model_type, size=28, **more):
    return dict(model_type=model_type, **EYES, image_size=size, patch_size=14, **more)


def siglip(size=28):
    return eyes("siglip_vision_model", size, vision_use_head=False)


def text(model_type, **more):
    return dict(model_type=model_type, **TEXT_SIZES, **more)


# k pictures as arguments of forward


def square(side):
    return lambda k: dict(pixel_values=noise(k, 3, side, side))


def sized(side):
    sizes = lambda k: torch.tensor([[side, side]] * k)
    return lambda k: dict(pixel_values=noise(k, 3, side, side), image_sizes=sizes(k))


def tiles(k):
    sizes = torch.tensor([[28, 28]] * k)
    return dict(pixel_values=noise(k, 2, 3, 28, 28), image_sizes=sizes)


def split(k):
    return dict(pixel_values=noise(k, 1, 3, 56, 56))


def patches(k):
    grid = torch.tensor([[1, 4, 4]])
    return dict(pixel_values=noise(16 * k, 1176), image_grid_thw=grid.repeat(k, 1))


def qwen(vision: dict, **rope) -> dict:
    rope = dict(rope_type="default", mrope_section=[2, 1, 1], rope_theta=10_000.0, **rope)
    return dict(
        vision_config={**QWEN_EYES, **vision}, text_config=dict(**TEXT_SIZES, rope_parameters=rope),
        image_token_id=PICTURE, video_token_id=VIDEO, vision_start_token_id=12,
        vision_end_token_id=13, **SPECIAL,
    )  # fmt: skip


CLIP, PIXTRAL = eyes("clip_vision_model", projection_dim=32), eyes("pixtral", 56, head_dim=8)
MISTRAL = text("mistral", sliding_window=None)
IDEFICS = dict(
    vision_config=dict(**EYES, image_size=56, patch_size=14), text_config=text("llama"),
    image_token_id=PICTURE, scale_factor=2, tie_word_embeddings=False, **SPECIAL,
)  # fmt: skip
QWEN = dict(intermediate_size=48, out_hidden_size=32)
PINPOINTS = dict(image_token_index=PICTURE, image_grid_pinpoints=[[28, 28]])
# name -> its name in transformers, its configuration, the tokens of a picture, k pictures
FAMILIES = {
    "llava": ("Llava", dict(
        vision_config=CLIP, text_config=text("llama"), image_seq_length=4,
        image_token_index=PICTURE,
    ), 4, square(28)),
    "vipllava": ("VipLlava", dict(
        vision_config=CLIP, text_config=text("llama"), image_seq_length=4,
        vision_feature_layers=[-1, -2], image_token_index=PICTURE,
    ), 4, square(28)),
    "pixtral": ("Llava", dict(
        vision_config=PIXTRAL, text_config=MISTRAL, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_token_index=PICTURE,
    ), 16, sized(56)),
    # 4, 4 and the ends of two lines
    "llava_next": ("LlavaNext", dict(vision_config=CLIP, text_config=MISTRAL, **PINPOINTS),
                   10, tiles),
    "llava_onevision": ("LlavaOnevision", dict(
        vision_config=siglip(), text_config=text("qwen2"), video_token_index=VIDEO, **PINPOINTS,
    ), 10, tiles),
    "idefics3": ("Idefics3", IDEFICS, 4, split),
    "smolvlm": ("SmolVLM", IDEFICS, 4, split),
    "internvl": ("InternVL", dict(
        vision_config=dict(**EYES, image_size=[56, 56], patch_size=[14, 14]),
        text_config=text("qwen2"), image_token_id=PICTURE, image_seq_length=4,
        tie_word_embeddings=False,
    ), 4, square(56)),
    "qwen2_vl": ("Qwen2VL", qwen(dict(embed_dim=32, mlp_ratio=2)), 4, patches),
    "qwen2_5_vl": ("Qwen2_5_VL", qwen(dict(
        **QWEN, fullatt_block_indexes=[0], window_size=56,
    )), 4, patches),
    "qwen3_vl": ("Qwen3VL", qwen(dict(
        **QWEN, deepstack_visual_indexes=[0], num_position_embeddings=16,
    ), mrope_interleaved=True), 4, patches),
    "mistral3": ("Mistral3", dict(
        vision_config=PIXTRAL, spatial_merge_size=2, image_token_index=PICTURE,
        text_config=text("mistral", sliding_window=WINDOW), tie_word_embeddings=False,
    ), 4, sized(56)),
    "gemma3": ("Gemma3", dict(
        vision_config=siglip(56), mm_tokens_per_image=4, boi_token_index=12, eoi_token_index=13,
        text_config=text(
            "gemma3_text", sliding_window=WINDOW, query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        image_token_index=PICTURE, tie_word_embeddings=False,
    ), 4, square(56)),
    "aya_vision": ("AyaVision", dict(
        vision_config=siglip(56), text_config=text("cohere"), downsample_factor=2,
        image_token_index=PICTURE, adapter_layer_norm_eps=1e-6,
    ), 4, square(56)),
}  # fmt: skip
PALIGEMMA = ("PaliGemma", dict(
    vision_config={**siglip(), "projection_dim": 32}, projection_dim=32, text_config=text("gemma"),
    image_token_index=PICTURE,
), 4, square(28))  # fmt: skip


@dataclass
class Tiny:
    """A model, how many tokens a picture has in it, and k pictures as arguments of forward."""

    family: str
    model: torch.nn.Module
    n: int
    pictures: object

    @property
    def types(self) -> str:
        """The family's name for the argument that says which tokens are pictures, or ""."""
        if self.family.startswith("qwen"):
            return "mm_token_type_ids"
        return "token_type_ids" if self.family == "gemma3" else ""

    def apply(self, kind: str = "mma"):
        apply_mma(self.model, kind=kind, answer_header=HEADER)
        return self


def build(family: str = "llava") -> Tiny:
    torch.manual_seed(0)
    name, settings, n, pictures = {**FAMILIES, "paligemma": PALIGEMMA}[family]
    config = getattr(hf, f"{name}Config")(**deepcopy(settings))
    model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = EOS
    return Tiny(family, model.eval(), n, pictures)


# A letter a token: B begin, U user header, V picture, q question, H answer header, a answer, e its
# end, t text of a turn without a picture. The last turn of a prompt ends with H.
DIALOGUES = [
    "BUVqqqHaaeUtttHae",  # a turn without a picture
    "BUVqHaaaeUVqqqqHae",  # two turns, a picture each
    "BUqVqVqqHae",  # two pictures
]
PROMPTS = ["BUVqqH", "BUtHaeUVqqqqH", "BUVqHaaeUVqVqqqH"]


def spell(dialogue: str, n: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """ids, role, turn of a dialogue, lists: roles as mma.py defines them."""
    g = torch.Generator().manual_seed(seed)
    word = lambda: int(torch.randint(20, 128, (), generator=g))
    ids, role, turn = [], [], []
    turns = dialogue.split("U")
    for t, letters in enumerate([turns[0], *("U" + part for part in turns[1:])]):
        prompt = QUESTION if "V" in letters else TEXT
        for letter in letters:
            new = {"B": [BOS], "U": [USER], "H": HEADER, "e": [EOS], "V": [PICTURE] * n}
            new = new.get(letter) or [word()]
            kind = {"B": TEXT, "V": IMAGE, "a": ANSWER, "e": ANSWER}.get(letter, prompt)
            ids, role, turn = ids + new, role + [kind] * len(new), turn + [t] * len(new)
    return ids, role, turn


def one_of(inputs: dict, row: int, dialogues: list[str]) -> dict:
    """A row of a batch as `batch` makes it, without its pads: its own pictures stay with it."""
    real = inputs["attention_mask"][row].bool()
    first, k = sum(d.count("V") for d in dialogues[:row]), dialogues[row].count("V")
    pictures = sum(d.count("V") for d in dialogues)
    own = {}
    for name, x in inputs.items():
        of_text = x.shape == inputs["input_ids"].shape
        each = len(x) // pictures
        own[name] = x[row : row + 1, real] if of_text else x[first * each : (first + k) * each]
    return own


def batch(tiny: Tiny, dialogues: list[str] = DIALOGUES, side: str = "right"):
    """(arguments of forward, role, turn): dialogues padded on a side."""
    rows = [spell(d, tiny.n, i) for i, d in enumerate(dialogues)]
    T = max(len(ids) for ids, _, _ in rows)

    def padded(lists, fill):
        pads = ([fill] * (T - len(x)) for x in lists)
        return torch.tensor([p + x if side == "left" else x + p for p, x in zip(pads, lists)])

    ids, role, turn = (padded(lists, fill) for lists, fill in zip(zip(*rows), (0, PAD, 0)))
    inputs = dict(input_ids=ids, attention_mask=(role != PAD).long())
    if k := sum(d.count("V") for d in dialogues):
        inputs |= tiny.pictures(k)
    if tiny.types:
        inputs[tiny.types] = (ids == PICTURE).int()
    return inputs, role, turn


def labels_of(ids, role):
    return torch.where(role == ANSWER, ids, -100)
