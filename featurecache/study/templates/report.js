"use strict";
// Sorting, filters and the matrix. Names are untrusted: they are written as text, never as markup.

// ---- tables ----

function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const number = header.dataset.kind === "number";
  const now = header.getAttribute("aria-sort");
  const up = now === null ? !number : now === "descending"; // numbers: the largest first
  const value = (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    return number ? parseFloat(text.replace(/,/g, "")) || 0 : text.toLowerCase();
  };
  const rows = Array.from(table.tBodies[0].rows, (row) => [value(row), row]);
  rows.sort(([a], [b]) => (number ? a - b : a.localeCompare(b)) * (up ? 1 : -1));
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells, (cell, column) =>
    cell.querySelector("button").addEventListener("click", () => sortBy(table, column)));
}

const classRows = Array.from(document.querySelectorAll("#class-table tbody tr"));
document.getElementById("class-filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  let shown = 0;
  for (const row of classRows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("class-count").textContent = wanted ? `${shown} of ${classRows.length}` : "";
});

// ---- gallery ----

const cards = Array.from(document.querySelectorAll("#cards .card"));
const chosen = (id) => document.getElementById(id)?.value ?? "";

function filterCards() {
  const [label, said, run] = ["gallery-class", "gallery-said", "gallery-run"].map(chosen);
  let shown = 0;
  for (const card of cards) {
    const taken = card.dataset.said.split(" ");
    const answers = run === "" ? taken : [taken[run]];
    const fits = (label === "" || card.dataset.true === label) &&
      (said === "" || answers.includes(said)) && (run === "" || card.dataset.wrong[run] === "1");
    card.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById("gallery-count").textContent = `${shown} shown`;
}

for (const id of ["gallery-class", "gallery-said", "gallery-run"]) {
  document.getElementById(id)?.addEventListener("change", filterCards);
}

// ---- confusion matrix ----

const data = JSON.parse(document.getElementById("matrix-data").textContent);
const canvas = document.getElementById("matrix");
const context = canvas.getContext("2d");
const size = data.names.length;
const state = { print: false, run: 0, order: [], positions: [], cells: new Map(), x: 0, y: 0, span: size, margin: 0 };

function arrange() {
  const run = data.runs[state.run];
  const by = chosen("matrix-order");
  state.order = by === "name" ? data.names.map((_, label) => label) : run[by];
  state.positions = new Array(size);
  state.order.forEach((label, position) => { state.positions[label] = position; });
  state.cells = new Map(run.cells.map(([t, s, n]) => [state.positions[t] * size + state.positions[s], n]));
  draw();
}

// Names of rows and columns are drawn in margins at the left and at the top, and cover no cell.
const FONT = 11, MIN_MARGIN = 70, MAX_MARGIN = 110; // pixels of the page

function margin(pixel) {
  context.font = `${FONT * pixel}px system-ui, sans-serif`;
  const widest = Math.max(...data.names.map((name) => context.measureText(name.slice(0, 40)).width));
  const limit = Math.min(MAX_MARGIN * pixel, 0.3 * canvas.width);
  return Math.min(limit, Math.max(MIN_MARGIN * pixel, widest + (FONT + 12) * pixel));
}

function cut(text, width) { // in the middle, since class names often begin alike
  if (context.measureText(text).width <= width) return text;
  const letters = Array.from(text);
  for (let count = Math.min(40, letters.length - 1); count > 1; count--) {
    const start = letters.slice(0, Math.ceil(count / 2)), end = letters.slice(-Math.floor(count / 2));
    const shorter = `${start.join("")}…${end.join("")}`;
    if (context.measureText(shorter).width <= width) return shorter;
  }
  return "…";
}

function draw() {
  const pixel = canvas.width / (canvas.clientWidth || canvas.width); // canvas pixels per page pixel
  const left = margin(pixel);
  state.margin = left / canvas.width;
  const edge = (canvas.width - left) / state.span;
  const style = getComputedStyle(document.documentElement);
  const printed = { "--panel": "#f4f4f4", "--paper": "#fff", "--ink": "#000", "--good": "#1f7a4a", "--accent": "#a33c08" };
  const colour = (name) => state.print ? printed[name] : style.getPropertyValue(name).trim();
  canvas.classList.toggle("zoomed", state.span < size); // a finger then moves the matrix
  context.globalAlpha = 1;
  context.fillStyle = colour("--paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.save();
  context.beginPath();
  context.rect(left, left, canvas.width - left, canvas.height - left);
  context.clip();
  context.fillStyle = colour("--panel");
  context.fillRect(left, left, canvas.width, canvas.height);
  for (const [key, n] of state.cells) {
    const down = Math.floor(key / size), across = key % size;
    const x = left + (across - state.x) * edge, y = left + (down - state.y) * edge;
    if (x + edge < left || y + edge < left || x > canvas.width || y > canvas.height) continue;
    const share = n / Math.max(1, data.n[state.order[down]]);
    context.globalAlpha = 0.15 + 0.85 * Math.sqrt(share);
    context.fillStyle = colour(down === across ? "--good" : "--accent");
    context.fillRect(x, y, Math.max(edge - (edge > 6 ? 1 : 0), 1.5), Math.max(edge - (edge > 6 ? 1 : 0), 1.5));
    if (edge > 20 * pixel) {
      context.globalAlpha = 1;
      context.fillStyle = colour("--ink");
      context.font = `${Math.min(13 * pixel, edge / 2.2)}px system-ui, sans-serif`;
      context.fillText(String(n), x + edge * 0.12, y + edge * 0.62);
    }
  }
  context.restore();
  const gap = 4 * pixel;
  context.font = `${FONT * pixel}px system-ui, sans-serif`;
  context.fillStyle = colour("--ink");
  const write = (text, along, across, from, align) => { // `along` the margin, `across` it
    context.save();
    context.textAlign = align;
    context.textBaseline = "middle";
    if (from === "top") context.transform(0, -1, 1, 0, along, across);
    else context.translate(across, along);
    context.fillText(text, 0, 0);
    context.restore();
  };
  corner(left, gap, pixel);
  if (edge < 1.15 * FONT * pixel) return; // no room for names
  for (const [from, first] of [["left", state.y], ["top", state.x]]) {
    for (let position = Math.floor(first); position < Math.min(size, first + state.span); position++) {
      const along = left + (position - first + 0.5) * edge;
      if (along < left + 0.6 * FONT * pixel || along > canvas.width - 0.4 * FONT * pixel) continue;
      const text = cut(data.names[state.order[position]], left - 2 * gap);
      write(text, along, left - gap, from, from === "top" ? "left" : "right");
    }
  }
}

function corner(left, gap, pixel) { // labels of the two axes
  context.save();
  context.textAlign = "right";
  context.textBaseline = "alphabetic";
  context.font = `italic ${0.85 * FONT * pixel}px system-ui, sans-serif`;
  context.fillText(cut("predicted →", left - gap), left - gap, left - 2.2 * FONT * pixel);
  context.fillText(cut("true ↓", left - gap), left - gap, left - gap);
  context.restore();
}

function inMatrix(event) { // the position in the cells, 0 to 1 across and down, and their width
  const box = canvas.getBoundingClientRect();
  const width = box.width * (1 - state.margin), start = box.width * state.margin;
  return [(event.clientX - box.left - start) / width, (event.clientY - box.top - start) / width, width];
}

function cellAt(event) {
  const [u, v] = inMatrix(event);
  if (u < 0 || v < 0) return null;
  const across = Math.floor(state.x + u * state.span);
  const down = Math.floor(state.y + v * state.span);
  return down >= size || across >= size ? null : [down, across];
}

function describe(event) {
  const cell = cellAt(event);
  if (cell === null) return;
  const [label, said] = cell.map((position) => state.order[position]);
  const n = state.cells.get(cell[0] * size + cell[1]) ?? 0;
  document.getElementById("matrix-cell").textContent = label === said
    ? `${n} of ${data.n[label]} right: ${data.names[label]}`
    : `${n} of ${data.n[label]}: ${data.names[label]} predicted as ${data.names[said]}`;
}

function zoom(factor, event) {
  const [u, v] = event ? inMatrix(event).map((share) => Math.min(1, Math.max(0, share))) : [0.5, 0.5];
  const span = Math.min(size, Math.max(Math.min(size, 3), state.span / factor));
  const limit = (low) => Math.min(size - span, Math.max(0, low));
  state.x = limit(state.x + u * (state.span - span));
  state.y = limit(state.y + v * (state.span - span));
  state.span = span;
  draw();
}

let dragged = null;
canvas.addEventListener("pointerdown", (event) => { dragged = [event.clientX, event.clientY]; describe(event); });
canvas.addEventListener("pointermove", (event) => {
  describe(event);
  if (dragged === null || state.span === size) return;
  const perPixel = state.span / inMatrix(event)[2];
  const limit = (low) => Math.min(size - state.span, Math.max(0, low));
  state.x = limit(state.x - (event.clientX - dragged[0]) * perPixel);
  state.y = limit(state.y - (event.clientY - dragged[1]) * perPixel);
  dragged = [event.clientX, event.clientY];
  draw();
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { dragged = null; });
canvas.addEventListener("wheel", (event) => {
  const into = event.deltaY < 0;
  if (into ? state.span <= Math.min(size, 3) : state.span >= size) return; // let the page scroll
  event.preventDefault();
  zoom(into ? 1.25 : 0.8, event);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoom(2, event));
document.getElementById("zoom-in").addEventListener("click", () => zoom(2));
document.getElementById("zoom-out").addEventListener("click", () => zoom(0.5));
document.getElementById("zoom-reset").addEventListener("click", () => zoom(1 / size));
document.getElementById("matrix-order").addEventListener("change", arrange);
document.getElementById("matrix-run")?.addEventListener("change", (event) => {
  state.run = Number(event.target.value);
  for (const table of document.querySelectorAll(".confusions")) {
    table.hidden = table.dataset.run !== event.target.value;
  }
  arrange();
});

// ---- paper ----

const PRINTED = 60; // wrong images
const hiddenTables = () => document.querySelectorAll(".confusions");

window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  for (const table of hiddenTables()) table.hidden = false;
  const shown = cards.filter((card) => !card.hidden);
  shown.forEach((card, position) => card.classList.toggle("unprinted", position >= PRINTED));
  const note = document.getElementById("print-note");
  note.hidden = shown.length <= PRINTED;
  note.textContent = `Only the first ${PRINTED} of ${shown.length} images are printed.`;
  state.print = true;
  draw();
});
window.addEventListener("afterprint", () => {
  for (const table of hiddenTables()) table.hidden = table.dataset.run !== String(state.run);
  for (const card of cards) card.classList.remove("unprinted");
  document.getElementById("print-note").hidden = true;
  state.print = false;
  draw();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
window.addEventListener("resize", draw); // text keeps its size on the page
arrange();
