// The CLVR tab in ComfyUI's sidebar.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel/panel.js";
import { say } from "./panel/words.js";

const ID = "clvr";
const REMINDED = 10000; // ms that a reminder stays

// ComfyUI keeps them in the user's folder, where nodes/settings.py reads them.
const SETTINGS = [
  {
    id: "CLVR.VLM.Address",
    category: ["CLVR", "VLM", "Address"],
    name: say("vlm.address"),
    tooltip: say("vlm.address.where"),
    type: "text",
    defaultValue: "",
    sortOrder: 2,
  },
  {
    id: "CLVR.VLM.Key",
    category: ["CLVR", "VLM", "Key"],
    name: say("vlm.key"),
    tooltip: say("vlm.key.where"),
    type: "text",
    attrs: { type: "password", autocomplete: "new-password" },
    defaultValue: "",
    sortOrder: 1,
  },
];

app.registerExtension({
  name: "CLVR.Panel",
  settings: SETTINGS,
  async setup() {
    const href = new URL("./clvr.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    const panel = new Panel();
    app.extensionManager.registerSidebarTab({
      id: ID,
      icon: "pi pi-sync",
      title: "CLVR",
      tooltip: say("tab"),
      type: "custom",
      render: (element) => panel.mount(element),
      destroy: () => panel.unmount(),
    });
    api.addEventListener("clvr.event", ({ detail }) => {
      panel.heard(detail);
      if (detail.kind === "paused" && !panel.visible) remind();
    });
    for (const kind of ["execution_success", "execution_error", "execution_interrupted", "reconnected"]) {
      api.addEventListener(kind, () => panel.soon());
    }
    // The event comes just before the setting has its new value.
    app.ui.settings.addEventListener("Comfy.Locale.change", () => queueMicrotask(() => panel.translate()));
  },
});

let reminded = -Infinity;

// One at a time: a run that goes on by itself soon waits again.
function remind() {
  if (performance.now() - reminded < REMINDED) return;
  reminded = performance.now();
  app.extensionManager.toast.add({ severity: "info", summary: say("reminder"), detail: say("reminder.where"), life: REMINDED });
}
