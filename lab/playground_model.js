// mma.py and model.py in JavaScript, for the playground: the same names in the same order, to be read
// side by side. The page shows one dialogue at a time, so that B, the rows of a batch, is left out, and
// no row has pads. What torch brings stands first. tests/lab/test_playground.py holds the logits
// equal to PyTorch's.
//
// A tensor [T, D] is a list of T rows, each a Float32Array of D numbers.
// Shapes:  T tokens of the row   t tokens that are new   D decoder width   H query heads
//          G key/value heads   d head width   n image tokens   E encoder width   V vocabulary

// --- What torch brings

const add = (x, y) => x.map((row, t) => row.map((value, i) => value + y[t][i]));
const columns = (x, start, n) => x.map(row => row.subarray(start, start + n));
const mean = (row, f) => row.reduce((sum, value) => sum + f(value), 0) / row.length;

function linear({weight, bias}, x) {
  // nn.Linear of each row: [t, in] -> [t, out]. Two rows and four outputs at a time: eight sums, for
  // an addition waits for the one before it, and a weight that was fetched serves both rows.
  const [outputs, inputs] = weight.shape, w = weight.values;
  const y = x.map(() => new Float32Array(outputs));
  for (let t = 0; t < x.length; t += 2) {
    const p = x[t], q = x[t + 1] ?? p, P = y[t], Q = y[t + 1] ?? P;
    for (let o = 0; o < outputs; o += 4) {
      const [A, B, C, D] = [o, o + 1, o + 2, o + 3].map(k => Math.min(k, outputs - 1) * inputs);
      let pa = 0, pb = 0, pc = 0, pd = 0, qa = 0, qb = 0, qc = 0, qd = 0;
      for (let i = 0; i < inputs; i++) {
        const u = p[i], v = q[i], a = w[A + i], b = w[B + i], c = w[C + i], d = w[D + i];
        pa += u * a; pb += u * b; pc += u * c; pd += u * d;
        qa += v * a; qb += v * b; qc += v * c; qd += v * d;
      }
      P[o] = pa; P[o + 1] = pb; P[o + 2] = pc; P[o + 3] = pd;  // beyond the end nothing is written
      Q[o] = qa; Q[o + 1] = qb; Q[o + 2] = qc; Q[o + 3] = qd;
    }
  }
  return bias ? y.map(row => row.map((value, o) => value + bias.values[o])) : y;
}

function layer_norm({weight, bias}, x) {
  return x.map(row => {
    const m = mean(row, v => v), scale = (mean(row, v => (v - m) ** 2) + 1e-5) ** -0.5;
    return row.map((v, i) => (v - m) * scale * weight.values[i] + bias.values[i]);
  });
}

function rms_norm({weight}, x, eps) {
  return x.map(row => {
    const scale = (mean(row, v => v * v) + eps) ** -0.5;
    return row.map((v, i) => v * scale * weight.values[i]);
  });
}

function erf(x) {  // to 2e-7: Abramowitz and Stegun, 7.1.26
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const gelu = x => x.map(row => row.map(v => v / 2 * (1 + erf(v * Math.SQRT1_2))));
const silu = x => x.map(row => row.map(v => v / (1 + Math.exp(-v))));

function softmax(scores) {
  const most = Math.max(...scores), e = new Float32Array(scores.length);
  let sum = 0;
  for (let j = 0; j < e.length; j++) sum += e[j] = Math.exp(scores[j] - most);
  return e.map(value => value / sum);
}

function scaled_dot_product_attention(q, k, v, mask) {
  // One head: q [t, d], k and v [T, d], mask [t][T], true = may attend -> y [t, d], weights [t, T]
  const d = v[0].length, y = [], weights = [];
  for (const [i, query] of q.entries()) {
    const w = softmax(k.map((key, j) => {
      if (mask && !mask[i][j]) return -Infinity;
      let score = 0;
      for (let c = 0; c < d; c++) score += query[c] * key[c];
      return score * d ** -0.5;
    }));
    const sum = new Float32Array(d);
    v.forEach((value, j) => {
      if (w[j]) for (let c = 0; c < d; c++) sum[c] += w[j] * value[c];
    });
    y.push(sum);
    weights.push(w);
  }
  return {y, weights};
}

const split_heads = (x, d) =>  // [t, heads * d] -> [heads][t, d]
  Array.from({length: x[0].length / d}, (_, h) => columns(x, h * d, d));

const merge_heads = heads => heads[0].map((_, t) => {  // [heads][t, d] -> [t, heads * d]
  const d = heads[0][t].length, row = new Float32Array(heads.length * d);
  heads.forEach((head, h) => row.set(head[t], h * d));
  return row;
});

// --- mma.py

const PAD = 0, TEXT = 1, IMAGE = 2, QUESTION = 3, ANSWER = 4;

// What each kind opens beyond the causal mask: EXTRA_PAIRS[kind][role_i][role_j], what mma.py said of
// every pair when the page was written. Of mma it is true where role_i is IMAGE and role_j QUESTION.
let EXTRA_PAIRS = {};

function attention_mask(kind, role, turn) {  // who may read whom: [T][T], true = may
  return role.map((role_i, i) => role.map((role_j, j) => {
    const opened = EXTRA_PAIRS[kind][role_i][role_j] && turn[i] === turn[j];
    const readable = (j <= i || opened) && role_j !== PAD;
    return readable || i === j;
  }));
}

const positions = role => role.map((_, t) => t);  // MMA does not move them

// --- model.py: vision encoder

class EncoderBlock {  // pre-norm transformer block; every patch reads every patch
  constructor(parameters, heads) {
    Object.assign(this, parameters, {heads});
  }

  forward(x) {
    const E = x[0].length, qkv = linear(this.qkv, layer_norm(this.norm1, x));
    const [q, k, v] = [0, E, 2 * E].map(at => split_heads(columns(qkv, at, E), E / this.heads));
    const y = q.map((_, h) => scaled_dot_product_attention(q[h], k[h], v[h]).y);
    x = add(x, linear(this.out, merge_heads(y)));
    return add(x, linear(this.down, gelu(linear(this.up, layer_norm(this.norm2, x)))));
  }
}

class VisionEncoder {  // ViT: a picture, bytes [3 * size * size], -> features [n, E] in reading order
  constructor(config, parameters) {
    Object.assign(this, parameters);
    this.size = config.image_size;
    this.patch_size = config.patch_size;
    this.grid = Math.floor(config.image_size / config.patch_size);
    this.blocks = parameters.blocks.map(block => new EncoderBlock(block, config.encoder_heads));
  }

  patches(image) {  // [n, 3 * p * p], pixels to mean 0 and deviation 1
    const {size, patch_size: p, grid} = this, n = grid * grid;
    return Array.from({length: n}, (_, place) => {
      const row = Math.floor(place / grid) * p, column = place % grid * p;
      const x = new Float32Array(3 * p * p);
      for (let c = 0; c < 3; c++) for (let i = 0; i < p * p; i++) {
        const pixel = image[(c * size + row + Math.floor(i / p)) * size + column + i % p];
        x[c * p * p + i] = (pixel - this.pixel_mean.values[c]) / this.pixel_std.values[c];
      }
      return x;
    });
  }

  forward(image) {
    let x = linear(this.patch, this.patches(image));  // [n, E]
    const E = x[0].length, at = (p, i) => p.values.subarray(i * E, i * E + E);
    x = add(x, x.map((_, place) => at(this.row, Math.floor(place / this.grid))));
    x = add(x, x.map((_, place) => at(this.column, place % this.grid)));
    for (const block of this.blocks) x = block.forward(x);
    return layer_norm(this.norm, x);
  }
}

// --- model.py: decoder

function attention(q, k, v, mask) {
  // q [H][t, d], k and v [G][T, d]; G query heads share a key/value head
  const shared = q.length / k.length;
  return q.map((query, h) => {
    const g = Math.floor(h / shared);
    return scaled_dot_product_attention(query, k[g], v[g], mask);
  });
}

function rotate(x, {cos, sin}) {  // RoPE on x [t, d]; cos, sin [t, d/2]; i is paired with i + d/2
  return x.map((row, t) => {
    const half = row.length / 2, y = new Float32Array(row.length);
    for (let i = 0; i < half; i++) {
      const a = row[i], b = row[i + half];
      y[i] = a * cos[t][i] - b * sin[t][i];
      y[i + half] = b * cos[t][i] + a * sin[t][i];
    }
    return y;
  });
}

class KVCache {  // keys and values of every layer; here a list that grows with the row
  constructor(n_layer, G) {
    const empty = () => Array.from({length: n_layer}, () => Array.from({length: G}, () => []));
    this.k = empty();
    this.v = empty();
  }

  write(layer, k, v) {  // store k, v [G][t, d]; return all so far
    k.forEach((keys, g) => this.k[layer][g].push(...keys));
    v.forEach((values, g) => this.v[layer][g].push(...values));
    return [this.k[layer], this.v[layer]];
  }
}

class Attention {  // grouped-query attention: H query heads share G key/value heads
  constructor(config, parameters, layer) {
    Object.assign(this, parameters, {layer});
    this.head_width = config.d_model / config.n_head;
  }

  queries_keys_values(x, context) {
    const heads = part => split_heads(linear(part, x), this.head_width);
    const q = heads(this.q), k = heads(this.k), v = heads(this.v);
    return [q.map(y => rotate(y, context.rotation)), k.map(y => rotate(y, context.rotation)), v];
  }

  forward(x, context) {  // x [t, D] -> [t, D]
    let [q, k, v] = this.queries_keys_values(x, context);
    [k, v] = context.cache.write(this.layer, k, v);
    const heads = attention(q, k, v, context.mask);
    context.recorded[this.layer] = heads.map(head => head.weights);  // as lab/recording.py does
    return linear(this.out, merge_heads(heads.map(head => head.y)));
  }
}

class DecoderBlock {  // pre-norm transformer block: attention, then SwiGLU
  constructor(config, parameters, layer) {
    Object.assign(this, parameters);
    this.eps = config.norm_eps;
    this.attention = new Attention(config, parameters.attention, layer);
  }

  mlp(x) {
    const gate = silu(linear(this.gate, x)), up = linear(this.up, x);
    return linear(this.down, gate.map((row, t) => row.map((value, i) => value * up[t][i])));
  }

  forward(x, context) {
    x = add(x, this.attention.forward(rms_norm(this.norm1, x, this.eps), context));
    return add(x, this.mlp(rms_norm(this.norm2, x, this.eps)));
  }
}

// --- model.py: the whole

class MLLM {
  constructor(config, parameters) {
    Object.assign(this, parameters, {config});
    this.encoder = new VisionEncoder(config, parameters.encoder);
    this.blocks = parameters.blocks.map((block, layer) => new DecoderBlock(config, block, layer));
  }

  frequencies() {  // RoPE's angle a position, for each pair of dimensions
    const d = this.config.d_model / this.config.n_head;
    return Array.from({length: d / 2}, (_, i) => this.config.rope_theta ** (-2 * i / d));
  }

  projector_of_encoder(image) {  // [n, D]; kept, so that another question costs the decoder alone
    if (this.seen !== image) {
      const [first, , second] = this.projector;
      this.features = linear(second, gelu(linear(first, this.encoder.forward(image))));
      this.seen = image;
    }
    return this.features;
  }

  embed_inputs(ids, role, image) {  // token embeddings [T, D], the picture's features in their places
    const D = this.config.d_model, features = this.projector_of_encoder(image);
    let next = 0;
    return ids.map((id, t) =>
      role[t] === IMAGE ? features[next++] : this.embed.weight.values.slice(id * D, id * D + D));
  }

  decode(x, mask, position, cache) {  // embeddings [t, D] -> hidden states, and what each layer read
    const frequencies = this.frequencies();
    const angle = position.map(p => frequencies.map(f => p * f));  // [t, d/2]
    const of_all = f => angle.map(row => row.map(f));
    const rotation = {cos: of_all(Math.cos), sin: of_all(Math.sin)};
    const context = {mask, rotation, cache, recorded: []};
    for (const block of this.blocks) x = block.forward(x, context);
    return {hidden: rms_norm(this.norm, x, this.config.norm_eps), recorded: context.recorded};
  }

  head(hidden) {  // logits [t, V] of hidden states [t, D]
    return linear(this.config.tied ? this.embed : this.unembed, hidden);
  }

  generate(ids, role, image, turn, kind, eos, max_new_tokens = 32) {
    // Prefill under the mask `kind`, then ordinary causal decoding over the KV cache. Returns the new
    // ids, the logits of the first, and weights[layer][head][row]: what each row of tokens read.
    const cache = new KVCache(this.config.n_layer, this.config.n_kv_head), answer = [];
    let position = positions(role);
    let x = this.embed_inputs(ids, role, image);
    let {hidden, recorded: weights} = this.decode(x, attention_mask(kind, role, turn), position, cache);
    const first = this.head(hidden.slice(-1))[0];
    for (let logits = first; ; logits = this.head(hidden)[0]) {
      answer.push(logits.indexOf(Math.max(...logits)));
      if (answer.at(-1) === eos || answer.length === max_new_tokens) break;
      position = [position.at(-1) + 1];
      x = this.embed_inputs(answer.slice(-1), [ANSWER], image);
      const {hidden: next, recorded} = this.decode(x, null, position, cache);  // reads all before it
      hidden = next;
      recorded.forEach((heads, l) => heads.forEach((rows, h) => weights[l][h].push(rows[0])));
    }
    return {answer, logits: first, weights};
  }
}

// --- Weights: float16 on the page, float32 here, as lab/weights.py keeps them

const FROM_HALF = Float32Array.from({length: 65536}, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
});

function load_state_dict(names, bytes) {
  // names: [name, shape] in order; bytes: first the low byte of every number, then the high bytes. The
  // dots of a name become objects, and lists where they are counted: blocks[0].attention.q.weight
  const total = bytes.length / 2, parameters = {};
  let at = 0;
  for (const [name, shape] of names) {
    const size = shape.reduce((a, b) => a * b, 1), values = new Float32Array(size);
    for (let i = 0; i < size; i++, at++) values[i] = FROM_HALF[bytes[total + at] << 8 | bytes[at]];
    const path = name.split("."), last = path.pop();
    const inside = path.reduce((part, key, k) =>
      part[key] ??= /^\d+$/.test(path[k + 1] ?? last) ? [] : {}, parameters);
    inside[last] = {values, shape};
  }
  return parameters;
}
