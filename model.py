"""A small multimodal LLM in one file: ViT encoder -> MLP projector -> Llama-style decoder whose mask comes from mma.py.

    python model.py         print the parts of the default model and their parameter counts

The code is written from the papers: ViT (arXiv 2010.11929), LLaVA's projector (2310.03744), Llama (2302.13971; grouped-query
attention 2305.13245; RoPE 2104.09864) and MMA (2503.02597).

Shapes:  B rows of text   T tokens of a row   D decoder width   H query heads   G key/value heads   d head width
         N pictures of a batch   P places in the rows where a picture stands (>= N: rows may share a picture)
         n image tokens of a picture   E encoder width   V vocabulary
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention import GATES, Gate, Opened, attend, opened
from mma import OPENS, Role, attention_mask, positions, predicting, refuse


@dataclass
class Config:
    """Every size of the model. `mask` is the attention mask of stage 2 and of generation, a kind of mma.py."""
    vocab_size: int
    image_size: int = 64      # pixels; pictures are square
    patch_size: int = 16      # pixels
    encoder_width: int = 128
    encoder_layers: int = 2
    encoder_heads: int = 4
    encoder_d_ff: int = 0     # hidden width of the encoder's MLP; 0: four times its width
    pool: int = 1             # pool x pool neighbouring patches become one image token, their mean
    d_model: int = 128
    n_layer: int = 3
    n_head: int = 4
    n_kv_head: int = 2
    d_ff: int = 256           # hidden width of the decoder's SwiGLU
    rope_theta: float = 10_000.0
    rope_factors: tuple = ()  # long-rope: (of short rows, of long rows), d/2 divisors of the frequencies each; () = none
    rope_short: int = 0       # long-rope: rows of up to so many tokens are short
    rope_scale: float = 1.0   # long-rope: cosines and sines are multiplied by it
    norm_eps: float = 1e-6
    siglip: bool = False      # the encoder is SigLIP's: a position for each patch, GELU by its tanh approximation
    mask: str = "mma"
    tied: bool = True         # the vocabulary head is the token embedding
    text_first: bool = False  # the prompt's order: question, then picture (data.encode)
    gate: str = "none"        # see Gate

    def __post_init__(self):
        for name, value, allowed in (("mask kind", self.mask, OPENS), ("gate", self.gate, GATES)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        for a, b in (("image_size", "patch_size"), ("patches", "pool"), ("encoder_width", "encoder_heads"), ("d_model", "n_head"),
                     ("n_head", "n_kv_head")):
            if getattr(self, b) < 1 or getattr(self, a) % getattr(self, b) and not (self.siglip and a == "image_size"):
                raise ValueError(f"{a}={getattr(self, a)} must be a multiple of {b}={getattr(self, b)}")

    @property
    def patches(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.patch_size

    @property
    def grid(self) -> int:
        """Image tokens along one side of a picture."""
        return self.patches // self.pool

    @property
    def n_image_tokens(self) -> int:
        return self.grid ** 2


# --------------------------------------------------------------------------------------------------------------------
# Vision encoder and projector

class EncoderBlock(nn.Module):
    """Pre-norm transformer block, every patch reads every patch."""

    def __init__(self, width: int, heads: int, d_ff: int, siglip: bool):
        super().__init__()
        self.heads, self.gelu, eps = heads, "tanh" if siglip else "none", 1e-6 if siglip else 1e-5
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, d_ff), nn.Linear(d_ff, width)

    def forward(self, x: Tensor) -> Tensor:
        N, n, E = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(N, n, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(N, n, E))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.gelu))


class VisionEncoder(nn.Module):
    """ViT. uint8 pictures [N, 3, image_size, image_size] -> features [N, n, E] of its image tokens, in reading order."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, E = config, config.encoder_width
        # Pixels reach the patch projection with mean 0 and std 1 (train.py measures the two on the first training pictures).
        self.register_buffer("pixel_mean", torch.full((3,), 127.5))
        self.register_buffer("pixel_std", torch.full((3,), 127.5))
        self.patch = nn.Linear(3 * config.patch_size ** 2, E)
        if config.siglip:
            self.position = nn.Parameter(torch.empty(config.patches ** 2, E))
        else:
            self.row, self.column = nn.Parameter(torch.empty(config.patches, E)), nn.Parameter(torch.empty(config.patches, E))
        sizes = config.encoder_heads, config.encoder_d_ff or 4 * E, config.siglip
        self.blocks = nn.ModuleList(EncoderBlock(E, *sizes) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(E, 1e-6 if config.siglip else 1e-5)

    def forward(self, images: Tensor) -> Tensor:
        size, p, g, pool = self.config.image_size, self.config.patch_size, self.config.patches, self.config.pool
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images must be uint8 [N, 3, {size}, {size}], got {images.dtype} {list(images.shape)}")
        x = (images.to(self.pixel_mean.dtype) - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]
        x = x[..., :g * p, :g * p]  # SigLIP leaves out what is less than a patch
        x = x.reshape(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, g * g, 3 * p * p)
        x = self.patch(x.to(self.patch.weight.dtype))
        x = x + (self.position if self.config.siglip else (self.row[:, None] + self.column[None, :]).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if pool == 1 else x.view(-1, g // pool, pool, g // pool, pool, x.shape[-1]).mean((2, 4)).flatten(1, 2)


# --------------------------------------------------------------------------------------------------------------------
# Decoder

def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, heads, T, d]; cos, sin [B or 1, 1, T, d/2]. Dimension i is paired with i + d/2, as Llama's weights are."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Cache:
    """Preallocated keys and values of every layer: [n_layer, B, G, T_max, d]. Row b's token at column t is stored at t, so a
    batch of prompts of different lengths has no gaps: a shorter prompt's pads are overwritten as its answer grows."""

    def __init__(self, model: "MLLM", B: int, T_max: int):
        a, w = model.blocks[0].attention, model.embed.weight
        self.k, self.v = (torch.zeros(len(model.blocks), B, a.G, T_max, width, dtype=w.dtype, device=w.device)
                          for width in (a.d + a.gate.extra, a.d))

    def write(self, layer: int, k: Tensor, v: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, G, t, d] at column [B, t]; return all keys and values of the layer."""
        at = column[:, None, :, None]
        return (self.k[layer].scatter_(2, at.expand_as(k), k.to(self.k.dtype)),
                self.v[layer].scatter_(2, at.expand_as(v), v.to(self.v.dtype)))


@dataclass
class Step:
    """What every layer of one forward pass needs besides x. t = the number of queries, T = the number of keys."""
    cos: Tensor                          # [B or 1, 1, T, d/2]
    sin: Tensor
    mask: Tensor | Opened                # of all queries, bool [B, 1, t, T], True = may attend
    last: Tensor | Opened                # the same of the last layer's queries, [B, 1, K, T]
    visual: Tensor                       # bool [B, T], the image tokens
    T: int                               # columns that hold a key
    cache: Cache | None = None
    column: Tensor | None = None         # int64 [B, T], where the cache stores the tokens
    weights: list[Tensor] | None = None  # given a list, every layer adds its attention weights [B, H, t, T], float32


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.d, self.G = layer, config.d_model // config.n_head, config.n_kv_head
        self.q = nn.Linear(config.d_model, config.n_head * self.d, bias=False)
        self.k = nn.Linear(config.d_model, config.n_kv_head * self.d, bias=False)
        self.v = nn.Linear(config.d_model, config.n_kv_head * self.d, bias=False)
        self.out = nn.Linear(config.n_head * self.d, config.d_model, bias=False)
        self.gate = Gate(config, self.d)

    def forward(self, x: Tensor, s: Step, read: Tensor | None) -> Tensor:
        """x [B, T, D] -> [B, T, D], or [B, K, D] for the queries at the columns `read`, int64 [B, K]."""
        asking = x if read is None else at_columns(x, read)
        q, k, v = self.q(asking), self.k(x), self.v(x)
        if self.gate.kind == "lora":
            q, k = q + self.gate.low_rank(asking, "q"), k + self.gate.low_rank(x, "k")
        q, k, v = (y.unflatten(-1, (-1, self.d)).transpose(1, 2) for y in (q, k, v))  # [B, H or G, t or T, d]
        extra = self.gate.appended(q, k, s.visual) if self.gate.extra else None
        cos, sin, mask = s.cos, s.sin, s.mask if read is None else s.last
        k = rotate(k, cos, sin)
        if read is not None:
            cos, sin = (at_columns(y.expand(len(x), -1, -1, -1)[:, 0], read)[:, None] for y in (cos, sin))
        q = rotate(q, cos, sin)
        if extra is not None:
            q, k = torch.cat([q, extra[0]], -1), torch.cat([k, extra[1]], -1)
        if s.cache is not None:
            k, v = s.cache.write(self.layer, k, v, s.column)
            k, v = k[:, :, :s.T], v[:, :, :s.T]
        if s.weights is not None:
            scores = q @ k.repeat_interleave(q.shape[1] // self.G, 1).mT / self.d ** 0.5
            s.weights.append(scores.float().masked_fill(~mask, -torch.inf).softmax(-1))
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, T, ...] at columns [B, K] -> [B, K, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns]


class DecoderBlock(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(config.d_model, config.norm_eps) for _ in range(2))
        self.attention = Attention(config, layer)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor, s: Step, read: Tensor | None = None) -> Tensor:
        y = self.attention(self.norm1(x), s, read)
        x = y + (x if read is None else at_columns(x, read))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # SwiGLU


# --------------------------------------------------------------------------------------------------------------------

class MLLM(nn.Module):
    """Pictures and text in, text out. Attributes for large models: `checkpointing` (False), to keep of each decoder layer its input alone
    and compute the rest again in backward; `chunk` (4,096), how many answer tokens' logits there are at a time."""
    checkpointing, chunk = False, 4096

    def __init__(self, config: Config):
        super().__init__()
        self.config, D, E = config, config.d_model, config.encoder_width
        self.encoder = VisionEncoder(config)
        self.projector = nn.Sequential(nn.Linear(E, D), nn.GELU(), nn.Linear(D, D))
        self.embed = nn.Embedding(config.vocab_size, D)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.n_layer))
        self.norm = nn.RMSNorm(D, config.norm_eps)
        if not config.tied:
            self.unembed = nn.Linear(D, config.vocab_size, bias=False)
        self.apply(self._init)
        for name in ("row", "column", "position"):  # small against the patch signal, or stage 1 sits at the prior
            if hasattr(self.encoder, name):
                nn.init.normal_(getattr(self.encoder, name), std=0.02)
        for stack in (self.encoder.blocks, self.blocks):
            for block in stack:  # what is added to the residual stream starts small, more so in a deep stack
                for f in (block.down, getattr(block, "out", None) or block.attention.out):
                    f.weight.data /= (2 * len(stack)) ** 0.5
        for name, p in self.named_parameters():  # last, so that all else is drawn alike with a gate and without
            if name.endswith(("gate.wq", "gate.down")):
                nn.init.normal_(p, std=p.shape[-2] ** -0.5)

    @staticmethod
    def _init(module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim ** -0.5)

    def embed_row(self, ids: Tensor, role: Tensor, images: Tensor | None, picture: Tensor | None) -> Tensor:
        """Token embeddings [B, T, D] with the features of picture[p] in the p-th run of image tokens (row-major)."""
        x = self.embed(ids)
        n, here = self.config.n_image_tokens, role == Role.IMAGE
        P = 0 if picture is None else len(picture)
        per_row = here.sum(1)
        refuse((per_row.sum() != P * n) | (per_row % n != 0), lambda: f"{P} pictures of {n} image tokens each do not fit the rows' image "
               f"tokens, counted row by row: {per_row.tolist()}")
        if P == 0 and images is None:
            return x
        given = 0 if images is None else len(images)
        if P:
            refuse((picture < 0) | (picture >= given), lambda: f"picture names the images {sorted(set(picture.tolist()))}, but {given} are "
                   "given")
        features = self.projector(self.encoder(images)).to(x.dtype)  # [N, n, D]: each picture is encoded once
        if P == 0:
            return x + 0 * features.sum()  # of several processes, all must use all parameters
        return x.masked_scatter(here[..., None], features[picture])

    def _decode(self, x, position, masks, visual, T, read=None, cache=None, column=None, weights=None) -> Tensor:
        c, d = self.config, self.config.d_model // self.config.n_head
        frequency = c.rope_theta ** (-torch.arange(0, d, 2, device=x.device) / d)
        if c.rope_factors:  # one choice for a row and all that is generated after it
            longest = T if cache is None else cache.k.shape[3]
            frequency = frequency / torch.tensor(c.rope_factors[longest > c.rope_short], device=x.device)
        angle = position[:, None, :, None] * frequency  # [B or 1, 1, T, d/2], float32
        cos, sin = ((y * c.rope_scale).to(x.dtype) for y in (angle.cos(), angle.sin()))
        step = Step(cos, sin, *masks, visual, T, cache, column, weights)
        again = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:  # of the last layer's rows, only those that are read are computed
            some = read if block is self.blocks[-1] else None
            x = checkpoint(block, x, step, some, use_reentrant=False) if again else block(x, step, some)
        return self.norm(x)

    def forward(self, ids, role, images=None, picture=None, turn=None, document=None, kind=None, read=None, blocked=None,
                cache=None, weights=None) -> Tensor:
        """The decoder's last hidden states [B, T, D]; `head` turns them into logits.

        ids, role, turn, document: int64 [B, T], as in mma.py. images: uint8 [N, 3, image_size, image_size].
        picture: int64 [P], which image stands at each run of image tokens, in reading order over the rows.
        kind: a mask of mma.py (default: config.mask). read: int64 [B, K], the columns whose hidden states are wanted (default:
        all); the result is then [B, K, D]. blocked: bool [B, T], columns that only image rows may still read. weights: a list
        to which each layer adds its attention weights, float32 [B, H, T, T] (the last one [B, H, K, T] with `read`).
        Raises ValueError if pictures and image tokens do not fit.
        """
        kind, grid, visual = kind or self.config.mask, (self.config.grid, self.config.grid), role == Role.IMAGE

        def dense(rows):
            mask = attention_mask(kind, role, turn, document, grid, rows)
            if blocked is not None:
                text = ~visual if rows is None else ~visual.gather(1, rows)
                mask = mask & ~(blocked[:, None, None, :] & text[:, None, :, None])
            return mask

        fast = blocked is None and weights is None and not self.blocks[0].attention.gate.extra
        mask = opened(kind, role, turn, document) if fast else None
        mask = dense(None) if mask is None else mask
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.embed_row(ids, role, images, picture)
        return self._decode(x, positions(kind, role, document, grid), (mask, mask if read is None else dense(read)), visual, ids.shape[1],
                            read, cache, column, weights)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight if self.config.tied else self.unembed.weight)

    def loss(self, ids, role, images=None, picture=None, turn=None, document=None, kind=None, targets=None, read=None,
             kept=None) -> Tensor:
        """Mean cross-entropy over the answer tokens: sum over targets / number of targets; 0 if there are none. targets: another
        number to divide by, where these rows are a part of a larger batch. read, kept: mma.predicting(role, document); made ahead of
        time, they save the GPU a wait."""
        if read is None:
            read, kept = predicting(role, document)
        hidden = self(ids, role, images, picture, turn, document, kind, read).flatten(0, 1)[kept]
        labels, targets = ids[:, 1:].gather(1, read).flatten()[kept], max(1, len(kept)) if targets is None else targets

        def part(hidden, labels):
            return F.cross_entropy(self.head(hidden).float(), labels, reduction="sum")
        if len(hidden) <= self.chunk:
            return part(hidden, labels) / targets
        parts = zip(hidden.split(self.chunk), labels.split(self.chunk))
        return sum(checkpoint(part, h, y, use_reentrant=False) for h, y in parts) / targets

    @torch.inference_mode()
    def generate(self, ids, role, images=None, picture=None, turn=None, blocked=None, *, eos: int, max_new_tokens: int | list[int] = 32,
                 temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None) -> list[list[int]]:
        """Continue a batch of prompts, padded on the right: prefill under the run's mask, then ordinary causal decoding over
        the KV cache (the image's keys and values are those of the prefill). max_new_tokens: for all rows, or one for each.
        temperature 0 = greedy. blocked: bool [B, T], columns that no text row may read, neither now nor while decoding.

        Returns the new token ids of each row; a row that finished ends with `eos`.
        """
        B, T = ids.shape
        limit = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * B
        columns = torch.arange(T + max(limit), device=ids.device)
        length = (role != Role.PAD).sum(1, keepdim=True)  # [B, 1]
        if bool((length == 0).any()) or bool(((role != Role.PAD) != (columns[:T] < length)).any()):
            raise ValueError("generate needs prompts of at least one token, padded on the right")
        position = positions(self.config.mask, role, None, (self.config.grid, self.config.grid)).expand(B, T).gather(1, length - 1)
        readable = torch.ones_like(columns, dtype=torch.bool).expand(B, -1)
        if blocked is not None:
            readable = readable & ~F.pad(blocked, (0, max(limit)))
        cache = Cache(self, B, T + max(limit))
        hidden = self(ids, role, images, picture, turn, read=length - 1, blocked=blocked, cache=cache)[:, 0]
        out, rows = [[] for _ in range(B)], list(range(B))  # rows: which of the batch are still computed
        for step in range(max(limit)):
            token = sample(self.head(hidden).float(), temperature, top_p, generator)
            going = []
            for k, (b, t) in enumerate(zip(rows, token.tolist())):
                if len(out[b]) == step and step < limit[b] and (step == 0 or out[b][-1] != eos):
                    out[b].append(t)
                    if t != eos and step + 1 < limit[b]:
                        going.append(k)
            if not going:
                break
            if len(going) <= 0.75 * len(rows):  # what has finished is dropped, not at once but a few rows at a time: dropping copies
                rows, keep = [rows[k] for k in going], torch.tensor(going, device=ids.device)
                token, length, position, readable = (x[keep] for x in (token, length, position, readable))
                cache.k, cache.v = cache.k[:, keep], cache.v[:, keep]
            at, end = length + step, T + step + 1                                # column of this token; columns so far
            mask = ((columns[:end] <= at) & readable[:, :end])[:, None, None]    # [rows, 1, 1, columns so far]
            hidden = self._decode(self.embed(token[:, None]), position + 1 + step, (mask, mask), torch.zeros_like(at, dtype=torch.bool),
                                  end, cache=cache, column=at)[:, 0]
        return out


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token id for each row of logits [B, V]. Temperature first, then the smallest set of tokens whose mass is top_p."""
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    dropped = p.cumsum(-1) - p >= top_p  # the mass before a token already is top_p
    dropped[:, 0] = False
    p = p.masked_fill(dropped, 0)
    return order.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]


def save(path, model: MLLM, weights: dict | None = None) -> None:
    """weights: all of the model's, where it holds a part of them (default: its own)."""
    torch.save({"config": asdict(model.config), "weights": model.state_dict() if weights is None else weights}, path)


def load(path, device="cpu") -> MLLM:
    """The model that `save` wrote."""
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    model = MLLM(Config(**checkpoint["config"]))
    model.load_state_dict(checkpoint["weights"])
    return model.to(device).eval()


if __name__ == "__main__":
    model = MLLM(Config(vocab_size=512))
    print(model.config)
    for name, part in model.named_children():
        print(f"{name:>10} {sum(p.numel() for p in part.parameters()):>10,} parameters")
    print(f"{'in all':>10} {sum(p.numel() for p in model.parameters()):>10,} parameters (the head is the embedding)")
