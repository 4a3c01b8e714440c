/** Puts the page together: what is shown is read, drawn and followed. */

import { prepareAccount } from "./account.js";
import { Api, Problem } from "./api.js";
import { Bookings } from "./booking.js";
import { Calendar } from "./calendar.js";
import { closeCard, openCardName } from "./card.js";
import { beforeNextPicture, byId } from "./dom.js";
import { ChangeStream } from "./events.js";
import { clearMessages, tell } from "./messages.js";
import { Side } from "./panels.js";
import { Session } from "./session.js";
import { MOST, Store } from "./store.js";
import { prepareToolbar } from "./toolbar.js";

/** @typedef {import("./api.js").Appointment} Appointment */

/**
 * What the parts of the page share.
 * @typedef {object} App
 * @property {Session} session
 * @property {Api} api
 * @property {Store} store
 * @property {ChangeStream} stream
 * @property {Calendar} calendar
 * @property {Bookings} bookings
 * @property {Side} side
 * @property {((offer: import("./calendar.js").Place) => void) | undefined} takeOffer
 * @property {(text: string) => void} setBanner shows a line above the timeline; an empty text removes it
 */

const STATES = { connecting: "Connecting", live: "Live", waiting: "Connection lost, trying again", refused: "Not connected" };

const session = new Session();
const api = new Api(session, ({ text }) =>
  ask(session.credential ? `The service refuses the credential. ${text}` : "The service asks for a credential."),
);
const store = new Store(api);
const app = /** @type {App} */ ({ session, api, store, takeOffer: undefined, setBanner });
app.bookings = new Bookings(app);
app.calendar = new Calendar(byId("timeline"), session, {
  onOpen: (appointment) => app.bookings.open(appointment),
  onSelect: (place) => app.bookings.begin(place),
  onMove: (appointment, from, to) => void app.bookings.move(appointment, from, to),
  onResize: (appointment, start, end) => void app.bookings.resize(appointment, start, end),
  onOffer: (offer) => app.takeOffer?.(offer),
});
app.stream = new ChangeStream(api, {
  onChange: (entry) => store.follow(entry),
  onReset: () => void begin(),
  onState: showState,
});
const ask = prepareAccount(session, () => void begin());
prepareToolbar(app);
app.side = new Side(app);
const { calendar, stream } = app;

/** Read everything, and follow the changes after it. */
async function begin() {
  stream.stop();
  store.clear();
  calendar.clear();
  clearMessages();
  calendar.show(store);
  calendar.draw();
  calendar.scrollToStart();
  await load(true);
}

let loads = 0;

/**
 * Read the range.
 * @param {boolean} follow whether the changes after it are to be followed, from its revision
 */
async function load(follow) {
  const loading = byId("loading");
  loading.hidden = false;
  const number = ++loads;
  try {
    const current = store.load(session.range);
    calendar.redraw(); // the new range, with what is known of it
    if (!(await current)) return;
    session.remember();
    if (!store.complete) tell(`Only the first ${MOST.toLocaleString()} appointments are shown. Show a shorter range.`, { bad: true });
    if (follow) stream.start(store.revision);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 401) tell(error.text, { bad: true });
    if (error.isTemporary) setTimeout(() => number === loads && void load(follow), 3000);
    else if (follow) showState("refused", error.message);
  } finally {
    if (number === loads) loading.hidden = true;
  }
}

store.addEventListener("loaded", (event) => {
  const { first, done } = /** @type {CustomEvent} */ (event).detail;
  if (first) {
    calendar.draw();
    calendar.scrollToStart();
    performance.mark("first appointments");
  } else if (done) calendar.redraw();
  if (done) showWhetherEmpty();
});

// Bursts of changes are drawn at once.
const BURST = 30;
/** @type {Map<string, {before?: Appointment, after?: Appointment, others: boolean}>} */
const changed = new Map();
const drawChanges = beforeNextPicture(() => {
  if (calendar.scene !== store) changed.clear();
  if (changed.size > BURST) calendar.draw();
  else for (const { before, after, others } of changed.values()) calendar.change(before, after, others ? "arrived" : "");
  changed.clear();
  showWhetherEmpty();
});
store.addEventListener("changed", (event) => {
  const { before, after, entry } = /** @type {CustomEvent} */ (event).detail;
  const id = (after ?? before).id;
  const first = changed.get(id);
  changed.set(id, { before: first ? first.before : before, after, others: Boolean(entry) });
  drawChanges();
});

session.addEventListener("change", (event) => {
  const names = /** @type {CustomEvent<Set<string>>} */ (event).detail;
  closeCard({ refocus: false });
  if (names.has("organization")) void begin();
  else if (names.has("date") || names.has("view") || names.has("zone")) void load(false);
  else calendar.redraw();
});

function showWhetherEmpty() {
  const empty = byId("empty");
  empty.hidden = store.appointments.size > 0;
  empty.textContent = calendar.resources.size > 0 ? "" : "Nothing is booked here. Press “New appointment” to begin.";
}

/**
 * @param {import("./events.js").StreamState} state
 * @param {string} reason
 */
function showState(state, reason) {
  const element = byId("state");
  element.dataset.state = state;
  element.textContent = STATES[state];
  element.title = reason;
}

/** @param {string} text */
function setBanner(text) {
  const banner = byId("banner");
  banner.textContent = text;
  banner.hidden = text === "";
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && openCardName()) closeCard();
  else if (calendar.elements.handleKey(event)) event.preventDefault();
});

void begin();

// For the console, and for tests that look inside.
Reflect.set(globalThis, "appointments", app);
