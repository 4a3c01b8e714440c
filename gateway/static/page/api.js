/** The REST API of the gateway that serves this page: requests, and refusals as `Problem`. */

import { sentence } from "./dom.js";

/**
 * @typedef {object} Appointment
 * @property {string} id
 * @property {string} organizationId
 * @property {string} resourceId
 * @property {string[]} additionalResourceIds
 * @property {string} start RFC 3339, in UTC
 * @property {string} end
 * @property {string} title
 * @property {Record<string, unknown>} attributes
 * @property {"ACTIVE" | "HELD" | "EXPIRED" | "CANCELLED"} state
 * @property {string} [holdUntil]
 * @property {number} version
 * @property {string} revision
 * @property {string} etag
 * @property {string} createdAt
 * @property {string} updatedAt
 */

/**
 * @typedef {object} Entry a change, as in the history
 * @property {string} revision
 * @property {"CREATED" | "UPDATED" | "CONFIRMED" | "EXPIRED" | "CANCELLED" | "REDACTED"} change
 * @property {string} recordedAt
 * @property {string} actor
 * @property {Appointment} appointment
 */

/** @typedef {{start: string, end: string}} Range */
/** @typedef {{id: string, start: string, end: string, version: number, resourceIds: string[]}} Conflict */

/** A refusal (RFC 9457). `code` is the stable reason, such as `TIME_RANGE_CONFLICT`. */
export class Problem extends Error {
  /**
   * @param {number} status 0 if there was no response
   * @param {any} body
   */
  constructor(status, body) {
    super(body.detail || body.title || "The request failed.");
    this.status = status;
    /** @type {string} */
    this.code = body.code ?? "";
    /** @type {Conflict[]} */
    this.conflicts = body.conflicts ?? [];
    this.moreConflicts = Boolean(body.moreConflicts);
    /** @type {Range[]} */
    this.alternatives = body.alternatives ?? [];
    /** @type {{field: string, detail: string}[]} */
    this.errors = body.errors ?? [];
    /** @type {string} */
    this.requestId = body.requestId ?? "";
  }

  /** Whether the gateway or the service could not be reached, so that trying again may help. */
  get isTemporary() {
    return this.status === 0 || this.status === 503 || this.status === 504;
  }

  /** What to tell people. */
  get text() {
    const fields = this.errors.map(({ field, detail }) => `${field} ${detail}`);
    return sentence([this.message, ...fields].join(" — "));
  }
}

/**
 * @typedef {object} Call
 * @property {Record<string, string | number | boolean | string[] | undefined>} [query]
 * @property {unknown} [body] sent as JSON
 * @property {Record<string, string>} [headers]
 * @property {AbortSignal} [signal]
 */

export class Api {
  /**
   * @param {import("./session.js").Session} session
   * @param {(problem: Problem) => void} onUnauthenticated called when another credential is needed, or one at all
   */
  constructor(session, onUnauthenticated) {
    this.session = session;
    this.onUnauthenticated = onUnauthenticated;
  }

  /**
   * Send a request, for the organization that is shown, and return the response if it is a success.
   * Raises `Problem`. Paths are relative to `api/`, so that the page works below any prefix.
   * @param {string} method
   * @param {string} path such as `appointments`
   * @param {Call} [call]
   */
  async send(method, path, { query = {}, body, headers = {}, signal } = {}) {
    const parameters = new URLSearchParams({ organizationId: this.session.shown.organization });
    for (const [name, value] of Object.entries(query)) {
      if (Array.isArray(value)) for (const each of value) parameters.append(name, each);
      else if (value === undefined) parameters.delete(name);
      else parameters.set(name, String(value));
    }
    /** @type {Record<string, string>} */
    const sent = { ...headers };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    const { credential, actor } = this.session;
    if (credential) sent["Authorization"] = `Bearer ${credential}`;
    else if (actor && method !== "GET") sent["X-Actor"] = utf8(actor);
    let response;
    try {
      response = await fetch(`api/${path}?${parameters}`, {
        method,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        credentials: "omit",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0, { detail: "The gateway cannot be reached.", code: "UNREACHABLE" });
    }
    if (response.ok) return response;
    const problem = new Problem(response.status, await response.json().catch(() => ({})));
    if (response.status === 401) this.onUnauthenticated(problem);
    throw problem;
  }

  /**
   * Send a request and return the body of the response.
   * @param {string} method
   * @param {string} path
   * @param {Call} [call]
   * @returns {Promise<any>}
   */
  async json(method, path, call) {
    return (await this.send(method, path, call)).json();
  }

  /**
   * Send a write. It has an idempotency key, so it is repeated if no response came or the service was away.
   * @param {string} method
   * @param {string} path
   * @param {Call} [call]
   * @returns {Promise<any>}
   */
  async write(method, path, call = {}) {
    const headers = { ...call.headers, "Idempotency-Key": newKey() };
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.json(method, path, { ...call, headers });
      } catch (error) {
        if (!(error instanceof Problem && error.isTemporary) || attempt === 3) throw error;
        await new Promise((resolve) => setTimeout(resolve, 400 * attempt));
      }
    }
  }

  /**
   * Yield the pages of a list.
   * @param {string} path
   * @param {Call} call
   * @returns {AsyncGenerator<any>}
   */
  async *pages(path, call) {
    let pageToken = "";
    do {
      const page = await this.json("GET", path, {
        ...call,
        query: { pageSize: 1000, ...call.query, ...(pageToken && { pageToken }) },
      });
      yield page;
      pageToken = page.nextPageToken;
    } while (pageToken);
  }
}

/**
 * Return the path of an appointment.
 * @param {string} id
 * @param {string} [verb] such as `:confirm`
 */
export function appointmentPath(id, verb = "") {
  return `appointments/${encodeURIComponent(id)}${verb}`;
}

/**
 * Return the header that makes a write depend on the version that its user saw.
 * @param {Appointment} seen
 */
export function ifMatch(seen) {
  return { "If-Match": `"${seen.etag}"` };
}

function newKey() {
  // randomUUID would need HTTPS.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * Return a header's value whose bytes are the UTF-8 of a text.
 * @param {string} text
 */
function utf8(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}
