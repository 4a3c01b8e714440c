/**
 * What this page shows, and for whom.
 *
 * Organization, view, date, zone and filter are in the address behind `#`, so a view can be sent to others. The
 * credential never is: it is kept in sessionStorage, which ends with the tab.
 */

import { localZone, wallOf, wallText, Zone } from "./zones.js";

const CREDENTIAL = "appointments.credential";
const SETTINGS = "appointments.settings";
const DAY = 24 * 3600 * 1000;

/**
 * @typedef {object} Shown
 * @property {string} organization
 * @property {"day" | "week"} view
 * @property {string} date the day, or a day of the week, such as `2030-01-07`
 * @property {string} zone IANA name
 * @property {string} filter text in the names of the resources that are shown
 */

/** Emits `change`; its `detail` is the set of the names that changed. */
export class Session extends EventTarget {
  constructor() {
    super();
    const settings = stored();
    /** The name in the history, where access control is off. */
    this.actor = settings.actor ?? "";
    /** @type {string[]} organizations that were shown before */
    this.organizations = settings.organizations ?? [];
    /** @type {Shown} */
    this.shown = this.#read();
    this.zone = new Zone(this.shown.zone);
    addEventListener("hashchange", () => this.show(this.#read()));
    this.#write();
  }

  /** @returns {Shown} */
  #read() {
    const values = new URLSearchParams(location.hash.slice(1));
    const date = values.get("date") ?? "";
    const zone = validZone(values.get("zone")) ?? localZone();
    return {
      organization: values.get("organization") || this.organizations[0] || "default",
      view: values.get("view") === "week" ? "week" : "day",
      date: Number.isNaN(wallOf(date)) ? wallText(new Zone(zone).wall(Date.now())).slice(0, 10) : date,
      zone,
      filter: values.get("filter") ?? "",
    };
  }

  #write() {
    const values = new URLSearchParams();
    for (const [name, value] of Object.entries(this.shown)) if (value) values.set(name, value);
    if (`#${values}` !== location.hash) history.replaceState(null, "", `#${values}`);
  }

  /**
   * Show something else.
   * @param {Partial<Shown>} changes
   */
  show(changes) {
    const names = new Set(
      Object.keys(changes).filter((name) => Reflect.get(this.shown, name) !== Reflect.get(changes, name)),
    );
    if (names.size === 0) return;
    this.shown = { ...this.shown, ...changes };
    this.zone = new Zone(this.shown.zone);
    this.#write();
    this.dispatchEvent(new CustomEvent("change", { detail: names }));
  }

  /** Remember the organization: it exists and may be read. */
  remember() {
    const { organization } = this.shown;
    this.organizations = [organization, ...this.organizations.filter((name) => name !== organization)].slice(0, 10);
    this.#store();
  }

  /** @param {string} name */
  set name(name) {
    this.actor = name;
    this.#store();
  }

  #store() {
    localStorage.setItem(
      SETTINGS,
      JSON.stringify({ actor: this.actor, organizations: this.organizations }),
    );
  }

  /** The credential, or an empty text. */
  get credential() {
    return sessionStorage.getItem(CREDENTIAL) ?? "";
  }

  set credential(credential) {
    if (credential) sessionStorage.setItem(CREDENTIAL, credential);
    else sessionStorage.removeItem(CREDENTIAL);
  }

  /** The number of days that are shown. */
  get days() {
    return this.shown.view === "week" ? 7 : 1;
  }

  /** The wall time at which the range begins: midnight, of a Monday if a week is shown. */
  get startWall() {
    const day = wallOf(this.shown.date);
    return this.shown.view === "week" ? day - ((new Date(day).getUTCDay() + 6) % 7) * DAY : day;
  }

  /** The range that is shown, as instants. */
  get range() {
    const wall = this.startWall;
    return { from: this.zone.instant(wall), to: this.zone.instant(wall + this.days * DAY) };
  }
}

/** @param {string | null} name */
function validZone(name) {
  try {
    return name ? new Zone(name).name : undefined;
  } catch {
    return undefined;
  }
}

/** @returns {{actor?: string, organizations?: string[]}} */
function stored() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
  } catch {
    return {};
  }
}
