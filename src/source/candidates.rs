//! The tables that `sync.tables` selects, and for each whether it can be replicated: the fault and its remedy if not. One
//! table's fault never keeps the others out of the publication.
//!
//! A pattern also selects what holds no rows that the log has: views, foreign tables, partitions of a table that is not
//! selected. These are told, and left out ([`HoldCause::NotReplicable`]); one that is named without a wildcard is held.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::bounded;
use super::error::{SourceError, failed};
use super::published::sent;
use super::selection::Selection;
use crate::change::{Hold, HoldCause, REMEDY_FOLLOWS, TableName};
use crate::postgres::sqlstate::LOCK_NOT_AVAILABLE;
use crate::postgres::{Lossy, Refusal, quote_identifier};

/// What kind of relation a candidate is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A table, or the root of partitions.
    Table,
    View,
    MaterializedView,
    ForeignTable,
    /// A partition of this table, which is not selected, and is published by itself by nobody.
    Partition(TableName),
    /// A name that belongs to it is not UTF-8.
    Unreadable,
}

/// A table of the Site DB that `sync.tables` selects.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) table: TableName,
    kind: Kind,
    /// Whether the stream can't identify the row of an update or a delete. In a publication, the Site DB refuses both for a
    /// table that has no replica identity.
    lacks_identity: bool,
    /// Its partitions, quoted, that have none.
    unidentified_partitions: Vec<String>,
    /// The table, or those of its partitions, quoted, whose replica identity has a generated column that the publication
    /// does not send: since Postgres 18 the Site DB refuses updates and deletes of these, too.
    generated_identity: Vec<String>,
    /// Whether it has a column: the rows of a table without any can't be told apart, nor copied.
    has_columns: bool,
    /// The table, or those of its partitions, that are UNLOGGED, quoted: what is written to them never comes through the log.
    unlogged: Vec<String>,
    /// Partitions that are foreign tables, quoted: nor does what is written to these.
    foreign: Vec<String>,
    /// Whether the role may read the table.
    readable: bool,
    /// Whether the role may use the schema.
    schema_usable: bool,
    /// Whether row-level security hides rows from the role.
    hides_rows: bool,
    /// Whether the role owns the table, and so may add it to a publication.
    owned: bool,
    /// The owner's name.
    owner: String,
    /// The extension that made the table, if one did.
    extension: Option<String>,
    /// Our role's name.
    role: String,
    /// Whether the publication has it. [`None`] if there is no publication.
    pub(super) published: Option<bool>,
}

/// Tables with the fault of each and its remedy.
pub type Faults = BTreeMap<TableName, Hold>;

/// The selected tables. Not partitions whose root is selected, which are published as part of it, and not temporary tables,
/// which only their own session sees.
pub(super) async fn candidates(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<Vec<Candidate>, SourceError> {
    let sent = sent(version);
    let unidentified = unidentified(version);
    bounded::rows(
            client,
            // A partition counts as its root. Nothing is sent of a root without partitions: it is in pg_publication_rel alone.
            &format!("WITH RECURSIVE {sent}, published AS MATERIALIZED ( \
             SELECT coalesce(pg_catalog.pg_partition_root(sent.oid), sent.oid) AS oid FROM sent \
             UNION SELECT r.prrelid FROM pg_catalog.pg_publication_rel r \
             JOIN pg_catalog.pg_publication rp ON rp.oid = r.prpubid WHERE rp.pubname = $1), \
             roots AS MATERIALIZED (WITH RECURSIVE tree (oid, root) AS ( \
             SELECT p.partrelid, p.partrelid FROM pg_catalog.pg_partitioned_table p \
             JOIN pg_catalog.pg_class pc ON pc.oid = p.partrelid WHERE NOT pc.relispartition \
             UNION ALL SELECT h.inhrelid, t.root FROM tree t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.oid) \
             SELECT oid, root FROM tree), \
             outside AS MATERIALIZED (SELECT coalesce(o.root, u.oid) AS root, u.relkind AS kind, \
             pg_catalog.format('%I.%I', un.nspname, u.relname) AS name FROM pg_catalog.pg_class u \
             JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace LEFT JOIN roots o ON o.oid = u.oid \
             WHERE u.relkind = 'r' AND u.relpersistence = 'u' OR u.relkind = 'f' AND u.relispartition), \
             {unidentified} \
             SELECT n.nspname::text AS schema_name, c.relname::text AS table_name, \
             EXISTS (SELECT FROM unidentified u WHERE u.oid = c.oid AND u.lacks) AS lacks_identity, \
             ARRAY(SELECT u.name FROM unidentified u WHERE u.root = c.oid AND u.oid <> c.oid AND u.lacks ORDER BY 1) \
             AS unidentified_partitions, \
             ARRAY(SELECT u.name FROM unidentified u WHERE u.root = c.oid AND NOT u.lacks ORDER BY 1) AS generated_identity, \
             CASE WHEN pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' THEN (SELECT \
             pg_catalog.string_agg(a.attname::text, ' ') FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid) END AS names, \
             EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
             AS has_columns, \
             c.relkind::text AS kind, rn.nspname::text AS root_schema, rc.relname::text AS root_name, \
             CASE WHEN c.relispartition AND c.relpersistence = 'u' THEN ARRAY[pg_catalog.format('%I.%I', n.nspname, c.relname)] \
             ELSE ARRAY(SELECT u.name FROM outside u WHERE u.root = c.oid AND u.kind = 'r' ORDER BY 1) END AS unlogged, \
             ARRAY(SELECT u.name FROM outside u WHERE u.root = c.oid AND u.kind = 'f' ORDER BY 1) AS foreign_partitions, \
             pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable, \
             pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS schema_usable, \
             pg_catalog.row_security_active(c.oid) AS hides_rows, \
             pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned, \
             pg_catalog.pg_get_userbyid(c.relowner)::text AS owner, \
             (SELECT x.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid \
             WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e' \
             AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass LIMIT 1) AS extension, \
             current_user::text AS role, \
             (SELECT b.puballtables OR c.oid IN (SELECT p.oid FROM published p) FROM pg_catalog.pg_publication b \
             WHERE b.pubname = $1) AS published \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN roots o ON o.oid = c.oid AND c.relispartition LEFT JOIN pg_catalog.pg_class rc ON rc.oid = o.root \
             LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence IN ('p', 'u') \
             AND NOT (c.relispartition AND c.oid IN (SELECT sent.oid FROM sent)) \
             AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2"),
            &[&publication],
            "list the tables",
            |row| {
                let found = candidate(row).or_else(|_| unreadable(row).map(Some)).map_err(failed("list the tables"))?;
                Ok(found.filter(|candidate| candidate.is_selected(selection)))
            },
        )
        .await
}

/// `unidentified`: tables and partitions whose updates and deletes the Site DB refuses once they are published, with the root
/// that is published in their place. Each partition is asked for its own replica identity, whatever its root has.
fn unidentified(version: i32) -> String {
    let by_index = "((u.relreplident = 'd' AND i.indisprimary) OR (u.relreplident = 'i' AND i.indisreplident))";
    // Before, a generated column in the replica identity was just not sent.
    let generated = if version >= 180_000 {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_attribute g WHERE g.attrelid = u.oid AND g.attnum > 0 AND NOT g.attisdropped \
             AND g.attgenerated <> '' AND NOT (g.attgenerated = 's' AND EXISTS (SELECT FROM pg_catalog.pg_publication b \
             WHERE b.pubname = $1 AND b.pubgencols = 's')) AND (u.relreplident = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_index i \
             WHERE i.indrelid = u.oid AND g.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND {by_index})))"
        )
    } else {
        "false".to_owned()
    };
    format!(
        "unidentified AS MATERIALIZED (SELECT x.* FROM (SELECT coalesce(o.root, u.oid) AS root, u.oid, \
         pg_catalog.format('%I.%I', un.nspname, u.relname) AS name, u.relreplident <> 'f' AND NOT EXISTS (\
         SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = u.oid AND i.indisunique AND i.indimmediate \
         AND (i.indisvalid OR u.relkind = 'p') AND {by_index}) AS lacks, {generated} AS generated \
         FROM pg_catalog.pg_class u JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace LEFT JOIN roots o ON o.oid = u.oid \
         WHERE u.oid >= 16384 AND (u.relkind = 'r' OR u.relkind = 'p' AND NOT u.relispartition)) x WHERE x.lacks OR x.generated)"
    )
}

/// `None` for a table that was dropped while the query ran: the rows of the catalog are those of the query's snapshot, but what
/// the role may do with an OID is asked of the catalog as it is at that moment, which knows it no more and answers NULL.
///
/// # Errors
/// A name is not UTF-8.
fn candidate(row: &Row) -> Result<Option<Candidate>, tokio_postgres::Error> {
    let (readable, schema_usable) = (row.try_get("readable")?, row.try_get("schema_usable")?);
    let (Some(readable), Some(schema_usable)) = (readable, schema_usable) else {
        return Ok(None);
    };
    row.try_get::<_, Option<&str>>("names")?;
    Ok(Some(Candidate {
        table: TableName::new(
            row.try_get::<_, &str>("schema_name")?,
            row.try_get::<_, &str>("table_name")?,
        ),
        kind: kind(row)?,
        lacks_identity: row.try_get("lacks_identity")?,
        unidentified_partitions: row.try_get("unidentified_partitions")?,
        generated_identity: row.try_get("generated_identity")?,
        has_columns: row.try_get("has_columns")?,
        unlogged: row.try_get("unlogged")?,
        foreign: row.try_get("foreign_partitions")?,
        readable,
        schema_usable,
        hides_rows: row.try_get("hides_rows")?,
        owned: row.try_get("owned")?,
        owner: row.try_get("owner")?,
        extension: row.try_get("extension")?,
        role: row.try_get("role")?,
        published: row.try_get("published")?,
    }))
}

/// A table of which a name is not UTF-8: it is only told.
fn unreadable(row: &Row) -> Result<Candidate, tokio_postgres::Error> {
    let text = |column: &str| row.try_get::<_, Lossy>(column).map(|text| text.0);
    Ok(Candidate {
        table: TableName::new(text("schema_name")?, text("table_name")?),
        kind: Kind::Unreadable,
        lacks_identity: false,
        unidentified_partitions: Vec::new(),
        generated_identity: Vec::new(),
        has_columns: true,
        unlogged: Vec::new(),
        foreign: Vec::new(),
        readable: true,
        schema_usable: true,
        hides_rows: false,
        owned: false,
        owner: text("owner")?,
        extension: None,
        role: text("role")?,
        published: row.try_get("published")?,
    })
}

fn kind(row: &Row) -> Result<Kind, tokio_postgres::Error> {
    let root: (Option<&str>, Option<&str>) = (row.try_get("root_schema")?, row.try_get("root_name")?);
    Ok(match (root, row.try_get("kind")?) {
        ((Some(schema), Some(name)), _) => Kind::Partition(TableName::new(schema, name)),
        (_, "v") => Kind::View,
        (_, "m") => Kind::MaterializedView,
        (_, "f") => Kind::ForeignTable,
        _ => Kind::Table,
    })
}

impl Candidate {
    fn is_selected(&self, selection: &Selection) -> bool {
        let is_of_selected = matches!(&self.kind, Kind::Partition(root) if selection.takes(root));
        selection.takes(&self.table) && !is_of_selected
    }

    /// Why a relation that is no table of its own can't be replicated, and the remedy; `None` if it is one.
    fn not_a_table(&self) -> Option<(HoldCause, String, String)> {
        let (what, remedy) = match &self.kind {
            Kind::Table => return None,
            Kind::View => (
                "is a view, which has no rows of its own".to_owned(),
                "select the tables that it reads,".to_owned(),
            ),
            Kind::MaterializedView => (
                "is a materialized view, whose rows are not sent by logical replication".to_owned(),
                "select the tables that it reads, and make it in the Agent DB as well,".to_owned(),
            ),
            Kind::ForeignTable => (
                "is a foreign table, whose rows are in another server".to_owned(),
                "replicate it from there,".to_owned(),
            ),
            Kind::Partition(root) => (
                format!(
                    "is a partition of {root}, which sync.tables does not select: it is replicated as part of that table"
                ),
                format!("select {root},"),
            ),
            Kind::Unreadable => (
                "has a name, or a column that has one, that is not UTF-8".to_owned(),
                "rename it (with client_encoding = SQL_ASCII),".to_owned(),
            ),
        };
        let fault = format!("{} of the Site DB {what}", self.table);
        Some((HoldCause::NotReplicable, fault, remedy))
    }

    /// Why changes of the table, or of a partition of it, are in no log, and the remedy; `None` if all are.
    fn outside_the_log(&self) -> Option<(HoldCause, String, String)> {
        if !self.unlogged.is_empty() {
            let set = |name: &String| format!("ALTER TABLE {name} SET LOGGED;");
            let statements: Vec<String> = self.unlogged.iter().map(set).collect();
            let fault = format!(
                "table {} is UNLOGGED in the Site DB, or a partition of it is, so its changes can't be replicated",
                self.table
            );
            return Some((
                HoldCause::Unlogged,
                fault,
                format!("on the Site DB: {}", statements.join(" ")),
            ));
        }
        if self.foreign.is_empty() {
            return None;
        }
        let detach = |name: &String| format!("ALTER TABLE {} DETACH PARTITION {name};", self.table.quoted());
        let statements: Vec<String> = self.foreign.iter().map(detach).collect();
        let fault = format!(
            "table {} of the Site DB has a partition that is a foreign table ({}), whose changes can't be replicated",
            self.table,
            self.foreign.join(", ")
        );
        let remedy = format!(
            "on the Site DB, if its rows may leave the table: {}",
            statements.join(" ")
        );
        Some((HoldCause::NotReplicable, fault, remedy))
    }

    /// Why the Site DB would refuse updates and deletes of the table if it were published, and the remedy; `None` if it would not.
    fn without_identity(&self) -> Option<(HoldCause, String, String)> {
        let table = &self.table;
        let full = |name: &String| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
        let (fault, remedy) = if self.lacks_identity {
            let all: Vec<String> = [table.quoted()]
                .iter()
                .chain(&self.unidentified_partitions)
                .map(full)
                .collect();
            (
                "has no replica identity (a primary key is one, if it is not deferrable), so its updates and deletes can't be \
                 replicated"
                    .to_owned(),
                format!("{} (or ADD PRIMARY KEY (…))", all.join(" ")),
            )
        } else if !self.unidentified_partitions.is_empty() {
            let all: Vec<String> = self.unidentified_partitions.iter().map(full).collect();
            (
                format!(
                    "has partitions without a replica identity of their own ({}), so their updates and deletes can't be replicated",
                    self.unidentified_partitions.join(", ")
                ),
                format!("{} (or ADD PRIMARY KEY (…))", all.join(" ")),
            )
        } else if !self.generated_identity.is_empty() {
            let index = |name: &String| format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX …;");
            let all: Vec<String> = self.generated_identity.iter().map(index).collect();
            (
                "has a generated column in its replica identity, and this version of Postgres refuses updates and deletes of such \
                 a table once it is published"
                    .to_owned(),
                format!("{} (a unique index without generated columns)", all.join(" ")),
            )
        } else {
            return None;
        };
        Some((
            HoldCause::Key,
            format!("table {table} of the Site DB {fault}"),
            format!("on the Site DB: {remedy}"),
        ))
    }

    /// Whether the publication would have to be extended by it.
    pub(super) fn lacks(&self) -> bool {
        self.published != Some(true)
    }

    /// Why the table can't be replicated, and the remedy; `None` if it can. Whether the role may add it to the publication
    /// is another question.
    pub(super) fn fault(&self, selection: &Selection) -> Option<Hold> {
        let (table, role) = (self.table.quoted(), quote_identifier(&self.role));
        // A partition may be published by itself once it is logged.
        let is_unlogged = matches!(self.kind, Kind::Partition(_)) && !self.unlogged.is_empty();
        let (cause, fault, remedy) = if let Some(fault) = self.not_a_table().filter(|_| !is_unlogged) {
            fault
        } else if !self.has_columns {
            (
                HoldCause::Key,
                format!(
                    "table {} of the Site DB has no columns, so there is nothing by which its rows could be replicated",
                    self.table
                ),
                format!(
                    "on the Site DB: ALTER TABLE {table} ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY; (and the same in the Agent DB)"
                ),
            )
        } else if let Some(fault) = self.outside_the_log() {
            fault
        } else if let Some(fault) = self.without_identity().filter(|_| self.lacks()) {
            fault
        } else if !self.schema_usable {
            let schema = quote_identifier(&self.table.schema);
            (
                HoldCause::Rights,
                format!(
                    "the role {} may not use the schema of table {} of the Site DB",
                    self.role, self.table
                ),
                format!("on the Site DB: GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {table} TO {role};"),
            )
        } else if !self.readable {
            (
                HoldCause::Rights,
                format!(
                    "the role {} may not read table {} of the Site DB",
                    self.role, self.table
                ),
                format!("on the Site DB: GRANT SELECT ON {table} TO {role};"),
            )
        } else if self.hides_rows {
            (
                HoldCause::RowSecurity,
                format!(
                    "row-level security of table {} of the Site DB hides rows from the role {}",
                    self.table, self.role
                ),
                format!("on the Site DB, as a superuser: ALTER ROLE {role} BYPASSRLS;"),
            )
        } else {
            return None;
        };
        Some(Hold::new(cause, self.with_alternative(&fault, &remedy, selection)))
    }

    /// Why the table is not in the publication, though it could be replicated, and the remedy.
    pub(super) fn not_ours_to_add(&self, publication: &str, selection: &Selection) -> Hold {
        let statement = add_statement(publication, &self.table);
        let whose = if self.owned {
            String::new()
        } else {
            format!(" (the table's owner is {})", self.owner)
        };
        let fault = format!(
            "table {} is not in publication {publication} of the Site DB, and the role {} may not add it{whose}",
            self.table, self.role
        );
        let remedy = format!("on the Site DB, as the owner of both: {statement};");
        Hold::new(
            HoldCause::NotPublished,
            self.with_alternative(&fault, &remedy, selection),
        )
    }

    /// Why the server has not added the table to the publication, and the remedy.
    pub(super) fn not_added(&self, publication: &str, refusal: &Refusal, selection: &Selection) -> Hold {
        let fault = format!(
            "table {} of the Site DB can't be added to publication {publication} now: {refusal}",
            self.table
        );
        let is_locked = refusal.sqlstate == LOCK_NOT_AVAILABLE;
        let remedy = if is_locked {
            "it is locked, and tried again every few seconds;".to_owned()
        } else {
            format!(
                "on the Site DB, as the owner of both: {};",
                add_statement(publication, &self.table)
            )
        };
        let cause = if is_locked {
            HoldCause::Locked
        } else {
            HoldCause::NotPublished
        };
        Hold::new(cause, self.with_alternative(&fault, &remedy, selection))
    }

    /// Whether adding it needs no other right than the role has.
    pub(super) const fn is_owned(&self) -> bool {
        self.owned
    }

    fn with_alternative(&self, fault: &str, remedy: &str, selection: &Selection) -> String {
        let of_extension = self
            .extension
            .as_ref()
            .map(|extension| format!(" (it belongs to the extension {extension})"))
            .unwrap_or_default();
        format!(
            "{fault}{of_extension}{REMEDY_FOLLOWS}{remedy} or leave it out: sync.tables = {}",
            selection.without(&self.table)
        )
    }
}

/// The statement that adds a table to a publication. `ONLY`: tables that inherit from it are tables of their own, which may be
/// left out on purpose. (Partitions are part of it all the same.)
pub(super) fn add_statement(publication: &str, table: &TableName) -> String {
    format!(
        "ALTER PUBLICATION {} ADD TABLE ONLY {}",
        quote_identifier(publication),
        table.quoted()
    )
}
