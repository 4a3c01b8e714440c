/** What is above the timeline: organization, range, zone, filter, zoom, theme. */

import { byId, h } from "./dom.js";
import { days, longDay } from "./times.js";
import { wallText, zoneNames } from "./zones.js";

const DAY = 24 * 3600 * 1000;
const THEME = "appointments.theme";
const ZOOM = 1.5;

/** @param {import("./main.js").App} app */
export function prepareToolbar({ session, calendar, bookings }) {
  const organization = byId("organization");
  const filter = byId("filter");
  const zone = byId("zone");
  const date = byId("date");

  organization.addEventListener("change", () => {
    const name = organization.value.trim();
    if (name) session.show({ organization: name });
    else show();
  });
  organization.addEventListener("focus", () =>
    byId("organizations").replaceChildren(...session.organizations.map((value) => h("option", { value }))),
  );
  filter.addEventListener("input", () => session.show({ filter: filter.value }));
  zone.append(...zoneNames().map((name) => h("option", { value: name }, name)));
  zone.addEventListener("change", () => session.show({ zone: zone.value }));
  date.addEventListener("change", () => date.value && session.show({ date: date.value }));
  /** @param {number} steps */
  const go = (steps) => {
    const wall = (session.days > 1 ? session.startWall : Date.parse(`${session.shown.date}T00:00Z`)) + steps * session.days * DAY;
    session.show({ date: wallText(wall).slice(0, 10) });
  };
  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("today").addEventListener("click", () =>
    session.show({ date: wallText(session.zone.wall(Date.now())).slice(0, 10) }),
  );
  for (const view of /** @type {const} */ (["day", "week"])) {
    byId(view).addEventListener("click", () => session.show({ view }));
  }
  byId("zoom-in").addEventListener("click", () => calendar.zoomBy(ZOOM));
  byId("zoom-out").addEventListener("click", () => calendar.zoomBy(1 / ZOOM));
  byId("new").addEventListener("click", () => {
    const { from, to } = session.range;
    const now = Math.ceil(Date.now() / 1_800_000) * 1_800_000;
    const start = now >= from && now < to ? now : from + 9 * 3_600_000;
    bookings.begin({ resource: calendar.rows?.[0] ?? "", start, end: start + 1_800_000 });
  });
  prepareTheme();
  // On a phone, what is needed less often is shown on request.
  const more = byId("more");
  more.addEventListener("click", () => more.setAttribute("aria-expanded", String(more.ariaExpanded !== "true")));

  function show() {
    const { shown } = session;
    organization.value = shown.organization;
    if (filter.value !== shown.filter) filter.value = shown.filter;
    if (![...zone.options].some(({ value }) => value === shown.zone)) zone.append(h("option", { value: shown.zone }, shown.zone));
    zone.value = shown.zone;
    date.value = shown.date;
    const start = session.startWall;
    byId("title").textContent = session.days > 1 ? days(start, start + 6 * DAY) : longDay(start);
    document.title = `${shown.organization} – Appointments`;
    for (const view of ["day", "week"]) byId(view).setAttribute("aria-pressed", String(view === shown.view));
  }

  session.addEventListener("change", show);
  show();
}

function prepareTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const saved = localStorage.getItem(THEME);
  if (saved) root.dataset.theme = saved;
  byId("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem(THEME, root.dataset.theme);
  });
}
