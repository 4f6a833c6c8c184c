// A round: what was planned, its candidates, the chosen one, and what the checks say of it.

import { h, icon, mark, percent, svg } from "./dom.js";
import { picture } from "./server.js";
import { named, number, say } from "./words.js";

export function roundCard(run, round, live) {
  const dropped = round.accepted === false && !live;
  const shown = { candidate: round.chosen ?? 0 };
  const checks = h("div", { class: "checks" });
  const stage = h("figure", { class: "stage" });
  const show = (k) => {
    shown.candidate = k;
    showStage(stage, run, round, k);
    checks.replaceChildren(...groups(run, round, k, stage));
  };
  if (round.candidates.length) show(shown.candidate);
  return h(
    "article",
    { class: `round${dropped ? " dropped" : ""}`, "aria-label": say("round", { n: round.index + 1 }) },
    heading(round, dropped, live),
    round.instruction && h("p", { class: "instruction", dir: "auto" }, round.instruction),
    round.candidates.length ? h("div", { class: "look" }, stage, round.candidates.length > 1 && picks(run, round, show)) : null,
    h("div", { class: "told" }, reasoning(round), checks, notes(round.notes)),
  );
}

function heading(round, dropped, live) {
  const badge = (kind, glyph, text) => h("span", { class: `badge ${kind}` }, icon(glyph), text);
  return h(
    "header",
    {},
    h("h3", {}, say("round", { n: round.index + 1 }), h("span", { class: "action" }, doing(round))),
    round.best && badge("top", "star", say("best")),
    dropped && badge("back", "back", say("back")),
    round.hand === "kept" && badge("hand", "pass", say("hand")),
    live ? null : h("span", { class: "score", title: say("share") }, percent(round.score)),
  );
}

function doing({ action, tactic }) {
  const words = [named("action", action)];
  if (tactic && tactic !== action) words.push(named("tactic", tactic));
  return words.join(" · ");
}

function reasoning(round) {
  if (!round.reasoning || round.reasoning === round.instruction) return null;
  return h(
    "details",
    { class: "reasoning", open: round.reasoning.length < 240 },
    h("summary", {}, say("reasoning")),
    h("p", { dir: "auto" }, round.reasoning),
  );
}

function showStage(stage, run, round, k) {
  const image = h("img", {
    src: picture(run.id, round.candidates[k].image),
    alt: say("candidate.of", { round: round.index + 1, n: k + 1 }),
    decoding: "async",
    onload: (event) => event.target.classList.toggle("pixels", event.target.naturalWidth <= 160),
  });
  stage.replaceChildren(h("div", { class: "frame" }, image));
}

// Native radio buttons: arrow keys move between the candidates.
function picks(run, round, show) {
  const name = `clvr-${run.id}-${round.index}-${Math.random()}`;
  const options = round.candidates.map((candidate, k) =>
    h(
      "label",
      { class: "pick" },
      h("input", { type: "radio", class: "unseen", name, checked: k === (round.chosen ?? 0), onchange: () => show(k) }),
      h("img", { src: picture(run.id, candidate.image, 128), alt: say("candidate", { n: k + 1 }), class: "pixels" }),
      h("span", {}, percent(candidate.score)),
      k === round.chosen && h("span", { class: "chosen" }, say("chosen")),
    ),
  );
  return h("fieldset", { class: "picks" }, h("legend", {}, say("candidates")), h("div", {}, options));
}

function groups(run, round, k, stage) {
  const candidate = round.candidates[k];
  const list = (title, checks, results, open) => {
    if (!results) return null;
    const by = new Map(checks.map((check) => [check.id, check]));
    const passed = results.filter((result) => result.outcome === "pass").length;
    const rows = results.map((result) => row(by.get(result.check), result, stage));
    return h(
      "details",
      { class: "group", open },
      h("summary", {}, h("span", {}, title), h("span", { class: "count" }, say("passing", { n: passed, of: results.length }))),
      h("ul", {}, rows),
    );
  };
  return [
    list(say("goal"), run.checks, candidate.active, true),
    list(say("expected"), round.expects, candidate.passive, !candidate.active),
  ].filter(Boolean);
}

function row(check, result, stage) {
  const notes = result.evidence.filter((evidence) => evidence.note || evidence.boxes.length);
  const face = [mark(result.outcome), h("span", { class: "question", dir: "auto" }, check?.question ?? result.check)];
  if (check?.hand) face.push(h("span", { class: "yours" }, say("yours")));
  if (!notes.length && result.probability === null) return h("li", { class: "check" }, h("div", { class: "face" }, face));
  const boxes = notes.flatMap((evidence) => evidence.boxes);
  const toggled = (event) => outline(stage, event.target.open ? boxes : [], result.outcome);
  return h(
    "li",
    { class: "check" },
    h(
      "details",
      { name: "evidence", ontoggle: toggled },
      h("summary", { class: "face" }, face),
      notes.map((evidence) =>
        h("p", { class: "evidence", dir: "auto" }, evidence.judge && h("b", {}, `${evidence.judge} `), evidence.note),
      ),
      result.probability !== null && h("p", { class: "evidence" }, say("probability", { p: number(result.probability, 2) })),
    ),
  );
}

// The places that a check's evidence points at, drawn over the picture.
function outline(stage, boxes, outcome) {
  stage.querySelector(".overlay")?.remove();
  if (!boxes.length) return;
  const rects = boxes.map(([x0, y0, x1, y1]) =>
    svg("rect", { x: `${x0 * 100}%`, y: `${y0 * 100}%`, width: `${(x1 - x0) * 100}%`, height: `${(y1 - y0) * 100}%`, rx: 3 }),
  );
  const label = say("evidence", { outcome: say(`outcome.${outcome}`) });
  stage.querySelector(".frame")?.append(svg("svg", { class: `overlay ${outcome}`, role: "img", "aria-label": label }, rects));
}

export function notes(listed) {
  if (!listed.length) return null;
  return h(
    "ul",
    { class: "notes", "aria-label": say("notes") },
    listed.map((note) => h("li", {}, icon("note"), h("span", { dir: "auto" }, note))),
  );
}
