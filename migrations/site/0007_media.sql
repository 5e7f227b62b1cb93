-- Whose medium an upload is: Meta's id of it does not say, and calls about it name no number. Not replicated.
CREATE TABLE twinlog.uploaded_media (
    media_id        text        PRIMARY KEY,
    phone_number_id text        NOT NULL,
    uploaded_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX uploaded_media_age ON twinlog.uploaded_media (uploaded_at);

-- Whose medium a received one is: its message says.
CREATE INDEX whatsapp_messages_media ON public.whatsapp_messages ((payload -> type ->> 'id'))
    WHERE direction = 'inbound' AND type IN ('image', 'video', 'audio', 'voice', 'document', 'sticker');
