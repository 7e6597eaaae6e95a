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

// ---- confused pairs ----

const data = JSON.parse(document.getElementById("matrix-data").textContent);
const MAX_PAIRS = 2000; // rows of a table; the matrix has all

data.runs.forEach((run, index) => {
  const counts = new Map(run.cells.map(([label, predicted, n]) => [`${label} ${predicted}`, n]));
  const pairs = run.cells.filter(([label, predicted]) => label !== predicted);
  pairs.sort((a, b) => b[2] - a[2]);
  const part = document.querySelector(`.confusions[data-run="${index}"]`);
  part.querySelector("tbody").append(...pairs.slice(0, MAX_PAIRS).map(([label, predicted, n]) => {
    const row = document.createElement("tr");
    for (const value of [data.names[label], data.names[predicted], n, data.n[label], counts.get(`${predicted} ${label}`) ?? 0]) {
      const cell = row.insertCell();
      if (typeof value === "number") cell.className = "n";
      cell.append(typeof value === "number" ? value : Object.assign(document.createElement("bdi"), { textContent: value }));
    }
    return row;
  }));
  part.querySelector(".note").textContent = pairs.length > MAX_PAIRS
    ? `The ${MAX_PAIRS} most frequent of ${pairs.length} pairs; the matrix has all of them.`
    : `All ${pairs.length} pairs of classes that this run confuses.`;
});

// ---- confusion matrix ----
// The canvas stays in view inside a scrolling box, and shows the cells at the box's position. The
// names of rows and columns are drawn in margins, so they are always beside the cells and cover none.

const box = document.getElementById("matrix-box"), area = document.getElementById("matrix-area");
const canvas = document.getElementById("matrix"), context = canvas.getContext("2d");
const size = data.names.length;
const FONT = 11, READABLE = 14, MIN_MARGIN = 70, MAX_MARGIN = 120; // pixels; READABLE: every name fits
const state = { print: false, run: 0, order: [], positions: [], cells: new Map(), cell: 0, margin: 0, wanted: READABLE, selected: null };

function arrange() {
  const run = data.runs[state.run];
  const by = chosen("matrix-order");
  state.order = by === "name" ? data.names.map((_, label) => label) : run[by];
  state.positions = new Array(size);
  state.order.forEach((label, position) => { state.positions[label] = position; });
  state.cells = new Map(run.cells.map(([t, s, n]) => [state.positions[t] * size + state.positions[s], n]));
  draw();
}

function smallest() { // the width of a cell at which all of them fit
  context.font = `${FONT}px system-ui, sans-serif`;
  const widest = Math.max(...data.names.map((name) => context.measureText(name.slice(0, 40)).width));
  const limit = Math.min(MAX_MARGIN, 0.3 * box.clientWidth);
  state.margin = Math.min(limit, Math.max(MIN_MARGIN, widest + FONT + 12));
  return (box.clientWidth - state.margin) / size;
}

function zoom(cell) {
  state.wanted = cell; // also where the box has no room for it
  resize();
}

function resize() { // about the middle of the box; on paper all cells fit
  const cell = state.print ? 0 : state.wanted;
  const fit = smallest(), before = state.cell, half = (box.clientWidth - state.margin) / 2;
  state.cell = Math.min(Math.max(cell, fit), Math.max(fit, half / 1.5));
  area.style.width = area.style.height = `${Math.floor(state.margin + size * state.cell)}px`;
  if (before) {
    box.scrollLeft = (box.scrollLeft + half) * state.cell / before - half;
    box.scrollTop = (box.scrollTop + half) * state.cell / before - half;
  }
  draw();
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
  const width = box.clientWidth, ratio = (window.devicePixelRatio || 1) * (state.print ? 2 : 1);
  canvas.width = canvas.height = Math.round(width * ratio);
  canvas.style.width = canvas.style.height = `${width}px`;
  context.setTransform(ratio, 0, 0, ratio, 0, 0); // in pixels of the page
  const { cell, margin } = state, left = box.scrollLeft, top = box.scrollTop;
  const style = getComputedStyle(document.documentElement);
  const printed = { "--panel": "#f4f4f4", "--paper": "#fff", "--ink": "#000", "--good": "#1f7a4a", "--accent": "#a33c08" };
  const colour = (name) => state.print ? printed[name] : style.getPropertyValue(name).trim();
  context.fillStyle = colour("--paper");
  context.fillRect(0, 0, width, width);
  context.save();
  context.beginPath();
  context.rect(margin, margin, width - margin, width - margin);
  context.clip();
  context.fillStyle = colour("--panel");
  context.fillRect(margin, margin, width, width);
  const edge = Math.max(cell - (cell > 6 ? 1 : 0), 1.5);
  for (const [key, n] of state.cells) {
    const down = Math.floor(key / size), across = key % size;
    const x = margin + across * cell - left, y = margin + down * cell - top;
    if (x + cell < margin || y + cell < margin || x > width || y > width) continue;
    const share = n / Math.max(1, data.n[state.order[down]]);
    context.globalAlpha = 0.15 + 0.85 * Math.sqrt(share);
    context.fillStyle = colour(down === across ? "--good" : "--accent");
    context.fillRect(x, y, edge, edge);
    if (cell >= READABLE) {
      context.globalAlpha = 1;
      context.fillStyle = colour(share > 0.5 ? "--paper" : "--ink");
      context.font = `${Math.min(13, cell / 1.6)}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(String(n), x + edge / 2, y + edge / 2, edge);
    }
  }
  context.globalAlpha = 1;
  if (state.selected !== null) {
    const [down, across] = state.selected;
    context.strokeStyle = colour("--ink");
    context.lineWidth = 2;
    context.strokeRect(margin + across * cell - left, margin + down * cell - top, edge, edge);
  }
  context.restore();
  names(colour("--ink"), width);
}

function names(ink, width) {
  const { cell, margin } = state, gap = 4, step = Math.ceil(1.15 * FONT / cell);
  context.fillStyle = ink;
  context.font = `${FONT}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const [from, offset] of [["left", box.scrollTop], ["top", box.scrollLeft]]) {
    for (let position = Math.floor(offset / cell); position < size; position++) {
      const along = margin + (position + 0.5) * cell - offset;
      if (position % step || along < margin + 0.5 * FONT) continue;
      if (along > width - 0.4 * FONT) break;
      context.save();
      context.textAlign = from === "top" ? "left" : "right";
      if (from === "top") context.transform(0, -1, 1, 0, along, margin - gap);
      else context.translate(margin - gap, along);
      context.fillText(cut(data.names[state.order[position]], margin - 2 * gap), 0, 0);
      context.restore();
    }
  }
  context.textAlign = "right"; // of the two axes, in the corner
  context.textBaseline = "alphabetic";
  context.font = `italic ${0.85 * FONT}px system-ui, sans-serif`;
  context.fillText("predicted →", margin - gap, margin - 2.2 * FONT);
  context.fillText("true ↓", margin - gap, margin - gap);
  const note = document.getElementById("matrix-names");
  note.hidden = step === 1;
  note.textContent = `Every ${step}${{ 2: "nd", 3: "rd" }[step] ?? "th"} class is named; + shows the other names.`;
}

function cellAt(event) {
  const bounds = canvas.getBoundingClientRect();
  const across = Math.floor((event.clientX - bounds.left - state.margin + box.scrollLeft) / state.cell);
  const down = Math.floor((event.clientY - bounds.top - state.margin + box.scrollTop) / state.cell);
  const inside = Math.min(event.clientX - bounds.left, event.clientY - bounds.top) >= state.margin;
  return inside && down < size && across < size ? [down, across] : null;
}

function describe(cell) {
  if (cell === null) return;
  const [label, predicted] = cell.map((position) => state.order[position]);
  const n = state.cells.get(cell[0] * size + cell[1]) ?? 0;
  document.getElementById("matrix-cell").textContent = label === predicted
    ? `${n} of ${data.n[label]} right: ${data.names[label]}`
    : `${n} of ${data.n[label]}: ${data.names[label]} predicted as ${data.names[predicted]}`;
}

function select(cell) {
  state.selected = cell;
  describe(cell);
  draw();
}

canvas.addEventListener("pointermove", (event) => describe(cellAt(event)));
canvas.addEventListener("click", (event) => select(cellAt(event)));
box.addEventListener("scroll", draw);
box.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const room = box.clientWidth - state.margin - state.cell;
  const [down, across] = (state.selected ?? [0, -1]).map((position, axis) =>
    Math.min(size - 1, Math.max(0, position + step[axis])));
  box.scrollLeft = Math.min(across * state.cell, Math.max(box.scrollLeft, across * state.cell - room));
  box.scrollTop = Math.min(down * state.cell, Math.max(box.scrollTop, down * state.cell - room));
  select([down, across]);
});
document.getElementById("zoom-in").addEventListener("click", () => zoom(2 * state.cell));
document.getElementById("zoom-out").addEventListener("click", () => zoom(state.cell / 2));
document.getElementById("zoom-reset").addEventListener("click", () => zoom(0));
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
  resize();
});
window.addEventListener("afterprint", () => {
  for (const table of hiddenTables()) table.hidden = table.dataset.run !== String(state.run);
  for (const card of cards) card.classList.remove("unprinted");
  document.getElementById("print-note").hidden = true;
  state.print = false;
  resize();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
window.addEventListener("resize", resize); // text keeps its size on the page
arrange();
zoom(READABLE);
