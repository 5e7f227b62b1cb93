//! What happened to each row, in the order in which it happened, written down in the transaction of each change.

use uuid::Uuid;

use crate::harness::Databases;

/// The numbers are drawn while the row is locked: a row's are in the order of its changes. Those of a row that refers to
/// another are higher than that of the other's creation.
pub(super) const TRIGGERS: &str = "
    CREATE SCHEMA story;
    CREATE TABLE story.told (number bigserial, kind text, id uuid, status text, parent uuid);
    CREATE FUNCTION story.message() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO story.told (kind, id, status, parent)
            VALUES (CASE TG_OP WHEN 'INSERT' THEN 'created' ELSE 'status' END, NEW.id, NEW.status, NEW.conversation_id);
        RETURN NULL; END $$;
    CREATE FUNCTION story.conversation() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO story.told (kind, id, parent) VALUES ('conversation', NEW.id, NEW.lead_id); RETURN NULL; END $$;
    CREATE TRIGGER story_created AFTER INSERT ON whatsapp_messages FOR EACH ROW EXECUTE FUNCTION story.message();
    CREATE TRIGGER story_status AFTER UPDATE ON whatsapp_messages FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION story.message();
    CREATE TRIGGER story AFTER INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION story.conversation()";

/// A line of the story.
#[derive(Debug, Clone)]
pub(super) enum Told {
    Conversation {
        id: Uuid,
        lead: Uuid,
    },
    Created {
        id: Uuid,
        conversation: Uuid,
        status: String,
    },
    Status {
        id: Uuid,
        status: String,
    },
}

pub(super) async fn read(db: &Databases) -> Vec<Told> {
    let query = "SELECT kind, id, status, parent FROM story.told ORDER BY number";
    let rows = db.site.query(query, &[]).await.unwrap();
    rows.iter()
        .map(|row| match row.get("kind") {
            "conversation" => Told::Conversation {
                id: row.get("id"),
                lead: row.get("parent"),
            },
            "created" => Told::Created {
                id: row.get("id"),
                conversation: row.get("parent"),
                status: row.get("status"),
            },
            _ => Told::Status {
                id: row.get("id"),
                status: row.get("status"),
            },
        })
        .collect()
}
