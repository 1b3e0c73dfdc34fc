// Text by name, in localStorage; in memory where the browser refuses that (blocked, or full).
// Each event has a name of its own: two tabs that write at once never overwrite each other's, as
// they would in one list that both read, change and write.

const memory = new Map<string, string>();

// Looked up at each call: the mere look throws where storage is blocked.
const disk = (): Storage => window.localStorage;

export function get(name: string): string | null {
  const held = memory.get(name);
  if (held !== undefined) return held;
  try {
    return disk().getItem(name);
  } catch {
    return null;
  }
}

export function set(name: string, text: string): void {
  try {
    disk().setItem(name, text);
    memory.delete(name);
  } catch {
    memory.set(name, text);
  }
}

export function remove(name: string): void {
  memory.delete(name);
  try {
    disk().removeItem(name);
  } catch {
    // It was not there.
  }
}

/** Whether it is only in memory, and goes with the page. */
export const isFleeting = (name: string): boolean => memory.has(name);

export function names(): string[] {
  const all = [...memory.keys()];
  try {
    all.push(...Object.keys(disk()));
  } catch {
    // Nothing is there.
  }
  return [...new Set(all)];
}
