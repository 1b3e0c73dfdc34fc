// The built script, as the collector serves it, in a browser that the test owns (browser.mjs).

import assert from "node:assert/strict";
import { test } from "node:test";

import { Site } from "./browser.mjs";

const HOUR = 3_600_000;
const first = (site) => JSON.parse(site.sent[0].body).events[0];

/** A page that has had an answer for an event. */
async function heard(site) {
  const page = site.page().init();
  page.sparrow.track("heard");
  await page.pass(1000);
  assert.equal(site.waiting().length, 0);
  site.sent = [];
  return page;
}

test("an event is what the collector's door takes, sent once as text without a preflight", async () => {
  const site = new Site();
  const page = site.page().init();
  page.sparrow.track("purchase product", { category: "billing", productName: "workers" });
  await page.pass(60_000);
  assert.equal(site.sent.length, 1);
  const { url, init, body } = site.sent[0];
  assert.equal(url, "https://c.example/v1/events");
  assert.deepEqual(Object.keys(init).sort(), ["body", "credentials", "keepalive", "method", "signal"]);
  assert.equal(JSON.parse(body).writeKey, "k");
  const { deviceId, eventId, ...event } = first(site);
  assert.deepEqual(event, {
    event: "purchase product",
    properties: { category: "billing", productName: "workers" },
    timestamp: "2023-11-14T22:13:20.000Z",
  });
  assert.match(eventId, /^018bcfe5-6800-7000-[89ab][\da-f]{3}-[\da-f]{12}$/);
  assert.match(deviceId, /^[\da-f-]{36}$/);
  assert.deepEqual(site.waiting(), []);
  assert.deepEqual({ ...page.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
});

test("device and user are the same on the next page, and nobody after identify(null)", async () => {
  const site = new Site();
  const one = site.page().init();
  one.sparrow.identify("u");
  await one.pass(1000);
  site.sent.length = 0;
  one.sparrow.pageview("/a");
  await one.pass(1000);
  const two = site.page().init();
  two.sparrow.pageview();
  await two.pass(1000);
  two.sparrow.identify(null);
  two.sparrow.track("x");
  await two.pass(1000);
  const [a, b, c] = site.sent.map(({ body }) => JSON.parse(body).events[0]);
  assert.deepEqual([a.properties, b.properties], [{ pathname: "/a" }, { pathname: "/here" }]);
  assert.ok(a.deviceId === b.deviceId && b.deviceId === c.deviceId);
  assert.deepEqual([a.userId, b.userId, "userId" in c], ["u", "u", false]);
});

test("who a user is, is an event of that user, sent before what follows; of nobody there is none", async () => {
  const site = new Site();
  const page = site.page().init();
  page.sparrow.track("before");
  page.sparrow.identify("michelle1", { plan: "business" });
  page.sparrow.track("after");
  page.sparrow.identify("arthur");
  page.sparrow.identify(null);
  page.sparrow.identify("");
  page.sparrow.track("nobody's");
  await page.pass(1000);
  const { events } = JSON.parse(site.sent[0].body);
  assert.deepEqual(
    events.map(({ event, userId, properties }) => [event, userId, properties]),
    [
      ["before", undefined, {}],
      ["identify", "michelle1", { plan: "business" }],
      ["after", "michelle1", {}],
      ["identify", "arthur", {}],
      ["nobody's", undefined, {}],
    ],
  );
});

test("the script tag says where and under which key", async () => {
  const site = new Site();
  const script = { src: "https://c.example/edge/sparrow.js?v=1/2", dataset: { key: "t", pageview: "" } };
  const page = site.page({ script });
  await page.pass(1000);
  assert.equal(site.sent[0].url, "https://c.example/edge/v1/events");
  assert.equal(JSON.parse(site.sent[0].body).writeKey, "t");
  assert.equal(first(site).event, "pageview");
});

test("a page that is loaded ahead is seen when it is shown, once", async () => {
  const site = new Site();
  const script = { src: "https://c.example/sparrow.js", dataset: { key: "t", pageview: "" } };
  const page = site.page({ script, prerendering: true });
  await page.pass(60_000);
  assert.deepEqual(site.events(), {});
  page.document.prerendering = false;
  page.fire("prerenderingchange");
  page.fire("pageshow", { persisted: false });
  await page.pass(1000);
  assert.deepEqual(site.events(), { pageview: 1 });
  assert.deepEqual(first(site).properties, { pathname: "/here" });
});

test("a page that comes back from the browser's memory is seen again, where the tag says so", async () => {
  for (const [pageview, expected] of [["", { pageview: 2 }], [undefined, {}]]) {
    const site = new Site();
    const script = { src: "https://c.example/sparrow.js", dataset: { key: "t", pageview } };
    const page = site.page({ script });
    page.fire("pageshow", { persisted: false });
    await page.pass(1000);
    page.fire("pagehide", { persisted: true });
    page.fire("pageshow", { persisted: true });
    await page.pass(1000);
    assert.deepEqual(site.events(), expected);
  }
});

test("what comes before init is sent after it", async () => {
  const site = new Site();
  const page = site.page();
  page.sparrow.track("early");
  await page.pass(1000);
  page.init();
  await page.pass(1000);
  assert.deepEqual(site.events(), { early: 1 });
});

test("events of one moment are one request, in their order", async () => {
  const site = new Site();
  const page = site.page().init();
  for (let n = 0; n < 250; n++) page.sparrow.track(`e${n}`);
  await page.pass(1000);
  const batches = site.sent.map(({ body }) => JSON.parse(body).events.map(({ event }) => event));
  assert.deepEqual(batches.map((b) => b.length), [100, 100, 50]);
  assert.deepEqual(batches.flat(), Array.from({ length: 250 }, (_, n) => `e${n}`));
});

test("no body is larger than what outlives a page", async () => {
  const site = new Site();
  const page = site.page().init();
  for (let n = 0; n < 20; n++) page.sparrow.track("big", { text: "ä".repeat(5_000) });
  await page.pass(1000);
  assert.deepEqual(site.events(), { big: 20 });
  for (const { body } of site.sent) assert.ok(new TextEncoder().encode(body).length <= 65_536);
});

test("no answer: again under the same id, waiting longer each time, until there is one", async () => {
  const site = new Site();
  site.answer = () => "lost";
  const page = site.page().init();
  page.sparrow.track("x");
  const times = [];
  for (let second = 0; second < 300; second++) {
    const before = site.sent.length;
    await page.pass(1000);
    if (site.sent.length > before) times.push(second);
  }
  // 250 ms, then 1, 2, 4, 8, 16, 32, 60, 60 … seconds later.
  assert.deepEqual(times, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
  assert.equal(new Set(site.sent.map(({ body }) => JSON.parse(body).events[0].eventId)).size, 1);
  assert.equal(site.waiting().length, 1);
  site.answer = new Site().answer;
  await page.pass(60_000);
  assert.equal(site.waiting().length, 0);
});

test("an event while the collector is away does not shorten the wait", async () => {
  const site = new Site();
  site.answer = () => "lost";
  const page = site.page().init();
  page.sparrow.track("x");
  await page.pass(20_000);
  const before = site.sent.length;
  for (let n = 0; n < 10; n++) {
    page.sparrow.track("y");
    await page.pass(500);
  }
  assert.equal(site.sent.length, before);
});

test("back on the network it sends at once", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init();
  page.sparrow.track("x");
  await page.pass(200_000);
  site.online = true;
  page.fire("online");
  await page.settle();
  assert.deepEqual(site.events(), { x: 1 });
  assert.equal(site.waiting().length, 0);
});

for (const [said, header] of [
  ["seconds", "120"],
  ["a date", new Date(1_700_000_000_250 + 120_000).toUTCString()],
])
  test(`Retry-After in ${said} is kept to, also when the network is back`, async () => {
    const site = new Site();
    site.answer = () => ({ status: 503, body: {}, headers: { "Retry-After": header } });
    const page = site.page().init();
    page.sparrow.track("x");
    await page.pass(100_000);
    page.fire("online");
    page.fire("pagehide");
    await page.pass(15_000);
    assert.equal(site.sent.length, 1);
    await page.pass(7_000);
    assert.equal(site.sent.length, 2);
  });

for (const status of [401, 403, 404, 408, 429, 500, 503])
  test(`${status} loses nothing`, async () => {
    const site = new Site();
    site.answer = () => ({ status, body: { error: {} } });
    const page = site.page().init();
    page.sparrow.track("x");
    await page.pass(10_000);
    assert.equal(site.waiting().length, 1);
    assert.ok(page.problems.some(([what]) => what === `answer ${status}`));
  });

test("a proxy's page with a 200 is no acknowledgement", async () => {
  const site = new Site();
  site.answer = () => ({ status: 200, body: "<html>sign in</html>" });
  const page = site.page().init();
  page.sparrow.track("x");
  await page.pass(10_000);
  assert.equal(site.waiting().length, 1);
});

test("what the collector refuses is counted and told, and not sent again", async () => {
  const site = new Site();
  const refused = [{ index: 1, code: "too_deep", reason: "…" }];
  site.answer = () => ({ status: 202, body: { accepted: 1, refused } });
  const page = site.page().init();
  page.sparrow.track("good");
  page.sparrow.track("bad");
  await page.pass(100_000);
  assert.deepEqual(site.events(), { good: 1, bad: 1 });
  assert.equal(page.sparrow.stats().refused, 1);
  assert.deepEqual(page.problems.map(([what, said]) => [what, said.refused]), [["refused", refused]]);
});

for (const status of [400, 422])
  for (const body of [
    "<html>blocked</html>",
    { error: "Bad Request" },
    { error: { code: status } },
    { error: { code: "BadRequest", message: "…" } },
    { error: { code: "gone", reason: "…" } },
  ])
    test(`a ${status} that is not about the body loses nothing: ${JSON.stringify(body)}`, async () => {
      const site = new Site();
      site.answer = () => ({ status, body });
      const page = site.page().init();
      page.sparrow.track("x");
      page.sparrow.track("y");
      await page.pass(10_000);
      assert.equal(site.waiting().length, 2);
      assert.equal(page.sparrow.stats().refused, 0);
      // Again as it is, and later each time.
      assert.equal(site.sent.length, 4);
      assert.deepEqual(site.events(), { x: 4, y: 4 });
      site.answer = new Site().answer;
      await page.pass(60_000);
      assert.equal(site.waiting().length, 0);
    });

test("a 413 of somebody else is halved, and loses not even what stays too large alone", async () => {
  const site = new Site();
  site.answer = (body) =>
    body.length > 1_000
      ? { status: 413, body: "<html>too large</html>" }
      : { status: 202, body: { accepted: 1, refused: [] } };
  const page = site.page().init();
  for (let n = 0; n < 10; n++) page.sparrow.track(`e${n}`);
  page.sparrow.track("large", { text: "x".repeat(2_000) });
  await page.pass(100_000);
  assert.equal(site.waiting().length, 1);
  assert.deepEqual({ ...page.sparrow.stats() }, { queued: 1, dropped: 0, refused: 0 });
  assert.ok(site.sent.length < 30);
  site.answer = new Site().answer;
  await page.pass(60_000);
  assert.equal(site.waiting().length, 0);
});

for (const status of [400, 413])
  test(`a ${status} of the collector to a single event refuses it for good`, async () => {
    const site = new Site();
    site.answer = () => ({ status, body: { error: { code: "not_json", reason: "…" } } });
    const page = site.page().init();
    page.sparrow.track("x");
    await page.pass(10_000);
    assert.equal(site.sent.length, 1);
    assert.deepEqual({ ...page.sparrow.stats() }, { queued: 0, dropped: 0, refused: 1 });
  });

test("one event that spoils its batch is found, and the others arrive", async () => {
  const site = new Site();
  site.answer = (body) =>
    body.includes("poison")
      ? { status: 413, body: { error: { code: "too_many", reason: "…" } } }
      : { status: 202, body: { accepted: 1, refused: [] } };
  const page = site.page().init();
  for (let n = 0; n < 30; n++) page.sparrow.track(n === 17 ? "poison" : `e${n}`);
  await page.pass(10_000);
  assert.equal(site.waiting().length, 0);
  assert.equal(page.sparrow.stats().refused, 1);
  const taken = site.sent.filter(({ body }) => !body.includes("poison"));
  assert.equal(taken.flatMap(({ body }) => JSON.parse(body).events).length, 29);
});

test("a page that leaves right after track hands its events to a beacon, in pieces that fit", async () => {
  const site = new Site();
  const page = site.page().init();
  for (let n = 0; n < 10; n++) page.sparrow.track(`e${n}`, { text: "x".repeat(20_000) });
  page.fire("pagehide");
  assert.equal(Object.keys(site.events()).length, 10);
  assert.ok(site.sent.length > 1);
  for (const { way, body } of site.sent) {
    assert.equal(way, "beacon");
    assert.ok(body.length <= 65_536);
    assert.equal(JSON.parse(body).writeKey, "k");
  }
  // Nobody has answered: the next page sends them again, under the same ids.
  const ids = site.sent.flatMap(({ body }) => JSON.parse(body).events.map(({ eventId }) => eventId));
  site.sent = [];
  const next = site.page().init();
  await next.pass(1000);
  const again = site.sent.flatMap(({ body }) => JSON.parse(body).events.map(({ eventId }) => eventId));
  assert.deepEqual(again, ids);
  assert.equal(site.waiting().length, 0);
});

test("a beacon that finds no room is a fetch that outlives the page", async () => {
  const site = new Site();
  site.beaconRoom = 0;
  const page = site.page().init();
  page.sparrow.track("x");
  page.fire("pagehide");
  assert.deepEqual(site.sent.map(({ way, init }) => [way, init.keepalive]), [["fetch", true]]);
});

test("what a beacon had no room for is sent by the next page, however late it comes", async () => {
  const site = new Site();
  const page = await heard(site);
  page.sparrow.track("left", { text: "x".repeat(20_000) });
  page.sparrow.track("stays", { text: "x".repeat(45_000) });
  site.beaconRoom = 30_000;
  site.answer = () => "lost";
  page.fire("pagehide");
  assert.deepEqual(site.sent.map(({ way }) => way), ["beacon", "fetch"]);
  await page.settle();
  site.sent = [];
  site.answer = new Site().answer;
  site.now += 24 * 3_600_000;
  await site.page().init().pass(1000);
  assert.deepEqual(site.events(), { stays: 1 });
  assert.equal(site.waiting().length, 0);
});

test("what is on its way already needs no beacon", async () => {
  const site = new Site();
  site.answer = () => new Promise(() => {});
  const page = site.page().init();
  page.sparrow.track("flying");
  await page.pass(300);
  page.sparrow.track("fresh");
  page.fire("pagehide");
  assert.deepEqual(site.events(), { flying: 1, fresh: 1 });
  assert.deepEqual(site.sent.map(({ way }) => way), ["fetch", "beacon"]);
});

test("where fetch can't outlive the page, what is on its way leaves with a beacon as well", async () => {
  const site = new Site();
  site.answer = () => new Promise(() => {});
  const page = site.page({ globals: { Request: class {} } }).init();
  page.sparrow.track("flying");
  await page.pass(300);
  page.fire("pagehide");
  assert.deepEqual(site.sent.map(({ way }) => way), ["fetch", "beacon"]);
});

test("what left without an answer is given up when the collector has forgotten its id, and is counted", async () => {
  const site = new Site();
  const page = await heard(site);
  page.sparrow.track("left");
  page.fire("pagehide");
  site.now += 22 * HOUR;
  const soon = site.page().init();
  assert.equal(site.sent.length, 2);
  soon.fire("pagehide");
  site.now += HOUR + 1;
  const late = site.page().init();
  await late.pass(1000);
  assert.equal(site.sent.length, 2);
  assert.deepEqual({ ...late.sparrow.stats() }, { queued: 0, dropped: 1, refused: 0 });
  assert.deepEqual(late.problems, [["dropped", 1]]);
});

test("what has left is given up a day after it left, not after it was made", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init();
  for (let n = 0; n < 300; n++) page.sparrow.track(`e${n}`);
  site.now += 25 * HOUR;
  site.online = true;
  // The first hundred are answered, the others are under way as the page goes.
  let answers = 0;
  const { answer } = new Site();
  site.answer = (body) => (answers++ ? new Promise(() => {}) : answer(body));
  const back = site.page().init();
  await back.settle();
  await back.pass(10);
  back.fire("pagehide");
  assert.equal(site.waiting().length, 200);
  site.sent = [];
  site.answer = () => ({ status: 503, body: {} });
  site.now += 1000;
  const next = site.page().init();
  await next.pass(100);
  assert.equal(Object.keys(site.events()).length, 100);
  site.answer = answer;
  await next.pass(10_000);
  assert.equal(Object.keys(site.events()).length, 200);
  assert.deepEqual({ ...next.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
});

const unheard = {
  "no answer ever came": async (site) => site.page().init(),
  "the key was refused": async (site) => {
    const page = await heard(site);
    site.answer = () => ({ status: 401, body: {} });
    page.sparrow.track("x");
    await page.pass(300);
    site.answer = () => new Promise(() => {});
    return site.page().init();
  },
  "the last answer was long ago": async (site) => {
    await heard(site);
    site.now += 2 * HOUR;
    return site.page().init();
  },
  "all were refused": async (site) => {
    site.answer = () => ({ status: 422, body: { accepted: 0, refused: [{}] } });
    return heard(site);
  },
};
for (const [why, before] of Object.entries(unheard))
  test(`what leaves while nobody knows that a collector takes it is kept however long: ${why}`, async () => {
    const site = new Site();
    const page = await before(site);
    site.answer = () => new Promise(() => {});
    for (let n = 0; n < 20; n++) page.sparrow.track(`e${n}`);
    await page.pass(2000);
    page.fire("pagehide");
    site.sent = [];
    site.answer = new Site().answer;
    site.now += 24 * HOUR;
    const next = site.page().init();
    await next.pass(1000);
    for (let n = 0; n < 20; n++) assert.equal(site.events()[`e${n}`], 1);
    assert.deepEqual({ ...next.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
  });

test("what has left is kept however long where the next page hears that the key is refused", async () => {
  const site = new Site();
  const page = await heard(site);
  page.sparrow.track("left");
  page.fire("pagehide");
  site.answer = () => ({ status: 401, body: {} });
  await site.page().init().pass(1000);
  site.now += 24 * HOUR;
  site.sent = [];
  site.answer = new Site().answer;
  const next = site.page().init();
  await next.pass(1000);
  assert.deepEqual(site.events(), { left: 1 });
  assert.deepEqual({ ...next.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
});

test("that a collector takes events is known on the next page, too", async () => {
  const site = new Site();
  await heard(site);
  const page = site.page().init();
  page.sparrow.track("left");
  page.fire("pagehide");
  site.now += 24 * HOUR;
  const next = site.page().init();
  await next.pass(1000);
  assert.deepEqual(site.events(), { left: 1 });
  assert.equal(next.sparrow.stats().dropped, 1);
});

test("scripts of two versions read what the other one's pages have left", async () => {
  const site = new Site();
  const page = await heard(site);
  page.sparrow.track("left");
  const [name] = site.waiting();
  const text = site.localStorage.getItem(name);
  page.fire("pagehide");
  // Before, the mark was "!": it was taken off, and what remained was sent.
  const marked = site.localStorage.getItem(name);
  assert.equal(marked[0], "!");
  assert.deepEqual(JSON.parse(marked.slice(1)), { left: site.now, ...JSON.parse(text) });
  site.sent = [];
  site.localStorage.setItem(name, "!" + text);
  // When that left is not known: better twice than never.
  site.now += 30 * HOUR;
  const next = site.page().init();
  await next.pass(1000);
  assert.equal(JSON.stringify(first(site)), text);
  assert.deepEqual({ ...next.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
});

test("what never left is sent however old it is", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init();
  page.sparrow.track("x");
  page.fire("pagehide");
  site.now += 40 * 86_400_000;
  site.online = true;
  await site.page().init().pass(1000);
  assert.deepEqual(site.events(), { x: 1 });
});

test("what was made while the clock was ahead is sent by the next page, and shuts nothing out", async () => {
  const site = new Site();
  site.online = false;
  site.now += 86_400_000;
  const page = site.page().init({ maxEvents: 2 });
  page.sparrow.track("a");
  page.sparrow.track("b");
  page.fire("pagehide");
  site.now -= 86_400_000;
  site.online = true;
  const next = site.page().init({ maxEvents: 2 });
  await next.pass(1000);
  next.sparrow.track("c");
  await next.pass(1000);
  assert.deepEqual(site.events(), { a: 1, b: 1, c: 1 });
  assert.deepEqual({ ...next.sparrow.stats() }, { queued: 0, dropped: 0, refused: 0 });
});

test("the queue is bounded in events; the oldest go, and are counted", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init({ maxEvents: 5 });
  for (let n = 0; n < 12; n++) page.sparrow.track(`e${n}`);
  assert.deepEqual({ ...page.sparrow.stats() }, { queued: 5, dropped: 7, refused: 0 });
  site.online = true;
  await page.pass(1000);
  assert.deepEqual(Object.keys(site.events()), ["e7", "e8", "e9", "e10", "e11"]);
});

test("what was made while the clock was ahead is older than what is made after that", async () => {
  const site = new Site();
  site.online = false;
  site.now += 3 * HOUR;
  const page = site.page().init({ maxEvents: 5 });
  for (let n = 0; n < 5; n++) page.sparrow.track(`ahead${n}`);
  site.now -= 3 * HOUR;
  // Also in the same page, whose ids stay in their order.
  page.sparrow.track("ahead5");
  const next = site.page().init({ maxEvents: 5 });
  for (let n = 0; n < 3; n++) next.sparrow.track(`after${n}`);
  assert.equal(page.sparrow.stats().dropped, 1);
  assert.deepEqual({ ...next.sparrow.stats() }, { queued: 5, dropped: 3, refused: 0 });
  site.online = true;
  await next.pass(60_000);
  assert.deepEqual(Object.keys(site.events()).sort(), ["after0", "after1", "after2", "ahead4", "ahead5"]);
});

test("a listener that tracks each problem pushes out one event for it, not all that wait", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page();
  const onProblem = (what) => page.sparrow.track("problem " + what);
  page.init({ maxEvents: 5, onProblem });
  for (let i = 0; i < 6; i++) page.sparrow.track("e" + i);
  assert.equal(page.sparrow.stats().dropped, 2);
  site.online = true;
  await page.pass(1000);
  const events = Object.keys(site.events()).filter((name) => !name.startsWith("problem no"));
  assert.deepEqual(events, ["e2", "e3", "e4", "e5", "problem dropped"]);
});

test("the queue is bounded in bytes; the oldest go, and are counted", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init({ maxBytes: 10_000 });
  for (let n = 0; n < 12; n++) page.sparrow.track(`e${n}`, { text: "ä".repeat(1_000) });
  assert.equal(page.sparrow.stats().queued + page.sparrow.stats().dropped, 12);
  assert.equal(page.sparrow.stats().queued, 4);
});

test("an event that is larger than the queue goes alone", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init({ maxBytes: 50_000 });
  for (let n = 0; n < 20; n++) page.sparrow.track("small");
  page.sparrow.track("large", { text: "x".repeat(55_000) });
  assert.deepEqual({ ...page.sparrow.stats() }, { queued: 20, dropped: 1, refused: 0 });
  site.online = true;
  await page.pass(1000);
  assert.deepEqual(site.events(), { small: 20 });
});

test("before init, too, only so much is kept", () => {
  const page = new Site().page();
  for (let n = 0; n < 130; n++) page.sparrow.track("x");
  assert.deepEqual({ ...page.sparrow.stats() }, { queued: 100, dropped: 30, refused: 0 });
});

test("two tabs lose nothing, and don't send each other's fresh events", async () => {
  const site = new Site();
  const [one, two] = [site.page().init(), site.page().init()];
  site.answer = () => "lost";
  for (let n = 0; n < 20; n++) (n % 2 ? one : two).sparrow.track(`e${n}`);
  await one.pass(300);
  await two.pass(300);
  assert.equal(site.waiting().length, 20);
  assert.ok(Object.values(site.events()).every((count) => count === 1));
  site.answer = new Site().answer;
  site.sent = [];
  await one.pass(5_000);
  await two.pass(5_000);
  assert.equal(site.waiting().length, 0);
  assert.equal(Object.keys(site.events()).length, 20);
});

test("a tab takes over what a tab that died has left", async () => {
  const site = new Site();
  const [one, two] = [site.page().init(), site.page().init()];
  one.sparrow.track("orphan");
  site.now += 31_000;
  two.document.hidden = false;
  two.fire("visibilitychange");
  await two.settle();
  assert.deepEqual(site.events(), { orphan: 1 });
});

test("two keys on one site don't mix, also when one begins like the other", async () => {
  const site = new Site();
  site.online = false;
  site.page().init({ key: "a.b" }).sparrow.track("theirs");
  site.page().init({ key: "b" }).sparrow.track("others");
  site.online = true;
  const page = site.page().init({ key: "a" });
  page.sparrow.track("ours");
  await page.pass(1000);
  assert.deepEqual(site.events(), { ours: 1 });
});

test("without storage it lives in memory, with one device for the page", async () => {
  const site = new Site();
  const page = site.page({ blocked: true }).init();
  page.sparrow.track("a");
  page.sparrow.track("b");
  await page.pass(1000);
  page.sparrow.track("c");
  page.fire("pagehide");
  assert.deepEqual(site.events(), { a: 1, b: 1, c: 1 });
  const devices = site.sent.flatMap(({ body }) => JSON.parse(body).events.map((e) => e.deviceId));
  assert.equal(new Set(devices).size, 1);
  assert.equal(Object.keys(site.localStorage).length, 0);
});

test("storage that is full keeps what it had, and memory takes the rest", async () => {
  const site = new Site();
  site.online = false;
  const page = site.page().init();
  page.sparrow.track("kept");
  site.localStorage.full = true;
  page.sparrow.track("held");
  page.fire("pagehide");
  assert.equal(site.waiting().length, 1);
  site.online = true;
  await page.pass(1000);
  assert.deepEqual(site.events(), { kept: 1, held: 1 });
  assert.equal(page.sparrow.stats().queued, 0);
});

test("storage that is full does not bring back the user before", async () => {
  const site = new Site();
  const page = site.page().init();
  page.sparrow.identify("alice");
  site.localStorage.full = true;
  page.sparrow.identify("bob");
  page.sparrow.track("x");
  await page.pass(1000);
  const next = site.page().init();
  next.sparrow.track("y");
  await next.pass(1000);
  const events = site.sent.flatMap(({ body }) => JSON.parse(body).events);
  assert.deepEqual(
    events.map(({ event, userId }) => [event, userId]),
    [["identify", "alice"], ["identify", "bob"], ["x", "bob"], ["y", undefined]],
  );
});

test("what is only in memory leaves with its page, also while the collector wants to be left alone", async () => {
  for (const [blocked, expected] of [[true, { a: 2, b: 1 }], [false, { a: 1, b: 1 }]]) {
    const site = new Site();
    site.answer = () => ({
      status: 503,
      headers: { "Retry-After": "60" },
      body: { error: { code: "full", reason: "no room" } },
    });
    const page = site.page({ blocked }).init();
    page.sparrow.track("a");
    await page.pass(1000);
    site.localStorage.full = true;
    page.sparrow.track("b");
    page.fire("pagehide");
    // What is in storage waits for the next page.
    assert.deepEqual(site.events(), expected);
    assert.deepEqual(site.sent.map(({ way }) => way), ["fetch", "beacon"]);
  }
});

test("a hidden page sends at once, and sees the answer", async () => {
  const site = new Site();
  const page = site.page().init();
  page.sparrow.track("x");
  page.document.hidden = true;
  page.fire("visibilitychange");
  await page.settle();
  assert.deepEqual(site.sent.map(({ way }) => way), ["fetch"]);
  assert.equal(site.waiting().length, 0);
});

const cycle = { ok: 1 };
cycle.self = cycle;
const endless = () => new Proxy({}, { ownKeys: () => ["a"], get: endless, getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }) });
const hostile = {
  "a cycle": [cycle, (p) => p.ok === 1],
  "a BigInt": [{ n: 10n ** 30n, ok: [1n] }, (p) => p.n === "1" + "0".repeat(30) && p.ok[0] === "1"],
  "a getter that throws": [{ ok: 1, get bad() { throw new Error("bad"); } }, (p) => p.ok === 1 && !("bad" in p)],
  "a getter in a list": [{ list: Object.defineProperty([1, 2, 3], 1, { enumerable: true, get() { throw 1; } }) }, (p) => p.list.join() === "1,,3"],
  "a toJSON that throws": [{ ok: 1, bad: { in: 2, toJSON() { throw new Error("bad"); } } }, (p) => p.ok === 1 && p.bad.in === 2],
  "a proxy that throws at all": [new Proxy({}, { get() { throw 1; }, ownKeys() { throw 1; } }), null],
  "no end": [{ ok: 1, deep: endless() }, (p) => p.ok === 1],
  "a lone surrogate": [{ s: "\ud800" }, (p) => p.s === "\ud800"],
  "a function": [() => 1, (p) => Object.keys(p).length === 0],
  "a list": [[1, 2], (p) => Object.keys(p).length === 0],
  "text": ["text", (p) => Object.keys(p).length === 0],
  "null": [null, (p) => Object.keys(p).length === 0],
  "a date": [new Date(0), (p) => Object.keys(p).length === 0],
  "text of 10 MB": [{ s: "x".repeat(1e7) }, null],
  "a name __proto__": [JSON.parse('{"__proto__": {"x": 1}, "ok": 1}'), (p) => p.ok === 1],
};
for (const [name, [properties, expected]] of Object.entries(hostile))
  test(`properties that are ${name} never throw into the page`, async () => {
    const site = new Site();
    const page = site.page().init();
    page.sparrow.track("x", properties);
    page.sparrow.track("after");
    await page.pass(1000);
    const events = site.sent.flatMap(({ body }) => JSON.parse(body).events);
    assert.equal(events.at(-1).event, "after");
    if (expected) assert.ok(expected(events[0].properties), JSON.stringify(events[0]));
    else assert.ok(events.length === 1 && page.problems.length > 0);
  });

test("arguments of any kind, at any time, never throw", () => {
  const odd = [undefined, null, 0, NaN, "", {}, [], Symbol("s"), 1n, () => 1, Object.create(null),
    { toString() { throw new Error("bad"); } }, new Proxy({}, { get() { throw 1; } })];
  for (const page of [new Site().page(), new Site().page().init(), new Site().page({ blocked: true }).init()])
    for (const value of odd) {
      page.sparrow.track(value, value);
      page.sparrow.pageview(value);
      page.sparrow.identify(value);
      page.sparrow.init(value);
      page.sparrow.stats();
    }
});

test("a browser whose functions throw, and a listener that throws, don't reach the page", async () => {
  const bad = () => { throw new Error("bad"); };
  const site = new Site();
  const page = site.page({ globals: { fetch: bad, navigator: { sendBeacon: bad, onLine: true } } });
  page.init({ onProblem: bad });
  page.sparrow.track("x");
  await page.pass(1000);
  for (const name of ["online", "pagehide", "pageshow", "visibilitychange"]) page.fire(name);
  assert.equal(site.waiting().length, 1);
});

test("a problem is on the console once, and names no property", async () => {
  const site = new Site();
  site.answer = () => "lost";
  const page = site.page();
  page.sparrow.init({ host: "https://c.example", key: "k" });
  page.sparrow.track("x", { secret: "sesame" });
  await page.pass(30_000);
  assert.equal(page.warned.length, 1);
  assert.ok(!JSON.stringify(page.warned).includes("sesame"));
});

test("a clock that is set back does not change the order of a page's events", async () => {
  const site = new Site();
  const page = site.page().init();
  page.sparrow.track("first");
  site.now -= 3_600_000;
  page.sparrow.track("second");
  await page.pass(3_700_000);
  const events = site.sent.flatMap(({ body }) => JSON.parse(body).events.map(({ event }) => event));
  assert.deepEqual(events, ["first", "second"]);
});
