//! What can be wrong with one table, how it is made, and how it is repaired.
//!
//! In the statements, `{t}` is the table, `{schema}` its schema, `{aside}` another name in that schema, `{role}` the
//! daemon's role on that side, `{publication}` the publication, and `{number}` a number that no other table has.

/// Where a statement is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Site,
    Agent,
    /// On the Agent DB, in a session that stays open.
    AgentSession,
}

/// The publications with which something is tried. Each is of two of the four tests; what does not depend on the moment is in
/// two of them, so that they stay quick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publication {
    Any,
    /// `FOR ALL TABLES`.
    OfAll,
    /// One that lists its tables.
    Listed,
}

/// What becomes of the table, or of its rows, meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It is held, for a reason with these words.
    Held(&'static str),
    /// Its rows are parked.
    Parked,
}

/// How a table is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    /// By the statement that the reason names.
    Pasted,
    /// By a statement that nobody but its owner can know.
    By(&'static str),
    /// By ending the session, which is one of those that the query in the reason finds.
    SessionEnded,
}

/// Something that is wrong with one table.
#[derive(Debug)]
pub(super) struct Cause {
    pub(super) name: &'static str,
    pub(super) on: On,
    pub(super) broken: &'static str,
    pub(super) then: Then,
    pub(super) repair: Repair,
    /// Run on the Agent DB while the table is well.
    pub(super) before: &'static str,
    pub(super) with: Publication,
}

const fn cause(name: &'static str, on: On, broken: &'static str, then: Then, repair: Repair) -> Cause {
    Cause {
        name,
        on,
        broken,
        then,
        repair,
        before: "",
        with: Publication::Any,
    }
}

impl Cause {
    const fn after(mut self, before: &'static str) -> Self {
        self.before = before;
        self
    }

    const fn with(mut self, publication: Publication) -> Self {
        self.with = publication;
        self
    }
}

use On::{Agent, AgentSession, Site};
use Repair::{By, Pasted, SessionEnded};
use Then::{Held, Parked};

const RECREATED: Repair = By("CREATE TABLE {t} (id bigint PRIMARY KEY, body text, n int); GRANT ALL ON {t} TO {role}");
const BACK: Repair = By(
    "DO $$ BEGIN EXECUTE 'DROP ' || (SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
    ELSE 'FOREIGN TABLE' END FROM pg_class WHERE oid = $t${t}$t$::regclass) || $t$ {t}$t$; END $$;
    ALTER TABLE {aside} RENAME TO {name}",
);

pub(super) const CAUSES: &[Cause] = &[
    cause(
        "missing",
        Agent,
        "DROP TABLE {t}",
        Held("is missing in the Agent DB"),
        RECREATED,
    ),
    cause(
        "a view",
        Agent,
        "ALTER TABLE {t} RENAME TO {aside_name}; CREATE VIEW {t} AS SELECT * FROM {aside}; GRANT ALL ON {t} TO {role}",
        Held("in the Agent DB is not a table"),
        BACK,
    ),
    cause(
        "a materialized view",
        Agent,
        "ALTER TABLE {t} RENAME TO {aside_name}; CREATE MATERIALIZED VIEW {t} AS SELECT * FROM {aside}",
        Held("in the Agent DB is not a table"),
        BACK,
    ),
    cause(
        "a foreign table",
        Agent,
        "ALTER TABLE {t} RENAME TO {aside_name};
         CREATE FOREIGN TABLE {t} (id bigint, body text, n int) SERVER nowhere",
        Held("in the Agent DB is not a table"),
        BACK,
    ),
    cause(
        "a column lacks",
        Agent,
        "ALTER TABLE {t} DROP body",
        Held("lacks column(s) body"),
        Pasted,
    ),
    cause(
        "a column is generated",
        Agent,
        "ALTER TABLE {t} DROP n; ALTER TABLE {t} ADD n int GENERATED ALWAYS AS (1) STORED",
        Held("is generated in the Agent DB"),
        Pasted,
    ),
    cause(
        "a column that must be given",
        Agent,
        "ALTER TABLE {t} ADD \"Must be\" int NOT NULL DEFAULT 1; ALTER TABLE {t} ALTER \"Must be\" DROP DEFAULT",
        Held("is NOT NULL without a default"),
        Pasted,
    ),
    cause(
        "a domain without a default",
        Agent,
        "ALTER TABLE {t} ADD needed {schema}.needed DEFAULT 1; ALTER TABLE {t} ALTER needed DROP DEFAULT",
        Held("needed"),
        By("ALTER TABLE {t} ALTER needed SET DEFAULT 1"),
    ),
    cause(
        "no key",
        Agent,
        "ALTER TABLE {t} DROP CONSTRAINT {pkey}",
        Held("has no primary key"),
        Pasted,
    ),
    cause(
        "a key that is checked late",
        Agent,
        "ALTER TABLE {t} DROP CONSTRAINT {pkey}, ADD CONSTRAINT \"Late key\" PRIMARY KEY (id) DEFERRABLE",
        Held("is deferrable"),
        Pasted,
    ),
    cause(
        "another key",
        Agent,
        "ALTER TABLE {t} DROP CONSTRAINT {pkey}, ADD COLUMN other bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        Held("no unique index on the replica identity"),
        Pasted,
    ),
    cause(
        "no INSERT",
        Agent,
        "REVOKE INSERT ON {t} FROM {role}",
        Held("no right to INSERT"),
        Pasted,
    ),
    cause(
        "no UPDATE",
        Agent,
        "REVOKE UPDATE ON {t} FROM {role}",
        Held("no right to UPDATE"),
        Pasted,
    ),
    cause(
        "no DELETE",
        Agent,
        "REVOKE DELETE ON {t} FROM {role}",
        Held("no right to DELETE"),
        Pasted,
    ),
    cause(
        "no SELECT of a column",
        Agent,
        "REVOKE SELECT ON {t} FROM {role}; GRANT SELECT (id, body) ON {t} TO {role}",
        Held("SELECT"),
        Pasted,
    ),
    cause(
        "no INSERT of a column",
        Agent,
        "REVOKE INSERT ON {t} FROM {role}; GRANT INSERT (id, n) ON {t} TO {role}",
        Held("INSERT"),
        Pasted,
    ),
    cause(
        "no UPDATE of a column",
        Agent,
        "REVOKE UPDATE ON {t} FROM {role}; GRANT UPDATE (id, n) ON {t} TO {role}",
        Held("UPDATE"),
        Pasted,
    ),
    cause(
        "a schema that may not be used",
        Agent,
        "REVOKE USAGE ON SCHEMA {schema} FROM {role}",
        Held("no right to USAGE"),
        Pasted,
    ),
    cause(
        "a sequence that may not be used",
        Agent,
        "CREATE SEQUENCE {schema}.\"Num bers\"; ALTER TABLE {t} ADD serial bigint DEFAULT nextval('{schema}.\"Num bers\"')",
        Held("Num bers"),
        Pasted,
    ),
    cause(
        "a function that may not be called",
        Agent,
        "CREATE FUNCTION {schema}.\"Is it\"(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         REVOKE EXECUTE ON FUNCTION {schema}.\"Is it\"(int) FROM PUBLIC;
         ALTER TABLE {t} ADD CHECK ({schema}.\"Is it\"(n))",
        Held("Is it"),
        Pasted,
    ),
    cause(
        "row-level security",
        Agent,
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON {t} USING (id > 5)",
        Held("row-level security"),
        By("ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
    ),
    cause(
        "a rule that drops inserts",
        Agent,
        "CREATE RULE nothing AS ON INSERT TO {t} DO INSTEAD NOTHING",
        Held("rule"),
        Pasted,
    ),
    cause(
        "a trigger that refuses every statement",
        Agent,
        "CREATE TRIGGER never BEFORE INSERT OR UPDATE OR DELETE ON {t} EXECUTE FUNCTION public.refuse()",
        Parked,
        By("DROP TRIGGER never ON {t}"),
    ),
    cause(
        "a check whose function is missing",
        Agent,
        "CREATE FUNCTION {schema}.checked(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN missing($1); END';
         ALTER TABLE {t} ADD CONSTRAINT checked CHECK ({schema}.checked(n)) NOT VALID",
        Parked,
        By("ALTER TABLE {t} DROP CONSTRAINT checked"),
    ),
    cause(
        "an index that divides by zero",
        Agent,
        "CREATE INDEX divided ON {t} ((1 / (n - 107)))",
        Parked,
        By("DROP INDEX {schema}.divided"),
    ),
    cause(
        "no partition for a row",
        Agent,
        "ALTER TABLE {t} RENAME TO {aside_name};
         CREATE TABLE {t} (id bigint PRIMARY KEY, body text, n int) PARTITION BY RANGE (id); GRANT ALL ON {t} TO {role};
         ALTER TABLE {t} ATTACH PARTITION {aside} FOR VALUES FROM (1) TO (150)",
        Parked,
        By("CREATE TABLE {schema}.rest PARTITION OF {t} DEFAULT"),
    ),
    cause(
        "an exclusion constraint",
        Agent,
        "ALTER TABLE {t} ADD CONSTRAINT excluded EXCLUDE ((n % 100) WITH =) WHERE (n = 1 OR n = 101)",
        Parked,
        By("ALTER TABLE {t} DROP CONSTRAINT excluded"),
    ),
    cause(
        "no SELECT on the Site DB",
        Site,
        "REVOKE SELECT ON {t} FROM {role}",
        Held("may not read"),
        Pasted,
    ),
    cause(
        "a schema of the Site DB that may not be used",
        Site,
        "REVOKE USAGE ON SCHEMA {schema} FROM {role}",
        Held("may not use the schema"),
        Pasted,
    ),
    cause(
        "row-level security on the Site DB",
        Site,
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON {t} USING (id > 5)",
        Held("hides rows"),
        By("ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
    ),
    cause(
        "a column that came on the Site DB",
        Site,
        "ALTER TABLE {t} ADD \"Pri ce\" numeric(10,2); UPDATE {t} SET \"Pri ce\" = n",
        Held("lacks column(s) Pri ce"),
        Pasted,
    ),
    cause(
        "unlogged",
        Agent,
        "ALTER TABLE {t} SET UNLOGGED",
        Held("is UNLOGGED in the Agent DB"),
        Pasted,
    )
    .with(Publication::Listed),
    cause(
        "unlogged on the Site DB",
        Site,
        "ALTER TABLE {t} SET UNLOGGED",
        Held("is UNLOGGED in the Site DB"),
        Pasted,
    )
    .with(Publication::OfAll),
    cause(
        "out of the publication",
        Site,
        "ALTER PUBLICATION {publication} DROP TABLE {t}",
        Held("is not in publication"),
        Pasted,
    )
    .with(Publication::Listed),
    cause(
        "keys that the type merges",
        Agent,
        "ALTER TABLE {t} ALTER id TYPE real",
        Held("different keys of"),
        Pasted,
    )
    .with(Publication::OfAll),
    cause(
        "a column whose type is dropped",
        Agent,
        "DROP DOMAIN {schema}.\"Wo rds\" CASCADE",
        Held("lacks column(s) body"),
        Pasted,
    )
    .after("CREATE DOMAIN {schema}.\"Wo rds\" AS text; ALTER TABLE {t} ALTER body TYPE {schema}.\"Wo rds\"")
    .with(Publication::Listed),
    cause(
        "an extension's type",
        Agent,
        "DROP EXTENSION citext CASCADE",
        Held("lacks column(s) body"),
        Pasted,
    )
    .after("CREATE EXTENSION citext SCHEMA {schema}; ALTER TABLE {t} ALTER body TYPE {schema}.citext")
    .with(Publication::OfAll),
    cause(
        "the key's type is dropped",
        Agent,
        "DROP DOMAIN {schema}.\"Nu m\" CASCADE",
        Held("lacks column(s) id"),
        By("DELETE FROM {t}; ALTER TABLE {t} ADD id bigint PRIMARY KEY"),
    )
    .after("CREATE DOMAIN {schema}.\"Nu m\" AS bigint; ALTER TABLE {t} ALTER id TYPE {schema}.\"Nu m\"")
    .with(Publication::OfAll),
    cause(
        "the key's operator class is dropped",
        Agent,
        "DROP EXTENSION btree_gist CASCADE; DROP OPERATOR CLASS {schema}.\"Back wards\" USING btree CASCADE",
        Held("has no primary key"),
        Pasted,
    )
    .after(
        "CREATE EXTENSION btree_gist SCHEMA {schema};
         ALTER TABLE {t} DROP CONSTRAINT {pkey}, ADD EXCLUDE USING gist (id WITH =);
         CREATE OPERATOR CLASS {schema}.\"Back wards\" FOR TYPE bigint USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
            OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint8cmp(bigint, bigint);
         CREATE UNIQUE INDEX ON {t} (id {schema}.\"Back wards\"); ALTER TABLE {t} ALTER id SET NOT NULL",
    )
    .with(Publication::Listed),
    cause(
        "a check whose type is missing",
        Agent,
        "CREATE FUNCTION {schema}.typed(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN $1::gone IS NOT NULL; END';
         ALTER TABLE {t} ADD CONSTRAINT typed CHECK ({schema}.typed(n)) NOT VALID",
        Parked,
        By("ALTER TABLE {t} DROP CONSTRAINT typed"),
    )
    .with(Publication::Listed),
    cause(
        "a type that the Agent DB does not know",
        Site,
        "CREATE TYPE {schema}.\"Mo od\" AS ENUM ('sad', 'it''s ok'); ALTER TABLE {t} ADD feeling {schema}.\"Mo od\"[];
         UPDATE {t} SET feeling = ARRAY['it''s ok', NULL]::{schema}.\"Mo od\"[]",
        Held("CREATE TYPE"),
        Pasted,
    )
    .with(Publication::Listed),
    cause(
        "a character that the Agent DB does not have",
        Site,
        "INSERT INTO {t} VALUES (10000, '🚀', 1)",
        Parked,
        By("UPDATE {t} SET body = 'x' WHERE id = 10000"),
    )
    .with(Publication::OfAll),
    cause(
        "locked",
        AgentSession,
        "BEGIN; LOCK TABLE {t}",
        Held("lock"),
        SessionEnded,
    ),
    cause(
        "a partition that is locked",
        AgentSession,
        "BEGIN; LOCK TABLE {aside} IN SHARE MODE",
        Held("lock"),
        SessionEnded,
    )
    .after(
        "ALTER TABLE {t} RENAME TO {aside_name};
         CREATE TABLE {t} (id bigint PRIMARY KEY, body text, n int) PARTITION BY RANGE (id); GRANT ALL ON {t} TO {role};
         ALTER TABLE {t} ATTACH PARTITION {aside} FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
    )
    .with(Publication::OfAll),
];
