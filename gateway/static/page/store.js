/**
 * The appointments of the range that is shown, kept as they are now.
 *
 * Lists and the stream of changes may overtake each other, so an appointment replaces another only
 * if its revision is later.
 */

export const MOST = 20_000;
/** Appointments that are read. More would not be readable, and would fill the memory. */

/** @typedef {import("./api.js").Appointment} Appointment */

/**
 * What a calendar shows. Others than the store can be shown too, such as the past.
 * @typedef {object} Scene
 * @property {Map<string, Appointment>} appointments what occupies, by id
 * @property {Map<string, string>} [marks] a class of the style sheet, by id
 * @property {Map<string, string>} [notes] what screen readers say of a mark, by id
 * @property {Appointment[]} [ghosts] shown beside them, but not there
 * @property {boolean} readOnly whether nothing can be changed here
 */

/**
 * Emits `loaded` when a range begins to be shown and with each page (`detail.first`, `detail.done`), and `changed`
 * for each change (`detail.before`, `detail.after`, `detail.entry` if others made it).
 * @implements {Scene}
 */
export class Store extends EventTarget {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.api = api;
    this.readOnly = false;
    /** @type {Map<string, Appointment>} */
    this.appointments = new Map();
    /** Revisions of those that are not shown any more. @type {Map<string, bigint>} */
    this.gone = new Map();
    this.range = { from: 0, to: 0 };
    this.revision = "0";
    this.complete = true;
    /** @type {AbortController | null} */
    this.loading = null;
  }

  /** Forget everything, for another organization. */
  clear() {
    this.loading?.abort();
    this.appointments = new Map();
    this.gone = new Map();
    this.revision = "0";
  }

  /**
   * Read a range. What was read before is shown until the first page is there.
   * @param {{from: number, to: number}} range as instants
   * @returns {Promise<boolean>} whether it was read to the end, and not replaced by another range
   */
  async load(range) {
    this.loading?.abort();
    const { signal } = (this.loading = new AbortController());
    this.range = range;
    /** @type {Set<string>} */
    const read = new Set();
    let first = true;
    const query = { from: instantText(range.from), to: instantText(range.to) };
    try {
      for await (const page of this.api.pages("appointments", { query, signal })) {
        if (signal.aborted) return false;
        if (first) {
          this.revision = page.revision;
          for (const [id, each] of this.appointments) if (!this.#isInRange(each)) this.appointments.delete(id);
        }
        for (const each of page.appointments) {
          read.add(each.id);
          this.#keep(each);
        }
        this.complete = !page.nextPageToken;
        const done = this.complete || read.size >= MOST;
        if (done) this.#forgetUnread(read);
        this.dispatchEvent(new CustomEvent("loaded", { detail: { first, done } }));
        first = false;
        if (done) break;
      }
      return true;
    } catch (error) {
      if (signal.aborted) return false;
      throw error;
    }
  }

  /**
   * Remove what the list did not contain, unless it is newer than the list.
   * @param {Set<string>} read
   */
  #forgetUnread(read) {
    const latest = BigInt(this.revision);
    for (const [id, each] of this.appointments) {
      if (!read.has(id) && BigInt(each.revision) <= latest) this.appointments.delete(id);
    }
  }

  /**
   * Apply a change that others made.
   * @param {import("./api.js").Entry} entry
   */
  follow(entry) {
    this.apply(entry.appointment, entry);
  }

  /**
   * Apply an appointment as a response or a change shows it.
   * @param {Appointment} appointment
   * @param {import("./api.js").Entry} [entry]
   */
  apply(appointment, entry) {
    const before = this.appointments.get(appointment.id);
    if (!this.#keep(appointment)) return;
    const after = this.appointments.get(appointment.id);
    if (before || after) this.dispatchEvent(new CustomEvent("changed", { detail: { before, after, entry } }));
  }

  /**
   * Store an appointment if it is newer than what is known, and return whether it was.
   * @param {Appointment} appointment
   */
  #keep(appointment) {
    const { id } = appointment;
    const revision = BigInt(appointment.revision);
    const known = this.appointments.get(id);
    const last = known ? BigInt(known.revision) : this.gone.get(id);
    // A hold expires before that is recorded, with the same revision.
    if (last !== undefined && (revision < last || (revision === last && known?.etag === appointment.etag))) return false;
    if (occupies(appointment) && this.#isInRange(appointment)) {
      this.appointments.set(id, appointment);
      this.gone.delete(id);
    } else {
      this.appointments.delete(id);
      this.gone.set(id, revision);
    }
    return true;
  }

  /** @param {Appointment} appointment */
  #isInRange({ start, end }) {
    return Date.parse(start) < this.range.to && Date.parse(end) > this.range.from;
  }
}

/** @param {Appointment} appointment */
export function occupies({ state }) {
  return state === "ACTIVE" || state === "HELD";
}

/**
 * Return all resources of an appointment.
 * @param {{resourceId: string, additionalResourceIds?: string[]}} appointment
 */
export function resourcesOf({ resourceId, additionalResourceIds = [] }) {
  return [resourceId, ...additionalResourceIds];
}

/** @param {number} instant */
export function instantText(instant) {
  return new Date(instant).toISOString();
}
