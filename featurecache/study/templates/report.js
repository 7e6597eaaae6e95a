"use strict";
// Sorting, filters and the matrix. Names come from strangers: they go into text, never into markup.

// ---- tables ----

function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const number = header.dataset.kind === "number";
  const now = header.getAttribute("aria-sort");
  const up = now === null ? !number : now === "descending"; // numbers: the greatest first
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
    const asked = run === "" ? taken : [taken[run]];
    const fits = (label === "" || card.dataset.true === label) &&
      (said === "" || asked.includes(said)) && (run === "" || card.dataset.wrong[run] === "1");
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
const state = { print: false, run: 0, order: [], place: [], cells: new Map(), x: 0, y: 0, span: size };

function arrange() {
  const run = data.runs[state.run];
  const by = chosen("matrix-order");
  state.order = by === "name" ? data.names.map((_, label) => label) : run[by];
  state.place = new Array(size);
  state.order.forEach((label, place) => { state.place[label] = place; });
  state.cells = new Map(run.cells.map(([t, s, n]) => [state.place[t] * size + state.place[s], n]));
  draw();
}

function draw() {
  const edge = canvas.width / state.span;
  const pixel = canvas.width / (canvas.clientWidth || canvas.width); // of the page, in the canvas
  const style = getComputedStyle(document.documentElement);
  const printed = { "--panel": "#f4f4f4", "--paper": "#fff", "--ink": "#000", "--good": "#1f7a4a", "--accent": "#a33c08" };
  const colour = (name) => state.print ? printed[name] : style.getPropertyValue(name).trim();
  canvas.classList.toggle("zoomed", state.span < size); // then a finger moves the matrix
  context.fillStyle = colour("--panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const [key, n] of state.cells) {
    const down = Math.floor(key / size), across = key % size;
    const x = (across - state.x) * edge, y = (down - state.y) * edge;
    if (x + edge < 0 || y + edge < 0 || x > canvas.width || y > canvas.height) continue;
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
  context.globalAlpha = 1;
  if (edge > 15 * pixel) { // names of the rows, where there is room for them
    context.font = `${12 * pixel}px system-ui, sans-serif`;
    for (let row = Math.floor(state.y); row < Math.min(size, state.y + state.span); row++) {
      const text = data.names[state.order[row]].slice(0, 28);
      const y = (row - state.y) * edge;
      context.fillStyle = colour("--paper");
      context.globalAlpha = 0.75;
      context.fillRect(0, y + edge / 2 - 8 * pixel, context.measureText(text).width + 8 * pixel, 16 * pixel);
      context.globalAlpha = 1;
      context.fillStyle = colour("--ink");
      context.fillText(text, 4 * pixel, y + edge / 2 + 4 * pixel);
    }
  }
}

function cellAt(event) {
  const box = canvas.getBoundingClientRect();
  const edge = box.width / state.span;
  const across = Math.floor(state.x + (event.clientX - box.left) / edge);
  const down = Math.floor(state.y + (event.clientY - box.top) / edge);
  return down < 0 || across < 0 || down >= size || across >= size ? null : [down, across];
}

function describe(event) {
  const cell = cellAt(event);
  if (cell === null) return;
  const [label, said] = cell.map((place) => state.order[place]);
  const n = state.cells.get(cell[0] * size + cell[1]) ?? 0;
  document.getElementById("matrix-cell").textContent = label === said
    ? `${n} of ${data.n[label]} right: ${data.names[label]}`
    : `${n} of ${data.n[label]}: ${data.names[label]} taken for ${data.names[said]}`;
}

function zoom(factor, event) {
  const box = canvas.getBoundingClientRect();
  const [u, v] = event ? [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height] : [0.5, 0.5];
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
  const perPixel = state.span / canvas.getBoundingClientRect().width;
  const limit = (low) => Math.min(size - state.span, Math.max(0, low));
  state.x = limit(state.x - (event.clientX - dragged[0]) * perPixel);
  state.y = limit(state.y - (event.clientY - dragged[1]) * perPixel);
  dragged = [event.clientX, event.clientY];
  draw();
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => { dragged = null; });
canvas.addEventListener("wheel", (event) => {
  const into = event.deltaY < 0;
  if (into ? state.span <= Math.min(size, 3) : state.span >= size) return; // the page scrolls on
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
  shown.forEach((card, place) => card.classList.toggle("unprinted", place >= PRINTED));
  const note = document.getElementById("print-note");
  note.hidden = shown.length <= PRINTED;
  note.textContent = `Printed: the first ${PRINTED} of ${shown.length} shown.`;
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
arrange();
