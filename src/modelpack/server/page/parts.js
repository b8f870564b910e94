"use strict";

// Elements, requests and numbers for people. All text goes through text nodes: nothing that a model says becomes markup.
const at = (id) => document.getElementById(id);
const KEPT = "modelpack-token";
let token = sessionStorage.getItem(KEPT) || "";

function make(tag, facts = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { ...options, headers, cache: "no-store" });
}

async function complaint(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error || text;
  } catch {
    return text || `status ${answer.status}`;
  }
}

const product = (sizes) => sizes.reduce((all, size) => all * size, 1);
const grouped = (number) => number.toLocaleString("en");

function short(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return value === null ? "null" : String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${short(Number((1000 * seconds).toPrecision(3)))} ms`;
  return `${short(Number(seconds.toPrecision(3)))} s`;
}

function section(title, ...children) {
  return make("section", {}, make("h2", { textContent: title }), ...children);
}

function table(rows, ...head) {
  const body = rows.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), cells.map((cell) => make("td", {}, cell))));
  const heads = head.length ? [make("tr", {}, head.map((text) => make("th", { scope: "col", textContent: text })))] : [];
  return make("table", { className: head.length ? "columns" : "" }, [...heads, ...body]);
}
