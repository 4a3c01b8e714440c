/** What panels read: it is shown when it is there, and why it is not there if it was refused. */

import { Problem } from "./api.js";
import { h } from "./dom.js";

/** How many times an element was filled; only the latest counts. @type {WeakMap<Element, number>} */
const fillings = new WeakMap();

/**
 * Fill an element with what `read` returns. What it shows stays until then. A refusal is shown instead, with a
 * button to try again.
 * @param {HTMLElement} element
 * @param {() => Promise<(Node | string | null | false | undefined)[] | undefined>} read undefined: it stays
 * @returns {Promise<void>}
 */
export async function fill(element, read) {
  const number = (fillings.get(element) ?? 0) + 1;
  fillings.set(element, number);
  element.setAttribute("aria-busy", "true");
  /** @type {(Node | string | null | false | undefined)[] | undefined} */
  let content;
  try {
    content = await read();
  } catch (error) {
    if (isAborted(error)) return;
    if (!(error instanceof Problem)) throw error;
    content = [refusal(error, () => void fill(element, read))];
  }
  if (fillings.get(element) !== number) return;
  element.removeAttribute("aria-busy");
  if (content) element.replaceChildren(...content.filter((each) => each !== null && each !== undefined && each !== false));
}

/**
 * Return a notice that says why something was refused.
 * @param {Problem} problem
 * @param {() => void} [again]
 */
export function refusal(problem, again) {
  const titles = { 401: "A credential is needed.", 403: "Your credential does not allow this." };
  const title = Reflect.get(titles, problem.status);
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    title && h("strong", {}, title),
    h("span", {}, problem.text),
    again && h("div", { class: "actions" }, h("button", { type: "button", onclick: again }, "Try again")),
  );
}

/**
 * Read again regularly until the panel is closed, but not while nobody can see it.
 * @param {() => void} read
 * @param {number} pause milliseconds
 * @returns {() => void} ends it
 */
export function repeated(read, pause = 5000) {
  const timer = setInterval(() => {
    if (document.visibilityState === "visible") read();
  }, pause);
  return () => clearInterval(timer);
}

/** @param {unknown} error */
export function isAborted(error) {
  return error instanceof DOMException && error.name === "AbortError";
}
