/**
 * The stream of changes, read by `fetch`: an EventSource can send no credential.
 *
 * It reconnects by itself with the last revision that it has seen, so no change is missed
 * (WHATWG HTML, section 9.2). Where the database was restored to an earlier time, the service says
 * `reset`: everything has to be read again.
 */

import { Problem } from "./api.js";

const SILENCE = 60_000; // milliseconds; heartbeats come every 15 s by default
const LONGEST_PAUSE = 15_000;

/**
 * @typedef {"connecting" | "live" | "waiting" | "refused"} StreamState
 * @typedef {object} Listener
 * @property {(entry: import("./api.js").Entry) => void} onChange
 * @property {() => void} onReset
 * @property {(state: StreamState, reason: string) => void} onState
 */

export class ChangeStream {
  /**
   * @param {import("./api.js").Api} api
   * @param {Listener} listener
   */
  constructor(api, listener) {
    this.api = api;
    this.listener = listener;
    this.revision = "0";
    /** The last id: a revision, after a restore with its epoch. */
    this.id = "";
    /** @type {AbortController | null} */
    this.running = null;
    this.pause = () => {};
    // Waiting for the rest of a pause makes no sense when the network has just come back.
    addEventListener("online", () => this.pause());
  }

  /**
   * Follow the changes after a revision.
   * @param {string} revision
   */
  start(revision) {
    this.stop();
    this.revision = revision;
    this.id = "";
    this.running = new AbortController();
    void this.#follow(this.running.signal);
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  /** @param {AbortSignal} stopped */
  async #follow(stopped) {
    let failures = 0;
    while (!stopped.aborted) {
      let retry = 1000;
      let reason = "The stream of changes ended.";
      this.listener.onState("connecting", "");
      try {
        for await (const event of this.#events(stopped)) {
          failures = 0;
          if (event.retry !== undefined) retry = event.retry;
          else this.#handle(event);
        }
      } catch (error) {
        if (stopped.aborted) return;
        failures += 1;
        reason = error instanceof Error ? error.message : String(error);
        if (error instanceof Problem && error.errors.some(({ field }) => field === "afterRevision")) {
          // Restored between the list and the stream, which has no id yet.
          this.listener.onReset();
          return;
        }
        if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) {
          this.listener.onState("refused", reason);
          return;
        }
      }
      if (stopped.aborted) return;
      this.listener.onState("waiting", reason);
      const longest = Math.min(retry * 2 ** Math.min(failures, 5), LONGEST_PAUSE);
      await this.#wait(longest * (0.5 + Math.random() / 2), stopped);
    }
  }

  /**
   * @param {number} milliseconds
   * @param {AbortSignal} stopped
   */
  #wait(milliseconds, stopped) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.pause(), milliseconds);
      this.pause = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
      stopped.addEventListener("abort", this.pause, { once: true });
    });
  }

  /**
   * Yield the events of one connection. Raises `Problem` if it is refused, and an error after a long silence.
   * @param {AbortSignal} stopped
   */
  async *#events(stopped) {
    const connection = new AbortController();
    const signal = AbortSignal.any([stopped, connection.signal]);
    let silent = false;
    const listen = () => setTimeout(() => ((silent = true), connection.abort()), SILENCE);
    let silence = listen();
    try {
      const response = await this.api.send("GET", "changes", {
        query: this.id ? {} : { afterRevision: this.revision },
        headers: { Accept: "text/event-stream", ...(this.id && { "Last-Event-ID": this.id }) },
        signal,
      });
      this.listener.onState("live", "");
      const body = /** @type {ReadableStream<any>} */ (response.body);
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new EventParser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = listen();
        yield* parser.events(value);
      }
    } catch (error) {
      if (silent) throw new Error("Nothing was heard from the gateway for a minute.", { cause: error });
      throw error;
    } finally {
      clearTimeout(silence);
      connection.abort();
    }
  }

  /** @param {ParsedEvent} event */
  #handle({ id, name, data }) {
    if (id) {
      this.id = id;
      this.revision = id.split(".")[0];
    }
    if (name === "reset") this.listener.onReset();
    else if (data) this.listener.onChange(JSON.parse(data));
  }
}

/** @typedef {{id?: string, name?: string, data?: string, retry?: number}} ParsedEvent */

/** Splits the text of a stream into events. */
export class EventParser {
  constructor() {
    this.rest = "";
    /** @type {ParsedEvent} */
    this.event = {};
  }

  /**
   * Yield the events that are complete with this piece of text.
   * @param {string} text
   * @returns {Generator<ParsedEvent>}
   */
  *events(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line === "") {
        if (Object.keys(this.event).length > 0) yield this.event;
        this.event = {};
        continue;
      }
      const [name, value] = field(line);
      if (name === "id") this.event.id = value;
      else if (name === "event") this.event.name = value;
      else if (name === "data") this.event.data = (this.event.data ?? "") + value;
      else if (name === "retry") this.event.retry = Number(value);
    }
  }
}

/**
 * @param {string} line
 * @returns {[string, string]}
 */
function field(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "").replace(/\r$/, "")];
}
