// Score over rounds as a small line. Rounds that were rolled back hang off it as hollow points.

import { percent, svg } from "./dom.js";
import { say } from "./words.js";

const TOP = 18;
const SPAN = 58;

export function chart(steps, threshold) {
  if (!steps.length) return [];
  const x = (i) => `${(100 * (i + 0.5)) / steps.length}%`;
  const y = (score) => `${TOP + SPAN * (1 - score)}%`;
  const parts = [0, 0.5, 1].map((at) => svg("line", { class: "rule", x1: 0, x2: "100%", y1: y(at), y2: y(at) }));
  parts.push(svg("line", { class: "goal", x1: 0, x2: "100%", y1: y(threshold), y2: y(threshold) }));
  let canvas = null;
  const dots = [];
  const sparse = Math.ceil(steps.length / 8);
  steps.forEach((step, i) => {
    if (step.score !== null && canvas !== null) {
      const ends = { x1: x(canvas), y1: y(steps[canvas].score), x2: x(i), y2: y(step.score) };
      parts.push(svg("line", { class: step.accepted ? "path" : "path back", ...ends }));
    }
    if (step.score !== null) {
      const kind = `dot${step.accepted ? "" : " back"}${step.best ? " best" : ""}`;
      dots.push(svg("circle", { class: kind, cx: x(i), cy: y(step.score), r: 5 }));
      const labelled = i % sparse === 0 || step.best;
      const place = { x: x(i), y: y(step.score), dy: -9, "text-anchor": "middle" };
      if (labelled) dots.push(svg("text", place, percent(step.score)));
    }
    dots.push(svg("text", { class: "faint", x: x(i), y: "97%", "text-anchor": "middle" }, i % sparse ? "" : String(i + 1)));
    if (step.accepted && step.score !== null) canvas = i;
  });
  const spoken = steps.map((s) => say(s.accepted ? "round.kept" : "round.back", { n: s.index + 1, score: percent(s.score) }));
  return svg("svg", { class: "chart", role: "img", "aria-label": [say("chart"), ...spoken].join(". ") }, parts, dots);
}
