//! Tables whose rows the stream can't identify: by a deferrable or generated key, by partitions of other replica identities, by
//! an index that takes different texts as equal. And tables whose names can't be read.

use std::sync::Arc;

use crate::harness::{Database, NOTES, SOON, Twins, databases};

/// The Site DB's version, as `server_version_num`.
async fn version(twins: &Twins) -> u32 {
    let version = twins.site.value("SELECT current_setting('server_version_num')").await;
    version.parse().unwrap()
}

/// Why a table is held.
async fn detail(twins: &Twins, table: &str) -> String {
    twins.until_table(table, "held", 0).await;
    let detail = format!("SELECT detail FROM twinlog.tables WHERE table_name = '{table}'");
    twins.agent.value(&detail).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_whose_updates_the_site_db_would_refuse_are_not_published() {
    // GIVEN tables without a replica identity that Postgres would take, by themselves or in their partitions
    let tables = "CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
        CREATE TABLE parts (id int, v text) PARTITION BY LIST (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1, 2);
        ALTER TABLE parts REPLICA IDENTITY FULL;
        CREATE TABLE parent (id int PRIMARY KEY, v text)";
    let mut twins = Twins::new(tables).await;
    twins.configure("sync.tables = [\"public.*\", \"!public.child*\"]");
    // AND a table without one that is left out, and inherits from another
    twins
        .on_site("CREATE TABLE child () INHERITS (parent); CREATE TABLE child_2 () INHERITS (parent)")
        .await;
    let mut held = vec!["late", "parts"];
    if version(&twins).await >= 180_000 {
        twins
            .on_site(
                "CREATE TABLE made (id int, v text, k int GENERATED ALWAYS AS (id) STORED PRIMARY KEY);
                 CREATE TABLE seen (id int PRIMARY KEY, v text, k int GENERATED ALWAYS AS (id) VIRTUAL);
                 ALTER TABLE seen REPLICA IDENTITY FULL",
            )
            .await;
        held.extend(["made", "seen"]);
    }
    let insert = |table: &str| format!("INSERT INTO {table} (id, v) VALUES (1, 'a')");
    let change = |table: &str| format!("UPDATE {table} SET v = 'b'; DELETE FROM {table} WHERE id = 2");
    let all: Vec<&str> = held.iter().copied().chain(["parent", "child", "child_2"]).collect();
    for table in &all {
        twins.on_site(&insert(table)).await;
    }

    // WHEN the daemon makes the publication, and one more table comes
    let _daemon = twins.start().await;
    twins
        .on_both("CREATE TABLE parent_2 (id int PRIMARY KEY, v text)")
        .await;
    twins.on_site("CREATE TABLE child_3 () INHERITS (parent_2)").await;
    twins.until_table("parent_2", "streaming", 0).await;

    // THEN the Site DB's applications go on as before
    for table in all.iter().copied().chain(["parent_2", "child_3"]) {
        twins.on_site(&change(table)).await;
    }
    // AND each is told, with its remedy
    twins
        .until_status_says(
            &[
                r#"ALTER TABLE \"public\".\"late\" REPLICA IDENTITY FULL;"#,
                "ALTER TABLE public.parts_1 REPLICA IDENTITY FULL;",
            ],
            2 * SOON,
        )
        .await;
    if held.len() > 2 {
        let says = [
            "ALTER TABLE public.made REPLICA IDENTITY",
            "ALTER TABLE public.seen REPLICA IDENTITY",
        ];
        twins.until_status_says(&says, 2 * SOON).await;
    }
    twins
        .on_site(
            r#"ALTER TABLE public.parts_1 REPLICA IDENTITY FULL; ALTER TABLE "public"."late" REPLICA IDENTITY FULL;"#,
        )
        .await;
    twins.until_equal_within(2 * SOON, &["parts", "late"]).await;
    twins.on_site(&change("late")).await;
    twins.on_site(&change("parts")).await;
    twins.until_equal(&["parts", "late"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_with_columns_that_are_not_sent_tells_no_rows_apart() {
    // GIVEN keys with a generated column, which is not sent
    let table = |name: &str, key: &str| {
        format!(
            "CREATE TABLE {name} (id int NOT NULL, d date, v text, PRIMARY KEY ({key}),
             y int GENERATED ALWAYS AS (date_part('year', d)::int) STORED)"
        )
    };
    let twins = Twins::new(NOTES).await;
    if version(&twins).await >= 180_000 {
        return;
    }
    twins.on_both(&table("apart", "id, y")).await;
    twins.on_both(&table("alone", "y")).await;
    for name in ["apart", "alone"] {
        twins
            .on_site(&format!(
                "INSERT INTO {name} VALUES (1, '2020-05-01', 'a'), (1, '2021-05-01', 'b')"
            ))
            .await;
    }
    // AND an index of the Agent DB on what is sent
    twins
        .on_agent(
            "ALTER TABLE apart DROP CONSTRAINT apart_pkey; CREATE UNIQUE INDEX ON apart (id);
             ALTER TABLE alone DROP CONSTRAINT alone_pkey",
        )
        .await;
    // WHEN they are replicated
    let _daemon = twins.start().await;
    // THEN no row is made of two: the tables are held, with a remedy that tells rows apart
    for name in ["apart", "alone"] {
        let detail = detail(&twins, name).await;
        assert!(
            detail.contains("column(s) y of its replica identity are not sent"),
            "{detail}"
        );
        let remedy = format!(r#"ALTER TABLE "public"."{name}" REPLICA IDENTITY FULL;"#);
        assert!(detail.contains(&remedy), "{detail}");
        twins.on_site(&remedy).await;
    }
    twins.on_agent("DROP INDEX apart_id_idx").await;
    twins.until_equal_within(2 * SOON, &["apart", "alone"]).await;
    twins
        .on_site("UPDATE alone SET v = 'c' WHERE y = 2020; DELETE FROM apart WHERE y = 2020")
        .await;
    twins.until_equal(&["apart", "alone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_with_another_replica_identity_than_their_table_lose_no_delete_and_no_large_value() {
    // GIVEN a table whose old rows are whole, and partitions that bring their key alone
    let twins = Twins::new(
        "CREATE TABLE q (id int PRIMARY KEY, v text, big text) PARTITION BY RANGE (id);
         CREATE TABLE q_1 PARTITION OF q FOR VALUES FROM (0) TO (100);
         CREATE TABLE q_2 PARTITION OF q FOR VALUES FROM (100) TO (200);
         CREATE TABLE bare (id int NOT NULL, v text) PARTITION BY RANGE (id);
         CREATE TABLE bare_1 PARTITION OF bare FOR VALUES FROM (0) TO (100);
         CREATE UNIQUE INDEX bare_1_id ON bare_1 (id);
         ALTER TABLE q_1 ALTER big SET STORAGE EXTERNAL; ALTER TABLE q_2 ALTER big SET STORAGE EXTERNAL",
    )
    .await;
    twins
        .on_site(
            "ALTER TABLE q REPLICA IDENTITY FULL; ALTER TABLE q_2 REPLICA IDENTITY FULL;
             ALTER TABLE bare REPLICA IDENTITY FULL; ALTER TABLE bare_1 REPLICA IDENTITY USING INDEX bare_1_id;
             INSERT INTO q SELECT i, 'v', repeat(md5(i::text), 90) FROM generate_series(1, 199) i;
             INSERT INTO bare VALUES (1, 'a'), (2, 'b')",
        )
        .await;
    twins.on_agent("ALTER TABLE q DROP CONSTRAINT q_pkey CASCADE").await;

    // WHEN the Agent DB has no key
    let _daemon = twins.start().await;
    // THEN the tables are held, each with what helps
    let said = detail(&twins, "q").await;
    let key = r#"ALTER TABLE "public"."q" ADD PRIMARY KEY ("id");"#;
    assert!(said.contains(key), "{said}");
    let said = detail(&twins, "bare").await;
    let whole = "ALTER TABLE public.bare_1 REPLICA IDENTITY FULL;";
    assert!(said.contains(whole), "{said}");
    twins.on_agent(key).await;
    twins.on_site(whole).await;
    twins.until_equal_within(2 * SOON, &["q", "bare"]).await;
    // AND changes of every partition arrive
    twins
        .on_site(
            "DELETE FROM q WHERE id IN (41, 141); UPDATE q SET v = 'w' WHERE id IN (42, 142);
             UPDATE q SET id = id + 1 WHERE id IN (40, 140); DELETE FROM bare WHERE id = 1; UPDATE bare SET v = 'c'",
        )
        .await;
    twins.until_equal(&["q", "bare"]).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_takes_different_texts_as_equal_is_no_key_and_merges_no_rows() {
    // GIVEN an index of the Agent DB that is blind for case, beside the key and alone
    let twins =
        Twins::new("CREATE TABLE beside (v text PRIMARY KEY, n int); CREATE TABLE alone (LIKE beside INCLUDING ALL)")
            .await;
    twins
        .on_agent(
            "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE UNIQUE INDEX ON beside (v COLLATE blind);
             ALTER TABLE alone DROP CONSTRAINT alone_pkey; CREATE UNIQUE INDEX ON alone (v COLLATE blind)",
        )
        .await;
    twins
        .on_site("INSERT INTO beside VALUES ('a', 1), ('A', 2); INSERT INTO alone VALUES ('a', 1), ('A', 2)")
        .await;
    let _daemon = twins.start().await;
    // THEN one row is parked, and none is another one's
    twins.until_parked(1).await;
    twins.on_site("UPDATE beside SET n = n + 1").await;
    twins
        .until_agent(
            "one row is itself",
            "SELECT count(*) FROM beside WHERE (v, n) IN (('a', 2), ('A', 3))",
            "1",
        )
        .await;
    // AND the table that has nothing else is held
    let said = detail(&twins, "alone").await;
    let index = r#"CREATE UNIQUE INDEX ON "public"."alone" ("v");"#;
    assert!(said.contains(index), "{said}");
    twins.on_agent("DROP INDEX beside_v_idx, alone_v_idx").await;
    twins.on_agent(index).await;
    twins.until_parked(0).await;
    twins.until_equal_within(2 * SOON, &["beside", "alone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_periods_is_told_with_the_index_that_helps() {
    let twins = Twins::new(NOTES).await;
    if version(&twins).await < 180_000 {
        return;
    }
    twins
        .on_both(
            "CREATE EXTENSION btree_gist;
             CREATE TABLE stays (id int, r int4range, v text, PRIMARY KEY (id, r WITHOUT OVERLAPS))",
        )
        .await;
    twins
        .on_site("INSERT INTO stays VALUES (1, '[1,5)', 'a'), (1, '[5,9)', 'b')")
        .await;
    let _daemon = twins.start().await;
    let said = detail(&twins, "stays").await;
    let index = r#"CREATE UNIQUE INDEX ON "public"."stays" ("id", "r");"#;
    assert!(said.contains(index), "{said}");
    twins.on_agent(index).await;
    twins.until_equal_within(2 * SOON, &["stays"]).await;
    twins
        .on_site("UPDATE stays SET v = 'c' WHERE v = 'a'; DELETE FROM stays WHERE v = 'b'")
        .await;
    twins.until_equal(&["stays"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_are_told_and_stop_no_other_table() {
    // GIVEN a Site DB that takes any bytes as a name, and such names: of tables, selected or not, and of a column
    let mut databases = databases().await;
    let name = format!("{}_ascii", databases.site.name);
    databases
        .on_site(&format!(
            "CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ))
        .await;
    let cluster = Arc::clone(&databases.site.cluster);
    databases.site = Database {
        url: cluster.url(&name),
        client: cluster.client(&name).await.unwrap(),
        name,
        cluster,
    };
    let twins = Twins::on(databases, NOTES).await;
    twins
        .on_site(
            r#"INSERT INTO notes VALUES (1, 'a', 1); CREATE SCHEMA aside;
               SET client_encoding = 'SQL_ASCII';
               DO $$ BEGIN
                   EXECUTE 'CREATE TABLE "caf' || E'\xe9' || '" (id int PRIMARY KEY)';
                   EXECUTE 'CREATE TABLE aside."th' || E'\xe9' || '" (id int PRIMARY KEY)';
                   EXECUTE 'CREATE TABLE drinks (id int PRIMARY KEY, "caf' || E'\xe9' || '" int)';
               END $$;
               SET client_encoding = 'UTF8'"#,
        )
        .await;
    // WHEN the daemon runs
    let mut daemon = twins.start().await;
    // THEN they are told, and the others flow
    twins.until_equal(&["notes"]).await;
    for table in ["public.caf\u{fffd}", "public.drinks"] {
        let told = format!("{table} of the Site DB has a name, or a column that has one, that is not UTF-8");
        daemon.wait_for_output(&told, SOON).await;
    }
    twins.on_site("UPDATE notes SET n = 2").await;
    twins.until_equal(&["notes"]).await;
    assert!(daemon.is_running());
}
