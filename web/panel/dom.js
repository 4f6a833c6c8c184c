// Elements without markup: whatever a model said is set as text and can never become HTML.

import { say } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const GLYPHS = {
  pass: "M3.5 8.5l3 3 6-7",
  fail: "M4 4l8 8M12 4l-8 8",
  unjudged: "M5.5 6a2.5 2.5 0 1 1 3.6 2.2c-.7.4-1.1.9-1.1 1.6M8 12.6v.1",
  skipped: "M4 8h8",
  back: "M6 3.5L2.5 7 6 10.5M2.5 7h7a3.5 3.5 0 0 1 0 7H7",
  star: "M8 2l1.8 3.9 4.2.5-3.1 2.9.8 4.2L8 11.4l-3.7 2.1.8-4.2L2 6.4l4.2-.5z",
  note: "M8 1.8a6.2 6.2 0 1 1 0 12.4A6.2 6.2 0 0 1 8 1.8M8 5v3.2M8 11v.1",
};

export function icon(name) {
  const shape = svg("path", { d: GLYPHS[name] });
  return svg("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, shape);
}

// An outcome as a coloured disc with its own shape, and its word for those who do not see it.
export function mark(outcome) {
  return h("span", { class: `mark ${outcome}` }, icon(outcome), h("span", { class: "unseen" }, say(`outcome.${outcome}`)));
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${share >= 1 ? 100 : Math.min(99, Math.round(share * 100))}%`;
}

// Rebuild a section only where what it shows has changed: focus, open details and pictures stay.
export function refresh(section, data, build) {
  const key = JSON.stringify(data) ?? "";
  if (section.dataset.shown === key) return;
  section.dataset.shown = key;
  section.replaceChildren(...[build(data)].flat().filter(Boolean));
}
