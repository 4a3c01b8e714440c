/**
 * What the library leaves out of what it draws: roles and names for screen readers, the keyboard, and the time at what
 * is dragged.
 */

import { compare, eventId, resourceOf, rowId } from "./calendar-events.js";
import { snapped } from "./calendar-gestures.js";
import { h } from "./dom.js";
import { clock } from "./times.js";
import { wallOf } from "./zones.js";

/** @typedef {import("./calendar.js").Calendar} Calendar */
/** @typedef {import("./calendar-events.js").TimelineEvent} TimelineEvent */

const MANY = 400; // elements that do no harm
const LOWEST = 34; // pixels: the height of an event

/** One event can be reached with Tab; the arrow keys lead to the others. */
export class Elements {
  /** @param {Calendar} calendar */
  constructor(calendar) {
    this.calendar = calendar;
    /** The id of the event that Tab leads to. */
    this.current = "";
    /** The id of the event that is to have the focus once it is drawn. */
    this.awaited = "";
    new MutationObserver((records) => this.#complete(records)).observe(calendar.element, {
      childList: true,
      subtree: true,
    });
    calendar.element.addEventListener("focusin", ({ target }) => {
      if (!(target instanceof HTMLElement) || !target.dataset.event) return;
      if (target.dataset.event !== this.awaited) this.awaited = ""; // its user went elsewhere
      this.#select(target);
    });
  }

  /**
   * Remove what has left the screen. The library does so only where it also waits before it draws what comes.
   * @param {number} margin pixels around the screen that stay
   */
  sweep(margin) {
    const { elements } = this.calendar.scheduler;
    if (elements.events.length < MANY) return;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.calendar.scroller;
    elements.events = elements.events.filter((/** @type {any} */ element) => {
      const { part } = element.event;
      const top = parseFloat(element.style.top);
      const isNear =
        part.left < scrollLeft + clientWidth + margin &&
        part.right > scrollLeft - margin &&
        top < scrollTop + clientHeight + margin &&
        top > scrollTop - margin - LOWEST;
      if (isNear || element.contains(document.activeElement)) return true;
      element.event.rendered = null;
      element.event = null;
      element.remove();
      return false;
    });
  }

  /** @param {MutationRecord[]} records */
  #complete(records) {
    for (const { addedNodes } of records) {
      for (const node of addedNodes) {
        if (!(node instanceof HTMLElement)) continue;
        if (node.classList.contains("apt_event")) this.#completeEvent(node);
        else if (node.classList.contains("apt_shadow")) this.#showTimes(node);
        else if (node.firstElementChild?.classList.contains("apt_rowheader")) node.removeAttribute("aria-label");
      }
    }
    // The one that Tab led to may be gone.
    const { element } = this.calendar;
    if (!element.querySelector('.apt_event[tabindex="0"]')) {
      const first = element.querySelector(".apt_event");
      if (first instanceof HTMLElement) this.#select(first);
    }
  }

  /** @param {HTMLElement} element */
  #completeEvent(element) {
    /** @type {TimelineEvent | undefined} */
    const event = Reflect.get(element, "event")?.data;
    if (!event) return; // removed already
    element.setAttribute("role", "button");
    element.dataset.event = event.id;
    if (event.appointment) element.dataset.id = event.appointment.id;
    element.title = event.ariaLabel;
    this.current ||= event.id;
    element.tabIndex = event.id === this.current ? 0 : -1;
  }

  /** @param {HTMLElement} shadow */
  #showTimes(shadow) {
    const label = h("span", { class: "apt_drag_label" });
    const write = () => {
      const { start, pixelTime, step } = this.calendar;
      const left = start + parseFloat(shadow.style.left) * pixelTime;
      const right = left + parseFloat(shadow.style.width) * pixelTime;
      const text = `${clock(snapped(left, step))}–${clock(snapped(right, step))}`;
      if (label.textContent !== text) label.textContent = text;
    };
    new MutationObserver(write).observe(shadow, { attributes: true, attributeFilter: ["style"] });
    shadow.append(label);
    write();
  }

  /** Whether the event that Tab leads to has the focus. */
  get hasFocus() {
    const { activeElement } = document;
    return activeElement instanceof HTMLElement && activeElement.dataset.event === this.current;
  }

  /**
   * Return the element of an event, if it is drawn.
   * @param {string} id
   * @returns {HTMLElement | null}
   */
  find(id) {
    return this.calendar.element.querySelector(`.apt_event[data-event="${CSS.escape(id)}"]`);
  }

  /** @param {HTMLElement} element */
  #select(element) {
    this.find(this.current)?.setAttribute("tabindex", "-1");
    this.current = element.dataset.event ?? "";
    element.tabIndex = 0;
  }

  /**
   * Focus an event, and scroll to it.
   * @param {string} id
   */
  focus(id) {
    const event = this.#event(id);
    if (!event) return;
    this.calendar.scrollTo(event.resource, wallOf(event.start));
    this.find(id)?.focus({ preventScroll: true });
  }

  /**
   * @param {string} id
   * @returns {TimelineEvent | undefined}
   */
  #event(id) {
    return this.calendar.scheduler.events.find(id)?.data;
  }

  /**
   * Handle a key; return whether it meant something.
   * @param {KeyboardEvent} pressed
   */
  handleKey({ target, key }) {
    if (!(target instanceof HTMLElement) || !target.dataset.event) return false;
    const event = this.#event(target.dataset.event);
    if (!event) return false;
    if (key === "Enter" || key === " ") {
      this.calendar.open(event);
      return true;
    }
    const next = this.#neighbour(event, key);
    if (next) this.focus(next.id);
    return next !== undefined;
  }

  /**
   * Return the next event in a direction: of the same row, or of the nearest row with events.
   * @param {TimelineEvent} event
   * @param {string} key
   * @returns {TimelineEvent | undefined}
   */
  #neighbour(event, key) {
    /** @type {TimelineEvent[]} */
    const all = this.calendar.scheduler.events.list;
    if (["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) {
      const row = all.filter(({ resource }) => resource === event.resource).sort((a, b) => compare(a.start, b.start));
      const index = row.findIndex(({ id }) => id === event.id);
      if (key === "Home" || key === "End") return row.at(key === "Home" ? 0 : -1);
      return row[index + (key === "ArrowLeft" ? -1 : 1)] ?? event;
    }
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const { rows } = this.calendar;
    const step = key === "ArrowUp" ? -1 : 1;
    const distance = (/** @type {TimelineEvent} */ { start }) => Math.abs(wallOf(start) - wallOf(event.start));
    for (let row = rows.indexOf(resourceOf(event.resource)) + step; row >= 0 && row < rows.length; row += step) {
      const there = all.filter(({ resource }) => resource === rowId(rows[row]));
      if (there.length > 0) return there.reduce((one, other) => (distance(other) < distance(one) ? other : one));
    }
    return event;
  }

  /**
   * Focus an appointment, now or when it has been drawn.
   * @param {import("./api.js").Appointment} appointment
   */
  focusAppointment({ id, resourceId }) {
    this.awaited = eventId(id, resourceId);
    this.focus(this.awaited);
  }

  /**
   * Bring the focus to where it belongs after a drawing.
   * @param {boolean} focused whether an event had the focus before
   */
  restore(focused) {
    const id = this.awaited || (focused ? this.current : "");
    this.awaited = "";
    if (id) this.focus(id);
  }
}
