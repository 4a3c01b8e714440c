// Books with openapi-fetch and the types of openapi-typescript.
import createClient from "openapi-fetch";
import type { components, paths } from "./generated/openapi";

declare const process: { argv: string[] };

const [, , baseUrl = "", organizationId = ""] = process.argv;
const client = createClient<paths>({ baseUrl });
const range = { start: "2030-01-07T08:00:00Z", end: "2030-01-07T08:30:00Z" };
const path = "/api/appointments/{id}";
const one = { path: { id: "a" }, query: { organizationId } };

// Fails the type check if it could be absent.
function has<T>(value: T | undefined, error: components["schemas"]["Problem"] | undefined): T {
  if (value === undefined) throw new Error(JSON.stringify(error));
  return value;
}

async function main(): Promise<void> {
  const booked = await client.POST("/api/appointments", {
    body: { organizationId, id: "a", ...range, title: "Planning", attributes: { floor: 3 } },
  });
  const first = has(booked.data, booked.error);
  if (!("etag" in first)) throw new Error("accepted, though not asked to be");
  const version: number = first.version;
  const revision: string = first.revision;
  const outcome = booked.response.headers.get("Appointment-Outcome");
  console.log(
    `booked ${first.id} from ${first.start} to ${first.end}, version ${version},` +
      ` revision ${revision}, ${outcome}`,
  );

  const refused = await client.POST("/api/appointments", {
    body: { organizationId, id: "b", ...range },
  });
  const problem = refused.error;
  if (problem?.code !== "TIME_RANGE_CONFLICT") throw new Error(problem?.code ?? "not refused");
  // @ts-expect-error: no such reason
  if (problem.code === "TIME_RANGE_CONFLICTS") throw new Error("codes are not checked");
  for (const conflict of problem.conflicts ?? []) {
    const by: string = `${conflict.id} from ${conflict.start} to ${conflict.end}`;
    console.log(`refused, ${problem.status} ${problem.code}, by ${by}`);
  }

  const listed = await client.GET("/api/appointments", {
    params: { query: { organizationId, minRevision: revision } },
  });
  const page = has(listed.data, listed.error);
  const ids: string[] = page.appointments.map((appointment) => appointment.id);
  console.log(`listed ${ids.join()} at revision ${page.revision}`);

  const got = await client.GET(path, { params: one });
  const read = has(got.data, got.error);
  const body: components["schemas"]["AppointmentInput"] = { ...read, title: "Retrospective" };
  const changed = await client.POST("/api/appointments", { body });
  const second = has(changed.data, changed.error);
  if (!("etag" in second)) throw new Error("accepted, though not asked to be");
  console.log(
    `changed to "${second.title}", floor ${second.attributes["floor"]},` +
      ` version ${second.version}, revision ${second.revision}`,
  );

  const late = await client.POST("/api/appointments", { body });
  console.log(`refused, ${late.response.status} ${late.error?.code}`);

  const asOf = { ...one.query, asOfRevision: read.revision };
  const past = await client.GET(path, { params: { path: one.path, query: asOf } });
  console.log(`read "${has(past.data, past.error).title}" as of revision ${read.revision}`);

  const cancelled = await client.DELETE(path, { params: one });
  const last = has(cancelled.data, cancelled.error);
  if (!("etag" in last)) throw new Error("accepted, though not asked to be");
  console.log(`cancelled ${last.id}, version ${last.version}, ${last.state}`);

  const history = await client.GET("/api/appointments/{id}/history", { params: one });
  const changes: string[] = has(history.data, history.error).entries.map(
    (entry) => `${entry.appointment.version} ${entry.change}`,
  );
  console.log(`history ${changes.join(", ")}`);
}

void main();
