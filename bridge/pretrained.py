"""Pretrained weights from local Hugging Face folders, into the model of model.py.

    from bridge.pretrained import load
    model = load("siglip-so400m-patch14-384", "Phi-3.5-mini-instruct", pool=3, dtype=torch.bfloat16)

The encoder is a SigLIP's (siglip.py) or, without a folder of one, that of model.py; the decoder a
Llama's or one like it (decoders.py); the projector between them is new. Every tensor is accounted
for (folders.py). To train from there: python -m bridge.finetune.

Long-rope: rows of more than rope_short tokens divide RoPE's frequencies by other factors than
shorter rows. What counts is the dialogue itself, never what it is padded to, packed with or cached
in, so that a dialogue's states are its own. transformers decides by the largest position of a
call, which for one row without pads is the same. A row that grows past rope_short while it is
answered is computed anew at that token, under the factors of long rows, as transformers does.

Shapes:  B rows   T tokens of a row   D decoder width   H query heads   G key/value heads
         d head width
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bridge.decoders import DECODER, decoder_sizes
from bridge.folders import one_line, values_of
from bridge.siglip import VISION, SiglipEncoder, vision_sizes
from data import Row, collate
from mma import ANSWER, PAD
from model import MLLM, Attention, Config, VisionEncoder, init_weights


@dataclass
class PretrainedConfig(Config):
    """What SigLIP and the decoders have beyond model.Config."""

    pool: int = 1  # pool x pool neighbouring patches become one image token, their mean
    encoder_d_ff: int = 0  # hidden width of the encoder's MLP; 0: four times its width
    d_head: int = 0  # width of a head of the decoder; 0: d_model / n_head
    qkv_bias: bool = False  # Qwen2: queries, keys and values have biases
    qk_norm: bool = False  # Qwen3: queries and keys are normed, head by head
    windows: tuple = ()  # sliding ones: tokens that a query of each layer reads back; 0: all
    rope: tuple = ()  # (d/2 frequencies,); long-rope: of short rows, of long; (): by rope_theta
    rope_short: int = 0  # long-rope: rows of up to so many tokens are short
    rope_scale: float = 1.0  # cosines and sines are multiplied by it

    def __post_init__(self):
        pixels = self.image_size  # SigLIP leaves out what is less than a patch
        self.image_size -= pixels % max(1, self.patch_size)
        super().__post_init__()
        self.image_size, self.patches = pixels, self.grid  # patches along one side of a picture
        if self.pool < 1 or self.patches % self.pool:
            raise ValueError(f"patches={self.patches} must be a multiple of pool={self.pool}")
        self.grid = self.patches // self.pool  # image tokens along one side of a picture
        self.n_image_tokens = self.grid**2
        self.head_width = self.d_head or self.head_width
        if self.head_width % 2:
            raise ValueError(f"RoPE needs an even width of a head, not {self.head_width}")


class NormedLinear(nn.Linear):
    """A projection to heads of width d, each of them normed."""

    def __init__(self, width: int, heads: int, d: int, eps: float):
        super().__init__(width, heads * d, bias=False)
        self.norm = nn.RMSNorm(d, eps)

    def forward(self, x: Tensor) -> Tensor:
        heads = super().forward(x).unflatten(-1, (-1, len(self.norm.weight)))
        return self.norm(heads).flatten(-2)


class PretrainedAttention(Attention):
    """With Qwen2's biases, Qwen3's norms, sliding windows, and the scale of some ropes: cosines and
    sines are multiplied by rope_scale, those of queries and of keys: a score by its square."""

    def __init__(self, config: PretrainedConfig, layer: int):
        super().__init__(config, layer)
        D, d, G = config.d_model, config.head_width, config.n_kv_head
        if config.qkv_bias:
            self.q, self.k, self.v = (nn.Linear(D, heads * d) for heads in (config.n_head, G, G))
        if config.qk_norm:
            heads = config.n_head, G
            self.q, self.k = (NormedLinear(D, H, d, config.norm_eps) for H in heads)
        self.score_scale = config.rope_scale**2
        self.window = config.windows[layer] if config.windows else 0

    def queries_keys_values(self, x, context):
        q, k, v = super().queries_keys_values(x, context)
        return (q if self.score_scale == 1 else q * self.score_scale), k, v

    def forward(self, x, context, read_at=None):
        """A window hides the past, never what a mask opens ahead."""
        if self.window:
            query = context.position[:, None, :, None]
            key = context.position[:, None, None]
            if context.cache is not None:  # where a token's column is its position
                key = torch.arange(context.attention_mask.shape[-1], device=query.device)
            near = context.attention_mask & (key > query - self.window)
            context = replace(context, attention_mask=near)
        return super().forward(x, context, read_at)


class PretrainedMLLM(MLLM):
    """SigLIP, projector, decoder."""

    config_class, encoder_class = PretrainedConfig, SiglipEncoder
    attention_class = PretrainedAttention

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        if config.rope:
            # A buffer, so that no forward pass copies them to a GPU; float32 [1 or 2, d/2], kept as
            # the integers of the same bits, because .to(bfloat16) would round what is a float
            bits = torch.tensor(config.rope, device="cpu").view(torch.int32)
            self.register_buffer("rope", bits, persistent=False)

    def context_of(self, mask, role, turn=None, document=None):
        context = super().context_of(mask, role, turn, document)
        if self.config.rope_short:  # no pad makes a row longer: see frequencies
            context.position = context.position * (role != PAD)
        return context

    def frequencies(self, position: Tensor) -> Tensor:
        """float32 [d/2]; with long-rope [B, 1, T, d/2], by the length of each token's document. A
        document begins at position 0 and is as long as its last position says: that of the whole
        row in a forward pass, that of the token itself where it is decoded over a cache."""
        if not self.config.rope:
            return super().frequencies(position)
        short, *long = self.rope.view(torch.float32)
        if not long:
            return short
        document = (position == 0).cumsum(1)  # [B, T]
        last = position.new_zeros(len(position), position.shape[1] + 1)
        last = last.scatter_reduce(1, document, position, "amax").gather(1, document)  # [B, T]
        is_long = (last >= self.config.rope_short)[:, None, :, None]
        return torch.where(is_long, long[0], short)

    @torch.no_grad()
    def generate(
        self, ids, role, images=None, image_index=None, turn=None, *, eos, max_new_tokens=32,
        **sampling,
    ) -> list[list[int]]:  # fmt: skip
        """As MLLM.generate. With long-rope a short row that goes on past rope_short tokens is, with
        its answer so far, the prompt of a second prefill."""

        def answer(ids, role, turn, limit):
            options = dict(eos=eos, max_new_tokens=limit)
            return MLLM.generate(self, ids, role, images, image_index, turn, **options, **sampling)

        if not self.config.rope_short:
            return answer(ids, role, turn, max_new_tokens)
        limit = torch.as_tensor(max_new_tokens, device=ids.device).expand(len(ids))
        length = (role != PAD).sum(1)
        room = self.config.rope_short + 1 - length  # the last of them is not yet read
        first = torch.where(room > 0, limit.minimum(room), limit)
        answers = answer(ids, role, turn, first)
        ends = torch.as_tensor(eos)
        ended = torch.tensor([bool(a) and a[-1] in ends for a in answers], device=ids.device)
        rest = (limit - first) * ~ended
        if not rest.any():
            return answers

        prompts = (x.tolist() for x in (ids, role, torch.zeros_like(ids) if turn is None else turn))
        rows = [Row(*(x[:n] for x in row)) for *row, n in zip(*prompts, length.tolist())]
        for row, said in zip(rows, answers):
            row.add(said, ANSWER, row.turn[-1])
        grown = {name: x.to(ids.device) for name, x in collate(rows, 0, 0).items()}
        more = answer(grown["ids"], grown["role"], grown["turn"], rest)
        return [a + b for a, b in zip(answers, more)]


class OwnEncoderMLLM(PretrainedMLLM):
    """The encoder of model.py, projector, decoder."""

    encoder_class = VisionEncoder


# --- From the folders


def config_of(vision: Path, decoder: Path, **changes) -> PretrainedConfig:
    """The sizes of both folders. changes: fields of the config, such as pool=3, or vocab_size one
    larger, for a new token. Raises ValueError for sizes that do not fit each other."""
    return PretrainedConfig(**{**vision_sizes(vision), **decoder_sizes(decoder), **changes})


def load(
    vision: Path | str | None, decoder: Path | str, config: PretrainedConfig | None = None, *,
    dtype: torch.dtype = torch.float32, seed: int = 0, **changes,
) -> PretrainedMLLM:  # fmt: skip
    """The model with a SigLIP from the folder `vision` (None: the new encoder of model.py), a
    decoder from the folder `decoder`, and a new projector. config: as config_of gives it (default:
    with the changes given). Raises DataError if a file is damaged or a tensor missing, unexpected
    or misshaped."""
    folders = [Path(folder) for folder in (vision, decoder) if folder is not None]
    config = config or config_of(*folders, **changes)
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = (OwnEncoderMLLM if vision is None else PretrainedMLLM)(config)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    same = {r"lm_head\.weight": ""} if config.tied else {}  # some files hold it twice
    values = values_of(folders[-1], DECODER | same, shapes, dtype)
    for name in {"embed.weight", "unembed.weight"} & values.keys():
        if values[name].dim() == 2 and len(values[name]) + 1 == config.vocab_size:
            mean = values[name].mean(0, keepdim=True)  # of a new token: the mean of the others
            values[name] = torch.cat([values[name], mean])
    if vision is None:
        model.encoder = VisionEncoder(config).apply(init_weights)
        model.encoder.init_positions()
    else:
        values |= values_of(folders[0], VISION, shapes, dtype)
        pixels = torch.full((3,), 127.5)  # buffers are no tensors of the files
        values |= {f"encoder.{name}": pixels.clone() for name in ("pixel_mean", "pixel_std")}
    torch.manual_seed(seed)
    model.projector.to_empty(device="cpu").to(dtype).apply(init_weights)
    values |= {name: x for name, x in model.state_dict().items() if not x.is_meta}
    with one_line(f"{' and '.join(map(str, folders))}: its tensors do not fit", RuntimeError):
        model.load_state_dict(values, assign=True)
    return model
