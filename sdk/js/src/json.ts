// A value of the page as JSON text, whatever it is.

/** As JSON.stringify does; where that throws (a cycle, a BigInt, a getter or toJSON that throws),
 * the same without what made it throw. */
export function json(value: unknown): string {
  let left = 10_000;
  const copy = (value: unknown, depth: number): string => {
    if (typeof value === "bigint") return `"${value}"`;
    if (typeof value !== "object" || !value) return JSON.stringify(value) ?? "null";
    // A cycle ends here too, and what could go on for ever.
    if (depth > 9) return "null";
    const list = Array.isArray(value);
    const parts: string[] = [];
    for (const name of Object.keys(value)) {
      if (--left < 0) break;
      try {
        const text = copy((value as Record<string, unknown>)[name], depth + 1);
        parts.push(list ? text : `${JSON.stringify(name)}:${text}`);
      } catch {
        // It can't be read: left out; of a list, so that the others keep their places, null.
        if (list) parts.push("null");
      }
    }
    return list ? `[${parts}]` : `{${parts}}`;
  };
  try {
    return JSON.stringify(value) ?? "null";
  } catch {
    return copy(value, 0);
  }
}
