// What the panel asks of ComfyUI's own server, and nothing of anybody else.

import { api } from "../../../scripts/api.js";
import { say } from "./words.js";

const path = (run) => run.split("/").map(encodeURIComponent).join("/");

async function asked(route, options) {
  const reply = await api.fetchApi(route, { cache: "no-store", ...options });
  const data = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(data.error ?? say("error.status", { n: String(reply.status) }));
  return data;
}

export const runs = async () => (await asked("/clvr/runs")).runs;
export const run = (id) => asked(`/clvr/runs/${path(id)}`);

export function answer(id, said) {
  const body = JSON.stringify({ run: id, ...said });
  return asked("/clvr/answer", { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

export function picture(id, label, size) {
  const query = new URLSearchParams({ run: id, label, ...(size ? { size } : {}) });
  return api.apiURL(`/clvr/image?${query}`);
}

export const report = (id) => api.apiURL(`/clvr/report?${new URLSearchParams({ run: id })}`);
