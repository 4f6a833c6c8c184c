// The CLVR tab in ComfyUI's sidebar.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel/panel.js";
import { say } from "./panel/words.js";

const ID = "clvr";

app.registerExtension({
  name: "CLVR.Panel",
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

function remind() {
  const words = { severity: "info", summary: say("reminder"), detail: say("reminder.where"), life: 10000 };
  app.extensionManager.toast.add(words);
}
