// @kapso/whatsapp-cloud-api: `baseUrl`, `accessToken`. Its errors say themselves whether to send again (`retry.action`).

import { GraphApiError, WhatsAppClient } from "@kapso/whatsapp-cloud-api";
import { campaign, patient, WORLD } from "./campaign.mjs";

const TEMPLATE = { language: { code: "en_US", policy: "deterministic" } };

function make(phoneNumberId, seconds) {
  const client = new WhatsAppClient({ baseUrl: WORLD.api, accessToken: WORLD.token, fetch: patient(seconds) });
  const { messages, media, templates, phoneNumbers, flows } = client;
  const sent = async (answer) => (await answer).messages[0].id;
  const businessAccountId = WORLD.waba_id;
  return {
    lacks: {},
    text: (to, body) => sent(messages.sendText({ phoneNumberId, to, body })),
    reply: (to, body, contextMessageId) => sent(messages.sendText({ phoneNumberId, to, body, contextMessageId })),
    react: (to, messageId, emoji) => sent(messages.sendReaction({ phoneNumberId, to, reaction: { messageId, emoji } })),
    template: (to, name) => sent(messages.sendTemplate({ phoneNumberId, to, template: { name, ...TEMPLATE } })),
    choices: (to) =>
      sent(
        messages.sendInteractiveList({
          phoneNumberId,
          to,
          bodyText: "Which one?",
          buttonText: "Open",
          sections: [{ title: "All", rows: [{ id: "1", title: "One" }, { id: "2", title: "Two" }] }],
        }),
      ),
    imageLink: (to, link) => sent(messages.sendImage({ phoneNumberId, to, image: { link, caption: "From a link" } })),
    upload: async (file) =>
      (await media.upload({ phoneNumberId, type: "image/png", file: new Blob([file], { type: "image/png" }), fileName: "p.png" })).id,
    imageId: (to, id) => sent(messages.sendImage({ phoneNumberId, to, image: { id } })),
    // As with Meta: its media want the token, which the client sends elsewhere only if it is told so.
    download: (mediaId) => media.download({ mediaId, auth: "always" }),
    read: (messageId) => messages.markRead({ phoneNumberId, messageId }),
    typing: (messageId) => messages.markRead({ phoneNumberId, messageId, typingIndicator: { type: "text" } }),
    pages: async () => {
      const names = [];
      for (let after; ; ) {
        const page = await templates.list({ businessAccountId, limit: 1, after });
        names.push(...page.data.map((template) => template.name));
        if (!page.paging?.next) return names;
        after = page.paging.cursors.after;
      }
    },
    others: async () => {
      await templates.list({ businessAccountId, status: "APPROVED", language: "en_US" });
      await phoneNumbers.businessProfile.get({ phoneNumberId });
      await phoneNumbers.settings.get({ phoneNumberId });
      await flows.list({ wabaId: businessAccountId });
    },
    refusal: (error) => (error instanceof GraphApiError ? [error.code, error.httpStatus] : []),
  };
}

await campaign(make);
