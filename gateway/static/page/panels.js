/**
 * The panels at the side: each is a module with an object `{ id, label, open(element, app) }`.
 *
 * `open` fills an empty element and may return a function that is called when the panel is closed, or
 * when another one is opened. `app` is what main.js makes: api, session, store, stream, calendar, bookings.
 */

import { byId, h } from "./dom.js";
import { freeTimes } from "./free-times.js";
import { operations } from "./operations.js";
import { historyAction, timeTravel } from "./time-travel.js";
import { webhooks } from "./webhooks.js";

/**
 * @typedef {import("./main.js").App} App
 * @typedef {object} Panel
 * @property {string} id
 * @property {string} label
 * @property {(element: HTMLElement, app: App) => void | (() => void)} open
 */

/** In the order of their buttons. @type {Panel[]} */
export const PANELS = [timeTravel, freeTimes, webhooks, operations];

/** What can be done with an appointment besides what its card offers. @type {{label: string, run: (appointment: import("./api.js").Appointment, app: App) => void}[]} */
export const ACTIONS = [historyAction];

export class Side {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    /** @type {Panel | null} */
    this.panel = null;
    /** @type {void | (() => void)} */
    this.leave = undefined;
    /** What had the focus before. @type {Element | null} */
    this.opener = null;
    const buttons = PANELS.map((panel) =>
      h("button", { type: "button", id: `panel-${panel.id}`, "aria-pressed": "false", onclick: () => this.toggle(panel) }, panel.label),
    );
    byId("panels").append(...buttons);
    byId("side-close").addEventListener("click", () => this.close());
    byId("side").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") this.close();
    });
  }

  /** @param {Panel} panel */
  toggle(panel) {
    if (this.panel?.id === panel.id) this.close();
    else this.open(panel);
  }

  /**
   * Open a panel; it needs no button.
   * @param {Panel} panel
   */
  open(panel) {
    const { activeElement } = document;
    if (!byId("side").contains(activeElement)) this.opener = activeElement;
    this.#end();
    this.panel = panel;
    const title = byId("side-title");
    title.textContent = panel.label;
    byId("side").hidden = false;
    this.#press(true);
    this.leave = panel.open(byId("panel"), this.app);
    byId("side").scrollTop = 0;
    title.focus({ preventScroll: true });
  }

  /** Close the panel; the focus returns to its button, or to where it was. */
  close() {
    const id = this.panel?.id;
    this.#end();
    const to = document.getElementById(`panel-${id}`) ?? this.opener;
    if (to instanceof HTMLElement && to.isConnected) to.focus({ preventScroll: true });
  }

  #end() {
    if (!this.panel) return;
    this.leave?.();
    this.leave = undefined;
    this.#press(false);
    this.panel = null;
    byId("panel").replaceChildren();
    byId("side").hidden = true;
  }

  /** @param {boolean} pressed */
  #press(pressed) {
    document.getElementById(`panel-${this.panel?.id}`)?.setAttribute("aria-pressed", String(pressed));
  }
}
