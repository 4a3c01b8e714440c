/** What somebody else changed first: theirs beside ours, and a choice. Nothing is overwritten unseen. */

import { closeCard, openCard } from "./card.js";
import { h } from "./dom.js";
import { occupies, resourcesOf } from "./store.js";
import { rangeText, resourceName } from "./times.js";

/** @typedef {import("./api.js").Appointment} Appointment */

/**
 * @param {import("./main.js").App} app
 * @param {object} rival
 * @param {Appointment} rival.seen what our change was based on
 * @param {Appointment} rival.current
 * @param {import("./booking.js").Patch | null} rival.patch our change
 * @param {string} rival.done
 */
export function showRival(app, { seen, current, patch, done }) {
  const { zone } = app.session;
  const there = occupies(current);
  const ours = patch && there;
  openCard({
    name: "rival",
    title: "Somebody else was faster",
    at: () => app.calendar.rectangle({ resource: current.resourceId, start: Date.parse(current.start), end: Date.parse(current.end) }),
    content: [
      h("p", {}, `“${current.title || current.id}” was changed meanwhile. Your change is not stored.`),
      h("div", { class: "notice" }, differences(zone, seen, current)),
      ours && h("p", {}, "Your change:"),
      ours && h("div", { class: "notice" }, differences(zone, seen, /** @type {Appointment} */ ({ ...seen, ...patch }))),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "primary", "data-first": true, onclick: () => closeCard() }, "Keep theirs"),
        ours &&
          h("button", { type: "button", onclick: () => void app.bookings.change(current, patch, done) }, "Apply mine to theirs"),
      ),
    ].filter((each) => each !== null && each !== false),
  });
}

/**
 * Return a list of the fields in which two states of an appointment differ.
 * @param {import("./zones.js").Zone} zone
 * @param {Appointment} before
 * @param {Appointment} after
 */
export function differences(zone, before, after) {
  const [one, other] = [before, after].map((each) => described(zone, each));
  const lines = Object.keys(one)
    .filter((name) => one[name] !== other[name])
    .map((name) => h("li", {}, `${name}: ${one[name] || "none"} → ${other[name] || "none"}`));
  return h("ul", {}, ...(lines.length ? lines : [h("li", {}, "No field differs.")]));
}

/**
 * @param {import("./zones.js").Zone} zone
 * @param {Appointment} appointment
 * @returns {Record<string, string>}
 */
export function described(zone, appointment) {
  return {
    Title: appointment.title ?? "",
    Time: rangeText(zone, appointment.start, appointment.end),
    Resources: resourcesOf({ ...appointment, resourceId: appointment.resourceId ?? "", additionalResourceIds: appointment.additionalResourceIds ?? [] })
      .map(resourceName)
      .join(", "),
    State: appointment.state,
    "Held until": appointment.holdUntil ? rangeText(zone, appointment.holdUntil, appointment.holdUntil) : "",
    Attributes: JSON.stringify(appointment.attributes),
  };
}
