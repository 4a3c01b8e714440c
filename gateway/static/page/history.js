/** The history of one appointment: who changed what, before and after side by side. */

import { appointmentPath } from "./api.js";
import { h } from "./dom.js";
import { fill } from "./panel-content.js";
import { described } from "./rival-card.js";
import { momentText } from "./times.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./api.js").Entry} Entry */
/** @typedef {(revision: string) => void} Travel shows the calendar after a revision */

const STEP = 50;
const DONE = {
  CREATED: "Created",
  UPDATED: "Changed",
  CONFIRMED: "Confirmed",
  EXPIRED: "Expired",
  CANCELLED: "Cancelled",
  REDACTED: "Redacted",
};

/**
 * Say what a change was, in a few words.
 * @param {Entry} entry
 */
export function changeText({ change, appointment }) {
  return `${DONE[change] ?? change} “${appointment.title || appointment.id}”`;
}

/**
 * Show the history of an appointment.
 * @param {HTMLElement} element
 * @param {App} app
 * @param {{id: string, title: string}} appointment
 * @param {Travel} travel
 * @returns {() => void} called when it is not shown any more
 */
export function showHistory(element, app, { id, title }, travel) {
  const versions = h("div", { class: "versions" });
  element.append(h("div", {}, h("h3", {}, title || id), title && h("p", { class: "muted" }, id)), versions);
  const read = () =>
    fill(versions, async () => {
      /** @type {Entry[]} */
      const entries = [];
      for await (const page of app.api.pages(appointmentPath(id, "/history"), {})) entries.push(...page.entries);
      return latestFirst(app, entries, travel);
    });
  /** @param {Event} event */
  const follow = (event) => {
    const { before, after } = /** @type {CustomEvent} */ (event).detail;
    if ((after ?? before).id === id) void read();
  };
  app.store.addEventListener("changed", follow);
  void read();
  return () => app.store.removeEventListener("changed", follow);
}

/**
 * Return the versions, the latest ones first; the others come with a button.
 * @param {App} app
 * @param {Entry[]} entries in their order
 * @param {Travel} travel
 */
function latestFirst(app, entries, travel) {
  let shown = 0;
  const list = h("ol", { class: "list", reversed: true });
  const more = h("button", { type: "button", onclick: () => showMore() }, `Show ${STEP} earlier ones`);
  const showMore = () => {
    const from = shown;
    shown = Math.min(shown + STEP, entries.length);
    for (let back = from; back < shown; back++) {
      const index = entries.length - 1 - back;
      list.append(version(app, entries[index], entries[index - 1], travel));
    }
    more.hidden = shown === entries.length;
  };
  showMore();
  return [list, more];
}

/**
 * @param {App} app
 * @param {Entry} entry
 * @param {Entry | undefined} previous
 * @param {Travel} travel
 */
function version(app, entry, previous, travel) {
  const { zone } = app.session;
  const { appointment, revision, actor } = entry;
  const after = described(zone, appointment);
  /** @type {Record<string, string>} */
  const before = previous ? described(zone, previous.appointment) : {};
  const fields = Object.keys(after).filter((name) => (before[name] ?? "") !== after[name] && !isEmpty(name, before[name], after[name]));
  return h(
    "li",
    { class: "version", "data-revision": revision },
    h("h4", {}, `${appointment.version}. ${DONE[entry.change] ?? entry.change}`, h("span", { class: "muted" }, actor ? `by ${actor}` : "by an unnamed caller")),
    h(
      "p",
      { class: "muted" },
      `${momentText(zone, entry.recordedAt)}, `,
      h("button", { type: "button", class: "link", onclick: () => travel(revision), "aria-label": `Show the calendar after revision ${revision}` }, `revision ${revision}`),
    ),
    fields.length > 0
      ? h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ...["Field", "Before", "After"].map((name) => h("th", { scope: "col" }, name)))),
          h(
            "tbody",
            {},
            ...fields.map((name) =>
              h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, h("del", {}, before[name] || "–")), h("td", {}, h("ins", {}, after[name] || "–"))),
            ),
          ),
        )
      : h("p", {}, "No field that is shown here differs."),
  );
}

/**
 * @param {string} name
 * @param {string | undefined} before
 * @param {string} after
 */
function isEmpty(name, before, after) {
  return name === "Attributes" && (before ?? "{}") === after;
}
