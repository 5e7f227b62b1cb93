// @great-detail/whatsapp: `baseUrl`, and the token as a header. It sends by ky, whose retries are switched on for POST as well.

import Client from "@great-detail/whatsapp";
import { campaign, WORLD } from "./campaign.mjs";

const RETRY = { limit: 4, methods: ["get", "post"], delay: () => 300, retryOnTimeout: true };

function make(phoneNumberID, seconds) {
  const headers = { Authorization: `Bearer ${WORLD.token}` };
  const client = new Client({ baseUrl: WORLD.api, request: { headers, retry: RETRY } });
  const request = seconds ? { timeout: seconds * 1000, retry: { ...RETRY, limit: 10 } } : {};
  const send = async (message) =>
    (await client.message.createMessage({ phoneNumberID, request, ...message }).json()).messages[0].id;
  const options = { request: { headers } };
  const businessAccountID = WORLD.waba_id;
  return {
    lacks: {},
    repeats: true,
    text: (to, body) => send({ to, type: "text", text: { body } }),
    reply: (to, body, wamid) => send({ to, type: "text", text: { body }, context: { message_id: wamid } }),
    react: (to, wamid, emoji) => send({ to, type: "reaction", reaction: { message_id: wamid, emoji } }),
    template: (to, name) => send({ to, type: "template", template: { name, language: { code: "en_US" } } }),
    choices: (to) => {
      const rows = [{ id: "1", title: "One" }, { id: "2", title: "Two" }];
      const action = { button: "Open", sections: [{ title: "All", rows }] };
      return send({ to, type: "interactive", interactive: { type: "list", body: { text: "Which one?" }, action } });
    },
    imageLink: (to, link) => send({ to, type: "image", image: { link } }),
    upload: async (file) => {
      const blob = new Blob([file], { type: "image/png" });
      return (await client.media.upload({ phoneNumberID, file: blob, filename: "p.png", mimeType: "image/png" }).json()).id;
    },
    imageId: (to, id) => send({ to, type: "image", image: { id } }),
    download: async (mediaID) => {
      const { url } = await client.media.getURL({ mediaID }).json();
      return client.media.download({ mediaURL: url, ...options }).arrayBuffer();
    },
    read: (message_id) => client.message.createStatus({ phoneNumberID, message_id, status: "read" }).json(),
    typing: (message_id) =>
      client.message.createStatus({ phoneNumberID, message_id, status: "read", typing_indicator: { type: "text" } }).json(),
    pages: async () => {
      const names = [];
      let page = await client.template.list(businessAccountID, { limit: 1 }).json();
      for (;;) {
        names.push(...page.data.map((template) => template.name));
        if (!page.paging?.next) return names;
        // It has no call for the next page; its users follow the link.
        page = await (await fetch(page.paging.next, { headers })).json();
      }
    },
    others: async () => {
      await client.businessProfile.getBusinessProfile({ phoneNumberID, fields: ["about", "email"] }).json();
      await client.phoneNumbers.getPhoneNumber({ phoneNumberID }).json();
      await client.phoneNumbers.listPhoneNumbers({ businessAccountID, sort: "last_onboarded_time_descending" }).json();
      await client.subscribedApps.listSubscriptions({ businessAccountID }).json();
      await client.subscribedApps.createSubscription({ businessAccountID }).json();
      await client.whatsappBusinessAccount.get(businessAccountID, { fields: ["id", "name"] }).json();
    },
    refusal: async (error) => {
      const answer = error?.response;
      if (!answer) return [];
      const body = error.data ?? (await answer.clone().json().catch(() => ({})));
      return [body?.error?.code, answer.status];
    },
  };
}

await campaign(make);
