//! Replica identities: an index, whole rows, none, and one that changes between two updates.

use crate::harness::{SOON, Twins};

/// `place` identifies rows in the log; `id` is the primary key of both sides.
const PLACES: &str = "
    CREATE TABLE places (id int PRIMARY KEY, place text NOT NULL, n int, big text);
    CREATE UNIQUE INDEX places_place ON places (place);
    ALTER TABLE places ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE places REPLICA IDENTITY USING INDEX places_place";

const PLACES_ROWS: &str =
    "INSERT INTO places SELECT i, 'p' || i, 0, repeat(md5(i::text), 90) FROM generate_series(1, 300) i";

/// Changes of every kind; an update of `id` alone brings no old row.
const PLACES_CHANGES: &str = "
    UPDATE places SET n = n + 1 WHERE n % 3 = 0;
    UPDATE places SET id = id + 1000 WHERE id % 7 = 0;
    UPDATE places SET place = place || '!' WHERE id % 5 = 0;
    UPDATE places SET id = -id, place = place || '?' WHERE id % 11 = 0;
    DELETE FROM places WHERE id % 13 = 0;
    INSERT INTO places VALUES (5000, 'new', 1, NULL), (5001, 'newer', NULL, repeat('x', 5000));
    UPDATE places SET id = 5002, n = 2 WHERE place = 'newer';
    DELETE FROM places WHERE place = 'new'";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_matched_by_the_index_that_identifies_them_and_their_primary_key_may_change() {
    let twins = Twins::new(PLACES).await;
    twins.on_site(PLACES_ROWS).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["places"]).await;

    twins.on_site(PLACES_CHANGES).await;
    twins.until_equal(&["places"]).await;
    twins
        .on_agent("UPDATE places SET n = 99 WHERE id % 17 = 0; DELETE FROM places WHERE id % 19 = 0")
        .await;
    twins
        .on_agent("INSERT INTO places VALUES (7777, 'only here', 1, NULL)")
        .await;
    twins.succeeds(&["resync", "places", "--wait"]).await;
    twins.until_equal(&["places"]).await;

    daemon.restart().await;
    twins
        .on_site(
            "TRUNCATE places; INSERT INTO places VALUES (1, 'a', 1, NULL), (2, 'b', 2, NULL);
             UPDATE places SET id = 3 WHERE id = 1",
        )
        .await;
    twins.until_equal(&["places"]).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_unique_index_and_no_primary_key_is_replicated_by_it() {
    let twins = Twins::new(
        "CREATE TABLE codes (note text, b int NOT NULL, a text NOT NULL);
         CREATE UNIQUE INDEX codes_key ON codes (a, b) INCLUDE (note);
         ALTER TABLE codes REPLICA IDENTITY USING INDEX codes_key",
    )
    .await;
    twins
        .on_agent("ALTER TABLE codes ADD CONSTRAINT sound CHECK (b < 1000)")
        .await;
    twins
        .on_site("INSERT INTO codes SELECT 'n' || i, i, 'a' || i % 10 FROM generate_series(1, 100) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["codes"]).await;
    twins
        .on_site(
            "UPDATE codes SET note = NULL WHERE b % 3 = 0; UPDATE codes SET b = -b WHERE b % 5 = 0;
             DELETE FROM codes WHERE a = 'a7'; INSERT INTO codes VALUES ('bad', 1001, 'x'), ('good', 1, 'x')",
        )
        .await;
    twins.until_parked(1).await;
    twins.on_agent("ALTER TABLE codes DROP CONSTRAINT sound").await;
    twins.until_parked(0).await;
    twins.until_equal(&["codes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_table_without_the_identitys_index_is_named_with_the_statement_that_creates_it() {
    let twins = Twins::new(PLACES).await;
    twins.on_agent("DROP INDEX places_place").await;
    twins.on_site(PLACES_ROWS).await;
    let mut daemon = twins.launch();
    let statement = r#"CREATE UNIQUE INDEX ON "public"."places" ("place");"#;
    daemon.wait_for_output(statement, 2 * SOON).await;
    twins.on_agent(statement).await;
    twins.until_equal(&["places"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_old_rows_change_keys_and_keep_what_an_update_did_not_repeat() {
    let twins = Twins::new(
        "CREATE TABLE docs (id int PRIMARY KEY, n float8, big text, tags text[]);
         ALTER TABLE docs ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE docs REPLICA IDENTITY FULL",
    )
    .await;
    twins
        .on_site(
            "INSERT INTO docs SELECT i, NULL, repeat(md5(i::text), 90), ARRAY[NULL, 'x'] FROM generate_series(1, 50) i",
        )
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["docs"]).await;
    twins
        .on_site(
            "UPDATE docs SET n = 'NaN' WHERE id < 10; UPDATE docs SET n = '-0' WHERE id = 3;
             UPDATE docs SET id = id + 100 WHERE id < 5; UPDATE docs SET tags = NULL WHERE id > 40;
             DELETE FROM docs WHERE n IS NULL AND id % 2 = 0; UPDATE docs SET big = NULL WHERE id = 45",
        )
        .await;
    twins.until_equal(&["docs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_may_change_between_two_updates_and_while_no_daemon_runs() {
    let twins = Twins::new(&format!("{PLACES}; CREATE TABLE other (id int PRIMARY KEY)")).await;
    twins.on_site(PLACES_ROWS).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["places"]).await;
    let identities = [
        "DEFAULT",
        "FULL",
        "USING INDEX places_place",
        "NOTHING",
        "FULL",
        "DEFAULT",
        "NOTHING",
        "USING INDEX places_place",
        "DEFAULT",
    ];
    let rounds = |round: &mut i32| {
        let mut sql = String::new();
        for identity in identities {
            *round += 1;
            sql.push_str(&format!("ALTER TABLE places REPLICA IDENTITY {identity};"));
            sql.push_str(&format!(
                "INSERT INTO places VALUES (10000 + {round}, 'r{round}', 0, NULL);"
            ));
            if identity != "NOTHING" {
                sql.push_str(&format!(
                    "UPDATE places SET n = {round} WHERE id % 3 = {round} % 3;
                     UPDATE places SET place = place || '.' WHERE id % 37 = {round} % 37;
                     DELETE FROM places WHERE id % 41 = {round} % 41;"
                ));
                if identity.starts_with("USING") {
                    sql.push_str(&format!(
                        "UPDATE places SET id = id + 20000 WHERE id % 29 = {round} % 29;"
                    ));
                }
            }
        }
        sql
    };
    let mut round = 0;
    // As one transaction each; then one by one, with time for the daemon to see each.
    twins.on_site(&rounds(&mut round)).await;
    twins.until_equal(&["places"]).await;
    daemon.kill9();
    twins.on_site(&rounds(&mut round)).await;
    daemon.restart().await;
    twins.until_equal(&["places"]).await;
    for statement in rounds(&mut round).split_inclusive(';') {
        twins.on_site(statement).await;
    }
    twins.on_site("INSERT INTO other VALUES (1)").await;
    twins.until_equal(&["places", "other"]).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_rows_are_healed_after_the_identity_has_changed() {
    let twins = Twins::new(PLACES).await;
    twins
        .on_agent("ALTER TABLE places ADD CONSTRAINT few CHECK (n < 100)")
        .await;
    twins.on_site(PLACES_ROWS).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["places"]).await;
    // Parked by place, then by id, then by place again.
    twins.on_site("UPDATE places SET n = 200 WHERE id IN (1, 2, 3)").await;
    twins.until_parked(3).await;
    twins
        .on_site("ALTER TABLE places REPLICA IDENTITY DEFAULT; UPDATE places SET n = 300 WHERE id IN (3, 4)")
        .await;
    twins.until_parked(4).await;
    daemon.kill9();
    twins
        .on_site(
            "ALTER TABLE places REPLICA IDENTITY USING INDEX places_place; UPDATE places SET n = 400 WHERE id = 5;
             UPDATE places SET id = 999 WHERE id = 4; DELETE FROM places WHERE id = 1",
        )
        .await;
    daemon.restart().await;
    twins.until_parked(4).await;
    twins.on_agent("ALTER TABLE places DROP CONSTRAINT few").await;
    twins.until_parked(0).await;
    twins.until_equal(&["places"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_index_that_identifies_them_rows_are_inserted_and_nothing_stops() {
    let twins = Twins::new(&format!("{PLACES}; CREATE TABLE other (id int PRIMARY KEY)")).await;
    twins.on_site(PLACES_ROWS).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["places"]).await;
    twins
        .on_site(
            "DROP INDEX places_place; INSERT INTO places VALUES (1000, 'p1', 1, NULL); INSERT INTO other VALUES (1)",
        )
        .await;
    daemon.wait_for_output("the table has no replica identity", SOON).await;
    // The Agent DB's index has no place for it, until it is dropped there too.
    twins.until_parked(1).await;
    twins.on_agent("DROP INDEX places_place").await;
    twins.until_parked(0).await;
    twins.until_equal(&["places", "other"]).await;
    daemon.restart().await;
    twins
        .on_site("ALTER TABLE places REPLICA IDENTITY FULL; UPDATE places SET n = 2 WHERE place = 'p1'")
        .await;
    twins.until_equal(&["places", "other"]).await;
}
