// The events that no answer has acknowledged yet, shared by all tabs of the site.

import * as store from "./store";

export interface Entry {
  name: string;
  id: string;
  bytes: number;
}

// The write key comes last: it may hold any character.
const NAME = /^sparrow\.q\.([\da-f-]{36})\.(\d+)\.(.*)$/s;

// How the text of an event that has left on its own begins (see `noteLeft`), with when it did, in
// milliseconds. A script of before, in another tab, takes "!" off and sends the rest: an event, too.
// It marked with "!" alone: when that left is not known, so it is as if it had not.
const LEFT = /^!({)(?:"left":(\d+),)?/;

/** Keeps an event under a write key, for which the oldest may have to go: how many did. */
export function put(
  key: string,
  [id, text, bytes]: [id: string, text: string, bytes: number],
  maxEvents: number,
  maxBytes: number,
): number {
  // It would push out all others, and then go itself.
  if (bytes > maxBytes) return 1;
  store.set(`sparrow.q.${id}.${bytes}.${key}`, text);
  // This one is the newest: what has a later time was made while the clock was ahead.
  const all = list(key).sort((a, b) => Number(b.id > id) - Number(a.id > id));
  let total = all.reduce((sum, entry) => sum + entry.bytes, 0);
  let dropped = 0;
  for (const oldest of all) {
    if (all.length - dropped <= maxEvents && total <= maxBytes) break;
    total -= oldest.bytes;
    store.remove(oldest.name);
    dropped++;
  }
  return dropped;
}

/** What waits under a write key, oldest first: an id sorts by its time. */
export function list(key: string): Entry[] {
  const found: Entry[] = [];
  for (const name of store.names()) {
    const [, id, bytes, its] = NAME.exec(name) ?? [];
    if (id && its === key) found.push({ name, id, bytes: Number(bytes) });
  }
  return found.sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** Nothing when another tab has had the answer for it, or has dropped it. */
export function textOf(entry: Entry): string | undefined {
  return store.get(entry.name)?.replace(LEFT, "$1");
}

export function done(entry: Entry): void {
  store.remove(entry.name);
}

/** It was sent on leaving, most probably with success, and nobody saw the answer. */
export function noteLeft(entry: Entry): void {
  const text = textOf(entry);
  // What is sent once more keeps its first time: the collector counts from that, too.
  if (text && !leftAt(entry)) store.set(entry.name, `!{"left":${Date.now()},` + text.slice(1));
}

/** When it left, in milliseconds; not a number where it has not. */
export function leftAt(entry: Entry): number {
  return Number(LEFT.exec(store.get(entry.name)!)?.[2]);
}
