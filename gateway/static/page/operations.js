/** Operations: asynchronous writes that wait, and those that failed. */

import { h, sentence } from "./dom.js";
import { fill, repeated } from "./panel-content.js";
import { openHistory } from "./time-travel.js";
import { momentText } from "./times.js";

/** @typedef {import("./main.js").App} App */

/**
 * @typedef {object} Operation
 * @property {string} name
 * @property {{appointmentId: string, acceptedAt: string, finishedAt?: string}} metadata
 * @property {boolean} done
 * @property {{code?: string, detail?: string, title?: string, status?: number}} [error] a problem
 */

const PAGE = 50;
const LISTS = [
  { title: "Waiting", filter: "done=false", none: "Nothing waits." },
  { title: "Failed", filter: "error:*", none: "Nothing failed." },
];

/** @type {import("./panels.js").Panel} */
export const operations = { id: "operations", label: "Operations", open };

/**
 * @param {HTMLElement} element
 * @param {App} app
 */
function open(element, app) {
  const lists = LISTS.map((each) => new List(app, each));
  element.append(
    h("p", { class: "muted" }, "Writes that were accepted to be applied later, the latest first."),
    ...lists.map(({ element }) => element),
  );
  const read = () => lists.forEach((list) => void list.read());
  const changed = (/** @type {Event} */ event) => {
    if (/** @type {CustomEvent<Set<string>>} */ (event).detail.has("organization")) read();
  };
  app.session.addEventListener("change", changed);
  read();
  const stop = repeated(read);
  return () => {
    stop();
    app.session.removeEventListener("change", changed);
  };
}

class List {
  /**
   * @param {App} app
   * @param {typeof LISTS[number]} what
   */
  constructor(app, { title, filter, none }) {
    this.app = app;
    this.filter = filter;
    this.none = none;
    this.size = PAGE;
    /** The page that is shown, as JSON. */
    this.text = "";
    this.count = h("span", { class: "count" });
    this.content = h("div", {});
    this.element = h("section", { class: "operations", "aria-label": title }, h("h3", {}, title, " ", this.count), this.content);
  }

  async read() {
    if (this.content.querySelector(".notice")) this.text = "";
    await fill(this.content, async () => {
      const query = { filter: this.filter, pageSize: this.size };
      const page = await this.app.api.json("GET", "operations", { query });
      const text = JSON.stringify(page);
      if (text === this.text) return undefined;
      this.text = text;
      /** @type {Operation[]} */
      const found = page.operations;
      this.count.textContent = `${found.length}${page.nextPageToken ? "+" : ""}`;
      if (found.length === 0) return [h("p", { class: "muted" }, this.none)];
      return [
        h("ul", { class: "list" }, ...found.map((each) => this.#item(each))),
        page.nextPageToken && this.size < 1000 && h("button", { type: "button", onclick: () => this.#more() }, "Show earlier ones"),
      ];
    });
  }

  #more() {
    this.size = Math.min(this.size * 4, 1000);
    void this.read();
  }

  /** @param {Operation} operation */
  #item({ name, metadata, error }) {
    const { zone } = this.app.session;
    const { appointmentId, acceptedAt, finishedAt } = metadata;
    return h(
      "li",
      { class: "operation", "data-operation": name.split("/").at(-1) },
      h("button", { type: "button", class: "link", title: "History", onclick: () => openHistory(this.app, { id: appointmentId, title: "" }) }, appointmentId),
      error && h("p", {}, sentence(error.detail || error.title || ""), error.code && h("code", {}, error.code)),
      h("p", { class: "muted" }, `Accepted ${momentText(zone, acceptedAt)}${finishedAt ? `, ended ${momentText(zone, finishedAt)}` : ""}`),
    );
  }
}
