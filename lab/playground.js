// The playground's page: a scene and a question, and what each side makes of them. A side is a run
// with its rectangle open or shut: two runs make two, and so does one, once shut and once open.
const data = JSON.parse(document.getElementById("data").textContent), {world} = data;
const $ = id => document.getElementById(id);
const LONGEST = 32, BARS = 5;  // tokens of an answer; first tokens that are shown
const KNOWN = new Set(world.words);
Object.assign(state, {colour: world.colours[0], shape: world.shapes[0]});
let number, cells, questions = [], sides = [];
let picture, address;  // of the scene: its bytes, and as the address of an image

EXTRA_PAIRS = data.pairs;

// --- Runs

async function inflated(text) {
  const packed = atob(text), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new DecompressionStream("deflate"), writer = stream.writable.getWriter();
  writer.write(bytes);
  writer.close();
  return new Uint8Array(await new Response(stream.readable).arrayBuffer());
}

async function opened(run) {
  const {config, names, weights} = run;
  run.model = new MLLM(config, load_state_dict(names, await inflated(weights)));
  run.tokenizer = new Tokenizer(run.tokenizer);
  run.weights = null;
  run.grid = run.model.encoder.grid;
  run.kind = config.mask === "causal" ? "mma" : config.mask;  // the mask while its rectangle is open
  return run;
}

function answer(run, kind, question) {
  // The answer, the logits of its first token, and the row with what each token of it read
  const {model, tokenizer} = run, row = encode(question, tokenizer, run.grid ** 2);
  const {ids, role, turn} = row;
  const out = model.generate(ids, role, picture, turn, kind, tokenizer.eos, LONGEST);
  const read = out.answer.slice(0, -1);  // the last token is read by none
  row.ids = [...ids, ...read];
  row.role = [...role, ...read.map(() => ANSWER)];
  row.turn = [...turn, ...read.map(() => 1)];
  const T = row.T = row.ids.length;
  row.tokens = row.ids.map((id, t) => row.role[t] === IMAGE ? "" : tokenizer.piece(id));
  row.readable = attention_mask(kind, row.role, row.turn).flat();
  row.w = out.weights.map(heads => heads.map(rows => {
    const w = new Float32Array(T * T);
    rows.forEach((read, i) => w.set(read, i * T));
    return w;
  }));
  nameTokens(row, run.grid);
  const text = tokenizer.decode(out.answer.filter(id => tokenizer.types[id] !== "c"));
  return {...out, row, text};
}

// --- The scene

const kindOfBrush = () => state.shape === "nothing" ? -1
  : world.colours.indexOf(state.colour) * world.shapes.length + world.shapes.indexOf(state.shape);

function put(place, kind) {  // what is there already goes
  setScene(cells.map((old, i) => i !== place ? old : old === kind ? -1 : kind));
}

function setScene(now) {
  cells = now;
  drawScene();
  update();
}

function drawScene() {
  const side = world.grid * world.cell, canvas = $("board").querySelector("canvas"), n = side * side;
  picture = render(cells, world);
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d"), image = pen.createImageData(side, side);
  for (let i = 0; i < n; i++)
    image.data.set([picture[i], picture[n + i], picture[2 * n + i], 255], 4 * i);
  pen.putImageData(image, 0, 0);
  document.querySelectorAll("#board button").forEach((button, place) => {
    const what = cells[place] < 0 ? "nothing" : name_of(cells[place], world);
    const where = `row ${Math.floor(place / world.grid) + 1}, column ${place % world.grid + 1}`;
    button.setAttribute("aria-label", `${where}: ${what}`);
    button.title = what;
  });
  const count = cells.filter(kind => kind >= 0).length, [least, most] = world.objects;
  $("objects").textContent = `${count} objects; training had ${least} to ${most}`;
  address = canvas.toDataURL();
}

function buildBoard() {
  const buttons = range(world.grid ** 2).map(place => {
    const button = el("button", {type: "button", tabindex: place ? -1 : 0});
    button.addEventListener("click", () => put(place, kindOfBrush()));
    button.addEventListener("focus", () => buttons.forEach(b => b.tabIndex = b === button ? 0 : -1));
    return button;
  });
  const box = el("div", {class: "cells", style: `--grid: ${world.grid}`, role: "group",
    "aria-label": "the scene: arrow keys move, Enter puts, Delete empties"}, ...buttons);
  box.addEventListener("keydown", event => {
    const {grid} = world, place = buttons.indexOf(document.activeElement);
    if (event.key === "Delete" || event.key === "Backspace") put(place, cells[place]);
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid, ArrowDown: grid}[event.key];
    if (!step) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(cells.length - 1, place + step))].focus();
  });
  $("board").append(box);
}

function buildBrush() {
  const nothing = () => {};
  const colours = choice("colour", "colour", world.colours.map(c => [c, c]), nothing);
  colours.querySelectorAll("span").forEach((span, i) =>
    span.prepend(el("i", {class: "dot", style: `background: rgb(${world.palette[i]})`})));
  const shapes = [...world.shapes, "nothing"].map(s => [s, s]);
  $("brush").append(colours, choice("shape", "shape", shapes, nothing));
}

function another() {  // any other scene; its own questions come with it
  const n = world.scenes.length, step = 1 + Math.floor(Math.random() * (n - 1));
  const next = (number + step) % n, picked = questions.includes($("text").value);
  openScene(next, picked ? world.scenes[next].questions[0] : $("text").value);
}

function openScene(next, question) {  // a scene of the test split
  number = next;
  questions = world.scenes[number].questions;
  $("text").value = question;
  $("suggestions").replaceChildren(...questions.map(question => {
    const button = el("button", {type: "button", class: "plain"}, question);
    button.addEventListener("click", () => {
      $("text").value = question;
      update();
    });
    return button;
  }));
  setScene(world.scenes[number].cells);
}

// --- The sides

function side(run, isOpen) {
  const input = el("input", {type: "checkbox", role: "switch"});
  input.checked = isOpen;
  input.addEventListener("change", update);
  const {mask} = run.config, style = `--run: ${RUN_COLOUR[mask] || "120 120 120"}`;
  const c = {run, input, answer: el("p", {class: "answer", role: "status"}),
             bars: el("div", {class: "bars", role: "group", "aria-label": "its first token"}),
             attention: el("section", {class: "run", style})};
  c.card = el("section", {class: "run", style},
    el("header", {}, el("h2", {}, `trained with ${mask}`), el("small", {}, run.name),
      el("label", {class: "switch"}, input, el("i"), "rectangle")),
    c.answer, c.bars);
  return c;
}

function show(c, question, right, isUnknown) {
  const {run} = c, kind = c.input.checked ? run.kind : "causal";
  const {row, text, logits} = answer(run, kind, question);
  const verdict = isUnknown || right === null ? "" : text === right ? " ✓" : ` ✗ (${right})`;
  const tone = verdict.includes("✓") ? "good" : "bad";
  c.answer.className = isUnknown ? "answer unsure" : "answer";
  c.answer.replaceChildren(el("small", {}, `under ${kind}: `), el("b", {}, text || "(nothing)"),
    el("span", {class: tone}, verdict));
  const p = softmax(logits), order = range(p.length).sort((a, b) => p[b] - p[a]).slice(0, BARS);
  c.bars.replaceChildren(...order.flatMap(id => [
    el("span", {}, run.tokenizer.piece(id).trim() || "␣"),
    el("i", {style: `--p: ${p[id].toFixed(4)}`}),
    el("small", {}, percent(p[id], 1))]));
  const panel = {run: {name: run.name, mask: kind, grid: run.grid}, row, tokens: [], moved: [],
                 note: el("p", {class: "note"})};
  c.attention.replaceChildren(
    el("header", {}, el("h2", {}, `trained with ${run.config.mask}, under ${kind}`)),
    panel.note, el("div", {class: "two"}, lineOf(panel, [address]), maskOf(panel)));
  return panel;
}

function mark(question) {
  // Show which words training never had, or what is right; returns whether there are, and what is
  const unknown = words_of(question).filter(([word]) => !KNOWN.has(word));
  const right = right_answer(strip(question), cells, world);
  if (unknown.length) {
    const parts = [];
    let at = 0;
    for (const word of unknown) {
      parts.push(question.slice(at, word.index), el("mark", {}, word[0]));
      at = word.index + word[0].length;
    }
    $("said").replaceChildren(...parts, question.slice(at), el("br"),
      "The training text never had what is marked: the model reads it in pieces, down to bytes, and "
      + "what it answers means little.");
  } else $("said").textContent = right !== null ? `Right: ${right}.`
    : strip(question) ? "Training asked no such question about such a scene: no answer is right."
    : "Nothing is asked: in the first stage of training the answer was a description.";
  return {isUnknown: unknown.length > 0, right};
}

function update() {
  const question = $("text").value, {isUnknown, right} = mark(question);
  const start = performance.now(), first = !panels.length;
  panels = sides.map(c => show(c, question, right, isUnknown));
  draw();
  const took = Math.round(performance.now() - start);
  $("time").textContent = `Both answers and what they read took ${took} ms`
    + (first ? "; the first ones take longest." : ".");
}

async function start() {
  const runs = await Promise.all(data.runs.map(opened));
  const both = runs.length > 1 ? runs : [runs[0], runs[0]];
  sides = both.map((run, k) => side(run, runs.length > 1 ? run.config.mask !== "causal" : k === 1));
  $("answers").append(...sides.map(c => c.card));
  $("runs").append(...sides.map(c => c.attention));
  $("size").textContent = runs[0].parameters.toLocaleString("en");
  const most = name => Math.max(...runs.map(run => run.config[name]));
  $("controls").append(...chooseAttention(most("n_layer"), most("n_head")));
  buildBoard();
  buildBrush();
  $("text").addEventListener("input", update);
  $("another").addEventListener("click", another);
  $("clear").addEventListener("click", () => setScene(cells.map(() => -1)));
  for (const form of ["brush", "controls"]) $(form).addEventListener("submit", e => e.preventDefault());
  $("opening").hidden = !data.opening.differ;
  openScene(data.opening.scene, data.opening.question);
}

const ready = start().catch(error => {
  $("time").textContent = `The page does not work in this browser: ${error.message}`;
  throw error;
});
