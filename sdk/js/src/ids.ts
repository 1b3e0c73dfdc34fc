// Ids: a UUIDv7 (RFC 9562) sorts by the time at which it was made, also within a millisecond.

let last = 0;
let count = 0;

/** 48 bits of milliseconds, a counter of 12 bits within them, 62 random bits. */
export function uuid7(now = Date.now()): string {
  // A clock that was set back does not change the order of a page's events.
  if (now > last) {
    last = now;
    count = 0;
  } else if (++count > 0xfff) {
    last++;
    count = 0;
  }
  // randomUUID is for secure contexts only, this is everywhere.
  const random = [...crypto.getRandomValues(new Uint8Array(8))];
  random[0] = (random[0]! & 0x3f) | 0x80;
  const hex =
    last.toString(16).padStart(12, "0") +
    (0x7000 + count).toString(16) +
    random.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** When it was made, in milliseconds: what is before the second hyphen. */
export const madeAt = (id: string): number => parseInt(id.replace("-", ""), 16);
