// data/prompt.py and data/shapes/scenes.py in JavaScript, for the playground: text to tokens, a
// question to a row, a scene to a picture. And what of data/shapes/questions.py says which answer is
// right. tests/lab/test_playground.py holds each of them equal to its original.

// --- data/prompt.py

// What Python's str.strip takes away: not what JavaScript's trim does
const strip = text =>
  text.replace(/^(?:[^\S\ufeff]|[\x1c-\x1f\x85])+|(?:[^\S\ufeff]|[\x1c-\x1f\x85])+$/g, "");

const UTF_8 = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true});

function characters_of(bytes) {  // a byte that belongs to no character is one sign of its own
  for (const n of [1, 2, 3, 4]) {
    if (n > bytes.length) break;
    try {
      return UTF_8.decode(bytes.slice(0, n)) + characters_of(bytes.slice(n));
    } catch {}
  }
  return bytes.length ? "\ufffd" + characters_of(bytes.slice(1)) : "";
}

class Tokenizer {  // sentencepiece's BPE: the piece of each id, its score, and its type, a letter
  constructor({pieces, scores, types, special}) {
    Object.assign(this, special, {pieces, scores, types});
    this.ids = new Map();  // what may be merged: neither a control piece nor a byte
    pieces.forEach((piece, i) => types[i] === "n" && this.ids.set(piece, i));
    this.first_byte = types.indexOf("b");
  }

  symbols_of(text) {  // the pieces of a text, as strings; what is no piece is one character
    if (!text) return [];
    const symbols = [..."\u2581" + text.replaceAll(" ", "\u2581")];
    for (;;) {  // merge the pair of the best score, the leftmost of equals
      let best = -1, score = -Infinity;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const id = this.ids.get(symbols[i] + symbols[i + 1]);
        if (id !== undefined && this.scores[id] > score) [best, score] = [i, this.scores[id]];
      }
      if (best < 0) return symbols;
      symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
    }
  }

  encode(text) {
    const bytes = symbol => [...new TextEncoder().encode(symbol)].map(b => this.first_byte + b);
    return this.symbols_of(text).flatMap(s => this.ids.has(s) ? [this.ids.get(s)] : bytes(s));
  }

  piece(i) {
    return this.pieces[i].replaceAll("\u2581", " ");
  }

  decode(ids) {
    let text = "", bytes = [];
    const flush = () => {
      text += characters_of(Uint8Array.from(bytes));
      bytes = [];
    };
    for (const i of ids) {
      if (this.types[i] === "b") bytes.push(i - this.first_byte);
      else flush();
      if (this.types[i] === "n") text += this.pieces[i];
      if (this.types[i] === "u") text += " \u2047 ";
    }
    flush();
    return text.replace(/^\u2581/, "").replaceAll("\u2581", " ");
  }
}

function encode(question, tokenizer, n_image_tokens) {
  // The prompt of one picture and a question about it: ids, role and turn of each token. A picture
  // alone asks nothing and opens nothing.
  const row = {ids: [], role: [], turn: []}, text = strip(question.replaceAll("<image>", " "));
  const add_tokens = (ids, role, turn) => {
    row.ids.push(...ids);
    row.role.push(...ids.map(() => role));
    row.turn.push(...ids.map(() => turn));
  };
  const text_role = text ? QUESTION : TEXT;
  add_tokens([tokenizer.bos], TEXT, 0);
  add_tokens(Array(n_image_tokens).fill(tokenizer.image), IMAGE, 1);
  add_tokens(tokenizer.encode(text), text_role, 1);
  add_tokens([tokenizer.answer], text_role, 1);
  return row;
}

// The words and signs of a text, and where each of them ends
const words_of = text => [...text.matchAll(/[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu)];

// --- data/shapes/scenes.py

function render(cells, world) {
  // A picture, bytes [3 * side * side], of what is in each cell: a kind, or -1. What training varies
  // and what means nothing is fixed: middle size, middle brightness and background, in the middle of
  // the cell, no noise. world: what lab/playground.py says of it.
  const {grid, cell, shapes, sprites, palette, background} = world, side = grid * cell;
  const picture = new Uint8Array(3 * side * side).fill(background);
  cells.forEach((kind, place) => {
    if (kind < 0) return;
    const colour = palette[Math.floor(kind / shapes.length)], sprite = sprites[kind % shapes.length];
    const top = Math.floor(place / grid) * cell, left = place % grid * cell;
    for (let y = 0; y < cell; y++) for (let x = 0; x < cell; x++) {
      if (sprite[y][x] !== "#") continue;
      for (let c = 0; c < 3; c++) picture[(c * side + top + y) * side + left + x] = colour[c];
    }
  });
  return picture;
}

const name_of = (kind, {colours, shapes}) =>
  `${colours[Math.floor(kind / shapes.length)]} ${shapes[kind % shapes.length]}`;

// --- data/shapes/questions.py: its questions are drawn with their answers; here a scene and a question
// are given

function right_answer(question, cells, world) {
  // The answer that is true of the scene; null where the question has none, or is none of training's
  const {colours, shapes, grid} = world, S = shapes.length;
  const C = `(${colours.join("|")})`, Z = `(${shapes.join("|")})`;
  const asks = pattern => question.match(RegExp(`^${pattern}\\?$`))?.slice(1);
  const where = test => cells.map((kind, i) => kind >= 0 && test(kind) ? i : -1).filter(i => i >= 0);
  const colour = word => where(k => colours[Math.floor(k / S)] === word);
  const shape = word => where(k => shapes[k % S] === word);
  const both = (c, s) => where(k => name_of(k, world) === `${c} ${s}`);
  const only = found => found.length === 1 ? found[0] : null;
  let words;
  if ((words = asks(`is there a ${C} ${Z}`))) return both(...words).length ? "yes" : "no";
  if ((words = asks(`how many ${C} ${Z}s are there`))) return String(both(...words).length);
  if ((words = asks(`what shape is the ${C} object`))) {
    const place = only(colour(words[0]));
    return place === null ? null : shapes[cells[place] % S];
  }
  if ((words = asks(`what color is the ${Z}`))) {
    const place = only(shape(words[0]));
    return place === null ? null : colours[Math.floor(cells[place] / S)];
  }
  if ((words = asks(`are there more ${C} objects than ${C} objects`)))
    return colour(words[0]).length > colour(words[1]).length ? "yes" : "no";
  if ((words = asks(`are there more ${Z}s than ${Z}s`)))
    return shape(words[0]).length > shape(words[1]).length ? "yes" : "no";
  if ((words = asks(`in which (row|column) is the ${C} ${Z}`))) {
    const place = only(both(words[1], words[2]));
    if (place === null) return null;
    return String((words[0] === "row" ? Math.floor(place / grid) : place % grid) + 1);
  }
  const sides = "(further left|further right|higher up|lower down)";
  if ((words = asks(`which is ${sides}, the ${C} ${Z} or the ${C} ${Z}`))) {
    const [side, c1, s1, c2, s2] = words, a = only(both(c1, s1)), b = only(both(c2, s2));
    if (a === null || b === null) return null;
    const along = place => side.startsWith("further") ? place % grid : Math.floor(place / grid);
    if (along(a) === along(b)) return null;
    const last = side === "further right" || side === "lower down";
    return along(a) > along(b) === last ? `${c1} ${s1}` : `${c2} ${s2}`;
  }
  return null;
}
