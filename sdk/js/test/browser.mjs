// As much of a browser as sparrow.js sees: a clock that the test moves, storage, a network that it owns.

import { readFileSync } from "node:fs";
import vm from "node:vm";

const SOURCE = new URL("../../../ingest/collector/static/sparrow.js", import.meta.url);
const script = new vm.Script(readFileSync(SOURCE, "utf8"), { filename: "sparrow.js" });

/** localStorage: names are own properties, as Object.keys sees them; `storage.full` refuses writing. */
export function storage() {
  const own = { getItem, setItem, removeItem };
  const methods = Object.create(null, Object.getOwnPropertyDescriptors(own));
  const made = Object.create(methods);
  Object.defineProperty(made, "full", { value: false, writable: true });
  function getItem(name) {
    return Object.hasOwn(made, name) ? made[name] : null;
  }
  function setItem(name, text) {
    if (made.full) throw new Error("QuotaExceededError");
    made[name] = String(text);
  }
  function removeItem(name) {
    delete made[name];
  }
  return made;
}

/** What the site and all its pages share. */
export class Site {
  now = 1_700_000_000_000;
  localStorage = storage();
  online = true;
  /** Every body that left, and by which way. */
  sent = [];
  /** body => {status, body, headers} | "lost"; a promise of it stays open until the test ends it. */
  answer = (body) => ({ status: 202, body: { accepted: JSON.parse(body).events.length, refused: [] } });
  beaconRoom = 65_536;

  page({ blocked = false, script: tag = null, globals = {}, prerendering = false } = {}) {
    return new Page(this, blocked, tag, globals, prerendering);
  }

  /** How often each event left, by name. */
  events() {
    const counted = {};
    for (const { body } of this.sent)
      for (const { event } of JSON.parse(body).events) counted[event] = (counted[event] ?? 0) + 1;
    return counted;
  }

  waiting() {
    return Object.keys(this.localStorage).filter((name) => name.startsWith("sparrow.q."));
  }
}

class Page {
  timers = [];
  listeners = {};
  warned = [];
  problems = [];

  constructor(site, blocked, tag, globals, prerendering) {
    this.site = site;
    const page = this;
    const listen = (name, call) => (page.listeners[name] ??= []).push(call);
    this.document = { hidden: false, prerendering, currentScript: tag, addEventListener: listen };
    const clock = class extends Date {
      constructor(...args) {
        super(...(args.length ? args : [site.now]));
      }
      static now = () => site.now;
    };
    const window = {
      Date: clock, Request, AbortController, TextEncoder, crypto,
      Math: Object.create(Math, { random: { value: () => 1, writable: true } }),
      console: { warn: (...what) => page.warned.push(what) },
      location: { pathname: "/here" },
      document: this.document,
      addEventListener: listen,
      setTimeout: (call, wait) => page.timers.push({ call, at: site.now + wait }),
      clearTimeout: (id) => id && (page.timers[id - 1].call = null),
      fetch: (url, init) => page.fetch(url, init),
      navigator: {
        get onLine() {
          return site.online;
        },
        sendBeacon(url, body) {
          if (body.length > site.beaconRoom) return false;
          if (site.online) site.sent.push({ way: "beacon", url, body });
          return true;
        },
      },
      ...globals,
    };
    Object.defineProperty(window, "localStorage", {
      get() {
        if (blocked) throw new Error("SecurityError");
        return site.localStorage;
      },
    });
    window.window = window;
    this.window = vm.createContext(window);
    script.runInContext(this.window);
    this.sparrow = window.sparrow;
  }

  init(options = {}) {
    this.sparrow.init({
      host: "https://c.example",
      key: "k",
      onProblem: (what, detail) => this.problems.push([what, detail]),
      ...options,
    });
    return this;
  }

  async fetch(url, init) {
    if (!this.site.online) throw new TypeError("Failed to fetch");
    this.site.sent.push({ way: "fetch", url, body: init.body, init });
    const answer = await this.site.answer(init.body);
    if (answer === "lost") throw new TypeError("Failed to fetch");
    return new Response(JSON.stringify(answer.body), {
      status: answer.status,
      headers: answer.headers ?? {},
    });
  }

  fire(name, event = {}) {
    for (const call of this.listeners[name] ?? []) call(event);
  }

  /** Lets what is under way come to its end; the clock stands still. */
  async settle() {
    for (let turn = 0; turn < 20; turn++) await new Promise((done) => setImmediate(done));
  }

  /** Moves the clock, and calls what is due in its order. */
  async pass(milliseconds) {
    const end = this.site.now + milliseconds;
    for (;;) {
      await this.settle();
      const due = this.timers.filter(({ call, at }) => call && at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) break;
      this.site.now = Math.max(this.site.now, due.at);
      const { call } = due;
      due.call = null;
      call();
    }
    this.site.now = end;
    await this.settle();
  }
}
