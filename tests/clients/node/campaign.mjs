// The steps that every JavaScript client goes through. A client's program is an adapter: one method for each thing that it
// does. What it lacks it names in `lacks`, with the reason. See campaign.py for the same in Python, with more words.

import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

export const WORLD = JSON.parse(process.env.WORLD);
export const NUMBER = WORLD.phone_number_ids[0];
const EXPIRED = WORLD.expired_phone_number_id;
const LINK = "https://example.com/a.png";
// Meta's codes that a careful application sends again after, besides any 5xx and any broken connection.
const TRANSIENT = new Set([1, 2, 4, 130429, 131000, 131016, 131056, 131057]);
const ATTEMPTS = 4;
export const PICTURE = Buffer.concat([
  Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
  ...Array.from({ length: 20_000 }, (_, n) => createHash("sha256").update(String(n)).digest()),
]);

// For clients that do not throw: Meta's error and the status.
export class Refused extends Error {
  constructor(code, status = 400) {
    super(`code ${code}, status ${status}`);
    Object.assign(this, { code, status });
  }
}

// A fetch with a time-out, for clients that take a fetch; without one, the usual fetch.
export function patient(seconds) {
  return seconds ? (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(seconds * 1000) }) : fetch;
}

async function control(path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(WORLD.simulator + path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
  return answer.json();
}

const fault = (to, kind, { times = 1, ...more } = {}) =>
  control("/_simulator/faults", { phone_number_id: NUMBER, to, times, fault: { kind, ...more } });

// A person writes; the message's wamid.
const writtenBy = async (from) =>
  (await control("/_simulator/inbound", { phone_number_id: NUMBER, from, text: "Hello" })).wamid;

export function wanted(condition, what) {
  if (!condition) throw new Error(what);
}

function report(step, result, detail) {
  console.log(JSON.stringify({ step, result, detail }));
}

// `make(number, seconds)` gives an adapter; without seconds, the client's own default counts.
export async function campaign(make) {
  const a = make(NUMBER);
  const people = {};
  const person = (least, why, most = least) => {
    const digits = WORLD.prefix + String(Object.keys(people).length).padStart(4, "0");
    people[digits] = [least, most, why];
    return digits;
  };

  const step = async (name, act) => {
    if (a.lacks[name]) return report(name, "skipped", a.lacks[name]);
    try {
      report(name, "ok", (await act()) ?? "");
    } catch (error) {
      report(name, "failed", `${error?.name}: ${error?.message}`.slice(0, 500));
    }
  };

  // A careful application: it sends again after a broken connection, a 5xx and a transient code. The last answer.
  const stubborn = async (adapter, call, attempts = ATTEMPTS) => {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await call();
      } catch (error) {
        const [code, status] = await adapter.refusal(error);
        const final = code && status && status < 500 && status !== 429 && !TRANSIENT.has(code);
        if (final || attempt >= attempts || adapter.repeats) throw error;
        await sleep(300);
      }
    }
  };

  const refused = async (call, codes) => {
    let answer;
    try {
      answer = await call();
    } catch (error) {
      const [code] = await a.refusal(error);
      wanted(codes.includes(code), `the code is ${code}: ${error?.message}`);
      return error.name;
    }
    throw new Error(`it was not refused: ${JSON.stringify(answer)}`);
  };

  let medium;
  await step("text", () => a.text(person(1, "a text"), "Hello"));
  await step("the same text twice", async () => {
    const to = person(2, "the same text twice");
    wanted((await a.text(to, "ok")) !== (await a.text(to, "ok")), "the second one got the first one's id");
  });
  await step("reply", async () => {
    const to = person(1, "a reply");
    await a.reply(to, "An answer", await writtenBy(to));
  });
  await step("reaction", async () => {
    const to = person(1, "a reaction");
    await a.react(to, await writtenBy(to), "👍");
  });
  await step("template", () => a.template(person(1, "a template"), "hello_world"));
  await step("list or buttons", () => a.choices(person(1, "choices")));
  await step("image by link", () => a.imageLink(person(1, "an image by link"), LINK));
  await step("upload, send by id", async () => {
    medium = await a.upload(PICTURE);
    wanted(/^\d+$/.test(medium), `no id: ${medium}`);
    await a.imageId(person(1, "an image by id"), medium);
  });
  await step("download", async () => {
    const bytes = Buffer.from(await a.download(medium));
    wanted(PICTURE.equals(bytes), `other bytes came down: ${bytes.length}`);
  });
  await step("mark as read", async () => a.read(await writtenBy(person(0, "mark as read"))));
  await step("typing", async () => a.typing(await writtenBy(person(0, "typing"))));
  await step("pages to the end", async () => {
    const names = await a.pages();
    wanted(names.join() === "hello_world,order,reminder", `the pages had ${names}`);
  });
  await step("other reads", () => a.others());
  await step("bad recipient", () => refused(() => a.text("12", "Hello"), [100, 131008, 131009, 131026, 131030]));
  await step("expired token", () => {
    const adapter = make(EXPIRED);
    const to = person(0, "an expired token");
    return refused(() => stubborn(adapter, () => adapter.text(to, "Hello")), [190]);
  });
  await step("album of ten", async () => {
    const to = person(10, "an album of ten");
    await fault(to, "slow_answer", { times: 10, delay_ms: 700 });
    const ids = await Promise.all(Array.from({ length: 10 }, () => a.imageLink(to, LINK)));
    wanted(new Set(ids).size === 10, `the ids are ${ids}`);
  });

  // The person gets it at most once, and the next message as well. If Meta took it, the client learns its id.
  const lost = async (kind, accepted) => {
    const to = person(accepted ? 2 : 1, `a lost answer (${kind}) and another text`);
    await fault(to, kind);
    const ask = async (error) => wanted((await a.refusal(error))[0], `the last answer was ${error?.message}`);
    let first = await stubborn(a, () => a.text(to, `once ${kind}`)).catch(ask);
    await stubborn(a, () => a.text(to, `another ${kind}`));
    const deadline = Date.now() + 20_000;
    while (accepted && !first) {
      wanted(Date.now() < deadline, "its id is not learned");
      await sleep(300);
      first = await a.text(to, `once ${kind}`).catch(ask);
    }
    return first ? "" : "told so";
  };

  // At the same time: an answer that never comes takes ten seconds.
  const last = [
    ...["accept_then_hang", "accept_then_reset", "accept_then_bad_gateway", "accept_then_server_error"].map((kind) =>
      step(`lost: ${kind}`, () => lost(kind, true)),
    ),
    ...["server_error", "reset_unaccepted"].map((kind) => step(`lost: ${kind}`, () => lost(kind, false))),
    // The client's own time-out ends before Meta's answer is there.
    step("client gives up, asks again", async () => {
      const to = person(1, "a client that gives up and asks again");
      // Without statuses, from which the server would know the message's id earlier.
      await fault(to, "silent");
      await fault(to, "slow_answer", { delay_ms: 2500 });
      const adapter = make(NUMBER, 1);
      await stubborn(adapter, () => adapter.text(to, "only once"), 10);
    }),
    step("Meta's transient error", async () => {
      const to = person(1, "a transient error");
      await fault(to, "error", { code: 131016 });
      await stubborn(a, () => a.text(to, "in the end"));
    }),
  ];
  await Promise.all(last);
  console.log(JSON.stringify({ expected: people }));
}
