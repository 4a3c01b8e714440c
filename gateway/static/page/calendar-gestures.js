/** Drags in the timeline as places: rounded to the step of the zoom, and converted to instants. */

import { resourceOf } from "./calendar-events.js";
import { wallOf } from "./zones.js";

const MINUTE = 60_000;
const CLICKED = 30 * MINUTE;

/** @typedef {import("./calendar.js").Calendar} Calendar */

/**
 * @param {Calendar} calendar
 * @param {any} args of the library
 */
export function moved({ session: { zone }, step, handlers }, { e, newStart, newResource }) {
  const { appointment, resource, fixed, start } = e.data;
  if (fixed || !appointment) return;
  const by = Math.round((newStart.getTime() - wallOf(start)) / step) * step;
  const from = Date.parse(appointment.start);
  const to = by === 0 ? from : instantNear(zone, wallOf(start) + by, from);
  if (to === from && newResource === resource) return;
  handlers.onMove(appointment, resourceOf(resource), {
    resource: resourceOf(newResource),
    start: to,
    end: to + Date.parse(appointment.end) - from,
  });
}

/**
 * @param {Calendar} calendar
 * @param {any} args of the library
 */
export function resized({ session: { zone }, step, handlers }, { e, newStart, newEnd, what }) {
  const { appointment, fixed } = e.data;
  if (fixed || !appointment) return;
  let [start, end] = [Date.parse(appointment.start), Date.parse(appointment.end)];
  if (what === "start") start = instantNear(zone, snapped(newStart.getTime(), step), start);
  else end = instantNear(zone, snapped(newEnd.getTime(), step), end);
  if (start < end) handlers.onResize(appointment, start, end);
}

/**
 * @param {Calendar} calendar
 * @param {any} args of the library
 */
export function selected({ session: { zone }, step, handlers }, { start, end, resource }) {
  const from = zone.instant(snapped(start.getTime(), step));
  const to = zone.instant(snapped(end.getTime(), step));
  handlers.onSelect({ resource: resourceOf(resource), start: from, end: to - from < step ? from + CLICKED : to });
}

/**
 * @param {number} wall
 * @param {number} step
 */
export function snapped(wall, step) {
  return Math.round(wall / step) * step;
}

/**
 * Return the instant of a wall time; of two, the one with the same offset as another instant.
 * @param {import("./zones.js").Zone} zone
 * @param {number} wall
 * @param {number} other
 */
function instantNear(zone, wall, other) {
  const same = wall - zone.offset(other);
  return zone.wall(same) === wall ? same : zone.instant(wall);
}
