// The made checklist, shown in its node as text to copy.

import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const WIDGET = "made";

app.registerExtension({
  name: "CLVR.Checklist",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "CLVRChecklist") return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      onNodeCreated?.apply(this, args);
      const { widget } = ComfyWidgets.STRING(this, WIDGET, ["STRING", { multiline: true }], app);
      widget.serialize = false;
      widget.options.serialize = false;
      widget.inputEl.readOnly = true;
      this.setSize([Math.max(this.size[0], 420), Math.max(this.size[1], 400)]);
    };
    nodeType.prototype.onExecuted = function (message, ...args) {
      onExecuted?.call(this, message, ...args);
      this.widgets.find((widget) => widget.name === WIDGET).value = message.text?.join("") ?? "";
    };
  },
});
