-- What people have decided about messages of ours (`twinlog outbox`). Written in the transaction that changes the message; never
-- changed, and kept longer than the message. Not replicated.
CREATE TABLE twinlog.outbox_decisions (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id  uuid        NOT NULL,
    -- retry, retry_unknown, cancel, resolve_sent, resolve_not_sent, resolve_seen
    decision    text        NOT NULL,
    -- The message's status before and after.
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    -- Why, in the person's words.
    why         text        NOT NULL,
    -- Who, as the command line knows it (user@host), and the role, as the database knows it.
    who         text        NOT NULL,
    role        text        NOT NULL DEFAULT session_user,
    decided_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_decisions_message ON twinlog.outbox_decisions (message_id);
-- Messages that a person may have to look at; those that wait and those that are unknown have indexes of their own.
CREATE INDEX whatsapp_messages_troubled ON public.whatsapp_messages (status, failed_at) WHERE status IN ('failed', 'held');
