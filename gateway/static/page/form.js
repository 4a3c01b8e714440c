/** The fields of an appointment as inputs. Times are those of the zone that is shown. */

import { h } from "./dom.js";
import { instantText } from "./store.js";
import { wallOf, wallText } from "./zones.js";

/**
 * @typedef {object} Values
 * @property {string} title
 * @property {number} start instant
 * @property {number} end
 * @property {string[]} resources
 */

/**
 * @typedef {object} Inputs
 * @property {HTMLElement[]} elements
 * @property {HTMLInputElement} title
 * @property {HTMLInputElement} start
 * @property {HTMLInputElement} end
 * @property {HTMLTextAreaElement} resources
 */

/**
 * @param {import("./main.js").App} app
 * @param {Values} values
 * @returns {Inputs}
 */
export function fields(app, { title, start, end, resources }) {
  const inputs = {
    title: h("input", { name: "title", maxLength: 1024, value: title, autocomplete: "off" }),
    start: h("input", { type: "datetime-local", name: "start", required: true }),
    end: h("input", { type: "datetime-local", name: "end", required: true }),
    resources: h("textarea", { name: "resources", rows: Math.min(Math.max(resources.length, 1), 4), spellcheck: false }),
  };
  fill(app, inputs, { title, start, end, resources });
  return {
    ...inputs,
    elements: [
      h("label", {}, "Title", inputs.title),
      h("div", { class: "row" }, h("label", {}, "From", inputs.start), h("label", {}, "To", inputs.end)),
      h("label", {}, "Resources, one a line", inputs.resources),
    ],
  };
}

/**
 * Write values into inputs.
 * @param {import("./main.js").App} app
 * @param {Omit<Inputs, "elements">} inputs
 * @param {Values} values
 */
export function fill({ session }, inputs, { title, start, end, resources }) {
  inputs.title.value = title;
  inputs.start.value = wallText(session.zone.wall(start)).slice(0, 16);
  inputs.end.value = wallText(session.zone.wall(end)).slice(0, 16);
  inputs.resources.value = resources.join("\n");
}

/**
 * Read the inputs; a text says what to mend.
 * @param {import("./main.js").App} app
 * @param {Inputs} inputs
 */
export function readFields({ session }, inputs) {
  const [start, end] = [inputs.start, inputs.end].map((input) => session.zone.instant(wallOf(input.value)));
  if (Number.isNaN(start) || Number.isNaN(end)) return "Give both times.";
  if (start >= end) return "The end must be after the start.";
  const [resourceId = "", ...additionalResourceIds] = inputs.resources.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return { title: inputs.title.value, start: instantText(start), end: instantText(end), resourceId, additionalResourceIds };
}
