//! What is found about Supabase: who may read the messages, and what browsers hear.

use super::finding::{Code, Finding};
use crate::source::setup::RealtimeTable;

/// The tables that front ends show.
pub(super) const TABLES: [&str; 4] = ["conversations", "leads", "notifications", "whatsapp_messages"];

/// What browsers may read and hear.
pub(super) fn of_tables(tables: &[RealtimeTable]) -> Vec<Finding> {
    let mut found = Vec::new();
    for table in tables {
        let (name, about) = (table.table.quoted(), format!("table {}", table.table));
        if table.anonymous && !table.row_security {
            let what = "the role anon may read it, and row-level security is off";
            let fix = format!(
                "on the Site DB: REVOKE ALL ON {name} FROM anon; ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;"
            );
            found.push(Finding::new(Code::AnonymousReads, &about, what).fix(fix));
        }
        if table.row_security && !table.has_policy && (table.authenticated || table.published) {
            let what = "row-level security is on, and no policy lets the role authenticated read";
            let fix =
                format!("on the Site DB: CREATE POLICY staff ON {name} FOR SELECT TO authenticated USING (true);");
            found.push(Finding::new(Code::NoPolicy, &about, what).fix(fix));
        }
        if table.published && !table.sends_old_row && table.row_security {
            let what = "Realtime sends it, and its replica identity is not FULL";
            let fix = format!("on the Site DB: ALTER TABLE {name} REPLICA IDENTITY FULL;");
            found.push(Finding::new(Code::RealtimeOldRow, &about, what).fix(fix));
        }
    }
    let silent: Vec<String> = tables
        .iter()
        .filter(|table| table.authenticated && !table.published)
        .map(|table| table.table.quoted())
        .collect();
    if !silent.is_empty() {
        let what = format!("it does not have {}", silent.join(", "));
        let fix = format!(
            "on the Site DB, as the owner of both: ALTER PUBLICATION supabase_realtime ADD TABLE {};",
            silent.join(", ")
        );
        found.push(Finding::new(Code::RealtimeNotPublished, "publication supabase_realtime", what).fix(fix));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::TableName;

    fn found(change: fn(&mut RealtimeTable)) -> Vec<Code> {
        let mut table = RealtimeTable {
            table: TableName::new("public", "leads"),
            published: true,
            sends_old_row: true,
            row_security: true,
            has_policy: true,
            anonymous: false,
            authenticated: true,
        };
        change(&mut table);
        of_tables(&[table]).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_fault_of_what_browsers_see_is_found_and_nothing_else() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|table| table.has_policy = false), [Code::NoPolicy]);
        assert_eq!(found(|table| table.published = false), [Code::RealtimeNotPublished]);
        assert_eq!(found(|table| table.sends_old_row = false), [Code::RealtimeOldRow]);
        // With policies, what anon sees is theirs to say.
        assert_eq!(found(|table| table.anonymous = true), []);
        let open = |table: &mut RealtimeTable| (table.anonymous, table.row_security) = (true, false);
        assert_eq!(found(open), [Code::AnonymousReads]);
    }
}
