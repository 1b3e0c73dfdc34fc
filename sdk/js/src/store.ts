// Text by name, in localStorage; in memory where the browser refuses that (blocked, or full).
// Each event has a name of its own: two tabs that write at once never overwrite each other's, as
// they would in one list that both read, change and write.

const memory = new Map<string, string>();

/** What the storage gives; nothing where it refuses. Looked up at each call: the mere look throws
 * where storage is blocked. */
function disk<T>(ask: (storage: Storage) => T): T | undefined {
  try {
    return ask(window.localStorage);
  } catch {
    return;
  }
}

export function get(name: string): string | null | undefined {
  return memory.get(name) ?? disk((storage) => storage.getItem(name));
}

export function set(name: string, text: string): void {
  memory.set(name, text);
  disk((storage) => {
    storage.setItem(name, text);
    memory.delete(name);
  });
}

export function remove(name: string): void {
  memory.delete(name);
  disk((storage) => storage.removeItem(name));
}

/** Whether it is only in memory, and goes with the page. */
export const isFleeting = (name: string): boolean => memory.has(name);

export const names = (): Set<string> =>
  new Set([...memory.keys(), ...(disk((storage) => Object.keys(storage)) ?? [])]);
