-- The Site DB's business tables, under the names that a WhatsApp CRM already uses. All of them have a uuid primary key
-- and are replicated to the Agent DB, which has the same tables (migrations/agent).

CREATE TABLE public.whatsapp_accounts (
    id                   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Meta's id of the business number; its WhatsApp Business account.
    phone_number_id      text        NOT NULL UNIQUE,
    waba_id              text,
    display_phone_number text,
    -- active, or held: nothing is sent until the cause is gone (expired token, restriction, payment); rows stay pending.
    status               text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'held')),
    hold_code            integer,
    hold_reason          text,
    held_at              timestamptz,
    -- While held: when one message may be tried, to see whether the cause is gone.
    probe_at             timestamptz,
    -- SHA-256 of the access token that was refused: another token in the configuration releases the hold.
    held_token_sha256    text,
    -- Throttled by Meta until then.
    throttled_until      timestamptz,
    last_real_message_at timestamptz,
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE public.leads (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Digits of the phone number as WhatsApp knows it (wa_id), and as we dialled it where that differs.
    wa_id      text        UNIQUE,
    phone      text,
    -- Business-scoped user id: the identity of a user who hides the number.
    user_id    text        UNIQUE,
    name       text,
    username   text,
    source     text        NOT NULL DEFAULT 'whatsapp',
    -- The click-to-WhatsApp advertisement that brought this lead, as Meta reports it.
    referral   jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT leads_known CHECK (wa_id IS NOT NULL OR phone IS NOT NULL OR user_id IS NOT NULL)
);
CREATE INDEX leads_phone ON public.leads (phone);

CREATE TABLE public.conversations (
    id                   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id           uuid        NOT NULL REFERENCES public.whatsapp_accounts (id),
    lead_id              uuid        NOT NULL REFERENCES public.leads (id),
    -- The last message from the lead opens Meta's 24 h customer-service window.
    last_inbound_at      timestamptz,
    last_outbound_at     timestamptz,
    last_message_at      timestamptz,
    unread_count         integer     NOT NULL DEFAULT 0,
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account_id, lead_id)
);

CREATE TABLE public.whatsapp_messages (
    -- Outbound: also the opaque id that Meta echoes in every status.
    id                uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id        uuid        NOT NULL REFERENCES public.whatsapp_accounts (id),
    conversation_id   uuid        NOT NULL REFERENCES public.conversations (id),
    lead_id           uuid        NOT NULL REFERENCES public.leads (id),
    direction         text        NOT NULL CHECK (direction IN ('inbound', 'outbound')),
    status            text        NOT NULL CHECK (status IN ('pending', 'sending', 'accepted', 'held', 'sent', 'delivered',
                                  'read', 'played', 'failed', 'unknown', 'received', 'cancelled')),
    -- Meta's type (text, template, image, ...); unknown ones are kept under their own name.
    type              text        NOT NULL,
    -- What a person reads: the text, the caption, the button's title. NULL where there is none.
    body              text,
    -- Outbound: the client's request, byte for byte. Inbound: the message's object from the webhook.
    request           bytea,
    payload           jsonb,
    -- Meta's id, once known.
    wamid             text,
    -- The recipient as given, and the quoted message's wamid.
    recipient         text,
    context_wamid     text,
    -- Idempotency: unique per API token, with the hash of the request it stands for.
    client_id         text,
    client_name       text,
    request_sha256    text,
    -- The client's own biz_opaque_callback_data, where it sent one.
    client_opaque     text,
    -- Attempts made, the lease of the running one, and when the next is due.
    attempt           integer     NOT NULL DEFAULT 0,
    lease_owner       uuid,
    lease_until       timestamptz,
    next_attempt_at   timestamptz,
    -- Times that Meta's rate limits sent it back: they cost no attempt.
    throttles         integer     NOT NULL DEFAULT 0,
    -- A client that waits for its answer takes the message as failed after that: it is never sent later.
    send_by           timestamptz,
    -- The Graph API version that the client asked for (NULL: the configured one).
    api_version       text,
    error_code        integer,
    error_class       text,
    error_message     text,
    -- Meta's answer to the send, status and body as it came, for the client that asks again.
    response_status   integer,
    response          text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    sending_at        timestamptz,
    accepted_at       timestamptz,
    held_at           timestamptz,
    sent_at           timestamptz,
    delivered_at      timestamptz,
    read_at           timestamptz,
    played_at         timestamptz,
    failed_at         timestamptz,
    unknown_at        timestamptz,
    received_at       timestamptz,
    cancelled_at      timestamptz,
    -- Inbound: when WhatsApp says the user sent it.
    provider_at       timestamptz,
    updated_at        timestamptz NOT NULL DEFAULT now()
);
-- One wamid may be met by two numbers of ours that write to each other: once out, once in.
CREATE UNIQUE INDEX whatsapp_messages_wamid ON public.whatsapp_messages (account_id, direction, wamid);
CREATE UNIQUE INDEX whatsapp_messages_client_id ON public.whatsapp_messages (client_name, client_id);
CREATE INDEX whatsapp_messages_conversation ON public.whatsapp_messages (conversation_id, created_at);
CREATE INDEX whatsapp_messages_by_wamid ON public.whatsapp_messages (wamid);
-- The outbox: what is due, what is leased, what waits for an answer.
CREATE INDEX whatsapp_messages_due ON public.whatsapp_messages (account_id, created_at, id) WHERE status = 'pending';
-- Messages of one conversation leave one after the other.
CREATE INDEX whatsapp_messages_queue ON public.whatsapp_messages (conversation_id, created_at, id)
    WHERE status IN ('pending', 'sending');
CREATE INDEX whatsapp_messages_leased ON public.whatsapp_messages (lease_until) WHERE status = 'sending';
CREATE INDEX whatsapp_messages_unknown ON public.whatsapp_messages (unknown_at) WHERE status = 'unknown';

-- Every status that Meta ever reported, as it came: append-only. message_id is NULL while its message is not known yet.
CREATE TABLE public.message_status_events (
    id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id     uuid        NOT NULL REFERENCES public.whatsapp_accounts (id),
    message_id     uuid        REFERENCES public.whatsapp_messages (id),
    wamid          text        NOT NULL,
    status         text        NOT NULL,
    -- The recipient, or the participant of a group: one wamid has one status per participant.
    recipient      text        NOT NULL DEFAULT '',
    opaque         text,
    error_code     integer,
    error_message  text,
    payload        jsonb       NOT NULL,
    provider_at    timestamptz NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (wamid, status, recipient, provider_at)
);
CREATE INDEX message_status_events_message ON public.message_status_events (message_id);
CREATE INDEX message_status_events_orphans ON public.message_status_events (wamid) WHERE message_id IS NULL;

CREATE TABLE public.notifications (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    -- inbound_message, message_failed, account_held, ...
    kind            text        NOT NULL,
    account_id      uuid        REFERENCES public.whatsapp_accounts (id),
    conversation_id uuid        REFERENCES public.conversations (id),
    message_id      uuid        REFERENCES public.whatsapp_messages (id),
    detail          text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    read_at         timestamptz
);
CREATE INDEX notifications_unread ON public.notifications (created_at) WHERE read_at IS NULL;

CREATE TABLE public.auto_replies (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id uuid        NOT NULL REFERENCES public.whatsapp_accounts (id),
    enabled    boolean     NOT NULL DEFAULT false,
    keyword    text,
    reply      text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Each POST of Meta's, raw and whole, committed before its 200.
CREATE TABLE public.webhook_events (
    id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    -- The exact bytes that Meta signed.
    body           bytea       NOT NULL,
    body_sha256    text        NOT NULL,
    -- received: by the route; processed, failed: by the inbox. A failed one keeps what failed and can be replayed.
    state          text        NOT NULL DEFAULT 'received' CHECK (state IN ('received', 'processed', 'failed')),
    attempts       integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    -- How many parts it had (messages, statuses, others), and the parts that could not be processed, with the reason.
    real_events     integer    NOT NULL DEFAULT 0,
    protocol_events integer    NOT NULL DEFAULT 0,
    failures       jsonb,
    received_at    timestamptz NOT NULL DEFAULT now(),
    processed_at   timestamptz
);
CREATE INDEX webhook_events_due ON public.webhook_events (next_attempt_at) WHERE state = 'received';
CREATE INDEX webhook_events_failed ON public.webhook_events (received_at) WHERE state = 'failed';

-- Which process sends for a number. Not replicated: coordination between servers, not a fact about the business.
CREATE TABLE twinlog.number_leases (
    phone_number_id text        PRIMARY KEY,
    owner           uuid        NOT NULL,
    lease_until     timestamptz NOT NULL
);
