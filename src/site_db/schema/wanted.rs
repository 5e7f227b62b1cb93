//! The columns that the migrations make, read from their text.
//!
//! Knows what migrations of tables are made of: `CREATE TABLE`, `DROP TABLE`, and `ALTER TABLE` with `ADD COLUMN`,
//! `DROP COLUMN` and `RENAME COLUMN`. A test compares the result with the catalog of a database that was migrated.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use sqlx::migrate::Migrator;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/site");

/// Tables that are made for other programs: the server neither reads nor writes them.
const NOT_OURS: &[&str] = &["public.auto_replies"];

/// Words that begin a table's constraint, and not a column.
const CONSTRAINTS: &[&str] = &["constraint", "primary", "unique", "check", "foreign", "exclude", "like"];
/// Words that end a column's type.
const AFTER_TYPE: &[&str] = &[
    "not",
    "null",
    "default",
    "primary",
    "unique",
    "references",
    "check",
    "generated",
    "constraint",
    "collate",
];

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Column {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) data_type: String,
}

/// Every column that the server needs.
pub(super) fn columns() -> &'static [Column] {
    static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
        let texts = MIGRATIONS.iter().map(|migration| migration.sql.as_str().to_owned());
        let mut columns = made_by(texts);
        columns.retain(|column| !NOT_OURS.contains(&format!("{}.{}", column.schema, column.table).as_str()));
        columns
    });
    &COLUMNS
}

/// The columns that are there after these migrations.
fn made_by(texts: impl Iterator<Item = String>) -> Vec<Column> {
    let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for text in texts {
        let text = without_comments(&text);
        for statement in split(&text, ';') {
            apply(&statement, &mut tables);
        }
    }
    let mut columns = Vec::new();
    for (table, of_table) in tables {
        let (schema, table) = table.split_once('.').unwrap_or(("public", &table));
        columns.extend(of_table.into_iter().map(|(name, data_type)| Column {
            schema: schema.to_owned(),
            table: table.to_owned(),
            name,
            data_type,
        }));
    }
    columns
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The parts between separators that stand in no parentheses.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0_u32);
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == separator && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn apply(statement: &str, tables: &mut BTreeMap<String, Vec<(String, String)>>) {
    let words: Vec<&str> = statement
        .split_whitespace()
        .filter(|word| !["IF", "NOT", "EXISTS", "ONLY"].contains(word))
        .collect();
    match words.as_slice() {
        ["CREATE", "TABLE", table, ..] => {
            let Some((_, inside)) = statement.split_once('(') else {
                return;
            };
            let inside = inside.rsplit_once(')').map_or(inside, |(inside, _)| inside);
            let columns = split(inside, ',').iter().filter_map(|item| column(item)).collect();
            tables.insert(table.trim_end_matches('(').to_owned(), columns);
        }
        ["DROP", "TABLE", table, ..] => {
            tables.remove(*table);
        }
        ["ALTER", "TABLE", table, ..] => {
            let columns = tables.entry((*table).to_owned()).or_default();
            let Some((_, actions)) = statement.split_once(table) else {
                return;
            };
            for action in split(actions, ',') {
                alter(&action, columns);
            }
        }
        _ => {}
    }
}

fn alter(action: &str, columns: &mut Vec<(String, String)>) {
    let words: Vec<&str> = action
        .split_whitespace()
        .filter(|word| !["IF", "EXISTS", "COLUMN"].contains(word))
        .collect();
    match words.as_slice() {
        ["ADD", "NOT", rest @ ..] | ["ADD", rest @ ..] => columns.extend(column(&rest.join(" "))),
        ["DROP", name, ..] => columns.retain(|(known, _)| known != name),
        ["RENAME", from, "TO", to] => {
            for (name, _) in columns.iter_mut().filter(|(name, _)| name == from) {
                (*to).clone_into(name);
            }
        }
        _ => {}
    }
}

/// The column that an item of a table's definition makes, with its type.
fn column(item: &str) -> Option<(String, String)> {
    let mut words = item.split_whitespace();
    let name = words.next()?;
    if CONSTRAINTS.contains(&name.to_ascii_lowercase().as_str()) {
        return None;
    }
    let data_type: Vec<&str> = words
        .take_while(|word| !AFTER_TYPE.contains(&word.to_ascii_lowercase().as_str()))
        .collect();
    Some((name.to_owned(), data_type.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_from_every_form_of_migration() {
        let texts = [
            "-- A comment; with (odd, signs\nCREATE TABLE public.a (\n  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),\n  \
             n numeric(10, 2) NOT NULL CHECK (n IN (1, 2)),\n UNIQUE (id, n), CONSTRAINT c CHECK (n > 0)\n);",
            "CREATE TABLE twinlog.gone (id int); ALTER TABLE public.a ADD COLUMN t text NOT NULL DEFAULT 'x', ADD COLUMN IF NOT EXISTS \
             u timestamptz; CREATE INDEX a_t ON public.a (t);",
            "DROP TABLE twinlog.gone; ALTER TABLE public.a DROP COLUMN n, ADD CONSTRAINT d CHECK (t <> ''); ALTER TABLE public.a RENAME COLUMN t TO s;",
        ];
        let made: Vec<String> = made_by(texts.iter().map(|text| (*text).to_owned()))
            .into_iter()
            .map(|column| {
                format!(
                    "{}.{}.{} {}",
                    column.schema, column.table, column.name, column.data_type
                )
            })
            .collect();
        assert_eq!(made, ["public.a.id uuid", "public.a.s text", "public.a.u timestamptz"]);
    }

    #[test]
    fn every_table_of_the_server_is_there() {
        let columns = columns();
        for table in [
            "whatsapp_messages",
            "webhook_events",
            "number_leases",
            "lead_ids",
            "events",
            "servers",
        ] {
            assert!(columns.iter().any(|column| column.table == table), "{table}");
        }
        assert!(columns.len() > 100, "{}", columns.len());
    }
}
