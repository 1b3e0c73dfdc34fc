// From the queue to the collector: in batches, one request at a time, until each has an answer.

import { guarded, problem } from "./guard";
import { madeAt } from "./ids";
import { done, type Entry, leftAt, list, noteLeft, textOf } from "./queue";
import * as store from "./store";

// Browsers allow 64 KiB in all to the requests that outlive their page.
export const MAX_BYTES = 60_000;
const MAX_EVENTS = 100;

// Milliseconds.
const TIMEOUT = 30_000;
const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 60_000;
const LONGEST_ASKED = 3_600_000;
// Other tabs send their own events; what is older than this, they have left behind.
const ORPHAN = 30_000;
// A collector knows its ids for 24 hours. What left without an answer, most probably with success,
// is not sent again after them: it would be stored twice.
const REMEMBERED = 23 * 3_600_000;
// For how long an answer says that a collector which is not heard takes what it gets.
const TRUSTED = 3_600_000;

/** Sends what was left behind, and returns the function that tells of a new event. */
export function startSending(
  url: string,
  key: string,
  delay: number,
  refused: (events: number) => void,
  dropped: (events: number) => void,
): (id: string) => void {
  // What this page sends; and what of it is on its way.
  const mine = new Set<string>();
  let flying: Entry[] = [];
  let timer = 0;
  let held = false; // the collector has said how long to wait
  let failures = 0;
  let most = MAX_EVENTS;

  // When a collector last took something under this key, on whatever page; nothing after a failure.
  const took = "sparrow.took." + key;

  const waiting = () => list(key);
  // A string is sent as text/plain: no preflight. With keepalive it outlives the page.
  const post = (body: string, signal: AbortSignal | null = null) =>
    fetch(url, { method: "POST", body, keepalive: true, credentials: "omit", signal });

  function adopt(age: number): void {
    let given = 0;
    for (const entry of waiting()) {
      const old = Date.now() - madeAt(entry.id);
      if (Date.now() - leftAt(entry) > REMEMBERED && store.get(took)) {
        done(entry);
        given++;
      }
      // Less than nothing: the clock was ahead, and it may be long until its time has come.
      else if (old >= age || old < 0) mine.add(entry.id);
    }
    dropped(given);
  }

  function arm(wait: number): void {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      held = false;
      sendNow();
    }, wait);
  }

  function sendNow(): void {
    if (flying.length || held) return;
    const [batch, body] = pack(waiting());
    if (batch.length) void send(batch, body);
  }

  /** The first of these that are this page's to send, and the body that holds them. */
  function pack(entries: Entry[]): [Entry[], string] {
    const batch: Entry[] = [];
    const texts: string[] = [];
    let room = MAX_BYTES;
    for (const entry of entries) {
      const text = mine.has(entry.id) && textOf(entry);
      if (!text) continue;
      room -= entry.bytes + 1;
      if (batch.length >= most || (room < 0 && batch.length)) break;
      batch.push(entry);
      texts.push(text);
    }
    return [batch, `{"writeKey":${JSON.stringify(key)},"events":[${texts}]}`];
  }

  async function send(batch: Entry[], body: string): Promise<void> {
    clearTimeout(timer);
    timer = 0;
    flying = batch;
    const abort = new AbortController();
    // After the answer it does nothing.
    setTimeout(() => abort.abort(), TIMEOUT);
    let wait: number;
    try {
      const answer = await post(body, abort.signal);
      wait = settle(batch, answer, await answer.json().catch(() => null));
    } catch (error) {
      // Whether it arrived is not known: it is sent again under the same ids.
      problem("no answer", error);
      wait = backoff();
    }
    flying = [];
    arm(wait);
  }

  /** Does what an answer says (`any`, for who knows whose it is). How long to wait then. */
  function settle(batch: Entry[], { ok, status, headers }: Response, said: any): number {
    const large = status === 413;
    const alone = batch.length < 2;
    // Only a collector's own answer ends an event: not a proxy's page with a 200, nor its 400.
    const judged = (ok || status === 422) && typeof said?.accepted === "number";
    const { code, reason } = said?.error ?? {};
    // Gone: the body broke off on its way.
    const unfit =
      (large || status === 400 || status === 422) &&
      typeof code === "string" &&
      typeof reason === "string" &&
      code !== "gone";
    if (judged || (unfit && alone)) {
      const bad = judged ? said.refused?.length : 1;
      if (bad) {
        refused(bad);
        problem("refused", said);
      }
      for (const entry of batch) {
        done(entry);
        mine.delete(entry.id);
      }
      if (said.accepted) store.set(took, `${Date.now()}`);
      failures = 0;
      most = MAX_EVENTS;
      return 0;
    }
    problem(`answer ${status}`, said);
    if (!alone && (unfit || large)) {
      // One of them spoils it for all: found by halving.
      most = batch.length >> 1;
      return 0;
    }
    const asked = askedWait(headers.get("Retry-After"));
    held = asked > 0;
    // Never earlier than asked; not all at the same moment either.
    return asked + backoff();
  }

  function backoff(): number {
    store.remove(took);
    const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** failures++);
    return longest * (0.5 + Math.random() / 2);
  }

  /** The page goes away: what is not on its way yet goes with a beacon, which has no answer. So all
   * of it stays in the queue and the next page sends it again: the collector stores an id once. */
  function leave(): void {
    // Without an answer of late nobody knows that anything arrives: then the next page sends it
    // again, however late it comes. A double can be told by its id; what is lost is lost.
    const likely = Date.now() - Number(store.get(took)) < TRUSTED && navigator.onLine;
    // Where fetch can't outlive the page, what it carries needs a beacon, too.
    const gone = new Set("keepalive" in Request.prototype ? flying.map(({ id }) => id) : []);
    for (;;) {
      // Asked to wait, only what no other page could send.
      const [batch, body] = pack(
        waiting().filter((e) => !gone.has(e.id) && !leftAt(e) && (!held || store.isFleeting(e.name))),
      );
      if (!batch.length) break;
      if (!navigator.sendBeacon?.(url, body)) {
        // It has no room, and a fetch seldom has: not taken for gone, the next page sends it.
        post(body).catch(() => 0);
        break;
      }
      for (const { id } of batch) gone.add(id);
    }
    if (likely) for (const entry of waiting()) if (gone.has(entry.id)) noteLeft(entry);
  }

  const back = guarded(() => {
    adopt(ORPHAN);
    sendNow();
  });
  addEventListener("online", back);
  addEventListener("pageshow", back);
  addEventListener("pagehide", guarded(leave));
  // A phone may end a hidden page without another word; most live on and see the answer.
  document.addEventListener("visibilitychange", () => (document.hidden ? sendNow() : back()));
  adopt(0);
  sendNow();

  return (id) => {
    mine.add(id);
    if (!timer && !flying.length) arm(delay);
  };
}

/** Retry-After, seconds or a date, in milliseconds. */
function askedWait(header: string | null): number {
  const wait = Number(header) * 1000 || Date.parse(header!) - Date.now();
  return Math.min(wait > 0 ? wait : 0, LONGEST_ASKED);
}
