-- What Meta has told last of each template that may be in trouble: it stopped it, or it will. Not replicated.
CREATE TABLE twinlog.template_notices (
    waba_id     text        NOT NULL,
    template_id text        NOT NULL,
    name        text        NOT NULL,
    language    text        NOT NULL,
    -- Meta's word for the status that stops it; NULL: it may be sent.
    stopped_by  text,
    status_at   timestamptz NOT NULL DEFAULT '-infinity',
    -- Meta's word for a low quality; NULL: none. Told before the template was approved, it does not count.
    quality     text,
    quality_at  timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (waba_id, template_id)
);
