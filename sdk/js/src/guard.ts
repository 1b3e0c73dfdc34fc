// Nothing of this script throws into the page; what went wrong is told instead.

/** What a developer or an operator should hear of. */
export type Problem = (what: string, detail?: unknown) => void;

const told = new Set<string>();
let hear: Problem = (what, detail) => {
  if (!told.has(what)) console.warn("sparrow:", what, detail);
  told.add(what);
};

export function setListener(listener: Problem): void {
  hear = listener;
}

export function problem(what: string, detail?: unknown): void {
  const listener = hear;
  // Its own trouble is told to nobody. And where it tracks, not that this found no room either: of a
  // full queue it would push out all that waits.
  hear = () => 0;
  guarded(listener)(what, detail);
  hear = listener;
}

/** The same function, but whatever happens inside, its caller goes on. */
export function guarded<A extends unknown[]>(work: (...args: A) => void): (...args: A) => void {
  return (...args) => {
    try {
      work(...args);
    } catch (error) {
      problem("error", error);
    }
  };
}
