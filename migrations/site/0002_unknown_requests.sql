-- A request that repeats one whose outcome is unknown is found by its hash.
CREATE INDEX whatsapp_messages_unknown_requests ON public.whatsapp_messages (client_name, request_sha256)
    WHERE unknown_at IS NOT NULL;
