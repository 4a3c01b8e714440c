/** A card beside what it is about: a form, details, a conflict. One is open at a time. */

import { h } from "./dom.js";

const MARGIN = 12;

/** @type {{element: HTMLElement, onClose: () => void, opener: Element | null} | null} */
let open = null;

/**
 * @typedef {object} CardOptions
 * @property {string} title
 * @property {DOMRect | (() => DOMRect)} at
 * @property {Node[]} content
 * @property {() => void} [onClose]
 * @property {string} [name] for the style sheet and tests
 */

/**
 * Open a card, and close the one before. The focus moves to its first field, or to the card.
 * @param {CardOptions} options
 */
export function openCard({ title, at, content, onClose = () => {}, name = "card" }) {
  const opener = open?.opener ?? document.activeElement;
  closeCard({ refocus: false });
  const close = h("button", { type: "button", class: "quiet icon", "aria-label": "Close", onclick: () => closeCard() }, "✕");
  const element = h(
    "div",
    { class: "card", role: "dialog", "aria-label": title, "data-card": name, popover: "manual", tabIndex: -1 },
    h("header", {}, h("h2", {}, title), close),
    h("div", { class: "card-body" }, ...content),
  );
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    closeCard();
  });
  document.body.append(element);
  element.showPopover();
  open = { element, onClose, opener };
  place(element, typeof at === "function" ? at() : at);
  const first = /** @type {HTMLElement | null} */ (element.querySelector("[data-first], .card-body input"));
  (first ?? element).focus({ preventScroll: true });
  return element;
}

/**
 * Close the card that is open.
 * @param {{refocus?: boolean}} [options] whether the focus returns to where it was
 */
export function closeCard({ refocus = true } = {}) {
  if (!open) return;
  const { element, onClose, opener } = open;
  open = null;
  element.remove();
  onClose();
  if (refocus && opener instanceof HTMLElement && opener.isConnected) opener.focus({ preventScroll: true });
}

/** Return the name of the card that is open. */
export function openCardName() {
  return open?.element.dataset.card ?? "";
}

/**
 * @param {HTMLElement} element
 * @param {DOMRect} at
 */
function place(element, at) {
  const { width, height } = element.getBoundingClientRect();
  const below = at.bottom + 6;
  const top = below + height <= innerHeight - MARGIN ? below : at.top - 6 - height;
  const left = Math.min(Math.max(at.left, MARGIN), innerWidth - width - MARGIN);
  element.style.top = `${Math.min(Math.max(top, MARGIN), Math.max(innerHeight - height - MARGIN, MARGIN))}px`;
  element.style.left = `${left}px`;
}
