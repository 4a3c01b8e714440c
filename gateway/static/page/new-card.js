/** The form for a new appointment. */

import { openCard } from "./card.js";
import { h } from "./dom.js";
import { fields, readFields } from "./form.js";
import { longDay } from "./times.js";

/**
 * @param {import("./main.js").App} app
 * @param {import("./calendar.js").Place} place
 */
export function showNew(app, place) {
  const { zone } = app.session;
  const inputs = fields(app, { title: "", start: place.start, end: place.end, resources: place.resources ?? [place.resource] });
  const minutes = h("input", { type: "number", min: "1", max: "1440", value: "10", name: "minutes", "aria-label": "Minutes" });
  const problem = h("div", { class: "notice bad", role: "alert", hidden: true });
  /** @param {boolean} hold */
  const book = async (hold) => {
    const read = readFields(app, inputs);
    problem.hidden = typeof read !== "string";
    problem.textContent = typeof read === "string" ? read : "";
    if (typeof read === "string") return;
    const holdUntil = new Date(Date.now() + Number(minutes.value) * 60_000).toISOString();
    await app.bookings.create({ ...read, ...(hold && { holdUntil }) });
  };
  openCard({
    name: "new",
    title: `New on ${longDay(zone.wall(place.start))}`,
    at: () => app.calendar.rectangle(place),
    onClose: () => app.calendar.clearSelection(),
    content: [
      h(
        "form",
        {
          class: "form",
          onsubmit: (/** @type {Event} */ event) => {
            event.preventDefault();
            void book(false);
          },
        },
        ...inputs.elements,
        problem,
        h(
          "div",
          { class: "actions" },
          h("button", { type: "submit", class: "primary" }, "Book"),
          h("button", { type: "button", onclick: () => void book(true) }, "Hold for"),
          minutes,
          h("span", { class: "field" }, "minutes"),
        ),
      ),
    ],
  });
}
