/** A conflict: what is in the way, marked in the timeline, and free places to click instead. */

import { openCard, closeCard } from "./card.js";
import { h } from "./dom.js";
import { rangeText, resourceName } from "./times.js";

/**
 * @param {import("./main.js").App} app
 * @param {object} conflict
 * @param {import("./api.js").Problem} conflict.problem
 * @param {import("./calendar.js").Place} conflict.place where it was to be
 * @param {string} conflict.what
 * @param {(place: import("./calendar.js").Place) => Promise<unknown>} conflict.retry
 */
export function showConflict(app, { problem, place, what, retry }) {
  const { calendar, session, store } = app;
  const offers = problem.alternatives.map(({ start, end }) => ({
    resource: place.resource,
    start: Date.parse(start),
    end: Date.parse(end),
  }));
  /** @param {import("./calendar.js").Place} offer */
  const take = (offer) => {
    closeCard({ refocus: false });
    void retry(offer);
  };
  calendar.highlight(problem.conflicts.map(({ id }) => id), "in-the-way");
  calendar.offer(offers);
  app.takeOffer = take;
  openCard({
    name: "conflict",
    title: "This time is taken",
    at: () => calendar.rectangle(place),
    onClose() {
      app.takeOffer = undefined;
      calendar.highlight([], "");
      calendar.offer([]);
      calendar.clearSelection();
    },
    content: [
      h("p", {}, `${what}, ${rangeText(session.zone, place.start, place.end)}, collides with:`),
      h(
        "div",
        { class: "notice bad" },
        h("ul", {}, ...problem.conflicts.map((each) => h("li", {}, text(app, each))), problem.moreConflicts && h("li", {}, "and more")),
      ),
      offers.length > 0 && h("p", { id: "offers-label" }, `Free for ${resourceName(place.resource)}:`),
      offers.length > 0
        ? h(
            "div",
            { class: "actions", role: "group", "aria-labelledby": "offers-label" },
            ...offers.map((offer, index) =>
              h(
                "button",
                { type: "button", class: index === 0 ? "primary" : "", "data-first": index === 0, onclick: () => take(offer) },
                rangeText(session.zone, offer.start, offer.end),
              ),
            ),
          )
        : h("p", {}, "No free time of this length was found within a month."),
    ].filter((each) => each !== false),
  });

  /**
   * @param {import("./main.js").App} _
   * @param {import("./api.js").Conflict} each
   */
  function text(_, { id, start, end, resourceIds }) {
    const title = store.appointments.get(id)?.title || id;
    return `“${title}”, ${rangeText(session.zone, start, end)}, ${resourceIds.map(resourceName).join(", ")}`;
  }
}
