/** The calendar as it was, and how it differs from now. */

import { appointmentPath, Problem } from "./api.js";
import { MOST, instantText, occupies, resourcesOf } from "./store.js";

/** @typedef {import("./api.js").Appointment} Appointment */
/** @typedef {import("./api.js").Api} Api */
/** @typedef {"new" | "moved" | "changed" | "cancelled" | "gone"} Kind */

const LOOKUPS = 200; // appointments that are looked for outside of the range

/**
 * How an appointment then differs from now. `then` is absent for what is new, `now` for what is gone.
 * @typedef {object} Difference
 * @property {string} id
 * @property {Kind} kind
 * @property {Appointment} [then]
 * @property {Appointment} [now]
 */

/** In the order in which they are shown, with what people and screen readers read. @type {Record<Kind, {label: string, symbol: string, note: string}>} */
export const KINDS = {
  new: { label: "New since then", symbol: "+", note: "new since then" },
  moved: { label: "Moved since then", symbol: "→", note: "moved since then" },
  changed: { label: "Changed since then, same place", symbol: "≠", note: "changed since then" },
  cancelled: { label: "Cancelled or expired since then", symbol: "×", note: "cancelled since then" },
  gone: { label: "Gone from this view", symbol: "↗", note: "gone from this view since then" },
};

/**
 * Return the appointments of a range as they were after a revision; without one, as they are now with those
 * that are cancelled.
 * @param {Api} api
 * @param {{from: number, to: number}} range instants
 * @param {string | undefined} revision
 * @param {AbortSignal} signal
 * @returns {Promise<Map<string, Appointment>>} at most `MOST`
 */
export async function readRange(api, range, revision, signal) {
  /** @type {Map<string, Appointment>} */
  const found = new Map();
  const query = {
    from: instantText(range.from),
    to: instantText(range.to),
    ...(revision === undefined ? { includeCancelled: true } : { asOfRevision: revision }),
  };
  for await (const page of api.pages("appointments", { query, signal })) {
    for (const each of page.appointments) found.set(each.id, each);
    if (found.size >= MOST) break;
  }
  return found;
}

/**
 * Return what happened to the calendar at a revision.
 * @param {Api} api
 * @param {string} revision
 * @param {AbortSignal} signal
 * @returns {Promise<import("./api.js").Entry | undefined>} none for revision 0
 */
export async function readChange(api, revision, signal) {
  if (revision === "0") return undefined;
  const query = { afterRevision: String(BigInt(revision) - 1n), pageSize: 1 };
  return (await api.json("GET", "changes", { query, signal })).entries[0];
}

/**
 * Return the latest revision at a time.
 * @param {Api} api
 * @param {number} instant
 * @param {AbortSignal} signal
 * @returns {Promise<string>}
 */
export async function revisionAt(api, instant, signal) {
  const query = { asOfTime: instantText(instant), pageSize: 1 };
  return (await api.json("GET", "appointments", { query, signal })).revision;
}

/**
 * Compare what was with what is.
 * @param {Map<string, Appointment>} then what occupied
 * @param {Map<string, Appointment>} now with what is cancelled
 * @returns {Map<string, Difference>} by id
 */
export function compare(then, now) {
  /** @type {Map<string, Difference>} */
  const differences = new Map();
  for (const [id, before] of then) {
    const after = now.get(id);
    const kind = kindOf(before, after);
    if (kind) differences.set(id, { id, kind, then: before, now: after });
  }
  for (const [id, after] of now) {
    if (!then.has(id) && occupies(after)) differences.set(id, { id, kind: "new", now: after });
  }
  return differences;
}

/**
 * Look where those are that are in the range only then or only now: most were moved out of it or into it. `new` and
 * `gone` are left for what was created since then or is no longer known, and for those beyond `LOOKUPS`.
 * @param {Api} api
 * @param {Map<string, Difference>} differences changed in place
 * @param {string} revision that of `then`
 * @param {AbortSignal} signal
 */
export async function lookElsewhere(api, differences, revision, signal) {
  const onOneSide = [...differences.values()].filter(({ kind, now }) => kind === "gone" || (kind === "new" && (now?.version ?? 0) > 1));
  await Promise.all(
    onOneSide.slice(0, LOOKUPS).map(async ({ id, then, now }) => {
      const found = await readOne(api, id, then ? {} : { asOfRevision: revision }, signal);
      if (!found || (now && !occupies(found))) return;
      const [before, after] = then ? [then, found] : [found, now];
      const kind = kindOf(before, after);
      if (kind) differences.set(id, { id, kind, then: before, now: after });
    }),
  );
}

/**
 * @param {Api} api
 * @param {string} id
 * @param {{asOfRevision?: string}} query
 * @param {AbortSignal} signal
 * @returns {Promise<Appointment | undefined>}
 */
async function readOne(api, id, query, signal) {
  try {
    return await api.json("GET", appointmentPath(id), { query, signal });
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return undefined;
    throw error;
  }
}

/**
 * @param {Appointment} then
 * @param {Appointment | undefined} now
 * @returns {Kind | undefined}
 */
function kindOf(then, now) {
  if (!now) return "gone";
  if (!occupies(now)) return "cancelled";
  if (then.start !== now.start || then.end !== now.end || resourcesOf(then).join("\n") !== resourcesOf(now).join("\n")) {
    return "moved";
  }
  return then.etag === now.etag ? undefined : "changed";
}

/**
 * Return what the timeline shows of the past: what was there, and beside it what is new or elsewhere now.
 * @param {Map<string, Appointment>} then
 * @param {Map<string, Appointment>} now
 * @param {Map<string, Difference>} differences
 * @returns {import("./store.js").Scene}
 */
export function sceneOf(then, now, differences) {
  const ghosts = [...differences.values()].flatMap(({ id, kind }) => (kind === "new" || kind === "moved" ? (now.get(id) ?? []) : []));
  return {
    appointments: then,
    marks: new Map([...differences.values()].map(({ id, kind }) => [id, `since-${kind}`])),
    notes: new Map([...differences.values()].map(({ id, kind }) => [id, KINDS[kind].note])),
    ghosts,
    readOnly: true,
  };
}
