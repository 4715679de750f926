"use strict";
// What a person does with the page: photographs wait in a queue, are sent to `predict`, and become cards with their answers.
// All addresses are relative, so that the page also works under a prefix.
const MAX_IN_FLIGHT = 4, MAX_TRIES = 6, MAX_WAIT_SECONDS = 20, NUM_BEST = 5, REQUEST_SECONDS = 120;
const byId = (id) => document.getElementById(id);
const [models, login, token, files, statusLine, progress, clearAll, list] =
  ["model", "login", "token", "files", "status", "progress", "clear", "cards"].map(byId);
const cards = new Set();
let waiting = [], numRunning = 0, numMade = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// Sends a request. While the server is busy (503), waits as long as it says, a limited number of times.
async function ask(path, body, signal, onBusy = () => {}) {
  const headers = token.value ? { Authorization: `Bearer ${token.value}` } : {};
  for (let tries = 1; ; tries++) {
    const limit = AbortSignal.timeout(1000 * REQUEST_SECONDS);
    let answer, text;
    try {
      answer = await fetch(path, { method: "POST", body, headers, signal: signal ? AbortSignal.any([limit, signal]) : limit });
      text = await answer.text();
    } catch (error) {
      if (signal?.aborted) throw error;
      if (limit.aborted) throw new Refused(`No answer within ${REQUEST_SECONDS} seconds.`);
      throw new Refused("The file cannot be read, or the server does not answer.");
    }
    if (answer.status === 503 && tries < MAX_TRIES) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      onBusy();
      await pause(Math.min(seconds, MAX_WAIT_SECONDS) * (0.75 + Math.random() / 2), signal);
      continue;
    }
    let data = null;
    try { data = JSON.parse(text); } catch { /* Not from this server, such as a proxy's page. */ }
    if (answer.ok && data !== null) return data;
    throw new Refused(data?.error ?? `The server answered ${answer.status} ${answer.statusText}`.trim(), answer.status);
  }
}

// Models

async function listModels() {
  const chosen = models.value;
  for (let tries = 1; ; tries++) {
    const found = await ask("v2/repository/index", "{}");
    const isReady = (model) => model.state === "READY";
    models.replaceChildren(...found.map((model) => {
      const option = make("option", { value: model.name }, isReady(model) ? model.name : `${model.name} (not ready)`);
      option.disabled = !isReady(model);
      return option;
    }));
    const ready = found.filter(isReady).map((model) => model.name);
    if (ready.length > 0) {
      models.value = ready.includes(chosen) ? chosen : ready[0];
      return;
    }
    if (tries === 30) throw new Refused("No model is ready. Reload this page to try again.");
    statusLine.textContent = "No model is ready yet; waiting for one.";
    await pause(2);
  }
}

async function start() {
  try {
    await listModels();
    login.hidden = true;
    statusLine.textContent = "";
  } catch (error) {
    if (error.status === 401) return askForToken();
    statusLine.textContent = error.message;
    return;
  }
  for (const card of cards) if (card.state !== "done") enqueue(card);
  report();
}

function askForToken() {
  const isWrong = token.value !== "";
  token.value = "";
  login.hidden = false;
  statusLine.textContent = isWrong ? "The server does not accept this token. Try another." : "";
  token.focus();
}

// The queue

function add(found) {
  const added = [...found].map(newCard);
  list.prepend(...added.map((card) => card.element));
  for (const card of added) {
    cards.add(card);
    enqueue(card);
  }
  report();
}

function enqueue(card) {
  card.stop?.abort();
  card.stop = new AbortController();
  setState(card, "waiting");
  if (!waiting.includes(card)) waiting.push(card);
  pump();
}

function pump() {
  // Without a model the photographs wait for the list of models.
  while (models.value && numRunning < MAX_IN_FLIGHT && waiting.length > 0) {
    numRunning++;
    classify(waiting.shift()).finally(() => { numRunning--; pump(); report(); });
  }
}

async function classify(card) {
  const signal = card.stop.signal;
  const model = models.value;
  const query = new URLSearchParams({ model, top_k: NUM_BEST, views: true });
  setState(card, "running");
  try {
    const answer = await ask(`predict?${query}`, card.file, signal, () => setState(card, "busy"));
    if (!signal.aborted) setState(card, "done", { ...answer.rows[0], model });
  } catch (error) {
    if (signal.aborted) return;
    setState(card, "failed", { error: error.message });
    if (error.status === 401 && login.hidden) askForToken();
  }
}

function report() {
  const states = [...cards].map((card) => card.state);
  const numDone = states.filter((state) => state === "done" || state === "failed").length;
  const numErrors = [...cards].filter((card) => card.hasError).length;
  progress.hidden = numDone === cards.size;
  progress.max = cards.size || 1;
  progress.value = numDone;
  clearAll.hidden = cards.size === 0;
  if (cards.size === 0) return;
  statusLine.textContent = `${numDone} of ${cards.size} done${numErrors ? `, ${numErrors} failed` : ""}`;
}

// Cards

function newCard(file) {
  const name = file.name || "pasted photograph";
  const url = URL.createObjectURL(file);
  const image = make("img", { src: url, alt: name, decoding: "async" });
  const frame = make("div", { class: "frame" }, image);
  const picture = make("div", { class: "picture" }, frame);
  const title = make("h2", { id: `card-${++numMade}` }, make("bdi", {}, name));
  const body = make("div", { class: "body" }, title);
  const element = make("li", { class: "card", "aria-labelledby": title.id }, picture, body);
  const card = { id: numMade, file, url, image, frame, body, title, element, state: "new", hasError: false };
  image.addEventListener("error", () => picture.replaceChildren("This browser cannot show the file"));
  return card;
}

function setState(card, state, row = {}) {
  card.state = state;
  card.hasError = Boolean(row.error);
  card.body.replaceChildren(card.title);
  card.frame.querySelector("svg")?.remove();
  card.frame.classList.remove("mirrored");
  if (row.error) {
    card.body.append(make("p", { class: "error" }, row.error));
    if (state === "failed") {
      const again = make("button", { type: "button" }, "Try again");
      again.addEventListener("click", () => { enqueue(card); report(); });
      card.body.append(again);
    }
  } else if (state === "done") {
    showAnswer(card, row);
  } else {
    const words = { waiting: "Waiting for its turn", running: "Classifying", busy: "The server is busy; trying again soon" };
    card.body.append(make("p", { class: "small" }, words[state]));
  }
}

function showAnswer(card, row) {
  const ranks = new Map(row.top.map((choice, place) => [choice.index, place + 1]));
  card.body.append(make("ol", { class: "best" }, ...row.top.map((choice, place) => bar(choice, place + 1))));
  const boxes = row.views.boxes.map((box) => ({ ...box, rank: ranks.get(box.index) ?? "none", name: placeName(box, row.views) }));
  if (boxes.length > 1) card.body.append(votes(card, row, boxes));
  const answered = make("p", { class: "small" }, `Answered by ${row.model}, ${row.backend} ${row.precision}, ` +
    `${row.num_views} ${row.num_views === 1 ? "view" : "views"}, artifact `, make("code", {}, row.artifact));
  card.body.append(answered);
  const show = () => drawViews(card, row.views, boxes, null);
  if (card.image.complete && card.image.naturalWidth) show(); else card.image.addEventListener("load", show, { once: true });
}

function bar(choice, rank) {
  const percent = 100 * choice.probability;
  const text = percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
  const filled = make("i");
  filled.style.width = `${percent}%`;
  return make("li", { class: `rank-${rank}` },
    make("span", { class: "badge", "aria-hidden": true }, String(rank)),
    make("bdi", { class: "name" }, choice.label),
    make("span", { class: "percent", title: choice.probability }, text),
    make("div", { class: "bar", "aria-hidden": true }, filled));
}

function third(offset, views) {
  return offset === 0 ? 0 : offset === views.image_size - views.size ? 2 : 1;
}

function placeName(box, views) {
  const row = third(box.top, views), column = third(box.left, views);
  const where = row === 1 && column === 1 ? "centre" : `${["top", "middle", "bottom"][row]} ${["left", "middle", "right"][column]}`;
  return box.mirror ? `${where}, mirrored` : where;
}

// The views as the pips of dice, one for those as they are and one for the mirrored: each with the rank of its class.
function votes(card, row, boxes) {
  const group = make("fieldset", {}, make("legend", { class: "small" }, `${row.views_agreeing} of ${row.num_views} views say ${row.label}`));
  const told = make("p", { class: "small" });
  const areSplit = visible(boxes).some((box) => box.mirror);
  const help = `${areSplit ? "Dashed lines: the mirrored view has another answer. " : ""}Choose a number to see its view alone.`;
  const choose = (box) => {
    drawViews(card, row.views, boxes, box);
    told.textContent = box ? `${box.name}: ${box.label}` : help;
  };
  const radio = (box) => {
    const input = make("input", { type: "radio", class: "unseen", name: `view-${card.id}` });
    input.addEventListener("change", () => choose(box));
    return input;
  };
  for (const isMirror of [false, true]) {
    const pips = boxes.filter((box) => box.mirror === isMirror).map((box) => {
      const pip = make("label", { class: `pip rank-${box.rank}`, title: `${box.name}: ${box.label}` }, radio(box),
        make("span", { class: "badge", "aria-hidden": true }, box.rank === "none" ? "–" : String(box.rank)),
        make("span", { class: "unseen" }, `${box.name}: ${box.label}`));
      pip.style.gridArea = `${third(box.top, row.views) + 1} / ${third(box.left, row.views) + 1}`;
      return pip;
    });
    if (pips.length) group.append(make("div", { class: "dice" }, make("div", { class: "pips" }, ...pips), isMirror ? "mirrored" : "original"));
  }
  const all = radio(null);
  all.checked = true;
  group.append(make("label", { class: "all" }, all, "All views"));
  choose(null);
  return make("div", { class: "votes" }, group, told);
}

// One rectangle where a view and its mirror image agree. Those of the answer first, so that the others lie above them.
function visible(boxes) {
  const isSame = (a, b) => a.top === b.top && a.left === b.left && a.index === b.index;
  const shown = boxes.filter((box) => !box.mirror || !boxes.some((other) => !other.mirror && isSame(box, other)));
  return shown.sort((a, b) => (b.rank === 1) - (a.rank === 1));
}

function drawViews(card, views, boxes, chosen) {
  const { naturalWidth: width, naturalHeight: height } = card.image;
  if (!width) return;
  // "crop" keeps the centre square of the picture, "warp" resizes all of it: where that lies, and the size of its pixels.
  const side = Math.min(width, height);
  const [across, down] = views.resize === "warp" ? [width, height] : [side, side];
  const [left, top] = [(width - across) / 2, (height - down) / 2];
  const outline = (box, inset) => {
    const x = left + (box.left * across) / views.image_size + inset, y = top + (box.top * down) / views.image_size + inset;
    const w = (views.size * across) / views.image_size - 2 * inset, h = (views.size * down) / views.image_size - 2 * inset;
    return `M${x} ${y}h${w}v${h}h${-w}z`;
  };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": true });
  if (chosen) svg.append(draw("path", { class: "shade", d: `M0 0h${width}v${height}h${-width}z${outline(chosen, 0)}` }));
  for (const box of chosen ? [chosen] : visible(boxes)) {
    const d = outline(box, (box.mirror && !chosen ? 0.025 : 0.007) * side);
    svg.append(draw("path", { class: "halo", d }), draw("path", { class: `edge rank-${box.rank}${box.mirror ? " mirror" : ""}`, d }));
  }
  card.frame.querySelector("svg")?.remove();
  card.frame.append(svg);
  card.frame.classList.toggle("mirrored", Boolean(chosen?.mirror));
}

// What the user does

files.addEventListener("change", () => { add(files.files); files.value = ""; });
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
});
clearAll.addEventListener("click", () => {
  for (const card of cards) { card.stop.abort(); URL.revokeObjectURL(card.url); }
  cards.clear();
  waiting = [];
  list.replaceChildren();
  statusLine.textContent = "All photographs are removed";
  report();
  files.focus();
});
models.addEventListener("change", () => { for (const card of cards) enqueue(card); report(); });
login.addEventListener("submit", (event) => { event.preventDefault(); start(); });
start();
