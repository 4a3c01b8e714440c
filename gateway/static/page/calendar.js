/**
 * The timeline: resources as rows, time as columns, drawn by DayPilot Lite.
 *
 * DayPilot draws only what is on the screen. It knows one resource per event, so an appointment is an event in each of
 * its rows, and it knows wall times only, so times are converted here. What it would do after a drag is
 * prevented: the caller writes, and the calendar shows what was written.
 */

import { Elements } from "./calendar-elements.js";
import { compare, eventId, eventOf, eventsOf, nameOf, rowId } from "./calendar-events.js";
import { moved, resized, selected } from "./calendar-gestures.js";
import { beforeNextPicture, h } from "./dom.js";
import { resourcesOf } from "./store.js";
import { clock, dayName, longDay, resourceName } from "./times.js";
import { wallOf, wallText } from "./zones.js";

/** @typedef {import("./api.js").Appointment} Appointment */
/** @typedef {import("./store.js").Scene} Scene */

const { DayPilot } = /** @type {any} */ (globalThis);

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const ROW_HEIGHT = 34;
const HEADER_HEIGHT = 30;
const NARROW = 640;
const MARGIN = 150; // pixels around the screen that are drawn too
// Minutes that a column may have, and its least width in pixels.
const COLUMNS = [15, 30, 60, 120, 180, 240, 360, 720, 1440];
const LEAST_COLUMN = 46;
const LEAST_LABEL = 26;
const STEPS = [1, 5, 10, 15, 30, 60];
const LEAST_STEP = 4;

/**
 * @typedef {object} Place where something is to be, or is
 * @property {string} resource
 * @property {string[]} [resources] all of them, if there are several
 * @property {number} start instant
 * @property {number} end
 */

/**
 * @typedef {object} Handlers
 * @property {(appointment: Appointment) => void} onOpen
 * @property {(place: Place) => void} onSelect
 * @property {(appointment: Appointment, from: string, to: Place) => void} onMove
 * @property {(appointment: Appointment, start: number, end: number) => void} onResize
 * @property {(offer: Place) => void} onOffer
 */

export class Calendar {
  /**
   * @param {HTMLElement} element
   * @param {import("./session.js").Session} session
   * @param {Handlers} handlers
   */
  constructor(element, session, handlers) {
    this.element = element;
    this.session = session;
    this.handlers = handlers;
    /** @type {Scene} */
    this.scene = { appointments: new Map(), readOnly: true };
    /** Resources with a row even while nothing occupies them. @type {Set<string>} */
    this.resources = new Set();
    /** Classes of appointments for a moment, such as those in the way. @type {Map<string, string>} */
    this.highlights = new Map();
    /** Free places to click, after a conflict. @type {Place[]} */
    this.offers = [];
    this.zoom = 1;
    /** The names of the rows, in their order. @type {string[]} */
    this.rows = [];
    /** The wall time at the left. */
    this.start = session.startWall;
    /** Milliseconds in a pixel. */
    this.pixelTime = MINUTE;
    /** What times are rounded to when something is dragged. */
    this.step = MINUTE;
    this.height = 0;
    this.width = 0;
    this.now = h("div", { class: "apt_now" });
    this.redraw = beforeNextPicture(() => this.draw());
    this.scheduler = this.#scheduler();
    this.elements = new Elements(this);
    new ResizeObserver(() => this.#fit()).observe(/** @type {Element} */ (element.parentElement));
    setInterval(() => this.#showNow(), 15_000);
  }

  #scheduler() {
    const scheduler = new DayPilot.Scheduler(this.element, {
      theme: "apt",
      days: 1,
      eventHeight: ROW_HEIGHT,
      headerHeight: HEADER_HEIGHT,
      rowHeaderWidth: this.#rowHeaderWidth(),
      durationBarVisible: false,
      cellsMarkBusiness: false,
      floatingEvents: false,
      heightSpec: "Fixed",
      showToolTip: false,
      snapToGrid: false,
      useEventBoxes: "Never",
      scrollDelayEvents: 0,
      dynamicEventRenderingMargin: MARGIN,
      onScroll: () => this.elements?.sweep(MARGIN),
      timeHeaders: [{ groupBy: "Day" }, { groupBy: "Cell" }],
      onBeforeTimeHeaderRender: (/** @type {any} */ args) => {
        const wall = args.header.start.getTime();
        args.header.text = args.header.level > 0 ? clock(wall) : this.session.days > 1 ? dayName(wall) : longDay(wall);
        args.header.toolTip = "";
      },
      onBeforeEventDomAdd: (/** @type {any} */ args) => {
        args.element = this.#content(args.e.data);
      },
      onEventClick: (/** @type {any} */ args) => {
        args.preventDefault();
        this.open(args.e.data);
      },
      onEventMove: (/** @type {any} */ args) => {
        args.preventDefault();
        moved(this, args);
      },
      onEventResize: (/** @type {any} */ args) => {
        args.preventDefault();
        resized(this, args);
      },
      onTimeRangeSelect: (/** @type {any} */ args) => {
        args.preventDefault();
        selected(this, args);
      },
    });
    scheduler.init();
    return scheduler;
  }

  // What is shown

  /**
   * Show a scene: the store, or something else such as the past.
   * @param {Scene} scene
   */
  show(scene) {
    this.scene = scene;
    this.redraw();
  }

  /** Forget the rows, for another organization. */
  clear() {
    this.resources.clear();
    this.highlights.clear();
    this.offers = [];
  }

  /** Draw everything. */
  draw() {
    const { session, scene } = this;
    for (const each of scene.appointments.values()) for (const name of resourcesOf(each)) this.resources.add(name);
    for (const each of scene.ghosts ?? []) for (const name of resourcesOf(each)) this.resources.add(name);
    this.rows = [...this.resources].filter((name) => contains(resourceName(name), session.shown.filter)).sort(compare);
    this.start = session.startWall;
    const { minutes, width } = this.#columns();
    const scroll = [this.scheduler.getScrollX(), this.scheduler.getScrollY()];
    const focused = this.elements.hasFocus;
    this.scheduler.update({
      startDate: wallText(this.start),
      days: session.days,
      cellDuration: minutes,
      cellWidth: width,
      rowHeaderWidth: this.#rowHeaderWidth(),
      resources: this.rows.map((name) => ({ id: rowId(name), name: resourceName(name) })),
      events: eventsOf(scene, session.zone, this.highlights, this.offers),
      eventMoveHandling: scene.readOnly ? "Disabled" : "Update",
      eventResizeHandling: scene.readOnly ? "Disabled" : "Update",
      timeRangeSelectedHandling: scene.readOnly ? "Disabled" : "Enabled",
    });
    this.scheduler.setScroll(...scroll);
    this.element.classList.toggle("read-only", scene.readOnly);
    this.#fit();
    this.#showNow();
    this.elements.restore(focused);
    this.element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }

  /**
   * Draw a change of one appointment.
   * @param {Appointment | undefined} before
   * @param {Appointment | undefined} after
   * @param {string} [name] a class of the style sheet
   */
  change(before, after, name = "") {
    const named = after ? resourcesOf(after) : [];
    if (named.some((resource) => !this.resources.has(resource))) {
      this.redraw(); // another row
      return;
    }
    const focused = this.elements.hasFocus;
    const id = (after ?? before)?.id ?? "";
    for (const resource of before ? resourcesOf(before) : []) {
      const event = this.scheduler.events.find(eventId(id, resource));
      if (event && !named.includes(resource)) this.scheduler.events.remove(event);
    }
    for (const resource of named) {
      if (!this.resources.has(resource)) continue;
      const known = this.scheduler.events.find(eventId(id, resource));
      if (known) this.scheduler.events.remove(known);
      const look = { name: `${nameOf(this.scene, this.highlights, id)} ${name}`, note: this.scene.notes?.get(id) };
      this.scheduler.events.add(eventOf(/** @type {Appointment} */ (after), resource, this.session.zone, look));
    }
    // The library draws these rows a moment later.
    setTimeout(() => this.elements.restore(focused));
  }

  /**
   * Emphasize appointments for a moment.
   * @param {Iterable<string>} ids
   * @param {string} name a class of the style sheet
   */
  highlight(ids, name) {
    this.highlights = new Map([...ids].map((id) => [id, name]));
    this.redraw();
  }

  /**
   * Show free places that can be clicked.
   * @param {Place[]} offers
   */
  offer(offers) {
    this.offers = offers;
    this.redraw();
  }

  /**
   * Return what an event shows. A narrow one shows nothing: text that nobody can read makes up most of the cost of
   * drawing.
   * @param {any} event
   */
  #content({ start, end, text, others }) {
    const width = (wallOf(end) - wallOf(start)) / this.pixelTime;
    return new Text(width < LEAST_LABEL ? "" : others > 0 ? `${text} +${others}` : text);
  }

  // Sizes

  /** Return the minutes and the width of a column. */
  #columns() {
    const room = Math.max(this.element.clientWidth - this.#rowHeaderWidth() - 20, 300);
    const least = this.session.days > 1 ? 5 : 96; // pixels for an hour
    const hour = Math.max(room / (24 * this.session.days), least) * this.zoom;
    const minutes = COLUMNS.find((each) => (each / 60) * hour >= LEAST_COLUMN) ?? 1440;
    const width = Math.max(Math.floor((minutes / 60) * hour), 1);
    this.pixelTime = (minutes * MINUTE) / width;
    this.step = (STEPS.find((each) => (each * MINUTE) / this.pixelTime >= LEAST_STEP) ?? 60) * MINUTE;
    return { minutes, width };
  }

  #rowHeaderWidth() {
    return window.innerWidth < NARROW ? 96 : 168;
  }

  #fit() {
    const height = this.element.parentElement?.clientHeight ?? 0;
    const width = this.element.clientWidth;
    if (height > 100 && height !== this.height) {
      this.height = height;
      this.scheduler.setHeight(height);
      this.#scrolled();
    }
    if (width !== this.width && this.width > 0) this.redraw();
    this.width = width;
  }

  /** Let the library draw what has come into view. */
  #scrolled() {
    this.scroller?.dispatchEvent(new Event("scroll"));
  }

  /**
   * Zoom by a factor around the middle.
   * @param {number} factor
   */
  zoomBy(factor) {
    const scroll = this.scroller;
    const middle = this.start + (scroll.scrollLeft + scroll.clientWidth / 2) * this.pixelTime;
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.4), 24);
    this.draw();
    scroll.scrollLeft = (middle - this.start) / this.pixelTime - scroll.clientWidth / 2;
  }

  /** @returns {HTMLElement} */
  get scroller() {
    return /** @type {HTMLElement} */ (this.element.querySelector(".apt_scrollable"));
  }

  /** Scroll to the first hour of interest: now, or the first appointment that begins in the range. */
  scrollToStart() {
    const { zone } = this.session;
    const now = zone.wall(Date.now());
    let first = Infinity;
    for (const { start } of this.scene.appointments.values()) {
      const wall = zone.wall(Date.parse(start));
      if (wall >= this.start && wall < first) first = wall;
    }
    const isNow = now >= this.start && now < this.start + this.session.days * 24 * HOUR;
    const target = isNow ? now : Number.isFinite(first) ? first : this.start + 8 * HOUR;
    const pixels = (target - HOUR / 2 - this.start) / this.pixelTime;
    this.scroller.scrollLeft = Math.max(pixels - (isNow ? this.scroller.clientWidth / 4 : 0), 0);
  }

  /**
   * Scroll until a time of a row is on the screen.
   * @param {string} row its id
   * @param {number} wall
   */
  scrollTo(row, wall) {
    const { scroller } = this;
    const left = (wall - this.start) / this.pixelTime;
    const { top } = this.#row(row);
    if (left < scroller.scrollLeft || left > scroller.scrollLeft + scroller.clientWidth - 40) {
      scroller.scrollLeft = Math.max(left - scroller.clientWidth / 3, 0);
    }
    if (top < scroller.scrollTop || top > scroller.scrollTop + scroller.clientHeight - ROW_HEIGHT) {
      scroller.scrollTop = Math.max(top - scroller.clientHeight / 2, 0);
    }
    this.#scrolled();
  }

  /** Move the line at the present time. */
  #showNow() {
    const matrix = this.element.querySelector(".apt_matrix");
    if (!matrix) return;
    const wall = this.session.zone.wall(Date.now());
    const offset = (wall - this.start) / this.pixelTime;
    this.now.hidden = wall < this.start || wall >= this.start + this.session.days * 24 * HOUR;
    this.now.style.left = `${offset}px`;
    if (this.now.parentElement !== matrix) matrix.append(this.now);
  }

  // What is where

  /**
   * Open what an event stands for.
   * @param {import("./calendar-events.js").TimelineEvent} event
   */
  open({ offer, appointment }) {
    if (offer) this.handlers.onOffer(offer);
    else if (appointment) this.handlers.onOpen(appointment);
  }

  /**
   * Return the element of an appointment, if it is drawn.
   * @param {string} id
   * @returns {HTMLElement | null}
   */
  elementOf(id) {
    return this.element.querySelector(`.apt_event[data-id="${CSS.escape(id)}"]:not(.ghost)`);
  }

  /**
   * Focus an appointment of the scene, wherever it is.
   * @param {Appointment} appointment
   */
  reveal(appointment) {
    this.elements.focusAppointment(appointment);
  }

  /**
   * Return the rectangle of a place on the screen, for what belongs beside it.
   * @param {Place} place
   */
  rectangle({ resource, start, end }) {
    const { zone } = this.session;
    const { scroller } = this;
    const frame = scroller.getBoundingClientRect();
    const row = this.#row(rowId(resource));
    const top = frame.top - scroller.scrollTop + row.top;
    const left = frame.left - scroller.scrollLeft + (zone.wall(start) - this.start) / this.pixelTime;
    return new DOMRect(left, top, Math.max((end - start) / this.pixelTime, 4), row.height);
  }

  /**
   * Return where a row is; one with events at the same time is higher than others.
   * @param {string} id
   * @returns {{top: number, height: number}}
   */
  #row(id) {
    return this.scheduler.rows.find(id)?.$.row ?? { top: 0, height: ROW_HEIGHT };
  }

  clearSelection() {
    this.scheduler.clearSelection();
  }
}

/**
 * @param {string} name
 * @param {string} filter
 */
function contains(name, filter) {
  return name.toLocaleLowerCase().includes(filter.trim().toLocaleLowerCase());
}
