// A row of tokens, what each of them reads, and the mask: for the pages that show attention,
// explore.html and playground.html. A page has IMAGE and ANSWER, the numbers of two roles, and puts
// what it shows side by side into `panels`: {run, row, tokens, note, canvas, cross, moved}.
// Letters as in explore.py: L layers, H heads, T tokens of a row. A row has role, turn, tokens, T,
// readable [T * T] and its attention, row.w[layer][head][i * T + j]; `name` and `mean` come here.
const ROLE = ["pad", "text", "picture", "question", "answer"];
const RUN_COLOUR = {causal: "60 100 180", mma: "240 130 30"};
const state = {layer: "mean", head: "mean", direction: "reads", token: "open"};
let panels = [];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)}\u00a0%`;
const range = n => [...Array(n).keys()];

function nameTokens(row, grid) {
  // A token's name is what it shares with the same token of another run or question: its number
  // among its kind, and the word. "open" is the token that opens the answer.
  const open = row.role.findLastIndex(r => r !== ANSWER), seen = {};
  row.name = row.role.map((r, i) => {
    const nth = seen[r] = (seen[r] ?? -1) + 1;
    if (i === open) return "open";
    return [ROLE[r], nth, r === IMAGE ? grid : r === ANSWER ? "" : row.tokens[i]].join(" ");
  });
  row.mean = {};
}

function weights(row) {  // [T * T] of the layer and head that are picked, or their mean
  const key = `${state.layer} ${state.head}`;
  if (!row.mean[key]) {
    const pick = (some, which) => which === "mean" ? some : some.slice(which, which + 1);
    const all = pick(row.w, state.layer).flatMap(heads => pick(heads, state.head));
    const out = new Float32Array(row.T * row.T);
    for (const w of all) for (let p = 0; p < out.length; p++) out[p] += w[p] / all.length;
    row.mean[key] = out;
  }
  return row.mean[key];
}

const kind = (row, i, j) => !row.readable[i * row.T + j] ? "shut" : j > i ? "opened" : "past";
const nthPatch = (row, i) => row.role.slice(0, i).filter(r => r === IMAGE).length;
const call = (row, i, grid) => {  // what a token is called in a sentence
  const word = row.tokens[i].trim(), n = grid * grid;
  if (row.role[i] !== IMAGE) return /^<.*>$/.test(word) ? word : `“${word}”`;
  const nth = nthPatch(row, i), k = nth % n, several = row.role.filter(r => r === IMAGE).length > n;
  const picture = several ? `picture ${Math.floor(nth / n) + 1}, ` : "";
  return `${picture}patch (${Math.floor(k / grid) + 1},\u00a0${k % grid + 1})`;
};

// --- What a panel is made of

function choice(name, title, options, changed) {
  const group = el("fieldset", {"data-name": name}, el("legend", {}, title));
  for (const [value, text] of options) {
    const input = el("input", {type: "radio", name, value});
    input.checked = state[name] === value;
    input.addEventListener("change", () => {
      state[name] = value;
      changed();
    });
    group.append(el("label", {}, input, el("span", {}, text)));
  }
  return group;
}

function chooseAttention(layers, heads) {  // what of the attention is shown
  const number = n => [["mean", "mean"], ...range(n).map(k => [k, k + 1])];
  return [choice("layer", "layer", number(layers), draw), choice("head", "head", number(heads), draw),
    choice("direction", "the token", [["reads", "reads"], ["read", "is read by"]], draw)];
}

function lineOf(p, pictures) {  // the tokens to point at; pictures: the address of each
  const {row, run} = p, T = row.T, n = run.grid * run.grid;
  const line = el("div", {class: "line", role: "group", "aria-label": `the tokens as ${run.name} reads them`});
  let shown = 0;
  for (let i = 0; i < T;) {  // runs of tokens of one role: a line of words, or pictures in turn
    let end = i + 1;
    while (end < T && row.role[end] === row.role[i]
           && (row.turn[end] === row.turn[i] || row.role[i] === IMAGE)) end++;
    const box = el("div", {class: row.role[i] === IMAGE ? "pictures" : "text"});
    if (row.role[i] === IMAGE) {
      for (let first = i; first < end; first += n) {
        const look = {class: run.grid > 6 ? "cells fine" : "cells", style: `--grid: ${run.grid}`};
        const cells = el("div", look, ...range(n).map(k => token(p, first + k)));
        box.append(el("div", {class: "picture"}, el("img", {src: pictures[shown++], alt: ""}), cells));
      }
    } else for (let k = i; k < end; k++) box.append(token(p, k));
    line.append(box);
    i = end;
  }
  line.addEventListener("keydown", event => arrow(p, event));
  return line;
}

function token(p, i) {
  const word = p.row.role[i] === IMAGE ? "" : p.row.tokens[i].trim() || "␣";
  const button = el("button", {type: "button", class: "token", "data-i": i, tabindex: -1}, word, el("small"));
  button.addEventListener("mouseenter", () => select(p.row.name[i]));
  button.addEventListener("focus", () => select(p.row.name[i]));
  p.tokens[i] = button;
  return button;
}

function maskOf(p) {
  const {row} = p, T = row.T, spans = [];
  row.role.forEach((r, i) =>
    spans.length && spans.at(-1).r === r ? spans.at(-1).n++ : spans.push({r, n: 1}));
  const called = s => s.n / T > .2 ? ROLE[s.r] : s.n / T > .03 ? ROLE[s.r][0] : "";
  const axis = side => el("div", {class: `axis ${side}`, "aria-hidden": "true"},
    ...spans.map(s => el("span", {style: `flex: ${s.n} 0 0`}, called(s))));
  let rim = "";  // around what is opened
  for (let i = 0; i < T; i++) for (let j = i + 1; j < T; j++) if (kind(row, i, j) === "opened") {
    const out = (a, b) => a < 0 || b >= T || kind(row, a, b) !== "opened";
    rim += (out(i - 1, j) ? `M${j} ${i}h1` : "") + (out(i + 1, j) ? `M${j} ${i + 1}h1` : "")
         + (out(i, j - 1) ? `M${j} ${i}v1` : "") + (out(i, j + 1) ? `M${j + 1} ${i}v1` : "");
  }
  const square = el("div", {class: "square", role: "img", "aria-label":
    `mask ${p.run.mask}: rows read columns; `
    + (rim ? "a rectangle of later tokens is opened" : "no later token is readable")});
  square.innerHTML = `<canvas width="${T}" height="${T}"></canvas>
    <svg viewBox="0 0 ${T} ${T}"><path class="rim" d="${rim}"/><path class="cross"/></svg>`;
  p.canvas = square.querySelector("canvas");
  p.cross = square.querySelector(".cross");
  square.addEventListener("pointermove", event => {
    const box = square.getBoundingClientRect();
    const at = state.direction === "reads" ? (event.clientY - box.top) / box.height
                                           : (event.clientX - box.left) / box.width;
    select(row.name[Math.max(0, Math.min(T - 1, Math.floor(at * T)))]);
  });
  return el("div", {class: "mask"}, el("span"), axis("top"), axis("side"), square);
}

// --- Pointing at a token

function select(name) {
  if (state.token === name) return;
  state.token = name;
  paint();
}

function arrow(p, event) {
  const {row, run} = p, i = p.tokens.indexOf(document.activeElement);
  const line = row.role[i] === IMAGE ? run.grid : 1;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -line, ArrowDown: line,
                Home: -row.T, End: row.T}[event.key];
  if (i < 0 || !step) return;
  event.preventDefault();
  p.tokens[Math.max(0, Math.min(row.T - 1, i + step))].focus();
}

function paint() {
  if (!panels.some(p => p.row.name.includes(state.token))) state.token = "open";
  for (const p of panels) {
    const {row, run} = p, T = row.T, w = weights(row);
    const here = row.name.indexOf(state.token), reads = state.direction === "reads";
    const value = k => here < 0 ? 0 : reads ? w[here * T + k] : w[k * T + here];
    // The strongest of the words, and of the patches; at least an even share, so that next to
    // nothing does not look like much
    const strongest = patch => Math.max(1 / T,
      ...range(T).filter(k => (row.role[k] === IMAGE) === patch).map(value));
    const most = [strongest(false), strongest(true)];
    p.tokens.forEach((button, k) => {
      const what = here < 0 ? "shut" : reads ? kind(row, here, k) : kind(row, k, here), x = value(k);
      button.dataset.weight = x.toFixed(4);
      button.dataset.kind = what;
      button.style.setProperty("--w", (x / most[+(row.role[k] === IMAGE)]).toFixed(3));
      button.style.setProperty("--tint", what === "opened" ? "var(--opened)" : "var(--past)");
      button.classList.toggle("here", k === here);
      button.setAttribute("aria-current", k === here);
      button.tabIndex = k === (here < 0 ? 0 : here) ? 0 : -1;
      button.lastChild.textContent = what === "shut" ? "" : x >= .005 ? Math.round(100 * x) : "·";
      button.setAttribute("aria-label",
        `${call(row, k, run.grid)}: ${what === "shut" ? "blocked" : percent(x, 1)}`);
    });
    const nth = row.role[here] === IMAGE ? nthPatch(row, here) : -1;
    for (const cell of p.moved) cell.classList.toggle("here", +cell.dataset.nth === nth);
    p.cross.setAttribute("d", here < 0 ? "" : reads ? `M0 ${here}h${T}M0 ${here + 1}h${T}`
                                                    : `M${here} 0v${T}M${here + 1} 0v${T}`);
    p.note.textContent = here < 0 ? "This token is not in this row." : sentence(p, here, value, reads);
  }
}

function sentence(p, here, value, reads) {
  const {row, run} = p, own = call(row, here, run.grid);
  const top = range(row.T).sort((a, b) => value(b) - value(a)).slice(0, 3);
  const most = top.map(k => `${call(row, k, run.grid)} ${percent(value(k))}`).join(", ");
  if (!reads) return `${own} is read most by ${most}.`;
  const of = r => range(row.T).reduce((sum, k) => sum + (row.role[k] === r ? value(k) : 0), 0);
  const share = [2, 3, 4, 1].map(r => [ROLE[r], of(r)]).filter(([, x]) => x >= .005);
  return `${own} reads ${share.map(([name, x]) => `${name} ${percent(x)}`).join(", ")}. Most: ${most}.`;
}

function draw() {  // the masks, one pixel a pair: pale where it may be read, full where it is; and the rest
  const style = getComputedStyle(document.documentElement);
  const [past, opened, shut] = ["past", "opened", "shut"].map(name => style.getPropertyValue("--" + name));
  for (const {row, canvas} of panels) {
    const w = weights(row), T = row.T, pen = canvas.getContext("2d");
    pen.clearRect(0, 0, T, T);
    for (let i = 0; i < T; i++) {
      const most = Math.max(1e-9, ...w.subarray(i * T, i * T + T));
      for (let j = 0; j < T; j++) {
        const what = kind(row, i, j), depth = .28 + .72 * w[i * T + j] / most;
        pen.fillStyle = what === "shut" ? shut : `rgb(${what === "opened" ? opened : past} / ${depth})`;
        pen.fillRect(j, i, 1, 1);
      }
    }
  }
  paint();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
