// A run that waits: what is proposed, and what a person can say to it.

import { h, percent } from "./dom.js";
import { picture } from "./server.js";
import { say } from "./words.js";

// `answer` sends an answer and gives back a promise.
export function pauseCard(run, answer) {
  const { paused, round } = run;
  const proposal = round ?? run.steps.at(-1);
  const error = h("p", { class: "error", role: "alert" });
  const send = async (said) => {
    card.classList.add("busy");
    error.textContent = "";
    try {
      await answer(said);
    } catch (problem) {
      error.textContent = problem.message;
    }
    card.classList.remove("busy");
  };
  const card = h(
    "section",
    { class: "pause", role: "group", "aria-labelledby": "clvr-waiting" },
    h("h2", { id: "clvr-waiting" }, say(paused.moment === "planned" ? "ask.plan" : "ask.picture")),
    h("p", { class: "countdown" }),
    paused.moment === "planned" ? planned(proposal, send) : judged(run, proposal, send),
    h("ul", { class: "added", "aria-label": say("check.yours") }),
    error,
    further(run, paused, send),
  );
  tick(card, paused);
  return card;
}

// What changes while the card stays as it is, with whatever was typed into it.
export function tick(card, paused) {
  const n = paused.step + 1;
  const left = paused.left === null ? say("ask.long", { n }) : say("ask.left", { n, time: clock(paused.left) });
  card.querySelector(".countdown").textContent = left;
  const added = card.querySelector(".added");
  if (added.childElementCount !== paused.added.length) {
    added.replaceChildren(...paused.added.map((question) => h("li", { dir: "auto" }, say("check.added", { question }))));
  }
}

function clock(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 100 ? say("time.seconds", { s: whole }) : say("time.minutes", { m: Math.floor(whole / 60), s: whole % 60 });
}

const button = (text, onclick, kind = "") => h("button", { type: "button", class: kind, onclick }, text);

function planned(proposal, send) {
  const text = h("textarea", { rows: 3, dir: "auto", id: "clvr-instruction", spellcheck: "true" });
  text.value = proposal.instruction;
  const approve = button(say("approve"), () => submit(), "main");
  const changed = () => text.value.trim() !== proposal.instruction.trim();
  const submit = () => send(changed() ? { action: "edit", instruction: text.value } : { action: "approve" });
  text.addEventListener("input", () => {
    approve.textContent = say(changed() ? "approve.edited" : "approve");
  });
  const says = proposal.action === "stop" ? say("ask.stop") : null;
  return [
    says && h("p", {}, says),
    proposal.reasoning && h("p", { class: "said", dir: "auto" }, proposal.reasoning),
    h("label", { for: "clvr-instruction" }, say("instruction")),
    text,
    h("div", { class: "buttons" }, approve),
  ];
}

function judged(run, proposal, send) {
  const name = `clvr-choice-${Math.random()}`;
  let candidate = proposal.chosen;
  const proposed = say(proposal.accepted ? "ask.keep" : "ask.drop");
  const approve = button(say("approve"), () => submit(), "main");
  const submit = () => send(candidate === proposal.chosen ? { action: "approve" } : { action: "choose", candidate });
  const pick = (k) => {
    candidate = k;
    approve.textContent = k === proposal.chosen ? say("approve") : say("approve.other", { n: k + 1 });
  };
  const options = proposal.candidates.map((one, k) =>
    h(
      "label",
      { class: "pick large" },
      h("input", { type: "radio", class: "unseen", name, checked: k === proposal.chosen, onchange: () => pick(k) }),
      h("img", { src: picture(run.id, one.image, 256), alt: say("candidate", { n: k + 1 }), class: "pixels" }),
      h("span", {}, `${k + 1}: ${percent(one.score)}`),
    ),
  );
  const other = proposal.accepted
    ? button(say("reject"), () => send({ action: "reject" }))
    : button(say("keep"), () => send({ action: "keep" }));
  return [
    h("p", {}, proposed),
    h("fieldset", { class: "picks" }, h("legend", {}, say(options.length > 1 ? "candidates" : "picture")), h("div", {}, options)),
    h("div", { class: "buttons" }, approve, other),
  ];
}

function further(run, paused, send) {
  const question = h("input", { type: "text", id: "clvr-check", placeholder: say("check.example"), dir: "auto" });
  const add = async (event) => {
    event.preventDefault();
    if (!question.value.trim()) return;
    await send({ action: "check", question: question.value });
    question.value = "";
  };
  const form = h(
    "form",
    { class: "line", onsubmit: add },
    h("label", { for: "clvr-check" }, say("check")),
    h("div", {}, question, h("button", { type: "submit" }, say("check.add"))),
  );
  return h(
    "div",
    { class: "further" },
    form,
    paused.actions.includes("back") ? goBack(run, send) : null,
    h("div", { class: "buttons" }, button(say("stop"), () => send({ action: "stop" }), "quiet")),
  );
}

function goBack(run, send) {
  const options = run.steps.map((step) =>
    h("option", { value: step.index, selected: step.index === Math.max(0, run.steps.length - 2) }, say("goback.round", { n: step.index + 1, score: percent(step.score) })),
  );
  const select = h("select", { id: "clvr-back" }, options);
  const back = button(say("goback.do"), () => send({ action: "back", step: Number(select.value) }));
  return h("div", { class: "line" }, h("label", { for: "clvr-back" }, say("goback")), h("div", {}, select, back));
}
