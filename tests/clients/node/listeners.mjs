// What front ends use: socket.io-client, a browser's EventSource (the package eventsource has the same interface), supabase-js.
// A message is sent, and both hear its whole life, once and in order; whoever comes back with its place hears what it missed.

import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@supabase/supabase-js";
import { EventSource } from "eventsource";
import { io } from "socket.io-client";

const { api, token, prefix, phone_number_ids } = JSON.parse(process.env.WORLD);
const PATIENCE = 20_000;
const people = {};

function wanted(condition, what) {
  if (!condition) throw new Error(what);
}

async function send(why) {
  const to = prefix + String(Object.keys(people).length).padStart(4, "0");
  people[to] = [1, 1, why];
  const body = JSON.stringify({ to: `+${to}`, text: why, phone_number_id: phone_number_ids[0] });
  const answer = await fetch(`${api}/v1/messages`, { method: "POST", headers: { authorization: `Bearer ${token}` }, body });
  wanted(answer.ok, `the send got ${answer.status}`);
  return (await answer.json()).id;
}

// What is heard of a message, up to its delivery.
async function heard(all, id) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const of = all.filter((event) => event.id === id).map((event) => event.status);
    if (of.includes("delivered")) return of.slice(0, of.indexOf("delivered") + 1);
    wanted(Date.now() < deadline, `not delivered: ${of}`);
    await sleep(20);
  }
}

function isWhole(statuses) {
  wanted(statuses[0] === "pending" && new Set(statuses).size === statuses.length, `not once and in order: ${statuses}`);
}

async function sse(all, place) {
  const query = new URLSearchParams({ access_token: token, ...(place && { last_event_id: place }) });
  const source = new EventSource(`${api}/v1/events?${query}`);
  for (const kind of ["message.created", "message.status"]) {
    source.addEventListener(kind, (event) => {
      const data = JSON.parse(event.data);
      all.push({ id: data.message.id, status: data.status, place: event.lastEventId });
    });
  }
  await new Promise((resolve, reject) => {
    source.onopen = resolve;
    source.onerror = (error) => reject(new Error(`EventSource: ${error.code} ${error.message}`));
  });
  return source;
}

async function socket(all, position) {
  const client = io(api, { transports: ["websocket"], auth: { token, position }, forceNew: true });
  client.on("new_message", (data) => all.push({ id: data.message.id, status: data.status, place: data.position }));
  client.on("message_status", (data) => all.push({ id: data.message_id, status: data.status, place: data.position }));
  await new Promise((resolve, reject) => {
    // With a place, what was missed may come before.
    client.onAny((event) => (position || event === "position") && resolve());
    client.on("connect_error", reject);
  });
  return client;
}

async function step(name, does) {
  try {
    await does();
    console.log(JSON.stringify({ step: name, result: "ok" }));
  } catch (error) {
    console.log(JSON.stringify({ step: name, result: "failed", detail: String(error.message ?? error) }));
  }
}

for (const [name, listen] of [["EventSource", sse], ["Socket.IO", socket]]) {
  await step(`events over ${name}`, async () => {
    const all = [];
    const listener = await listen(all);
    const id = await send(`heard over ${name}`);
    isWhole(await heard(all, id));
    listener.close();
    const place = all.findLast((event) => event.id === id && event.status === "delivered").place;
    const missed = await send(`missed over ${name}`);
    const later = [];
    const again = await listen(later, place);
    isWhole(await heard(later, missed));
    wanted(!later.some((event) => event.status === "pending" && event.id === id), "heard twice");
    again.close();
  });
}
await step("a stranger to Socket.IO", async () => {
  const client = io(api, { transports: ["websocket"], auth: { token: "x" }, forceNew: true, reconnection: false });
  const said = await new Promise((resolve) => client.on("connect_error", (error) => resolve(error.message)));
  wanted(said.includes("token"), said);
});
await step("supabase.functions.invoke", async () => {
  const to = prefix + String(Object.keys(people).length).padStart(4, "0");
  people[to] = [1, 1, "supabase.functions.invoke"];
  // Node before 22 has no WebSocket of its own; none is opened here.
  const supabase = createClient(api, token, { realtime: { transport: class {} } });
  const call = { action: "send_message", to: `+${to}`, message: "hello", user_id: "u", phone_number_id: phone_number_ids[0] };
  const { data, error } = await supabase.functions.invoke("whatsapp-send", { body: call });
  wanted(!error && data.success && data.message_id, `${error} ${JSON.stringify(data)}`);
  const refused = await supabase.functions.invoke("whatsapp-send", { body: { action: "send_message", to: "x", message: "x" } });
  const said = await refused.error.context.json();
  wanted(refused.data === null && typeof said.error === "string", JSON.stringify(said));
});
console.log(JSON.stringify({ expected: people }));
process.exit(0);
