// whatsapp-api-js. Its host is fixed; the documented `ponyfill.fetch` leads the calls elsewhere. It returns the error's body.

import { WhatsAppAPI } from "whatsapp-api-js";
import {
  ActionList, Body, Image, Interactive, Language, ListSection, Reaction, Row, Template, Text,
} from "whatsapp-api-js/messages";
import { campaign, patient, Refused, WORLD } from "./campaign.mjs";

function make(number, seconds) {
  const led = patient(seconds);
  const elsewhere = (url, init) => led(String(url).replace("https://graph.facebook.com", WORLD.api), init);
  const api = new WhatsAppAPI({ token: WORLD.token, v: "v22.0", secure: false, ponyfill: { fetch: elsewhere } });
  const checked = async (answer) => {
    const body = await answer;
    if (body.error) throw new Refused(body.error.code);
    return body;
  };
  const sent = async (...message) => (await checked(api.sendMessage(number, ...message))).messages[0].id;
  const succeeded = async (answer) => {
    const body = await checked(answer);
    if (!body.success) throw new Error(JSON.stringify(body));
  };
  return {
    lacks: { "pages to the end": "whatsapp-api-js has no lists" },
    text: (to, body) => sent(to, new Text(body)),
    reply: (to, body, wamid) => sent(to, new Text(body), wamid, "my own data"),
    react: (to, wamid, emoji) => sent(to, new Reaction(wamid, emoji)),
    template: (to, name) => sent(to, new Template(name, new Language("en_US"))),
    choices: (to) => {
      const section = new ListSection("All", new Row("1", "One"), new Row("2", "Two"));
      return sent(to, new Interactive(new ActionList("Open", section), new Body("Which one?")));
    },
    imageLink: (to, link) => sent(to, new Image(link)),
    upload: async (file) => {
      const form = new FormData();
      form.set("file", new Blob([file], { type: "image/png" }), "p.png");
      return (await checked(api.uploadMedia(number, form))).id;
    },
    imageId: (to, medium) => sent(to, new Image(medium, true)),
    download: async (medium) => {
      const { url } = await checked(api.retrieveMedia(medium));
      const answer = await api.fetchMedia(url);
      if (!answer.ok) throw new Error(`the download has status ${answer.status}`);
      return answer.arrayBuffer();
    },
    read: (wamid) => succeeded(api.markAsRead(number, wamid)),
    typing: (wamid) => succeeded(api.markAsRead(number, wamid, "text")),
    others: async () => {
      await checked(api.blockUser(number, "4915119999999"));
      await checked(api.unblockUser(number, "4915119999999"));
      await checked(api.createQR(number, "Hello"));
      await checked(api.retrieveQR(number));
    },
    // A broken connection and an answer that is no JSON are the only things that it throws.
    refusal: (error) => (error instanceof Refused ? [error.code, error.status] : []),
  };
}

await campaign(make);
