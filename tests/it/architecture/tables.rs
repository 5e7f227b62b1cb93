//! Each table of the Site DB has one owner, the file or folder of `site_db` that bears its name: no other one writes to it.
//! And every change of a message goes through one writer.

use super::sources::sources;

/// Table and owner.
const OWNERS: &[(&str, &str)] = &[
    ("public.whatsapp_accounts", "accounts"),
    ("public.leads", "leads"),
    ("public.lead_ids", "leads"),
    ("public.lead_merges", "leads"),
    ("twinlog.lead_statements", "leads"),
    ("twinlog.early_media", "early_media"),
    ("public.conversations", "conversations"),
    ("public.whatsapp_messages", "messages"),
    ("public.message_status_events", "status_events"),
    ("public.notifications", "notifications"),
    ("public.webhook_events", "webhook_events"),
    ("twinlog.subscribers", "subscribers"),
    ("twinlog.deliveries", "deliveries"),
    ("twinlog.number_leases", "number_leases"),
    ("twinlog.event_rounds", "events"),
    ("twinlog.servers", "servers"),
    ("twinlog.uploaded_media", "media"),
];

/// What the only writer of messages is.
const WRITER: &str = "site_db/messages/write.rs";

/// The files that contain SQL that writes to `table`, as paths without `.rs`.
fn writers(table: &str, verbs: &[&str]) -> Vec<String> {
    let writes = |code: &str| {
        // A statement may be broken over several lines.
        let code = code
            .split_whitespace()
            .filter(|word| *word != "\\")
            .collect::<Vec<_>>()
            .join(" ");
        verbs.iter().any(|verb| {
            let written = format!("{verb} {table}");
            code.match_indices(&written).any(|(at, _)| {
                !code[at + written.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
            })
        })
    };
    sources()
        .iter()
        .filter(|source| writes(&source.code))
        .map(|source| source.path.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn each_table_is_written_by_its_owner_alone() {
    for (table, owner) in OWNERS {
        let writers = writers(table, &["INSERT INTO", "UPDATE", "DELETE FROM"]);
        assert!(!writers.is_empty(), "nothing writes {table}");
        for writer in writers {
            let is_owner = writer == format!("site_db/{owner}.rs") || writer.starts_with(&format!("site_db/{owner}/"));
            assert!(is_owner, "{writer} writes {table}, which is {owner}'s");
        }
    }
}

#[test]
fn every_change_of_a_message_goes_through_one_writer() {
    assert_eq!(
        writers("public.whatsapp_messages", &["UPDATE", "DELETE FROM"]),
        [WRITER]
    );
}
