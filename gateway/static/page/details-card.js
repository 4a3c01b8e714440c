/** An appointment: its details, what can be done with it, and a form to change it. */

import { openCard } from "./card.js";
import { h } from "./dom.js";
import { fields, fill, readFields } from "./form.js";
import { ACTIONS } from "./panels.js";
import { differences } from "./rival-card.js";
import { occupies, resourcesOf } from "./store.js";
import { momentText, rangeText, resourceName } from "./times.js";

/** @typedef {import("./api.js").Appointment} Appointment */
/** @typedef {import("./main.js").App} App */

/**
 * Show an appointment, and follow its changes while it is shown.
 * @param {App} app
 * @param {Appointment} appointment
 */
export function showDetails(app, appointment) {
  let shown = appointment;
  const body = h("div", { class: "form" });
  const news = h("div", { class: "notice", role: "status", hidden: true });
  /** @type {((current: Appointment) => void) | null} */
  let editing = null;

  /** @param {Event} event */
  const follow = (event) => {
    const { before, after, entry } = /** @type {CustomEvent} */ (event).detail;
    const current = after ?? entry?.appointment;
    if ((before ?? after).id !== shown.id || !current || current.etag === shown.etag) return;
    if (editing) editing(current);
    else {
      news.replaceChildren(`Changed just now${entry?.actor ? ` by ${entry.actor}` : ""}:`, differences(app.session.zone, shown, current));
      news.hidden = false;
      shown = current;
      body.replaceChildren(...details());
    }
  };
  app.store.addEventListener("changed", follow);

  function details() {
    const { zone } = app.session;
    const { id, start, end, state, holdUntil, version, attributes } = shown;
    const can = occupies(shown) && !app.calendar.scene.readOnly;
    const rows = [
      ["When", rangeText(zone, start, end)],
      ["Where", resourcesOf(shown).map(resourceName).join(", ")],
      ["State", h("span", { class: `badge ${state === "HELD" ? "held" : occupies(shown) ? "" : "bad"}` }, state.toLowerCase())],
      holdUntil && state === "HELD" && ["Held until", momentText(zone, holdUntil)],
      ["Id", id],
      ["Version", String(version)],
      Object.keys(attributes).length > 0 && ["Attributes", h("pre", {}, JSON.stringify(attributes, null, 1))],
    ];
    return [
      h("dl", {}, ...rows.filter(Boolean).flatMap((row) => {
        const [name, value] = /** @type {[string, string | Node]} */ (row);
        return [h("dt", {}, name), h("dd", {}, value)];
      })),
      h(
        "div",
        { class: "actions" },
        can && state === "HELD" && h("button", { type: "button", class: "primary", onclick: () => void app.bookings.confirm(shown) }, "Confirm"),
        can && h("button", { type: "button", onclick: edit }, "Change"),
        can && h("button", { type: "button", class: "danger", onclick: () => void app.bookings.cancel(shown) }, "Cancel appointment"),
        ...ACTIONS.map(({ label, run }) => h("button", { type: "button", onclick: () => run(shown, app) }, label)),
      ),
    ];
  }

  function edit() {
    let base = shown;
    const inputs = fields(app, values(base));
    const warning = h("div", { class: "notice", role: "alert", hidden: true });
    const problem = h("div", { class: "notice bad", role: "alert", hidden: true });
    const save = h("button", { type: "submit", class: "primary" }, "Save");
    const submit = async () => {
      const read = readFields(app, inputs);
      problem.hidden = typeof read !== "string";
      problem.textContent = typeof read === "string" ? read : "";
      if (typeof read !== "string") await app.bookings.change(base, patchFrom(base, read));
    };
    editing = (current) => {
      // What was typed stays. It is saved only after a look at what the other one did.
      const theirs = current;
      save.disabled = true;
      const decide = (/** @type {boolean} */ mine) => {
        if (!mine) fill(app, inputs, values(theirs));
        base = shown = theirs;
        warning.hidden = true;
        save.disabled = !occupies(theirs);
      };
      warning.replaceChildren(
        h("span", {}, "Somebody else has just changed it:"),
        differences(app.session.zone, base, theirs),
        h(
          "div",
          { class: "actions" },
          h("button", { type: "button", onclick: () => decide(false) }, "Use theirs"),
          occupies(theirs) && h("button", { type: "button", onclick: () => decide(true) }, "Go on with mine"),
        ),
      );
      warning.hidden = false;
    };
    body.replaceChildren(
      h(
        "form",
        {
          class: "form",
          onsubmit: (/** @type {Event} */ event) => {
            event.preventDefault();
            if (!save.disabled) void submit();
          },
        },
        warning,
        ...inputs.elements,
        problem,
        h(
          "div",
          { class: "actions" },
          save,
          h("button", { type: "button", onclick: back }, "Back"),
        ),
      ),
    );
    inputs.title.focus();
  }

  function back() {
    editing = null;
    body.replaceChildren(...details());
  }

  news.hidden = true;
  body.append(...details());
  openCard({
    name: "details",
    title: appointment.title || appointment.id,
    at: () =>
      app.calendar.elementOf(appointment.id)?.getBoundingClientRect() ??
      app.calendar.rectangle({ resource: appointment.resourceId, start: Date.parse(appointment.start), end: Date.parse(appointment.end) }),
    onClose: () => app.store.removeEventListener("changed", follow),
    content: [news, body],
  });
}

/**
 * @param {Appointment} appointment
 * @returns {import("./form.js").Values}
 */
function values(appointment) {
  return {
    title: appointment.title,
    start: Date.parse(appointment.start),
    end: Date.parse(appointment.end),
    resources: resourcesOf(appointment).filter(Boolean),
  };
}

/**
 * Return only what differs, so that nothing else is written.
 * @param {Appointment} base
 * @param {import("./booking.js").Wanted} read
 * @returns {import("./booking.js").Patch}
 */
function patchFrom(base, read) {
  /** @type {import("./booking.js").Patch} */
  const patch = {};
  if (read.title !== base.title) patch.title = read.title || null;
  // The inputs show minutes; a time that was not touched keeps its seconds.
  if (minute(read.start) !== minute(base.start)) patch.start = read.start;
  if (minute(read.end) !== minute(base.end)) patch.end = read.end;
  if (read.resourceId !== base.resourceId) patch.resourceId = read.resourceId || null;
  if (read.additionalResourceIds.join("\n") !== base.additionalResourceIds.join("\n")) {
    patch.additionalResourceIds = read.additionalResourceIds;
  }
  return patch;
}

/** @param {string} time */
function minute(time) {
  return Math.floor(Date.parse(time) / 60_000);
}
