/**
 * Time zones: what a clock in a zone shows at an instant, and back.
 *
 * An instant is a number of milliseconds since 1970 (UTC). A wall time is the same kind of number, for
 * what the clock shows: 10:00 in any zone is the wall time of 10:00 UTC.
 */

const QUARTER = 15 * 60 * 1000; // no zone changes its offset within a quarter of an hour

export class Zone {
  /** @param {string} name of the IANA database; an unknown one is a RangeError */
  constructor(name) {
    this.name = name;
    this.format = new Intl.DateTimeFormat("en-US", {
      timeZone: name,
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
      era: "short",
    });
    /** @type {Map<number, number>} offsets by quarter of an hour: a format takes microseconds */
    this.offsets = new Map();
  }

  /**
   * Return the offset from UTC in milliseconds.
   * @param {number} instant
   */
  offset(instant) {
    const quarter = Math.floor(instant / QUARTER);
    let offset = this.offsets.get(quarter);
    if (offset === undefined) {
      offset = this.#computed(quarter * QUARTER);
      if (this.offsets.size > 100_000) this.offsets.clear();
      this.offsets.set(quarter, offset);
    }
    return offset;
  }

  /** @param {number} instant */
  #computed(instant) {
    /** @type {Record<string, string>} */
    const parts = {};
    for (const { type, value } of this.format.formatToParts(instant)) parts[type] = value;
    const year = parts.era === "BC" ? 1 - Number(parts.year) : Number(parts.year);
    const wall = new Date(0);
    wall.setUTCFullYear(year, Number(parts.month) - 1, Number(parts.day));
    wall.setUTCHours(Number(parts.hour), Number(parts.minute), Number(parts.second));
    return wall.getTime() - instant;
  }

  /**
   * Return the wall time of an instant.
   * @param {number} instant
   */
  wall(instant) {
    return instant + this.offset(instant);
  }

  /**
   * Return the instant of a wall time: the first of two if the clock shows it twice, and the one as
   * far after the change if the clock skips it.
   * @param {number} wall
   */
  instant(wall) {
    const before = this.offset(wall - 24 * 3600 * 1000);
    const after = this.offset(wall + 24 * 3600 * 1000);
    for (const offset of [before, after]) {
      if (this.offset(wall - offset) === offset) return wall - offset;
    }
    return wall - before;
  }
}

/**
 * Return the text of a wall time: `2030-01-07T10:00:00`.
 * @param {number} wall
 */
export function wallText(wall) {
  return new Date(wall).toISOString().slice(0, 19);
}

/**
 * Return the wall time of a text such as `2030-01-07T10:00` or `2030-01-07`, NaN if it is none.
 * @param {string} text
 */
export function wallOf(text) {
  return Date.parse(text.length === 10 ? `${text}T00:00Z` : `${text}Z`);
}

/** Return the names of all zones, those of the browser and UTC first. */
export function zoneNames() {
  const names = Intl.supportedValuesOf("timeZone");
  return [...new Set([localZone(), "UTC", ...names])];
}

/** Return the zone of the browser. */
export function localZone() {
  return Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
}
