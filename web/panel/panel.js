// The panel: one run as it happens or as it was, and the list of runs.

import { chart } from "./chart.js";
import { h, percent, refresh } from "./dom.js";
import { pauseCard, tick } from "./pause.js";
import { notes, roundCard } from "./rounds.js";
import * as server from "./server.js";
import { language, named, number, say } from "./words.js";

const LAST = "clvr.run";
const POLL = 2000; // ms; events come sooner, to the tab that queued the run

export class Panel {
  constructor() {
    this.run = null;
    this.listing = false;
    this.turn = 0; // counts what was asked for, so that a late reply to something older is dropped
    this.known = sessionStorage.getItem(LAST);
    this.spoken = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
    this.body = h("div", { class: "body" });
    this.element = h("div", { class: "clvr", lang: language() }, this.spoken, this.body);
  }

  // The same in the language that is set now.
  translate() {
    this.element.lang = language();
    delete this.body.dataset.kind;
    if (this.listing) this.list();
    else this.reload();
  }

  mount(parent) {
    parent.append(this.element);
    this.timer ??= setInterval(() => this.poll(), POLL);
    this.clock ??= setInterval(() => this.count(), 1000);
    this.open();
  }

  unmount() {
    clearInterval(this.timer);
    clearInterval(this.clock);
    this.timer = this.clock = null;
    this.element.remove();
  }

  get visible() {
    return this.element.isConnected;
  }

  // The run that happens now; else the one that was looked at last; else the list.
  async open() {
    const turn = ++this.turn;
    const listed = await server.runs().catch(() => []);
    if (turn !== this.turn) return;
    const running = listed.find((run) => run.running);
    const id = running?.id ?? (listed.some((run) => run.id === this.known) ? this.known : listed[0]?.id);
    if (id) await this.show(id);
    else this.list(listed);
  }

  async show(id) {
    this.follow(id);
    await this.reload();
  }

  follow(id) {
    this.turn += 1;
    this.known = id;
    this.listing = false;
    sessionStorage.setItem(LAST, id);
  }

  // A message of the server about a run.
  heard(event) {
    if (!event.run) return;
    if (event.kind === "started") this.follow(event.run);
    if (event.run !== this.known || !this.visible) return;
    if (event.kind === "drawing" && this.progress(event)) return;
    this.soon();
  }

  soon() {
    this.waiting ??= setTimeout(() => {
      this.waiting = null;
      this.reload();
    }, 80);
  }

  poll() {
    if (this.visible && !this.listing && this.run?.running && !document.hidden) this.reload();
  }

  count() {
    const card = this.body.querySelector(".pause");
    const paused = this.run?.paused;
    if (!card || !paused || paused.left === null) return;
    paused.left = Math.max(0, paused.left - 1);
    tick(card, paused);
  }

  async reload() {
    const id = this.known;
    if (!id || !this.visible || this.listing) return;
    const current = () => id === this.known && !this.listing;
    try {
      const run = await server.run(id);
      if (!current()) return;
      this.run = run;
      this.draw(run);
    } catch (error) {
      if (!current()) return;
      delete this.body.dataset.kind;
      this.body.replaceChildren(this.bar(), h("p", { class: "error", role: "alert" }, error.message));
    }
  }

  async list(listed) {
    const turn = ++this.turn;
    this.listing = true;
    const runs = listed ?? (await server.runs().catch(() => []));
    if (turn !== this.turn) return;
    const entry = (run) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "entry", onclick: () => this.show(run.id) },
          run.best ? h("img", { src: server.picture(run.id, run.best, 128), alt: "", class: "pixels", loading: "lazy" }) : h("span", { class: "blank" }),
          h("span", { class: "words" }, h("b", { dir: "auto" }, run.prompt || run.id), h("small", {}, this.line(run))),
        ),
      );
    const empty = h("p", { class: "quiet" }, say("runs.none"));
    this.body.replaceChildren(
      h("header", { class: "bar" }, h("h1", {}, say("runs"))),
      runs.length ? h("ul", { class: "runs", onkeydown: arrows }, runs.map(entry)) : empty,
    );
    delete this.body.dataset.kind;
  }

  line(run) {
    const state = run.paused ? say("waiting") : run.running ? say("running") : run.stop ? percent(run.score) : say("incomplete");
    const when = new Date(run.when * 1000).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
    return [state, say("rounds", { n: run.rounds }), when].join(" · ");
  }

  bar() {
    return h(
      "header",
      { class: "bar" },
      h("button", { type: "button", class: "link", onclick: () => this.list() }, `‹ ${say("runs.all")}`),
    );
  }

  draw(run) {
    if (this.body.dataset.kind !== "run") {
      this.body.dataset.kind = "run";
      const names = ["top", "pausing", "budget", "plot", "now", "steps", "warnings"];
      this.parts = Object.fromEntries(names.map((name) => [name, h("div", { class: name })]));
      this.body.replaceChildren(this.bar(), ...Object.values(this.parts));
    }
    const { parts } = this;
    const status = state(run);
    refresh(parts.top, [status, run.id, run.prompt, run.stop, run.expected, run.report, run.running, run.paused === null], () => this.top(run, status));
    const asked = run.paused && [run.id, run.paused.step, run.paused.moment, run.paused.actions, run.round?.candidates, run.round?.instruction];
    refresh(parts.pausing, asked, () => (run.paused ? pauseCard(run, (said) => this.answer(run.id, said)) : []));
    if (run.paused) tick(parts.pausing.firstChild, run.paused);
    refresh(parts.budget, run.spent, budget);
    refresh(parts.plot, run.steps.map((s) => [s.score, s.accepted, s.best]), () => (run.steps.length > 1 ? chart(run.steps, run.budget.threshold) : []));
    const { done, of, ...round } = run.round ?? {};
    const planned = run.paused?.moment === "planned"; // the pause tells all that there is of the round
    refresh(parts.now, [run.id, run.round && round, run.running, run.checks, planned], () => (run.round && !planned ? making(run) : []));
    this.progress({ done, of });
    this.rounds(run);
    refresh(parts.warnings, run.warnings, (listed) => (listed.length ? warnings(listed) : []));
    this.announce(run, status);
  }

  top(run, status) {
    const stop = run.running && !run.paused;
    return [
      h("p", { class: `state ${status.kind}` }, status.text),
      h("h1", { class: "goal", dir: "auto" }, run.prompt),
      run.stop && h("p", { class: "quiet", dir: "auto" }, say("stopped", { reason: run.stop })),
      run.expected && !run.stop && h("p", { class: "quiet", dir: "auto" }, say("estimate", { time: run.expected })),
      h(
        "div",
        { class: "buttons" },
        run.report && h("a", { class: "button", href: server.report(run.id), target: "_blank", rel: "noopener" }, say("report")),
        stop && h("button", { type: "button", onclick: () => this.answer(run.id, { action: "stop" }) }, say("stop")),
      ),
    ];
  }

  // The newest round first; a card is built anew only where its round has changed.
  rounds(run) {
    const cards = this.parts.steps;
    if (cards.dataset.run !== run.id) cards.replaceChildren();
    cards.dataset.run = run.id;
    for (const step of run.steps) {
      let place = cards.querySelector(`[data-step="${step.index}"]`);
      if (!place) cards.prepend((place = h("div", { "data-step": step.index })));
      refresh(place, [step, run.checks], () => roundCard(run, step, false));
    }
  }

  progress({ done, of }) {
    const bar = this.parts?.now.querySelector("progress");
    if (!bar || !of) return false;
    bar.max = of;
    bar.value = done;
    return true;
  }

  async answer(id, said) {
    await server.answer(id, said);
    await this.reload();
  }

  announce(run, status) {
    const last = run.steps.at(-1);
    const round = last && say(last.accepted ? "round.kept" : "round.back", { n: last.index + 1, score: percent(last.score) });
    const text = [status.text, round].filter(Boolean).join(". ");
    if (this.spoken.textContent !== text) this.spoken.textContent = text;
  }
}

function state(run) {
  if (run.paused) return { kind: "waiting", text: say("waiting") };
  if (run.running) return { kind: "running", text: run.round ? say(`phase.${phase(run.round)}`, { n: run.round.index + 1 }) : say("planning") };
  if (!run.stop) return { kind: "cut", text: say("incomplete") };
  const best = run.steps.find((step) => step.best);
  return { kind: "done", text: best && best.score !== null ? say("done.score", { score: percent(best.score) }) : say("done") };
}

function phase(round) {
  if (round.action === "stop") return "stopping";
  if (round.judged) return "judged";
  return round.candidates.length ? "judging" : "drawing";
}

function making(run) {
  const card = roundCard(run, run.round, true);
  if (run.running && !run.round.candidates.length && run.round.action !== "stop") {
    const label = say("phase.drawing", { n: run.round.index + 1 });
    card.querySelector("header").after(h("progress", { "aria-label": label, max: 1, value: 0 }));
  }
  return card;
}

function budget(rows) {
  const row = ({ name, used, limit }) => {
    const amount = number(name === "seconds" && used >= 10 ? Math.round(used) : used, name === "seconds" && used < 10 ? 1 : 0);
    const title = named("spent", name);
    return h(
      "div",
      { class: "spent" },
      h("dt", {}, title),
      h("dd", {}, h("b", {}, amount), limit === null ? "" : say("budget.left", { limit, left: Math.max(0, limit - used) })),
      limit === null ? null : h("meter", { min: 0, max: limit, value: Math.min(used, limit), "aria-label": say("budget.used", { name: title }) }),
    );
  };
  return h("dl", { "aria-label": say("budget") }, rows.filter((one) => one.limit !== null || one.used).map(row));
}

function warnings(listed) {
  return h("details", {}, h("summary", {}, say("warnings", { n: listed.length })), notes(listed));
}

// Up and down move between the runs of the list.
function arrows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const entries = [...event.currentTarget.querySelectorAll("button")];
  entries[entries.indexOf(document.activeElement) + step]?.focus();
  event.preventDefault();
}
