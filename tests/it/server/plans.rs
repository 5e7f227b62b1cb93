//! What the server's statements read, while Postgres knows nothing about the tables.

use std::collections::BTreeMap;

use super::*;

/// Rows of each large table.
const ROWS: i64 = 20_000;

/// The tables as they are after some months of traffic. Nothing is checked on the way, so that only the server reads.
const MONTHS: &str = "
    SET session_replication_role = replica;
    INSERT INTO leads (id, wa_id, created_at)
        SELECT md5('lead' || n)::uuid, '4915' || 1000000 + n, now() - interval '1 month' FROM generate_series(1, 20000) AS n;
    INSERT INTO lead_ids (lead_id, kind, known_id, created_at)
        SELECT md5('lead' || n)::uuid, 'user_id', 'former' || n, now() - interval '1 month' FROM generate_series(1, 20000) AS n;
    INSERT INTO conversations (id, account_id, lead_id)
        SELECT md5('conversation' || n)::uuid, a.id, md5('lead' || n)::uuid
          FROM whatsapp_accounts a, generate_series(1, 20000) AS n;
    INSERT INTO whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, wamid, client_name,
                                   client_id, request_sha256, created_at)
        SELECT md5('message' || n)::uuid, a.id, md5('conversation' || n)::uuid, md5('lead' || n)::uuid,
               CASE WHEN n % 2 = 0 THEN 'outbound' ELSE 'inbound' END, CASE WHEN n % 2 = 0 THEN 'delivered' ELSE 'received' END,
               'text', 'wamid.old.' || n, 'crm', 'old' || n, 'hash' || n, now() - interval '1 month'
          FROM whatsapp_accounts a, generate_series(1, 20000) AS n;
    INSERT INTO message_status_events (account_id, message_id, wamid, status, payload, provider_at)
        SELECT a.id, md5('message' || n)::uuid, 'wamid.old.' || n, 'delivered', '{}', now()
          FROM whatsapp_accounts a, generate_series(1, 20000) AS n;
    INSERT INTO notifications (account_id, kind, message_id)
        SELECT a.id, 'inbound_message', md5('message' || n)::uuid FROM whatsapp_accounts a, generate_series(1, 20000) AS n;
    INSERT INTO webhook_events (id, body, body_sha256, state, processed_at)
        SELECT md5('event' || n)::uuid, '{}', '', 'processed', now() FROM generate_series(1, 20000) AS n;
    RESET session_replication_role;";

/// People who send, receive and report, each one thing after the other.
async fn traffic(world: &World, server: &Server, messages: usize, before: usize) {
    for number in before..before + messages {
        let person = format!("1650555{:04}", number % 7);
        world
            .meta
            .inbound(Inbound::text(NUMBER, &person, &format!("in {number}")))
            .await;
        let id = server
            .takes(&json!({"to": format!("+{person}"), "text": format!("out {number}")}))
            .await;
        // Its reports come after the person's message, so both were stored. (Counting them here would read the table.)
        world.reaches(&id, &["delivered"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_reads_does_not_grow_with_tables_that_were_never_analyzed() {
    // GIVEN statements that were planned while the tables were empty, and that nobody plans anew
    let mut world = World::new().await;
    let off =
        "SELECT string_agg(format('ALTER TABLE %I.%I SET (autovacuum_enabled = false)', schemaname, relname), ';')
        FROM pg_stat_user_tables";
    let off = world.db.site.value(off).await;
    world.db.on_site(&off).await;
    world.config.site.max_connections = 3;
    let server = world.serve().await;
    traffic(&world, &server, 25, 0).await;
    let read_by_then = reads(&world).await;

    // WHEN months of traffic are in the tables
    world.db.on_site(MONTHS).await;
    traffic(&world, &server, 25, 25).await;
    server.stop().await;

    // THEN no table was read as a whole
    let reads = reads(&world).await;
    eprintln!("{read_by_then:?}\n{reads:?}");
    let whole: Vec<_> = reads.iter().filter(|(_, read)| **read >= ROWS).collect();
    assert!(whole.is_empty(), "{whole:?}");
    assert_eq!(world.count("body LIKE 'in %'").await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_conversations_does_not_read_all_of_them() {
    let mut world = World::new().await;
    world.config.site.max_connections = 3;
    let server = world.serve().await;
    world.db.on_site(MONTHS).await;
    let lead = world.db.site.value("SELECT id FROM leads LIMIT 1").await;
    // Often enough for a plan that does not know the values.
    for _ in 0..8 {
        for query in ["", &format!("&number={NUMBER}"), &format!("&lead_id={lead}")] {
            let page = server.get(&format!("/v1/conversations?limit=10{query}")).await;
            assert!(!page.body["data"].as_array().unwrap().is_empty(), "{page:?}");
        }
    }
    server.stop().await;
    let sessions =
        "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    eventually_equal("all sessions have reported", SOON, "0".to_owned(), || {
        world.db.site.value(sessions)
    })
    .await;
    let reads = reads(&world).await;
    eprintln!("{reads:?}");
    let whole: Vec<_> = reads.iter().filter(|(_, read)| **read >= ROWS).collect();
    assert!(whole.is_empty(), "{whole:?}");
}

/// Rows that were read of each table, and entries of each index, as far as the sessions have reported.
async fn reads(world: &World) -> BTreeMap<String, i64> {
    let reads = "SELECT coalesce(json_object_agg(name, read), '{}')::text FROM (
        SELECT relname AS name, seq_tup_read + coalesce(idx_tup_fetch, 0) AS read FROM pg_stat_user_tables
        UNION ALL SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes) AS r WHERE read > 0";
    serde_json::from_str(&world.db.site.value(reads).await).unwrap()
}
