/** Free times: when chosen resources are free for a duration. A click books one. */

import { h } from "./dom.js";
import { fill } from "./panel-content.js";
import { instantText } from "./store.js";
import { clock, longDay, rangeText, resourceName } from "./times.js";
import { wallOf, wallText } from "./zones.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./calendar.js").Place} Place */

const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;
const CHOICES = 300; // resources to choose from
const SHOWN = 240; // buttons

/** @type {import("./panels.js").Panel} */
export const freeTimes = { id: "free-times", label: "Free times", open };

/**
 * @typedef {object} Wanted
 * @property {string[]} resources
 * @property {boolean} all whether all resources are needed at once
 * @property {number} minutes
 * @property {number} step minutes
 * @property {string} hours opening hours; empty: always open
 * @property {number} from instant
 * @property {number} to
 */

/**
 * @param {HTMLElement} element
 * @param {App} app
 */
function open(element, app) {
  const { session, calendar } = app;
  const names = calendar.rows.slice(0, CHOICES);
  const boxes = names.map((name, index) =>
    h("label", { class: "check" }, h("input", { type: "checkbox", name: "resource", value: name, checked: index === 0 }), resourceName(name)),
  );
  const other = h("input", { name: "other", autocomplete: "off", spellcheck: false, maxLength: 256 });
  const all = h("input", { type: "checkbox", name: "all" });
  const minutes = h("input", { type: "number", name: "minutes", min: "1", max: "1440", value: "30", required: true });
  const step = h("select", { name: "step" }, ...[5, 10, 15, 30, 60].map((each) => h("option", { value: String(each), selected: each === 30 }, `${each} min`)));
  const from = h("input", { type: "date", name: "from", required: true, value: wallText(session.startWall).slice(0, 10) });
  const days = h("input", { type: "number", name: "days", min: "1", max: "366", value: String(session.days), required: true });
  const hours = h("input", { name: "hours", value: "Mo-Su 08:00-18:00", placeholder: "always open", autocomplete: "off", spellcheck: false, maxLength: 256 });
  const results = h("section", { class: "results", "aria-label": "Free times", "aria-live": "polite" });

  /** @returns {Wanted} */
  const wanted = () => {
    const start = wallOf(from.value);
    const chosen = boxes.map((box) => /** @type {HTMLInputElement} */ (box.querySelector("input"))).filter(({ checked }) => checked);
    return {
      resources: [...new Set([...chosen.map(({ value }) => value), ...(other.value.trim() ? [other.value.trim()] : [])])],
      all: all.checked,
      minutes: Number(minutes.value),
      step: Number(step.value),
      hours: hours.value.trim(),
      from: session.zone.instant(start),
      to: session.zone.instant(start + Number(days.value) * DAY),
    };
  };
  /** @type {Wanted | null} */
  let last = null;
  const find = (/** @type {Wanted} */ what) => {
    last = what;
    return fill(results, () => read(app, what));
  };
  const form = h(
    "form",
    {
      class: "form",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        const what = wanted();
        if (what.resources.length === 0) results.replaceChildren(h("p", { class: "muted" }, "Choose a resource."));
        else void find(what);
      },
    },
    h("fieldset", {}, h("legend", {}, "Resources"), h("div", { class: "choices", tabIndex: 0, role: "group", "aria-label": "Resources" }, ...boxes),
      calendar.rows.length > CHOICES && h("p", { class: "muted" }, `These are the first ${CHOICES}. Filter the calendar, and open this panel again.`)),
    h("label", {}, "Another resource", other),
    h("label", { class: "check" }, all, "All of them at once"),
    h("div", { class: "row" }, h("label", {}, "Minutes", minutes), h("label", {}, "Every", step)),
    h("div", { class: "row" }, h("label", {}, "From", from), h("label", {}, "Days", days)),
    h("label", {}, "Only in opening hours", hours),
    h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Find free times")),
  );
  element.append(form, results);

  // What somebody books meanwhile is not free any more.
  let timer = 0;
  const again = () => {
    clearTimeout(timer);
    timer = setTimeout(() => last && !results.contains(document.activeElement) && void find(last), 400);
  };
  const leave = () => {
    last = null;
    results.replaceChildren();
    calendar.offer([]);
  };
  const changed = (/** @type {Event} */ event) => {
    const names = /** @type {CustomEvent<Set<string>>} */ (event).detail;
    if (names.has("organization")) leave();
    else if (names.has("zone")) again();
  };
  app.store.addEventListener("changed", again);
  session.addEventListener("change", changed);
  return () => {
    clearTimeout(timer);
    app.store.removeEventListener("changed", again);
    session.removeEventListener("change", changed);
    app.takeOffer = undefined;
    calendar.offer([]);
  };
}

/**
 * Ask for free times, show them in the timeline too, and return their buttons.
 * @param {App} app
 * @param {Wanted} wanted
 */
async function read(app, wanted) {
  const { api, calendar, session } = app;
  const duration = wanted.minutes * MINUTE;
  const answer = await api.json("GET", "availability", {
    query: {
      resourceId: wanted.resources,
      from: instantText(wanted.from),
      to: instantText(wanted.to),
      match: wanted.all ? "ALL" : "EACH",
      duration: `${wanted.minutes * 60}s`,
      granularity: `${wanted.step * 60}s`,
      timeZone: session.shown.zone,
      ...(wanted.hours && { openingHours: wanted.hours }),
    },
  });
  /** @type {(Place & {resources: string[]})[]} */
  const ranges = [];
  const groups = [];
  let left = SHOWN;
  let more = answer.moreStarts;
  for (const { resourceId, free, starts } of answer.resources) {
    const resources = resourceId === undefined ? wanted.resources : [resourceId];
    for (const { start, end } of free) {
      for (const resource of resources) ranges.push({ resource, resources, start: Date.parse(start), end: Date.parse(end) });
    }
    const places = starts.slice(0, left).map((/** @type {string} */ start) => placeOf(resources, Date.parse(start), duration));
    left -= places.length;
    more ||= places.length < starts.length;
    groups.push(group(app, resources, places, answer.resources.length > 1));
  }
  calendar.offer(ranges);
  app.takeOffer = (offer) => {
    const { resources = [offer.resource] } = offer;
    begin(app, placeOf(resources, offer.start, duration));
  };
  return [...groups, more && h("p", { class: "muted" }, "There are more. Search fewer days or resources.")];
}

/**
 * @param {App} app
 * @param {string[]} resources
 * @param {(Place & {resources: string[]})[]} places
 * @param {boolean} named whether to say whose times these are
 */
function group(app, resources, places, named) {
  const { zone } = app.session;
  /** @type {Map<string, typeof places>} */
  const days = new Map();
  for (const place of places) {
    const day = longDay(zone.wall(place.start));
    days.set(day, [...(days.get(day) ?? []), place]);
  }
  const name = resources.map(resourceName).join(", ");
  return h(
    "section",
    { class: "free" },
    named && h("h3", {}, name),
    places.length === 0 && h("p", { class: "muted" }, "Nothing is free."),
    ...[...days].flatMap(([day, each]) => [
      h("h4", {}, day),
      h(
        "div",
        { class: "slots" },
        ...each.map((place) =>
          h(
            "button",
            { type: "button", class: "slot", "aria-label": `Book ${rangeText(zone, place.start, place.end)}, ${name}`, onclick: () => begin(app, place) },
            clock(zone.wall(place.start)),
          ),
        ),
      ),
    ]),
  );
}

/**
 * Show the day, and the form for a new appointment there.
 * @param {App} app
 * @param {Place & {resources: string[]}} place
 */
function begin({ session, bookings }, place) {
  const { from, to } = session.range;
  if (place.start < from || place.start >= to) session.show({ date: wallText(session.zone.wall(place.start)).slice(0, 10) });
  bookings.begin(place);
}

/**
 * @param {string[]} resources
 * @param {number} start
 * @param {number} duration
 */
function placeOf(resources, start, duration) {
  return { resource: resources[0], resources, start, end: start + duration };
}
