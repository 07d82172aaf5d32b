"""Tiny random vision-language models of transformers' families, without network, and batches of
dialogues whose roles are known beforehand."""

from dataclasses import dataclass

import torch
import transformers as hf

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


def clip(size=28):
    return dict(
        model_type="clip_vision_model", **EYES, image_size=size, patch_size=14, projection_dim=32
    )


def siglip(size=28):
    more = dict(image_size=size, patch_size=14, vision_use_head=False)
    return dict(model_type="siglip_vision_model", **EYES, **more)


def pixtral():
    return dict(model_type="pixtral", **EYES, image_size=56, patch_size=14, head_dim=8)


def text(model_type, **more):
    return dict(model_type=model_type, **TEXT_SIZES, **more)


def square(side):
    return lambda k: dict(pixel_values=noise(k, 3, side, side))


def patches(width):
    grid = torch.tensor([[1, 4, 4]])
    return lambda k: dict(pixel_values=noise(16 * k, width), image_grid_thw=grid.repeat(k, 1))


def tiles(k):
    sizes = torch.tensor([[28, 28]] * k)
    return dict(pixel_values=noise(k, 2, 3, 28, 28), image_sizes=sizes)


def sized(side):
    sizes = lambda k: torch.tensor([[side, side]] * k)
    return lambda k: dict(pixel_values=noise(k, 3, side, side), image_sizes=sizes(k))


def llava(side=28):
    c = hf.LlavaConfig(vision_config=clip(side), text_config=text("llama"), image_seq_length=4,
                       image_token_index=PICTURE)  # fmt: skip
    return hf.LlavaForConditionalGeneration(c), 4, square(side)


def vipllava():
    c = hf.VipLlavaConfig(vision_config=clip(), text_config=text("llama"), image_seq_length=4,
                          vision_feature_layers=[-1, -2], image_token_index=PICTURE)  # fmt: skip
    return hf.VipLlavaForConditionalGeneration(c), 4, square(28)


def of_pixtral():
    c = hf.LlavaConfig(vision_config=pixtral(), text_config=text("mistral", sliding_window=None),
                       vision_feature_layer=-1, vision_feature_select_strategy="full",
                       image_token_index=PICTURE)  # fmt: skip
    return hf.LlavaForConditionalGeneration(c), 16, sized(56)


def llava_next():
    c = hf.LlavaNextConfig(vision_config=clip(), text_config=text("mistral", sliding_window=None),
                           image_token_index=PICTURE, image_grid_pinpoints=[[28, 28]])  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(c), 10, tiles  # 4, 4 and the ends of two lines


def llava_onevision():
    c = hf.LlavaOnevisionConfig(vision_config=siglip(), text_config=text("qwen2"),
                                image_token_index=PICTURE, video_token_index=VIDEO,
                                image_grid_pinpoints=[[28, 28]])  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(c), 10, tiles


def idefics3(config=hf.Idefics3Config, model=hf.Idefics3ForConditionalGeneration):
    eyes = {k: v for k, v in siglip(56).items() if k not in ("vision_use_head", "model_type")}
    c = config(vision_config=eyes, text_config=text("llama"), image_token_id=PICTURE,
               scale_factor=2, tie_word_embeddings=False, **SPECIAL)  # fmt: skip
    return model(c), 4, lambda k: dict(pixel_values=noise(k, 1, 3, 56, 56))


def smolvlm():
    return idefics3(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration)


def internvl():
    eyes = dict(**EYES, image_size=[56, 56], patch_size=[14, 14])
    c = hf.InternVLConfig(vision_config=eyes, text_config=text("qwen2"), image_token_id=PICTURE,
                          image_seq_length=4, tie_word_embeddings=False)  # fmt: skip
    return hf.InternVLForConditionalGeneration(c), 4, square(56)


def qwen(config, model, eyes, width, **rope):
    rope = dict(rope_type="default", mrope_section=[2, 1, 1], rope_theta=10_000.0, **rope)
    body = dict(**TEXT_SIZES, rope_parameters=rope)
    c = config(vision_config={**QWEN_EYES, **eyes}, text_config=body, image_token_id=PICTURE,
               video_token_id=VIDEO, vision_start_token_id=12, vision_end_token_id=13,
               **SPECIAL)  # fmt: skip
    return model(c), 4, patches(width)


def qwen2_vl():
    eyes = dict(embed_dim=32, mlp_ratio=2)
    return qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, eyes, 1176)


def qwen2_5_vl():
    eyes = dict(intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=[0], window_size=56)
    return qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, eyes, 1176)


def qwen3_vl():
    eyes = dict(intermediate_size=48, out_hidden_size=32, deepstack_visual_indexes=[0],
                num_position_embeddings=16)  # fmt: skip
    model = hf.Qwen3VLForConditionalGeneration
    return qwen(hf.Qwen3VLConfig, model, eyes, 1176, mrope_interleaved=True)


def mistral3():
    c = hf.Mistral3Config(vision_config=pixtral(), spatial_merge_size=2, image_token_index=PICTURE,
                          text_config=text("mistral", sliding_window=WINDOW),
                          tie_word_embeddings=False)  # fmt: skip
    return hf.Mistral3ForConditionalGeneration(c), 4, sized(56)


def gemma3():
    layers = ["sliding_attention", "full_attention"]
    body = text("gemma3_text", sliding_window=WINDOW, layer_types=layers, query_pre_attn_scalar=8)
    c = hf.Gemma3Config(vision_config=siglip(56), text_config=body, mm_tokens_per_image=4,
                        boi_token_index=12, eoi_token_index=13, image_token_index=PICTURE,
                        tie_word_embeddings=False)  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(c), 4, square(56)


def aya_vision():
    c = hf.AyaVisionConfig(vision_config=siglip(56), text_config=text("cohere"),
                           downsample_factor=2, image_token_index=PICTURE,
                           adapter_layer_norm_eps=1e-6)  # fmt: skip
    return hf.AyaVisionForConditionalGeneration(c), 4, square(56)


def paligemma():
    c = hf.PaliGemmaConfig(vision_config={**siglip(), "projection_dim": 32}, projection_dim=32,
                           text_config=text("gemma"), image_token_index=PICTURE)  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(c), 4, square(28)


FAMILIES = {
    f.__name__.removeprefix("of_"): f
    for f in (
        llava, vipllava, of_pixtral, llava_next, llava_onevision, idefics3, smolvlm, internvl,
        qwen2_vl, qwen2_5_vl, qwen3_vl, mistral3, gemma3, aya_vision,
    )
}  # fmt: skip


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


def build(family: str) -> Tiny:
    torch.manual_seed(0)
    model, n, pictures = {**FAMILIES, "paligemma": paligemma}[family]()
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
QUESTION_LETTERS = "UqVH"


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


def batch(tiny: Tiny, dialogues: list[str], side: str = "right", first: int = 0):
    """(arguments of forward, role, turn): dialogues padded on a side. first: number of the first,
    by which its words are drawn."""
    rows = [spell(d, tiny.n, first + i) for i, d in enumerate(dialogues)]
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
