/** Times as people read them, in the zone and the language of the page. */

import { wallText } from "./zones.js";

const MINUTE = 60_000;
const formats = new Map();

/**
 * Format a wall time.
 * @param {number} wall
 * @param {Intl.DateTimeFormatOptions} options
 */
function formatted(wall, options) {
  const key = JSON.stringify(options);
  let format = formats.get(key);
  if (!format) {
    format = new Intl.DateTimeFormat(undefined, { ...options, timeZone: "UTC" });
    formats.set(key, format);
  }
  return format.format(wall);
}

/** @param {number} wall */
export function clock(wall) {
  return wallText(wall).slice(11, 16);
}

/** @param {number} wall */
export function dayName(wall) {
  return formatted(wall, { weekday: "short", day: "numeric", month: "short" });
}

/** @param {number} wall */
export function longDay(wall) {
  return formatted(wall, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
}

/**
 * @param {number} start
 * @param {number} end the last day, as a wall time
 */
export function days(start, end) {
  const options = /** @type {const} */ ({ day: "numeric", month: "short", year: "numeric" });
  return `${formatted(start, options)} – ${formatted(end, options)}`;
}

/**
 * Return a range as text: `Mon 7 Jan, 10:00–10:30`.
 * @param {import("./zones.js").Zone} zone
 * @param {string | number} start
 * @param {string | number} end
 */
export function rangeText(zone, start, end) {
  const [first, last] = [start, end].map((each) => zone.wall(instantOf(each)));
  const sameDay = wallText(first).slice(0, 10) === wallText(last).slice(0, 10);
  return `${dayName(first)}, ${clock(first)}–${sameDay ? "" : `${dayName(last)}, `}${clock(last)}`;
}

/**
 * Return an instant as text, to the second.
 * @param {import("./zones.js").Zone} zone
 * @param {string | number} instant
 */
export function momentText(zone, instant) {
  const wall = zone.wall(instantOf(instant));
  return `${dayName(wall)}, ${wallText(wall).slice(11)}`;
}

/** @param {string | number} time RFC 3339, or an instant */
export function instantOf(time) {
  return typeof time === "number" ? time : Date.parse(time);
}

/** @param {number} milliseconds */
export function durationText(milliseconds) {
  const minutes = Math.round(milliseconds / MINUTE);
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  return [hours && `${hours} h`, (minutes % 60 || !hours) && `${minutes % 60} min`].filter(Boolean).join(" ");
}

/**
 * Name a resource; the unnamed one has no name.
 * @param {string} resource
 */
export function resourceName(resource) {
  return resource || "(no resource)";
}
