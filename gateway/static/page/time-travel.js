/** Time travel: the calendar as it was after any revision, or at any time, and what has changed since then. */

import { Problem } from "./api.js";
import { closeCard } from "./card.js";
import { h } from "./dom.js";
import { changeText, showHistory } from "./history.js";
import { fill, isAborted, refusal } from "./panel-content.js";
import { compare, KINDS, lookElsewhere, readChange, readRange, revisionAt, sceneOf } from "./past.js";
import { resourcesOf } from "./store.js";
import { momentText, rangeText, resourceName } from "./times.js";
import { wallOf, wallText } from "./zones.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./past.js").Difference} Difference */

const SHOWN = 200; // differences of one kind in the list
const FOLLOW = 1000; // milliseconds between looks for a later revision
const AGAIN = 3000; // milliseconds between comparisons with now

/** @type {import("./panels.js").Panel} */
export const timeTravel = { id: "time-travel", label: "Time travel", open: (element, app) => open(element, app) };

/**
 * Open the panel at a revision.
 * @param {App} app
 * @param {string} revision
 */
function travelTo(app, revision) {
  app.side.open({ ...timeTravel, open: (element) => open(element, app, revision) });
}

/**
 * Open the history of an appointment, which leads to the calendar of each of its revisions.
 * @param {App} app
 * @param {{id: string, title: string}} appointment
 */
export function openHistory(app, appointment) {
  closeCard();
  const travel = (/** @type {string} */ revision) => travelTo(app, revision);
  app.side.open({ id: "history", label: "History", open: (element) => showHistory(element, app, appointment, travel) });
}

/** For the card of an appointment. @type {{label: string, run: (appointment: import("./api.js").Appointment, app: App) => void}} */
export const historyAction = { label: "History", run: (appointment, app) => openHistory(app, appointment) };

/**
 * @param {HTMLElement} element
 * @param {App} app
 * @param {string} [revision] the latest if absent
 */
function open(element, app, revision) {
  const journey = new Journey(app, element);
  if (revision !== undefined) void journey.go(revision);
  return () => journey.end();
}

class Journey {
  /**
   * @param {App} app
   * @param {HTMLElement} element
   */
  constructor(app, element) {
    this.app = app;
    /** The revision that is shown; null: now, live. @type {string | null} */
    this.at = null;
    this.loading = new AbortController();
    this.organization = app.session.shown.organization;
    /** When what is shown was compared with now. */
    this.compared = Infinity;
    /** The instant at which the timeline begins. */
    this.drawn = app.session.range.from;
    /** @type {{from: number, to: number, revision: string, appointments: Map<string, import("./api.js").Appointment>} | null} */
    this.now = null;
    this.slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Revision" });
    this.revision = h("input", { type: "number", min: "0", step: "1", name: "revision" });
    this.time = h("input", { type: "datetime-local", step: "1", name: "time" });
    this.slider.addEventListener("input", () => void this.go(this.slider.value));
    this.revision.addEventListener("change", () => void this.go(this.#within(this.revision.value)));
    this.time.addEventListener("change", () => void this.#goToTime(wallOf(this.time.value)));
    const step = (/** @type {number} */ by) => void this.go(this.#within(String(Number(this.slider.value) + by)));
    this.earlier = h("button", { type: "button", class: "icon", "aria-label": "One change earlier", onclick: () => step(-1) }, "‹");
    this.later = h("button", { type: "button", class: "icon", "aria-label": "One change later", onclick: () => step(1) }, "›");
    this.last = h("span", {});
    this.back = h("button", { type: "button", onclick: () => this.#showNow() }, "Back to now");
    this.what = h("div", { class: "happened", role: "status" });
    this.since = h("section", { class: "since", "aria-label": "Differences to now" });
    element.append(
      h("div", { class: "slider" }, this.earlier, this.slider, this.later),
      h(
        "div",
        { class: "form row-form" },
        h("label", {}, h("span", {}, "Revision,", this.last), this.revision),
        h("label", {}, "At a time", this.time),
      ),
      this.what,
      this.since,
      h("div", { class: "actions" }, this.back),
    );
    this.timer = setInterval(() => this.#followLatest(), FOLLOW);
    this.follow = () => this.#again();
    app.session.addEventListener("change", this.follow);
    this.#followLatest();
    this.#showNow();
  }

  /** Return the latest revision that is known. */
  get latest() {
    const { store, stream } = this.app;
    return BigInt(stream.revision) > BigInt(store.revision) ? stream.revision : store.revision;
  }

  /** @param {string} text */
  #within(text) {
    const wanted = Math.min(Math.max(Math.trunc(Number(text)) || 0, 0), Number(this.latest));
    return String(wanted);
  }

  #followLatest() {
    const { latest } = this;
    if (this.slider.max !== latest) {
      this.slider.max = this.revision.max = latest;
      this.last.textContent = ` of ${Number(latest).toLocaleString()}`;
      if (this.at === null) this.#place(latest);
    }
    // Not at once: with many changes, nothing else would be read.
    if (this.at !== null && this.now?.revision !== latest && Date.now() - this.compared > AGAIN) void this.go(this.at);
    this.later.disabled = this.slider.value === latest;
    this.earlier.disabled = this.slider.value === "0";
  }

  /** @param {string} revision */
  #place(revision) {
    this.slider.value = revision;
    if (document.activeElement !== this.revision || this.at !== null) this.revision.value = revision;
    this.earlier.disabled = revision === "0";
    this.later.disabled = revision === this.latest;
  }

  /** Show the calendar as it is, live. */
  #showNow() {
    this.loading.abort();
    this.at = null;
    const { app } = this;
    this.#place(this.latest);
    this.slider.setAttribute("aria-valuetext", "Now");
    this.time.value = "";
    this.back.hidden = true;
    this.what.replaceChildren(h("p", { class: "muted" }, "This is now. Move the slider, or give a time, to see the calendar as it was."));
    this.since.replaceChildren();
    app.setBanner("");
    if (app.calendar.scene !== app.store) app.calendar.show(app.store);
  }

  /**
   * Show the calendar after a revision.
   * @param {string} revision
   */
  async go(revision) {
    if (revision === this.latest) {
      this.#showNow();
      return;
    }
    this.loading.abort();
    this.loading = new AbortController();
    const { signal } = this.loading;
    const { app } = this;
    this.at = revision;
    this.compared = Infinity;
    this.#place(revision);
    this.back.hidden = false;
    try {
      // People drag over many revisions: only where they stop is read.
      await paused(120, signal);
      const range = app.session.range;
      const [then, now, entry] = await Promise.all([
        readRange(app.api, range, revision, signal),
        this.#present(range, signal),
        readChange(app.api, revision, signal),
      ]);
      if (signal.aborted) return;
      const differences = compare(then, now);
      await lookElsewhere(app.api, differences, revision, signal);
      if (signal.aborted) return;
      app.calendar.show(sceneOf(then, now, differences));
      if (this.drawn !== range.from) {
        app.calendar.draw();
        app.calendar.scrollToStart();
      }
      this.drawn = range.from;
      this.compared = Date.now();
      this.#tell(revision, entry);
      this.since.replaceChildren(...this.#legend(differences));
    } catch (error) {
      if (isAborted(error) || signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      this.since.replaceChildren(refusal(error, () => void this.go(revision)));
    }
  }

  /** @param {number} wall */
  async #goToTime(wall) {
    if (Number.isNaN(wall)) return;
    this.loading.abort();
    this.loading = new AbortController();
    const { app } = this;
    await fill(this.what, async () => {
      const revision = await revisionAt(app.api, app.session.zone.instant(wall), this.loading.signal);
      void this.go(revision);
      return undefined;
    });
  }

  /**
   * Return the appointments of a range as they are now, read again only after a change.
   * @param {{from: number, to: number}} range
   * @param {AbortSignal} signal
   */
  async #present({ from, to }, signal) {
    const { latest } = this;
    if (!this.now || this.now.from !== from || this.now.to !== to || this.now.revision !== latest) {
      const appointments = await readRange(this.app.api, { from, to }, undefined, signal);
      this.now = { from, to, revision: latest, appointments };
    }
    return this.now.appointments;
  }

  /** Another range, zone or organization is shown. */
  #again() {
    const { organization } = this.app.session.shown;
    if (this.organization !== organization) {
      this.now = null;
      this.#showNow();
    } else if (this.at !== null) void this.go(this.at);
    this.organization = organization;
  }

  /**
   * Say what is shown, and what happened just before it.
   * @param {string} revision
   * @param {import("./api.js").Entry | undefined} entry
   */
  #tell(revision, entry) {
    const { zone } = this.app.session;
    if (!entry) {
      this.slider.setAttribute("aria-valuetext", "Before the first change");
      this.what.replaceChildren(h("p", {}, "Before the first change. Nothing was booked."));
      this.app.setBanner("You see the calendar before its first change. Nothing can be changed here.");
      return;
    }
    const when = momentText(zone, entry.recordedAt);
    this.slider.setAttribute("aria-valuetext", `Revision ${revision}, ${when}`);
    this.time.value = wallText(zone.wall(Date.parse(entry.recordedAt)));
    this.what.replaceChildren(
      h("p", { class: "muted" }, `${when}${entry.actor ? `, by ${entry.actor}` : ""}`),
      h("p", {}, changeText(entry)),
      h("button", { type: "button", class: "link", onclick: () => openHistory(this.app, entry.appointment) }, "History of this appointment"),
    );
    this.app.setBanner(`You see the calendar as it was after revision ${revision}, ${when}. Nothing can be changed here.`);
  }

  /**
   * Return the legend; each kind opens to its list.
   * @param {Map<string, Difference>} differences
   */
  #legend(differences) {
    const all = [...differences.values()];
    return [
      h("h3", {}, all.length > 0 ? "Differences to now" : "No difference to now in this view"),
      ...Object.entries(KINDS).map(([kind, { label, symbol }]) => {
        const found = all.filter((each) => each.kind === kind);
        const swatch = h("span", { class: `swatch since-${kind}`, "aria-hidden": "true" }, symbol);
        const head = [swatch, h("span", { class: "grow" }, label), h("span", { class: "count" }, found.length.toLocaleString())];
        if (found.length === 0) return h("div", { class: "legend none" }, ...head);
        return h(
          "details",
          { class: "legend", "data-kind": kind },
          h("summary", {}, ...head),
          h("ul", { class: "list" }, ...found.slice(0, SHOWN).map((each) => this.#item(each))),
          found.length > SHOWN && h("p", { class: "muted" }, `and ${(found.length - SHOWN).toLocaleString()} more`),
        );
      }),
    ];
  }

  /** @param {Difference} difference */
  #item({ then, now }) {
    const appointment = /** @type {import("./api.js").Appointment} */ (then ?? now);
    const { zone } = this.app.session;
    const place = (/** @type {import("./api.js").Appointment} */ each) =>
      `${rangeText(zone, each.start, each.end)}, ${resourcesOf(each).map(resourceName).join(", ")}`;
    const [before, after] = [then && place(then), now && place(now)];
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "item", onclick: () => openHistory(this.app, appointment) },
        h("strong", {}, appointment.title || appointment.id),
        h("span", {}, before === after || !before || !after ? (before ?? after ?? "") : `${before} → ${after}`),
      ),
    );
  }

  /** Return to now. */
  end() {
    clearInterval(this.timer);
    this.app.session.removeEventListener("change", this.follow);
    this.#showNow();
  }
}

/**
 * Wait; rejected as an aborted request is.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 */
function paused(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
