/**
 * The events of the timeline: appointments as the library wants them, one in each row.
 *
 * The library takes no empty id and cannot tell the text 1 from the number 1, so its ids are made here.
 */

import { resourcesOf } from "./store.js";
import { rangeText, resourceName } from "./times.js";
import { wallText } from "./zones.js";

const MINUTE = 60_000;

/** @typedef {import("./api.js").Appointment} Appointment */
/** @typedef {import("./calendar.js").Place} Place */

/**
 * @typedef {object} TimelineEvent
 * @property {string} id
 * @property {string} resource the id of its row
 * @property {string} start wall time
 * @property {string} end
 * @property {string} text
 * @property {string} ariaLabel
 * @property {string} cssClass
 * @property {Appointment} [appointment]
 * @property {number} [others] the number of its other resources
 * @property {Place} [offer] what a click books
 * @property {boolean} [fixed] whether it can only be looked at
 */

/**
 * Return all events.
 * @param {import("./store.js").Scene} scene
 * @param {import("./zones.js").Zone} zone
 * @param {Map<string, string>} highlights
 * @param {Place[]} offers
 */
export function eventsOf(scene, zone, highlights, offers) {
  const events = [];
  for (const each of scene.appointments.values()) {
    const look = { name: nameOf(scene, highlights, each.id), note: scene.notes?.get(each.id) };
    for (const resource of resourcesOf(each)) events.push(eventOf(each, resource, zone, look));
  }
  for (const each of scene.ghosts ?? []) {
    const look = { name: `ghost ${scene.marks?.get(each.id) ?? ""}`, note: scene.notes?.get(each.id) };
    for (const resource of resourcesOf(each)) {
      const event = eventOf(each, resource, zone, look);
      events.push({ ...event, id: `ghost ${event.id}`, fixed: true });
    }
  }
  return [...events, ...offers.map((offer, index) => offerOf(offer, index, zone))];
}

/**
 * Return the class of an appointment.
 * @param {import("./store.js").Scene} scene
 * @param {Map<string, string>} highlights
 * @param {string} id
 */
export function nameOf(scene, highlights, id) {
  return [scene.marks?.get(id), highlights.get(id)].filter(Boolean).join(" ");
}

/**
 * @param {Appointment} appointment
 * @param {string} resource the row
 * @param {import("./zones.js").Zone} zone
 * @param {{name: string, note?: string}} look classes of the style sheet, and what screen readers say of them
 * @returns {TimelineEvent}
 */
export function eventOf(appointment, resource, zone, { name, note }) {
  const { id, title, start, end, state } = appointment;
  const [from, to] = [start, end].map((time) => zone.wall(Date.parse(time)));
  const others = resourcesOf(appointment).length - 1;
  const label = [
    title || id,
    rangeText(zone, start, end),
    resourceName(resource),
    others > 0 && `and ${others} more`,
    state !== "ACTIVE" && state.toLowerCase(),
    note,
  ];
  return {
    id: eventId(id, resource),
    resource: rowId(resource),
    start: wallText(from),
    // When the clock is set back, the end may show an earlier time than the start.
    end: wallText(Math.max(to, from + MINUTE)),
    text: title || id,
    ariaLabel: label.filter(Boolean).join(", "),
    cssClass: `${state.toLowerCase()} ${name}`,
    appointment,
    others,
  };
}

/**
 * @param {Place} offer
 * @param {number} index
 * @param {import("./zones.js").Zone} zone
 * @returns {TimelineEvent & {moveDisabled: boolean, resizeDisabled: boolean}}
 */
function offerOf(offer, index, zone) {
  const { resource, start, end } = offer;
  return {
    id: `offer ${index}`,
    resource: rowId(resource),
    start: wallText(zone.wall(start)),
    end: wallText(zone.wall(end)),
    text: "Free",
    ariaLabel: `Free: ${rangeText(zone, start, end)}. Book it here`,
    cssClass: "offer",
    offer,
    moveDisabled: true,
    resizeDisabled: true,
  };
}

/** @param {string} resource */
export function rowId(resource) {
  return `row ${resource}`;
}

/** @param {string} id of a row */
export function resourceOf(id) {
  return id.slice("row ".length);
}

/**
 * @param {string} id of an appointment
 * @param {string} resource
 */
export function eventId(id, resource) {
  return JSON.stringify([id, resource]);
}

const collator = new Intl.Collator(undefined, { numeric: true });

/**
 * Compare as people do: room 9 is before room 10.
 * @param {string} one
 * @param {string} other
 */
export function compare(one, other) {
  return collator.compare(one, other) || (one < other ? -1 : 1);
}
