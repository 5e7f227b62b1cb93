//! The relations that a publication sends, as SQL: the rows of `pg_publication_tables`, from the catalog's own tables.
//!
//! The view locks each table since Postgres 16, and in every version those with a row filter. Whoever reads it waits for the
//! end of a `LOCK TABLE` or a `VACUUM FULL`, though only one table is locked. Here only the text of a row filter needs its
//! table's lock (`pg_get_expr`); it is left out while somebody holds or awaits a lock that excludes us.
//!
//! What the view does, and so this: `GetPublicationRelations`, `GetAllTablesPublicationRelations`, `filter_partitions` and
//! `is_publishable_class` of `src/backend/catalog/pg_publication.c`. The test `source::published` compares the two.

/// Since this version a publication `FOR ALL TABLES` may leave tables out. The view is read there.
const WITH_EXCEPTIONS: i32 = 190_000;

/// Column lists, row filters and publications of whole schemas came with this version.
pub(super) const WITH_COLUMN_LISTS: i32 = 150_000;

/// Since this version a publication may send generated columns that are stored.
const WITH_GENERATED: i32 = 180_000;

/// What `initdb` makes has lower OIDs, and is never published.
const FIRST_USER_OID: u32 = 16384;

/// The parts of a `WITH RECURSIVE` that end with `sent`, of publication `$1` on a server of this version
/// (`server_version_num`):
///
/// - `oid`: the relation;
/// - `numbers`: the numbers of its columns that are sent, as `int2[]`;
/// - `filtered`: whether it has a row filter;
/// - `row_filter`: the filter, an SQL condition; NULL as well if it can't be read without waiting for a lock.
pub(super) fn sent(version: i32) -> String {
    if version >= WITH_EXCEPTIONS {
        return "sent AS MATERIALIZED (SELECT c.oid, ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a \
                WHERE a.attrelid = c.oid AND a.attname = ANY (v.attnames)) AS numbers, \
                v.rowfilter IS NOT NULL AS filtered, v.rowfilter AS row_filter \
                FROM pg_catalog.pg_publication_tables v JOIN pg_catalog.pg_namespace n ON n.nspname = v.schemaname \
                JOIN pg_catalog.pg_class c ON c.relname = v.tablename AND c.relnamespace = n.oid WHERE v.pubname = $1)"
            .to_owned();
    }
    let publishable = format!("c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= {FIRST_USER_OID}");
    let (of_schemas, list, filter, has_list) = if version >= WITH_COLUMN_LISTS {
        (
            format!(
                "UNION SELECT c.oid FROM publication b JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = b.oid \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = s.pnnspid WHERE {publishable} "
            ),
            "r.prattrs::int2[]",
            "r.prqual",
            // In a publication of the whole schema neither list nor filter counts.
            "AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s \
             WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace)",
        )
    } else {
        (String::new(), "NULL::int2[]", "NULL::pg_catalog.pg_node_tree", "")
    };
    let generated = if version >= WITH_GENERATED {
        "(a.attgenerated = '' OR a.attgenerated = 's' AND b.pubgencols = 's')"
    } else {
        "a.attgenerated = ''"
    };
    format!(
        "publication AS MATERIALIZED (SELECT b.* FROM pg_catalog.pg_publication b WHERE b.pubname = $1), \
         named (oid) AS MATERIALIZED (SELECT r.prrelid FROM publication b \
         JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid WHERE NOT b.puballtables {of_schemas}\
         UNION SELECT c.oid FROM publication b JOIN pg_catalog.pg_class c ON b.puballtables \
         AND CASE WHEN b.pubviaroot THEN NOT c.relispartition ELSE c.relkind = 'r' END WHERE {publishable}), \
         below (oid) AS (SELECT i.inhrelid FROM named JOIN pg_catalog.pg_class c ON c.oid = named.oid AND c.relkind = 'p' \
         JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid AND NOT i.inhdetachpending \
         UNION SELECT i.inhrelid FROM below \
         JOIN pg_catalog.pg_inherits i ON i.inhparent = below.oid AND NOT i.inhdetachpending), \
         excluded AS MATERIALIZED (SELECT l.relation FROM pg_catalog.pg_locks l WHERE l.locktype = 'relation' \
         AND l.mode = 'AccessExclusiveLock' \
         AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())), \
         sent AS MATERIALIZED (SELECT c.oid, \
         coalesce({list}, ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {generated})) AS numbers, \
         {filter} IS NOT NULL AS filtered, \
         CASE WHEN {filter} IS NOT NULL AND c.oid NOT IN (SELECT excluded.relation FROM excluded) \
         THEN pg_catalog.pg_get_expr({filter}, c.oid) END AS row_filter \
         FROM publication b CROSS JOIN (SELECT oid FROM named UNION SELECT oid FROM below) found \
         JOIN pg_catalog.pg_class c ON c.oid = found.oid \
         LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid \
         AND NOT b.puballtables {has_list} \
         WHERE CASE WHEN b.pubviaroot THEN NOT EXISTS (SELECT FROM below x WHERE x.oid = c.oid) ELSE c.relkind <> 'p' END)"
    )
}
