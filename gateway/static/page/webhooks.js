/** Webhooks: where changes are sent, how that goes, and a way to send them again. */

import { Problem } from "./api.js";
import { h } from "./dom.js";
import { tell } from "./messages.js";
import { fill, refusal, repeated } from "./panel-content.js";
import { momentText, resourceName } from "./times.js";

/** @typedef {import("./main.js").App} App */

/**
 * @typedef {object} Webhook
 * @property {string} id
 * @property {string} url
 * @property {string} description
 * @property {string[]} changes
 * @property {string} [resourceId]
 * @property {boolean} disabled
 * @property {string} disabledReason
 * @property {string} deliveredRevision
 * @property {number} failedAttempts
 * @property {string} [failingSince]
 * @property {string} [nextAttemptAt]
 *
 * @typedef {object} Delivery
 * @property {string} revision
 * @property {number} attempt
 * @property {string} attemptedAt
 * @property {number} durationMs
 * @property {number} [httpStatus]
 * @property {string} error
 */

const PAGE = 20;

/** @type {import("./panels.js").Panel} */
export const webhooks = { id: "webhooks", label: "Webhooks", open };

/**
 * @param {HTMLElement} element
 * @param {App} app
 */
function open(element, app) {
  /** Those that are shown, by id. @type {Map<string, Shown>} */
  let shown = new Map();
  const list = h("div", { class: "webhooks" });
  const read = async () => {
    await fill(list, async () => {
      /** @type {Webhook[]} */
      const found = (await app.api.json("GET", "webhooks")).webhooks;
      const drawn = [...list.children].map((each) => each.getAttribute("data-webhook")).join();
      // Elements stay where they are: to move one would take its focus.
      shown = new Map(found.map((each) => [each.id, shown.get(each.id) ?? new Shown(app, each)]));
      await Promise.all(found.map((each) => shown.get(each.id)?.update(each)));
      if (found.length > 0 && drawn === found.map(({ id }) => id).join()) return undefined;
      if (found.length === 0) return [h("p", { class: "muted" }, "This organization has no webhooks.")];
      return [...shown.values()].map(({ element }) => element);
    });
  };
  element.append(list);
  void read();
  const stop = repeated(() => void read());
  const changed = (/** @type {Event} */ event) => {
    if (/** @type {CustomEvent<Set<string>>} */ (event).detail.has("organization")) void read();
  };
  app.session.addEventListener("change", changed);
  return () => {
    stop();
    app.session.removeEventListener("change", changed);
  };
}

/** One webhook on the page. */
class Shown {
  /**
   * @param {App} app
   * @param {Webhook} webhook
   */
  constructor(app, webhook) {
    this.app = app;
    this.webhook = webhook;
    this.state = h("div", { class: "hook-state" });
    this.deliveries = h("div", { class: "deliveries" });
    this.shown = PAGE;
    this.replay = h("form", { class: "form replay", hidden: true });
    this.details = h("details", {}, h("summary", {}, "Deliveries"), this.deliveries);
    this.details.addEventListener("toggle", () => this.details.open && void this.#showDeliveries());
    this.button = h("button", { type: "button", "aria-expanded": "false", onclick: () => this.#askReplay(this.replay.hidden) }, "Replay…");
    this.element = h(
      "section",
      { class: "webhook", "data-webhook": webhook.id, "aria-label": webhook.description || webhook.url },
      h("h3", {}, webhook.description || webhook.url),
      webhook.description && h("p", { class: "muted url" }, webhook.url),
      this.state,
      h("div", { class: "actions" }, this.button),
      this.replay,
      this.details,
    );
  }

  /** @param {Webhook} webhook */
  async update(webhook) {
    this.webhook = webhook;
    const failure = isHealthy(webhook) ? undefined : await this.#lastFailure();
    this.state.replaceChildren(...this.#describe(failure));
    if (this.details.open) await this.#showDeliveries();
  }

  /** @returns {Promise<Delivery[]>} the newest first */
  async #read() {
    const query = { pageSize: this.shown };
    return (await this.app.api.json("GET", `webhooks/${this.webhook.id}/deliveries`, { query })).deliveries;
  }

  async #lastFailure() {
    return (await this.#read()).find(({ error }) => error !== "");
  }

  /** @param {Delivery | undefined} failure */
  #describe(failure) {
    const { app, webhook } = this;
    const { zone } = app.session;
    const latest = BigInt(app.stream.revision) > BigInt(app.store.revision) ? app.stream.revision : app.store.revision;
    const behind = BigInt(latest) - BigInt(webhook.deliveredRevision);
    const filters = [webhook.changes.join(", ").toLowerCase(), webhook.resourceId !== undefined && resourceName(webhook.resourceId)];
    const rows = [
      ["Delivered", `through revision ${webhook.deliveredRevision}${behind > 0n ? `, ${behind.toLocaleString()} behind` : ""}`],
      ["Selects", filters.filter(Boolean).join("; ") || "all changes"],
      webhook.disabled && ["Disabled", webhook.disabledReason || "by its settings"],
      webhook.failingSince && ["Failing since", `${momentText(zone, webhook.failingSince)}, ${attempts(webhook.failedAttempts)}`],
      failure && ["Last failure", `${momentText(zone, failure.attemptedAt)}: ${resultOf(failure)}`],
      webhook.nextAttemptAt && ["Next attempt", momentText(zone, webhook.nextAttemptAt)],
    ];
    const [text, kind] = webhook.disabled ? ["disabled", "bad"] : webhook.failingSince ? ["failing", "held"] : behind > 0n ? ["sending", ""] : ["up to date", "good"];
    return [
      h("span", { class: `badge ${kind}` }, text),
      h("dl", {}, ...rows.filter(Boolean).flatMap((row) => {
        const [name, value] = /** @type {string[]} */ (row);
        return [h("dt", {}, name), h("dd", {}, value)];
      })),
    ];
  }

  async #showDeliveries() {
    const focused = this.deliveries.contains(document.activeElement);
    await fill(this.deliveries, async () => {
      const found = await this.#read();
      if (found.length === 0) return [h("p", { class: "muted" }, "Nothing was sent in the last two weeks.")];
      const { zone } = this.app.session;
      const more = () => {
        this.shown = Math.min(this.shown * 4, 1000);
        void this.#showDeliveries();
      };
      return [
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ...["Revision", "Sent", "Result"].map((name) => h("th", { scope: "col" }, name)))),
          h(
            "tbody",
            {},
            ...found.map((each) =>
              h(
                "tr",
                { class: each.error ? "failed" : "" },
                h("td", {}, each.revision),
                h("td", {}, momentText(zone, each.attemptedAt)),
                h("td", {}, `${resultOf(each)}, ${each.durationMs.toLocaleString()} ms${each.attempt > 1 ? `, attempt ${each.attempt}` : ""}`),
              ),
            ),
          ),
        ),
        found.length === this.shown && this.shown < 1000 && h("button", { type: "button", onclick: more }, "Show earlier ones"),
      ];
    });
    if (focused) this.deliveries.querySelector("button")?.focus();
  }

  /** @param {boolean} asked */
  #askReplay(asked) {
    this.replay.hidden = !asked;
    this.button.setAttribute("aria-expanded", String(asked));
    if (!asked) return;
    const { deliveredRevision } = this.webhook;
    const revision = h("input", { type: "number", name: "revision", min: "0", step: "1", required: true, value: deliveredRevision });
    const problem = h("div", { hidden: true });
    this.replay.replaceChildren(
      h("label", {}, "Send all changes after revision", revision),
      h("p", { class: "muted" }, "Earlier changes are skipped; those that were sent already are sent again. A disabled webhook is enabled."),
      problem,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "submit", class: "primary" }, "Replay"),
        h("button", { type: "button", onclick: () => this.#endReplay() }, "Cancel"),
      ),
    );
    this.replay.onsubmit = (event) => {
      event.preventDefault();
      void this.#send(revision.value, problem);
    };
    revision.focus();
  }

  #endReplay() {
    this.#askReplay(false);
    this.button.focus();
  }

  /**
   * @param {string} afterRevision
   * @param {HTMLElement} problem
   */
  async #send(afterRevision, problem) {
    const { app, webhook } = this;
    try {
      const body = { organizationId: app.session.shown.organization, afterRevision };
      const replayed = await app.api.json("POST", `webhooks/${webhook.id}:replay`, { query: { organizationId: undefined }, body });
      this.#endReplay();
      tell(`The changes after revision ${afterRevision} are sent to ${webhook.description || webhook.url}`);
      await this.update(replayed);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      problem.hidden = false;
      problem.replaceChildren(refusal(error));
    }
  }
}

/** @param {Webhook} webhook */
function isHealthy({ disabled, failingSince }) {
  return !disabled && !failingSince;
}

/** @param {Delivery} delivery */
function resultOf({ httpStatus, error }) {
  return error || `HTTP ${httpStatus}`;
}

/** @param {number} count */
function attempts(count) {
  return count === 1 ? "one attempt" : `${count.toLocaleString()} attempts`;
}
