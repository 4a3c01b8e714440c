// Books with the client of orval, whose responses are distinguished by their status.
import {
  cancelAppointment,
  getAppointment,
  listAppointmentHistory,
  listAppointments,
  upsertAppointment,
} from "./generated/orval";
import type { AppointmentInput } from "./generated/orval";

declare const process: { argv: string[] };

const [, , , organizationId = ""] = process.argv;
const range = { start: "2030-01-07T08:00:00Z", end: "2030-01-07T08:30:00Z" };

function unexpected(answer: { status: number; data: unknown }): Error {
  return new Error(`${answer.status} ${JSON.stringify(answer.data)}`);
}

async function main(): Promise<void> {
  const booked = await upsertAppointment({
    ...{ organizationId, id: "a", ...range, title: "Planning", attributes: { floor: 3 } },
  });
  if (booked.status !== 201) throw unexpected(booked);
  const first = booked.data;
  const version: number = first.version;
  const revision: string = first.revision;
  const outcome = booked.headers.get("Appointment-Outcome");
  console.log(
    `booked ${first.id} from ${first.start} to ${first.end}, version ${version},` +
      ` revision ${revision}, ${outcome}`,
  );

  const refused = await upsertAppointment({ organizationId, id: "b", ...range });
  if (refused.status !== 409) throw unexpected(refused);
  const problem = refused.data;
  if (problem.code !== "TIME_RANGE_CONFLICT") throw unexpected(refused);
  // @ts-expect-error: no such reason
  if (problem.code === "TIME_RANGE_CONFLICTS") throw new Error("codes are not checked");
  for (const conflict of problem.conflicts ?? []) {
    const by: string = `${conflict.id} from ${conflict.start} to ${conflict.end}`;
    console.log(`refused, ${problem.status} ${problem.code}, by ${by}`);
  }

  const listed = await listAppointments({ organizationId, minRevision: revision });
  if (listed.status !== 200) throw unexpected(listed);
  const ids: string[] = listed.data.appointments.map((appointment) => appointment.id);
  console.log(`listed ${ids.join()} at revision ${listed.data.revision}`);

  const read = await getAppointment("a", { organizationId });
  if (read.status !== 200) throw unexpected(read);
  const body: AppointmentInput = { ...read.data, title: "Retrospective" };
  const changed = await upsertAppointment(body);
  if (changed.status !== 200) throw unexpected(changed);
  const second = changed.data;
  console.log(
    `changed to "${second.title}", floor ${second.attributes["floor"]},` +
      ` version ${second.version}, revision ${second.revision}`,
  );

  const late = await upsertAppointment(body);
  if (late.status !== 412) throw unexpected(late);
  console.log(`refused, ${late.status} ${late.data.code}`);

  const asOfRevision = read.data.revision;
  const past = await getAppointment("a", { organizationId, asOfRevision });
  if (past.status !== 200) throw unexpected(past);
  console.log(`read "${past.data.title}" as of revision ${asOfRevision}`);

  const cancelled = await cancelAppointment("a", { organizationId });
  if (cancelled.status !== 200) throw unexpected(cancelled);
  const last = cancelled.data;
  console.log(`cancelled ${last.id}, version ${last.version}, ${last.state}`);

  const history = await listAppointmentHistory("a", { organizationId });
  if (history.status !== 200) throw unexpected(history);
  const changes: string[] = history.data.entries.map(
    (entry) => `${entry.appointment.version} ${entry.change}`,
  );
  console.log(`history ${changes.join(", ")}`);
}

void main();
