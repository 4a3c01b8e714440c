// Books with the client of @hey-api/openapi-ts.
import {
  cancelAppointment,
  getAppointment,
  listAppointmentHistory,
  listAppointments,
  upsertAppointment,
} from "./generated/hey_api";
import type { Appointment, AppointmentInput, Operation, Problem } from "./generated/hey_api";
import { client } from "./generated/hey_api/client.gen";

declare const process: { argv: string[] };

const [, , baseUrl = "", organizationId = ""] = process.argv;
client.setConfig({ baseUrl });
const range = { start: "2030-01-07T08:00:00Z", end: "2030-01-07T08:30:00Z" };
const one = { path: { id: "a" }, query: { organizationId } };

function has<T>(value: T | undefined, error: Problem | undefined): T {
  if (value === undefined) throw new Error(JSON.stringify(error));
  return value;
}

function stored(answer: Appointment | Operation): Appointment {
  if (!("etag" in answer)) throw new Error("accepted, though not asked to be");
  return answer;
}

async function main(): Promise<void> {
  const booked = await upsertAppointment({
    body: { organizationId, id: "a", ...range, title: "Planning", attributes: { floor: 3 } },
  });
  const first = stored(has(booked.data, booked.error));
  const version: number = first.version;
  const revision: string = first.revision;
  const outcome = booked.response?.headers.get("Appointment-Outcome");
  console.log(
    `booked ${first.id} from ${first.start} to ${first.end}, version ${version},` +
      ` revision ${revision}, ${outcome}`,
  );

  const refused = await upsertAppointment({ body: { organizationId, id: "b", ...range } });
  const problem = refused.error;
  if (problem?.code !== "TIME_RANGE_CONFLICT") throw new Error(problem?.code ?? "not refused");
  // @ts-expect-error: no such reason
  if (problem.code === "TIME_RANGE_CONFLICTS") throw new Error("codes are not checked");
  for (const conflict of problem.conflicts ?? []) {
    const by: string = `${conflict.id} from ${conflict.start} to ${conflict.end}`;
    console.log(`refused, ${problem.status} ${problem.code}, by ${by}`);
  }

  const listed = await listAppointments({ query: { organizationId, minRevision: revision } });
  const page = has(listed.data, listed.error);
  const ids: string[] = page.appointments.map((appointment) => appointment.id);
  console.log(`listed ${ids.join()} at revision ${page.revision}`);

  const got = await getAppointment(one);
  const read = has(got.data, got.error);
  const body: AppointmentInput = { ...read, title: "Retrospective" };
  const changed = await upsertAppointment({ body });
  const second = stored(has(changed.data, changed.error));
  console.log(
    `changed to "${second.title}", floor ${second.attributes["floor"]},` +
      ` version ${second.version}, revision ${second.revision}`,
  );

  const late = await upsertAppointment({ body });
  console.log(`refused, ${late.response?.status} ${late.error?.code}`);

  const asOf = { ...one.query, asOfRevision: read.revision };
  const past = await getAppointment({ path: one.path, query: asOf });
  console.log(`read "${has(past.data, past.error).title}" as of revision ${read.revision}`);

  const cancelled = await cancelAppointment(one);
  const last = stored(has(cancelled.data, cancelled.error));
  console.log(`cancelled ${last.id}, version ${last.version}, ${last.state}`);

  const history = await listAppointmentHistory(one);
  const changes: string[] = has(history.data, history.error).entries.map(
    (entry) => `${entry.appointment.version} ${entry.change}`,
  );
  console.log(`history ${changes.join(", ")}`);
}

void main();
