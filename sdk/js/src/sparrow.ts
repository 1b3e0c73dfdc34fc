// The interface: pageview, track, identify. Nothing here throws into the page.

import { guarded, type Problem, problem, setListener } from "./guard";
import { uuid7 } from "./ids";
import { json } from "./json";
import { list, put } from "./queue";
import { MAX_BYTES, startSending } from "./sender";
import * as store from "./store";

export interface Options {
  /** The collector's address, such as `https://collector.example.com`. */
  host: string;
  /** The write key that `headrace keys add` prints. In a page it is no secret. */
  key: string;
  /** Milliseconds for which events are gathered into one request: 250 unless said. */
  delay?: number;
  /** How much may wait while the collector is away: 1,000 events, 1,000,000 bytes unless said. */
  maxEvents?: number;
  maxBytes?: number;
  /** Told what went wrong. Unless said, each kind is written to the console once. */
  onProblem?: Problem;
}

export interface Stats {
  /** Events that have no answer yet. */
  queued: number;
  /** Events that this page gave up: the oldest of a full queue, what is too large, and what
   * left with a page 23 hours ago or earlier and has had no answer. */
  dropped: number;
  /** Events that the collector refused for good. */
  refused: number;
}

const DEVICE = "sparrow.device";
const USER = "sparrow.user";

type Event = [id: string, text: string, bytes: number];

// How `init` wants events kept; before it, they wait in memory.
let keep = (event: Event): void => {
  if (early.push(event) > 100) drop(early.splice(0, 1).length);
};
const early: Event[] = [];
let key: string | undefined;
let dropped = 0;
let refused = 0;

function drop(events: number): void {
  dropped += events;
  if (events) problem("dropped", events);
}

/** This browser's id. Read anew each time: two first tabs agree on what was written last. */
function device(): string {
  if (!store.get(DEVICE)) store.set(DEVICE, uuid7());
  return store.get(DEVICE)!;
}

function record(event: string, properties?: object): void {
  if (typeof event !== "string" || !event) return problem("an event needs a name");
  const id = uuid7();
  const user = store.get(USER);
  let held = json(properties ?? {});
  if (held[0] !== "{") {
    problem("properties are an object", event);
    held = "{}";
  }
  const text =
    `{"event":${json(event)},"deviceId":${json(device())},` +
    (user ? `"userId":${json(user)},` : "") +
    `"properties":${held},"eventId":"${id}","timestamp":"${new Date().toISOString()}"}`;
  const bytes = new TextEncoder().encode(text).length;
  if (bytes <= MAX_BYTES) return keep([id, text, bytes]);
  problem("too large", event);
  drop(1);
}

export const sparrow = {
  /** Where events go. Counts once in a page; what came before it is sent then. */
  init: guarded((options: Options) => {
    const { host, delay = 250, maxEvents = 1e3, maxBytes = 1e6 } = options;
    if (key || !options.key || typeof host !== "string")
      return problem("init takes host and key, once");
    const its = (key = options.key);
    if (options.onProblem) setListener(options.onProblem);
    const url = host.replace(/\/+$/, "") + "/v1/events";
    const added = startSending(url, its, delay, (events) => (refused += events), drop);
    keep = (event) => {
      drop(put(its, event, maxEvents, maxBytes));
      added(event[0]);
    };
    early.splice(0).forEach(keep);
  }),

  /** Something happened. */
  track: guarded(record),

  /** A page is seen: the event `pageview` with the property `pathname`. */
  pageview: guarded((pathname: string = location.pathname) =>
    record("pageview", { pathname: String(pathname) }),
  ),

  /** Whose the events are from now on, also on later pages: the event `identify`, with the traits
   * as its properties. Nobody's after `identify(null)`, which is no event. */
  identify: guarded((userId: string | null, traits?: object) => {
    if (!userId) return store.remove(USER);
    const user = String(userId);
    store.set(USER, user);
    if (store.isFleeting(USER)) {
      // The storage is full, and may hold another user: the next page's is rather nobody.
      store.remove(USER);
      store.set(USER, user);
    }
    record("identify", traits);
  }),

  stats: (): Stats => ({ queued: (key ? list(key) : early).length, dropped, refused }),
};
