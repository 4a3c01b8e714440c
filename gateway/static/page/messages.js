/** Short messages at the bottom, which screen readers say too. */

import { byId, h } from "./dom.js";

const LASTING = 6000;

/**
 * Show a message for a moment; one about something bad until it is closed.
 * @param {string} text
 * @param {{bad?: boolean}} [options]
 */
export function tell(text, { bad = false } = {}) {
  const message = h("div", { class: bad ? "message bad" : "message" }, h("span", { class: "grow" }, text));
  const remove = () => message.remove();
  if (bad) message.append(h("button", { type: "button", onclick: remove }, "Dismiss"));
  else setTimeout(remove, LASTING);
  const messages = byId("messages");
  messages.append(message);
  while (messages.children.length > 4) messages.firstElementChild.remove();
}

/** Remove all messages: they are about something else than what is shown now. */
export function clearMessages() {
  byId("messages").replaceChildren();
}
