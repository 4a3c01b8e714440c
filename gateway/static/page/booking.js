/**
 * What people do with appointments: book, hold, confirm, move, change, cancel.
 *
 * Every write names the version that its user saw (`If-Match`). What the service refuses is shown
 * where it is: what is in the way and free places instead, or what somebody else has changed meanwhile.
 */

import { appointmentPath, ifMatch, Problem } from "./api.js";
import { closeCard } from "./card.js";
import { showConflict } from "./conflict-card.js";
import { showDetails } from "./details-card.js";
import { tell } from "./messages.js";
import { showNew } from "./new-card.js";
import { showRival } from "./rival-card.js";
import { instantText, occupies, resourcesOf } from "./store.js";
import { rangeText, resourceName } from "./times.js";

/** @typedef {import("./api.js").Appointment} Appointment */
/** @typedef {import("./calendar.js").Place} Place */
/** @typedef {{start?: string, end?: string, title?: string | null, resourceId?: string | null, additionalResourceIds?: string[] | null, holdUntil?: string | null}} Patch */
/** @typedef {{resourceId: string, additionalResourceIds: string[], start: string, end: string, title: string, holdUntil?: string}} Wanted */

const SUGGESTED = 3;

export class Bookings {
  /** @param {import("./main.js").App} app */
  constructor(app) {
    this.app = app;
  }

  // Cards

  /**
   * Show an appointment.
   * @param {Appointment} appointment
   */
  open(appointment) {
    showDetails(this.app, appointment);
  }

  /**
   * Ask for what is to be booked at a place.
   * @param {Place} place
   */
  begin(place) {
    showNew(this.app, place);
  }

  // Writes

  /**
   * Book or hold. A conflict is shown.
   * @param {Wanted} wanted
   * @returns {Promise<Appointment | undefined>} what is stored now
   */
  async create(wanted) {
    const organizationId = this.app.session.shown.organization;
    const place = placeOf(wanted);
    try {
      const made = await this.app.api.write("POST", "appointments", {
        query: { suggest: SUGGESTED, organizationId: undefined },
        body: { organizationId, ...wanted },
      });
      closeCard({ refocus: false });
      this.#wrote(made, `${made.state === "HELD" ? "Held" : "Booked"} ${this.#text(made)}`);
      return made;
    } catch (error) {
      if (!(error instanceof Problem && error.code === "TIME_RANGE_CONFLICT")) return this.#refused(error);
      const retry = (/** @type {Place} */ to) => this.create({ ...wanted, ...at(to) });
      showConflict(this.app, { problem: error, place, what: wanted.title || "The new appointment", retry });
      return undefined;
    }
  }

  /**
   * Change fields of an appointment, if it is as its user saw it.
   * @param {Appointment} seen
   * @param {Patch} patch
   * @param {string} [done] what to say then
   * @returns {Promise<Appointment | undefined>}
   */
  async change(seen, patch, done = "Changed") {
    if (Object.keys(patch).length === 0) return seen;
    const { api, store, calendar } = this.app;
    const wanted = { ...seen, ...patch, title: patch.title ?? (patch.title === null ? "" : seen.title) };
    this.#showWanted(seen, wanted);
    try {
      const changed = await api.write("PATCH", appointmentPath(seen.id), { headers: ifMatch(seen), body: patch });
      closeCard({ refocus: false });
      this.#wrote(changed, `${done} ${this.#text(changed)}`);
      return changed;
    } catch (error) {
      const current = store.appointments.get(seen.id);
      calendar.change(/** @type {Appointment} */ (wanted), current);
      if (!(error instanceof Problem)) throw error;
      if (error.code === "TIME_RANGE_CONFLICT") {
        const alternatives = await this.#alternatives(seen, patch);
        const retry = (/** @type {Place} */ to) => {
          const same = to.resource === wanted.resourceId;
          return this.change(seen, { ...patch, ...at(to), ...(same ? {} : { resourceId: to.resource }) }, done);
        };
        showConflict(this.app, {
          problem: Object.assign(error, { alternatives }),
          place: placeOf(/** @type {Wanted} */ (wanted)),
          what: seen.title || seen.id,
          retry,
        });
      } else if (error.code === "ETAG_MISMATCH") await this.#rival(seen, patch, done);
      else this.#refused(error);
      return undefined;
    }
  }

  /**
   * @param {Appointment} seen
   */
  async cancel(seen) {
    return this.#simple(seen, "DELETE", "", "Cancelled");
  }

  /**
   * Make a hold firm.
   * @param {Appointment} seen
   */
  async confirm(seen) {
    return this.#simple(seen, "POST", ":confirm", "Confirmed");
  }

  /**
   * @param {Appointment} seen
   * @param {string} method
   * @param {string} verb
   * @param {string} done
   */
  async #simple(seen, method, verb, done) {
    try {
      const written = await this.app.api.write(method, appointmentPath(seen.id, verb), { headers: ifMatch(seen) });
      closeCard({ refocus: false });
      this.#wrote(written, `${done} ${this.#text(seen)}`);
    } catch (error) {
      if (error instanceof Problem && error.code === "ETAG_MISMATCH") await this.#rival(seen, null, done);
      else this.#refused(error);
    }
  }

  // Drags

  /**
   * @param {Appointment} appointment
   * @param {string} from the row
   * @param {Place} to
   */
  async move(appointment, from, to) {
    /** @type {Patch} */
    const patch = {};
    if (to.start !== Date.parse(appointment.start)) Object.assign(patch, at(to));
    if (to.resource !== from) {
      const resources = resourcesOf(appointment);
      if (resources.includes(to.resource)) {
        tell(`It occupies ${resourceName(to.resource)} already.`, { bad: true });
        return;
      }
      const [first, ...others] = resources.map((name) => (name === from ? to.resource : name));
      if (first !== appointment.resourceId) patch.resourceId = first;
      else patch.additionalResourceIds = others;
    }
    await this.change(appointment, patch, "Moved");
  }

  /**
   * @param {Appointment} appointment
   * @param {number} start
   * @param {number} end
   */
  async resize(appointment, start, end) {
    /** @type {Patch} */
    const patch = {};
    if (start !== Date.parse(appointment.start)) patch.start = instantText(start);
    if (end !== Date.parse(appointment.end)) patch.end = instantText(end);
    await this.change(appointment, patch, "Changed");
  }

  // Refusals

  /**
   * Ask for free ranges instead, by a dry run: a patch names none.
   * @param {Appointment} seen
   * @param {Patch} patch
   * @returns {Promise<import("./api.js").Range[]>}
   */
  async #alternatives(seen, patch) {
    const { etag, holdUntil, updatedAt, createdAt, ...content } = seen;
    const body = { ...content, ...(seen.state === "HELD" && { holdUntil }), ...patch };
    try {
      await this.app.api.json("PUT", appointmentPath(seen.id), {
        query: { suggest: SUGGESTED, validateOnly: true },
        body,
      });
    } catch (error) {
      if (error instanceof Problem) return error.alternatives;
    }
    return [];
  }

  /**
   * Show what somebody else changed before a write of ours.
   * @param {Appointment} seen
   * @param {Patch | null} patch what was to be changed; null for something else
   * @param {string} done
   */
  async #rival(seen, patch, done) {
    try {
      const current = await this.app.api.json("GET", appointmentPath(seen.id));
      this.app.store.apply(current);
      showRival(this.app, { seen, current, patch, done });
    } catch (error) {
      this.#refused(error);
    }
  }

  /** @param {unknown} error */
  #refused(error) {
    if (!(error instanceof Problem)) throw error;
    tell(error.text, { bad: true });
    return undefined;
  }

  /**
   * @param {Appointment} written
   * @param {string} text
   */
  #wrote(written, text) {
    this.app.calendar.clearSelection();
    this.app.store.apply(written);
    if (occupies(written)) this.app.calendar.reveal(written);
    tell(text);
  }

  /**
   * Show a change where it will be, until the response comes.
   * @param {Appointment} seen
   * @param {any} wanted
   */
  #showWanted(seen, wanted) {
    this.app.calendar.change(this.app.store.appointments.get(seen.id) ?? seen, wanted, "saving");
  }

  /** @param {Appointment} appointment */
  #text({ title, id, start, end }) {
    return `“${title || id}”, ${rangeText(this.app.session.zone, start, end)}`;
  }
}

/** @param {Place} place */
function at({ start, end }) {
  return { start: instantText(start), end: instantText(end) };
}

/**
 * @param {{resourceId: string, start: string, end: string}} wanted
 * @returns {Place}
 */
function placeOf({ resourceId, start, end }) {
  return { resource: resourceId, start: Date.parse(start), end: Date.parse(end) };
}
