// The CLVR tab in ComfyUI's sidebar.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel/panel.js";

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
      tooltip: "CLVR: runs of the closed loop",
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
  },
});

function remind() {
  const words = { severity: "info", summary: "CLVR waits for you", detail: "Open the CLVR tab in the sidebar.", life: 10000 };
  app.extensionManager.toast.add(words);
}
