"use strict";
// The page is complete without this script, which adds read-outs under the pointer and buttons that copy tables.

const tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";

/** The points of a line, in the units of the data: the first pair of a path is a point, the others are steps. */
function points(path) {
  const numbers = path.getAttribute("d").match(/-?(\d+\.?\d*|\.\d+)/g).map(Number);
  const found = new Map();
  let x = 0, y = 0;
  for (let i = 0; i + 1 < numbers.length; i += 2) {
    x += numbers[i];
    y += numbers[i + 1];
    found.set(Math.round(x), y);
  }
  return found;
}

/** The lines of a chart with their names; the first call reads them from the chart. */
function lines(svg) {
  if (!svg.lines) {
    const paths = [...svg.querySelectorAll("path.l")];
    const names = [...svg.querySelectorAll("g > text")];
    svg.lines = paths.map((path, i) => ({
      name: (names[i].querySelector("title") || names[i].firstChild).textContent,
      points: points(path),
    }));
    svg.epochs = [...new Set(svg.lines.flatMap((line) => [...line.points.keys()]))].sort((a, b) => a - b);
    svg.cross = svg.appendChild(document.createElementNS(SVG, "path"));
    svg.cross.setAttribute("class", "cross");
  }
  return svg.lines;
}

/** The values of all lines at an epoch: a row for each line, the largest value first. */
function readout(svg, epoch) {
  const log = svg.dataset.log === "1", digits = Number(svg.dataset.digits);
  const shown = (y) => (log ? (10 ** y).toPrecision(4) : y.toFixed(Math.min(digits, 12)));
  const rows = lines(svg).filter((line) => line.points.has(epoch));
  rows.sort((a, b) => b.points.get(epoch) - a.points.get(epoch));
  return [`epoch ${epoch}`, ...rows.map((line) => `${shown(line.points.get(epoch))}  ${line.name}`)].join("\n");
}

function show(event) {
  const svg = event.currentTarget;
  lines(svg);
  const [left, right, low, high, top, bottom] = svg.dataset.axis.split(" ").map(Number);
  const box = svg.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const wanted = low + ((at - left) / (right - left)) * (high - low);
  const epoch = svg.epochs.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
  const x = left + ((epoch - low) / (high - low)) * (right - left);
  svg.cross.setAttribute("d", `M${x} ${top}V${bottom}`);
  tip.textContent = readout(svg, epoch);
  tip.hidden = false;
  const beside = event.clientX + 14 + tip.offsetWidth > innerWidth ? -14 - tip.offsetWidth : 14;
  tip.style.left = `${Math.max(0, event.clientX + beside)}px`;
  tip.style.top = `${Math.max(0, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight))}px`;
}

function hide(event) {
  tip.hidden = true;
  event.currentTarget.cross?.removeAttribute("d");
}

for (const svg of document.querySelectorAll("svg.chart")) {
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

/** A table as tab-separated values. */
function separated(table) {
  return [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent).join("\t")).join("\n");
}

/** Copy text; a page that was opened from a file may lack the clipboard and copies from a text area. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

for (const table of document.querySelectorAll("table")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await copy(separated(table));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  table.closest("figure").querySelector("figcaption").append(button);
}

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});

document.documentElement.dataset.ready = "true";
