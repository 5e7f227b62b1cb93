//! Values arrive as they were sent, whatever is set for the role, the database or the server of either side.

use crate::harness::{SOON, Twins};

/// Settings that an operator, an application or a managed service may have set for a database. Those that the server does
/// not know (they came with a later version) are left out. Not `default_transaction_read_only`: that is meant.
const HOSTILE: &[(&str, &str)] = &[
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kathmandu"),
    ("timezone_abbreviations", "India"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("xmloption", "document"),
    ("xmlbinary", "hex"),
    ("lc_monetary", "C.UTF-8"),
    ("lc_numeric", "C.UTF-8"),
    ("lc_time", "C.UTF-8"),
    ("lc_messages", "C.UTF-8"),
    ("default_text_search_config", "pg_catalog.german"),
    ("array_nulls", "off"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "on"),
    ("escape_string_warning", "on"),
    ("quote_all_identifiers", "on"),
    ("transform_null_equals", "on"),
    ("client_encoding", "LATIN1"),
    ("search_path", "nowhere, public"),
    ("row_security", "off"),
    ("check_function_bodies", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "3s"),
    ("lock_timeout", "1ms"),
    ("idle_in_transaction_session_timeout", "3s"),
    ("idle_session_timeout", "3s"),
    ("transaction_timeout", "3s"),
    ("wal_sender_timeout", "2s"),
    ("exit_on_error", "on"),
    ("synchronous_commit", "off"),
    ("client_min_messages", "debug2"),
    ("default_toast_compression", "pglz"),
    ("gin_fuzzy_search_limit", "1"),
    ("work_mem", "64kB"),
    ("maintenance_work_mem", "1MB"),
    ("logical_decoding_work_mem", "64kB"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_nestloop", "off"),
    ("enable_sort", "off"),
    ("enable_hashagg", "off"),
    ("enable_material", "off"),
    ("plan_cache_mode", "force_custom_plan"),
    ("geqo_threshold", "2"),
    ("from_collapse_limit", "1"),
    ("join_collapse_limit", "1"),
    ("cursor_tuple_fraction", "0.000001"),
    ("parallel_setup_cost", "0"),
    ("parallel_tuple_cost", "0"),
    ("min_parallel_table_scan_size", "0"),
    ("jit_above_cost", "0"),
    ("synchronize_seqscans", "on"),
    ("vacuum_freeze_min_age", "0"),
    ("vacuum_freeze_table_age", "0"),
    ("vacuum_truncate", "off"),
    ("restrict_nonsystem_relation_kind", "view, foreign-table"),
];

const SCHEMA: &str = "
CREATE TYPE mood AS ENUM ('sad', 'so so', 'NULL');
CREATE TYPE pair AS (a timestamptz, b float8, c bytea);
CREATE DOMAIN short AS varchar(9) CHECK (VALUE <> 'x');
CREATE DOMAIN span AS interval;
CREATE TABLE every (id int PRIMARY KEY, i2 int2, i8 int8, num numeric, f4 float4, f8 float8, cash money, yes bool, c3 char(3),
    vc varchar(20), txt text, one \"char\", nam name, bin bytea, day date, tim time, ttz timetz, ts timestamp, tstz timestamptz,
    iv interval, u uuid, js json, jb jsonb, doc xml, net inet, cid cidr, mac macaddr, mac8 macaddr8, bits bit(3), vbits varbit,
    pt point, ln line, seg lseg, bx box, pa path, po polygon, ci circle, tv tsvector, tq tsquery, r4 int4range, rn numrange,
    rt tsrange, rz tstzrange, rd daterange, mr int4multirange, mz tstzmultirange, ta text[], ia int[][], tza timestamptz[],
    fa float8[], iva interval[], ba bytea[], ma mood[], rc regclass, ry regtype, rp regprocedure, ro regoperator, o oid, x xid,
    x8 xid8, t tid, lsn pg_lsn, sn pg_snapshot, jp jsonpath, cur refcursor, ov oidvector, m mood, p pair, pb pair[], s short, sp span);
CREATE TABLE keyed (a timestamptz, b float8, c bytea, d interval, e numeric, f text COLLATE \"C\", v text,
    PRIMARY KEY (a, b, c, d, e, f));
CREATE TABLE keyless (a timestamptz, b float8, c bytea, d interval, e text[], f money);
ALTER TABLE keyless REPLICA IDENTITY FULL";

/// Rows that every setting above prints or parses in another way. `{id}`: the row's number.
const ROWS: &str = r#"
INSERT INTO every VALUES ({id}, -32768, 9223372036854775807, '1e-200', 1.1000001, 1.1000000000000001, '-1234.56', true, 'a',
    'back\slash ''quote''', E'tab\t new\nline \\ ''q'' "d" €😀 NULL', 'x', 'A name', '\x00ff5c27', '2026-02-01', '24:00', '12:34:56.789+05:45',
    '2026-02-01 03:04:05.678901', '2026-02-01 03:04:05.678901+00', '-1 year 2 mons -3 days 04:05:06.7', gen_random_uuid(),
    '{"a": [1, null, "\u20ac"]}', '{"b": "NULL", "a": 1.10}', '<a>1</a>text<b/>', '10.1.2.3/8', '10.0.0.0/8', '08:00:2b:01:02:03',
    '08:00:2b:01:02:03:04:05', B'101', B'10101', '(1.1,-0)', '{1,2,3}', '[(0.1,0.2),(3,4)]', '(1,2),(0.3,0.4)', '[(0,0),(1,1.1)]',
    '((0,0),(1,1),(2,0.1))', '<(1,2),3.3>', 'a:1A fat:2B', 'fat & (rat | !cat)', '[1,5)', '(1.10,]',
    '["2026-02-01 00:00","2026-03-01 00:00")', '["2026-02-01 00:00+00",infinity]', '[2026-02-01,2026-02-03)', '{[1,3),[5,7)}',
    '{["2026-02-01 00:00+00","2026-02-02 00:00+00")}', '{a,NULL,"NULL","","b \" \\ c"}', '[0:1][-1:0]={{1,2},{3,NULL}}',
    '{"2026-02-01 00:00+00",-infinity,NULL}', '{0.1,NaN,-Infinity,1e-300}', '{"1 mon","-1 day 02:00"}', '{"\\x00","\\x5c"}',
    '{sad,"so so","NULL",NULL}', 'pg_catalog.pg_class', 'timestamptz', 'pg_catalog.lower(text)', '+(integer,integer)', 4294967295, '4294967295',
    '18446744073709551615', '(4294967295,65535)', 'FFFFFFFF/FFFFFFFF', '10:20:10,14,15', '$."a"[*] ? (@ > 1.10)', 'cursor', '1 2 3', 'NULL',
    '("2026-02-01 00:00+00",0.1,"\\x00ff")', ARRAY[ROW('infinity', 'NaN', '\x')::pair, NULL], 'short', '-1 day 02:03');
INSERT INTO every (id, f8, day, ts, tstz, num, txt, ta) VALUES (-{id}, '-0', '0044-03-15 BC', '-infinity', '4713-01-01 00:00+00 BC', 'NaN', '', '{}');
INSERT INTO keyed VALUES ('2026-0{id}-02 03:04:05+00', 0.1::float8 + 0.2::float8, '\x5c27', '1 mon -1 day', 1.10, E'\\ '' NULL', 'v'),
    ('0044-03-15 00:00+00 BC', 'NaN', '\x', '0', {id}, 'NULL', NULL);
INSERT INTO keyless VALUES ('2026-0{id}-02 03:04:05+00', 0.1::float8 + 0.2::float8, '\x5c27', '1 mon -1 day', '{NULL,"NULL"}', '12.34'),
    ('2026-0{id}-02 03:04:05+00', 0.1::float8 + 0.2::float8, '\x5c27', '1 mon -1 day', '{NULL,"NULL"}', '12.34'), (NULL, NULL, NULL, NULL, NULL, NULL)"#;

fn rows(id: u32) -> String {
    ROWS.replace("{id}", &id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_of_every_type_passes_copy_stream_and_resync_under_hostile_settings_of_both_sides() {
    // GIVEN databases and roles with hostile settings; the sessions of the test are older than these
    let mut twins = Twins::new(SCHEMA).await;
    let tables = ["every", "keyed", "keyless"];
    twins.on_site(&rows(1)).await;
    let mut known = 0;
    for database in [&twins.site, &twins.agent] {
        let found = database
            .query("SELECT lower(name) FROM pg_settings", &[])
            .await
            .unwrap();
        let found: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        let hostile = HOSTILE.iter().filter(|(name, _)| found.contains(&name.to_lowercase()));
        for (name, value) in hostile {
            let list = if value.contains(", ") && *name != "DateStyle" {
                value
                    .split(", ")
                    .map(|one| format!("'{one}'"))
                    .collect::<Vec<_>>()
                    .join(", ")
            } else {
                format!("'{value}'")
            };
            database
                .run(&format!("ALTER DATABASE \"{}\" SET {name} = {list}", database.name))
                .await;
            known += 1;
        }
    }
    assert!(known > 100, "{known} settings");
    let more = "ALTER ROLE {role} SUPERUSER; ALTER ROLE {role} SET array_nulls = off; ALTER ROLE {role} SET DateStyle = 'German, DMY'";
    let (reader, writer) = (
        twins.site.create_role("hostile", more).await,
        twins.agent.create_role("hostile", more).await,
    );
    twins.set_site_url(&twins.site.url_as(&reader));
    twins.set_agent_url(&twins.agent.url_as(&writer));

    // WHEN rows are copied, streamed and read again THEN both sides have the same texts
    let mut daemon = twins.start().await;
    twins.until_equal_within(2 * SOON, &tables).await;
    twins.on_site(&rows(2)).await;
    twins
        .on_site(
            "UPDATE every SET txt = txt || '!', ta = ta || NULL::text WHERE id > 0; UPDATE keyed SET v = 'w' WHERE b <> 'NaN';
             UPDATE keyed SET d = '2 days' WHERE b = 'NaN' AND e = 1; DELETE FROM keyless WHERE a IS NULL;
             UPDATE keyless SET f = '-0.01' WHERE ctid = (SELECT min(ctid) FROM keyless)",
        )
        .await;
    twins.until_equal(&tables).await;
    assert_eq!(twins.parked().await, 0);
    twins
        .on_agent(
            "UPDATE every SET txt = 'wrong', f8 = 1.1; DELETE FROM every WHERE id = 1; DELETE FROM keyed WHERE b = 'NaN';
             INSERT INTO keyed VALUES ('infinity', 0.1, '', '1 day', 1, '', ''); DELETE FROM keyless WHERE f < 0::money",
        )
        .await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&tables).await;
    // A second reading finds nothing to change: what is stored prints as what was sent.
    let output = twins.succeeds(&["resync", "every", "keyed", "keyless", "--wait"]).await;
    assert!(output.contains(" 0 changed in the Agent DB"), "{output}");
    daemon.restart().await;
    twins.on_site(&rows(3)).await;
    twins.until_equal(&tables).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}
