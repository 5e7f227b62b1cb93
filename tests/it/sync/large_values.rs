//! Values that are too large to be held three times: they are sent ahead of their statement, in pieces.

use crate::harness::Twins;

/// A text of 17 MB with all that a COPY escapes, and characters of several bytes.
fn large(letter: char) -> String {
    format!(r"repeat(E'{letter}é\t\\\n🚀\r\\N', 1215000)")
}

/// Notes in `made` each temporary table that the daemon makes.
const COUNT_TEMPORARY_TABLES: &str = "
    CREATE TABLE made (at timestamptz DEFAULT now());
    CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.made DEFAULT VALUES; END $$;
    CREATE EVENT TRIGGER note ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION note()";

/// Refuses to make them.
const REFUSE_TEMPORARY_TABLES: &str = "
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no new tables here'; END $$;
    CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION refuse()";

/// Each way in which a large value is written that is no new row.
async fn write_in_every_way(twins: &Twins, letter: char) {
    let large = large(letter);
    for change in [
        format!("UPDATE notes SET v = {large} WHERE id = 1"),
        format!(
            "BEGIN; UPDATE notes SET n = id; UPDATE notes SET v = {large}, id = id + 10, w = NULL WHERE id = 1; COMMIT"
        ),
        "UPDATE notes SET w = '', id = id - 10 WHERE id > 10".to_owned(),
        format!("UPDATE watched SET v = {large}, n = n + 1"),
        format!("UPDATE lines SET v = {large} WHERE ctid = (SELECT min(ctid) FROM lines)"),
    ] {
        twins.on_site(&change).await;
    }
    twins.until_equal(&["notes", "watched", "lines"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_updated_moved_and_looked_at_with_and_without_a_temporary_table() {
    let twins = Twins::new(
        "CREATE TABLE notes (id int PRIMARY KEY, v text, n int, w text DEFAULT 'w');
         CREATE TABLE watched (id int PRIMARY KEY, v text, n int);
         CREATE TABLE lines (id int, v text);
         ALTER TABLE lines REPLICA IDENTITY FULL;
         INSERT INTO notes VALUES (1, 'small', 1), (2, 'other', 2);
         INSERT INTO watched VALUES (1, 'small', 1);
         INSERT INTO lines VALUES (1, 'small'), (1, 'small')",
    )
    .await;
    // Rows of a table with such a trigger are looked at after they were written.
    twins
        .on_agent(
            "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER same BEFORE UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION same();
             ALTER TABLE watched ENABLE ALWAYS TRIGGER same",
        )
        .await;
    twins.on_agent(COUNT_TEMPORARY_TABLES).await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes", "watched", "lines"]).await;

    write_in_every_way(&twins, 'a').await;
    let made = twins.agent.text("SELECT count(*)::text FROM made").await;
    assert!(
        made.is_some_and(|made| made != "0"),
        "no value went by a temporary table"
    );

    // The daemon may have no right to make one.
    twins.on_agent(REFUSE_TEMPORARY_TABLES).await;
    write_in_every_way(&twins, 'b').await;
    twins.assert_balanced().await;
}
