//! Faults of tables and of rights, many at a time: each table has one fault.

use super::{Diagnosis, Expected};
use crate::harness::Twins;

/// Statements on the Site DB, on the Agent DB, the code, and what it is about. `{site}` and `{agent}` are the roles.
struct Seed(&'static str, &'static str, &'static str, &'static str);

const KEYED: &str = "(id int PRIMARY KEY, body text)";

/// Each is sown before the publication is made of all tables of the Site DB.
const BEFORE: &[Seed] = &[
    Seed(
        "CREATE TABLE absent (id int PRIMARY KEY)",
        "",
        "table_missing",
        "public.absent",
    ),
    Seed(
        "CREATE TABLE narrow (id int PRIMARY KEY, body text, more numeric(5,2))",
        "CREATE TABLE narrow (id int PRIMARY KEY, body text)",
        "column_missing",
        "public.narrow",
    ),
    Seed(
        "CREATE TABLE computed (id int PRIMARY KEY, body text)",
        "CREATE TABLE computed (id int PRIMARY KEY, body text GENERATED ALWAYS AS ('x') STORED)",
        "column_unwritable",
        "public.computed",
    ),
    Seed(
        "CREATE TABLE strict (id int PRIMARY KEY)",
        "CREATE TABLE strict (id int PRIMARY KEY, owner text NOT NULL)",
        "column_unwritable",
        "public.strict",
    ),
    Seed(
        "CREATE TABLE volatile (id int PRIMARY KEY)",
        "CREATE UNLOGGED TABLE volatile (id int PRIMARY KEY)",
        "table_unlogged",
        "public.volatile",
    ),
    Seed(
        "CREATE TABLE keyless (id int PRIMARY KEY)",
        "CREATE TABLE keyless (id int)",
        "table_key",
        "public.keyless",
    ),
    Seed(
        "CREATE TABLE deferred (id int PRIMARY KEY)",
        "CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE)",
        "table_key",
        "public.deferred",
    ),
    Seed(
        "CREATE TABLE merging (at timestamp PRIMARY KEY)",
        "CREATE TABLE merging (at date PRIMARY KEY)",
        "table_key",
        "public.merging",
    ),
    Seed(
        "CREATE TABLE ruled (id int PRIMARY KEY)",
        "CREATE TABLE ruled (id int PRIMARY KEY); CREATE RULE none AS ON INSERT TO ruled DO INSTEAD NOTHING",
        "table_refused",
        "public.ruled",
    ),
    Seed(
        "CREATE TABLE triggered (id int PRIMARY KEY)",
        "CREATE TABLE triggered (id int PRIMARY KEY);
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER touch BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION touch()",
        "triggers_fire",
        "public.triggered",
    ),
    Seed(
        "CREATE TABLE child (id int PRIMARY KEY, fine int)",
        "CREATE TABLE child (id int PRIMARY KEY, fine int REFERENCES fine)",
        "foreign_keys_checked",
        "public.child",
    ),
    Seed(
        "CREATE TABLE counted (id int PRIMARY KEY)",
        "CREATE SEQUENCE counted_seq; CREATE TABLE counted (id int PRIMARY KEY, n bigint DEFAULT nextval('counted_seq'))",
        "table_rights",
        "public.counted",
    ),
    Seed(
        "CREATE TABLE hidden (id int PRIMARY KEY)",
        "CREATE TABLE hidden (id int PRIMARY KEY); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
        "row_security",
        "public.hidden",
    ),
    Seed(
        "CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "CREATE TABLE nothing (id int PRIMARY KEY)",
        "only_inserts",
        "public.nothing",
    ),
    Seed(
        "CREATE TABLE whole (id int); ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE whole (id int)",
        "whole_row_identity",
        "public.whole",
    ),
    Seed(
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT",
        "CREATE TABLE parts (id int PRIMARY KEY); CREATE TABLE part (id int PRIMARY KEY)",
        "publication_root",
        "publication",
    ),
];

/// Each is sown after it.
const AFTER: &[Seed] = &[
    Seed(
        "CREATE TABLE later (id int PRIMARY KEY)",
        "",
        "table_not_published",
        "public.later",
    ),
    Seed(
        "CREATE TABLE unidentified (id int)",
        "",
        "table_key",
        "public.unidentified",
    ),
    Seed(
        "CREATE UNLOGGED TABLE offlog (id int PRIMARY KEY)",
        "",
        "table_unlogged",
        "public.offlog",
    ),
    Seed(
        "CREATE VIEW seen AS SELECT 1 AS id",
        "",
        "table_not_replicable",
        "public.seen",
    ),
    Seed("CREATE TABLE bare ()", "", "table_key", "public.bare"),
    Seed(
        "REVOKE SELECT ON unreadable FROM {site}",
        "",
        "table_rights",
        "public.unreadable",
    ),
    Seed(
        "ALTER TABLE secured ENABLE ROW LEVEL SECURITY",
        "",
        "row_security",
        "public.secured",
    ),
    Seed(
        "",
        "REVOKE INSERT ON unwritable FROM {agent}",
        "table_rights",
        "public.unwritable",
    ),
    Seed(
        "ALTER PUBLICATION {publication} SET (publish = 'insert, update, truncate')",
        "",
        "publication_partial",
        "publication",
    ),
    Seed(
        "ALTER ROLE {site} SET statement_timeout = '5min'",
        "",
        "role_time_out",
        "Site DB",
    ),
    Seed(
        "",
        "ALTER ROLE {agent} SET idle_session_timeout = '1h'",
        "role_time_out",
        "Agent DB",
    ),
    Seed("ALTER ROLE {site} CONNECTION LIMIT 7", "", "connections", "Site DB"),
    Seed(
        "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text{since17}) FROM PUBLIC",
        "",
        "mark_right",
        "Site DB",
    ),
    Seed(
        "",
        "REVOKE TEMPORARY ON DATABASE {agent_database} FROM PUBLIC",
        "large_values",
        "Agent DB",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_table_or_a_right_is_found_by_its_code() {
    // GIVEN two databases with roles that have no more rights than they need
    let mut twins = Twins::new(&format!(
        "CREATE TABLE fine {KEYED}; CREATE TABLE unreadable {KEYED}; CREATE TABLE secured {KEYED};
                                         CREATE TABLE unwritable {KEYED}"
    ))
    .await;
    let site = twins.site.create_role("reader", "ALTER ROLE {role} REPLICATION").await;
    let agent = twins.agent.create_role("writer", "").await;
    let (publication, agent_database) = (twins.site.name.clone(), twins.agent.name.clone());
    twins
        .on_agent(&format!("GRANT CREATE ON DATABASE {agent_database} TO {agent}"))
        .await;
    let since17 = if twins.site.cluster.major() >= 17 {
        ", boolean"
    } else {
        ""
    };
    let text = |sql: &str| {
        sql.replace("{site}", &site)
            .replace("{agent}", &agent)
            .replace("{publication}", &publication)
            .replace("{agent_database}", &agent_database)
            .replace("{since17}", since17)
    };

    // WHEN the seeds are sown
    for Seed(_, on_agent, ..) in BEFORE {
        twins.on_agent(on_agent).await;
    }
    let grants = format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {agent}");
    twins.on_agent(&grants).await;
    for Seed(on_site, ..) in BEFORE {
        twins.on_site(on_site).await;
    }
    twins
        .on_site(&format!(
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {site};
             CREATE PUBLICATION {publication} FOR TABLE {}",
            published(&twins).await
        ))
        .await;
    for Seed(on_site, on_agent, ..) in AFTER {
        twins.on_site(&text(on_site)).await;
        twins.on_agent(&text(on_agent)).await;
    }
    twins
        .on_site(&format!("GRANT SELECT ON later, unidentified, offlog, bare TO {site}"))
        .await;
    twins.set_site_url(&twins.site.url_as(&site));
    twins.set_agent_url(&twins.agent.url_as(&agent));

    // THEN each is found, and nothing is said of the table that is in order
    let diagnosis = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    let expected: Vec<Expected<'_>> = BEFORE
        .iter()
        .chain(AFTER)
        .map(|Seed(_, _, code, about)| (*code, *about))
        .collect();
    diagnosis.finds(&expected);
    diagnosis.says_nothing_bad_about("table public.fine");
    for (code, fix) in [
        (
            "table_rights",
            format!("GRANT SELECT ON \"public\".\"unreadable\" TO \"{site}\""),
        ),
        ("triggers_fire", "DISABLE TRIGGER \"touch\"".to_owned()),
        ("role_time_out", format!("ALTER ROLE {site} RESET statement_timeout;")),
        (
            "publication_partial",
            format!("ALTER PUBLICATION \"{publication}\" SET (publish"),
        ),
    ] {
        let has = diagnosis
            .findings()
            .iter()
            .any(|finding| finding["code"] == code && finding["fix"].as_str().is_some_and(|text| text.contains(&fix)));
        assert!(has, "{code}: {fix}: {:#?}", diagnosis.findings());
    }
    // And nothing was written: not even the daemon's own schema.
    assert_eq!(twins.agent.text("SELECT to_regnamespace('twinlog')").await, None);
}

/// All tables of the Site DB that can be published.
async fn published(twins: &Twins) -> String {
    twins
        .site
        .value(
            "SELECT string_agg(format('%I', relname), ', ') FROM pg_class WHERE relnamespace = 'public'::regnamespace
                AND relkind IN ('r', 'p') AND NOT relispartition",
        )
        .await
}
