//! The session that writes has the search path of its role: objects of that path must not take the place of Postgres' own in
//! our statements.

use std::fmt::Write as _;

use super::fixture::{Fixture, chunk, delete, insert, rekey, truncate, update};

/// Gives each operator, function and type of `pg_catalog`, and each of its tables, a namesake in the schema `shadow` that
/// fails when it is used.
const SHADOW: &str = r#"
CREATE SCHEMA shadow;
DO $do$
DECLARE r record; n int := 0;
BEGIN
    SET LOCAL client_min_messages = error;
    FOR r IN SELECT DISTINCT p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid) AS arguments
        FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
            AND p.proargmodes IS NULL
            AND p.proname IN ('unnest', 'clock_timestamp', 'now', 'make_interval', 'power', 'random', 'coalesce', 'hashtext',
                'current_setting', 'set_config', 'format_type', 'pg_try_advisory_lock', 'lower', 'concat', 'md5',
                'hashtextextended', 'row_security_active', 'current_database', 'pg_notify', 'to_json')
            AND NOT EXISTS (SELECT FROM unnest(p.proargtypes) a WHERE a IN ('internal'::regtype, 'anyarray'::regtype))
    LOOP
        EXECUTE format('CREATE FUNCTION shadow.%I(%s) RETURNS text LANGUAGE plpgsql AS
            ''BEGIN RAISE EXCEPTION ''''shadowed function''''; END''', r.proname, r.arguments);
    END LOOP;
    FOR r IN SELECT o.oprname, format_type(o.oprleft, NULL) AS l, format_type(o.oprright, NULL) AS r,
            format_type(o.oprresult, NULL) AS result
        FROM pg_catalog.pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0 AND o.oprresult <> 0
            AND o.oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '&', '~~')
            AND 'anyarray'::regtype NOT IN (o.oprleft, o.oprright) AND 'record'::regtype NOT IN (o.oprleft, o.oprright)
            AND o.oprleft::regtype::text NOT LIKE 'any%' AND o.oprright::regtype::text NOT LIKE 'any%'
    LOOP
        n := n + 1;
        EXECUTE format('CREATE FUNCTION shadow.op_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS
            ''BEGIN RAISE EXCEPTION ''''shadowed operator''''; END''', n, r.l, r.r, r.result);
        EXECUTE format('CREATE OPERATOR shadow.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = shadow.op_%s)',
            r.oprname, r.l, r.r, n);
    END LOOP;
    FOR r IN SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
    LOOP
        EXECUTE format('CREATE VIEW shadow.%I AS SELECT 1/0 AS shadowed', r.relname);
    END LOOP;
    FOR r IN SELECT unnest(ARRAY['text', 'name', 'oid', 'regclass', 'jsonb', 'pg_lsn', 'timestamptz', 'uuid', 'xid',
        'int4', 'int8', 'float8', 'bool', 'int2', 'date']) AS name
    LOOP
        EXECUTE format('CREATE DOMAIN shadow.%I AS pg_catalog.text CHECK (false)', r.name);
    END LOOP;
END $do$;
CREATE DOMAIN shadow.citext AS pg_catalog.text CHECK (false);
"#;

/// Uses every kind of statement that the session that writes has.
#[tokio::test]
async fn no_statement_of_the_session_that_writes_relies_on_its_search_path() {
    for role in ["superuser", "ordinary role"] {
        // GIVEN a search path on which everything of pg_catalog has a namesake that fails
        let mut sql = String::from(SHADOW);
        let _ = write!(
            sql,
            "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;
             CREATE TABLE parent (id pg_catalog.text PRIMARY KEY);
             CREATE TABLE t (id int, k ext.citext, n int CHECK (n OPERATOR(pg_catalog.<) 100), v varchar(5), u pg_catalog.uuid,
                 j pg_catalog.jsonb, p pg_catalog.text REFERENCES parent DEFERRABLE INITIALLY DEFERRED, PRIMARY KEY (id, k));
             CREATE TABLE only_key (id pg_catalog.text PRIMARY KEY);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER f BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE t ENABLE ALWAYS TRIGGER f;
             CREATE TABLE many (id int PRIMARY KEY, v pg_catalog.text)"
        );
        let mut fixture = match role {
            "superuser" => Fixture::new(&sql).await,
            _ => Fixture::without_replica_role(&sql).await,
        };
        let (t, parent) = (fixture.resolve("t").await, fixture.resolve("parent").await);
        fixture
            .on_agent(&format!(
                "ALTER DATABASE \"{}\" SET search_path = shadow, public, pg_catalog; GRANT USAGE ON SCHEMA shadow, ext TO PUBLIC",
                fixture.db.agent.name
            ))
            .await;
        fixture.reconnect().await;
        let shadowed = fixture.db.agent.connect().await;
        for used in [
            "'a'::text",
            "1 = 1",
            "clock_timestamp()",
            "(SELECT relname::pg_catalog.text FROM pg_class LIMIT 1)",
        ] {
            let found = shadowed.query(&format!("SELECT {used}"), &[]).await;
            assert!(found.is_err(), "{used} has a namesake that fails");
        }
        fixture.applier().durable_checkpoint().await.unwrap();
        // WHEN the session does all that it can do
        let again = fixture.resolve("t").await;
        assert_eq!(t, again);
        let (only_key, many) = (fixture.resolve("only_key").await, fixture.resolve("many").await);
        let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        let row = |n: &'static str| ["1", "Key", n, "abc", uuid, "{}", "p"];
        fixture
            .apply(vec![insert(&parent, &["p"]), insert(&t, &row("1"))])
            .await;
        fixture
            .apply(vec![update(&t, &["1", "KEY", "2", "=", "=", "=", "="])])
            .await;
        fixture
            .apply(vec![rekey(&t, &["1", "key"], &["2", "Key", "3", "=", "=", "=", "="])])
            .await;
        fixture
            .apply(vec![chunk(insert(&t, &row("4"))), chunk(insert(&t, &row("4")))])
            .await;
        fixture
            .apply(vec![
                delete(&t, &["2", "key"]),
                insert(&only_key, &["a"]),
                delete(&only_key, &["b"]),
            ])
            .await;
        let numbers: Vec<String> = (0..100).map(|id: i32| id.to_string()).collect();
        fixture
            .apply(numbers.iter().map(|id| insert(&many, &[id, "x"])).collect())
            .await;
        // parks, folds, refuses again, heals
        fixture.apply(vec![update(&t, &row("100"))]).await;
        fixture
            .apply(vec![update(&t, &["1", "Key", "101", "=", "=", "=", "="])])
            .await;
        fixture.apply(vec![chunk(insert(&t, &row("102")))]).await;
        assert_eq!(fixture.parked().await, [r#"["1","Key"] upsert 23514 2"#], "{role}");
        fixture
            .apply(vec![chunk(insert(&t, &row("5"))), insert(&parent, &["q"])])
            .await;
        assert!(fixture.parked().await.is_empty(), "{role}");
        fixture.applier().set_gap("a reason").await.unwrap();
        fixture.applier().clear_gap(1).await.unwrap();
        fixture.try_apply_items(vec![truncate(&[&many])]).await.unwrap();
        fixture.commit().await;
        // THEN all of it was done
        let public = "SELECT pg_catalog.format('%s %s %s', t.id, t.k, t.n) FROM public.t";
        assert_eq!(fixture.lines(public).await, ["1 Key 5"], "{role}");
        assert_eq!(
            fixture.lines("SELECT pg_catalog.count(*) FROM public.many").await,
            ["0"]
        );
        assert_eq!(fixture.lines("SELECT id FROM public.only_key").await, ["a"]);
    }
}
