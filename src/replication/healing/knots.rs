//! Which tables are tried again together: those whose parked rows may wait for each other. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::TableName;

/// The tables that a foreign key connects with a due one, over any number of parked tables. `links`: pairs of tables with
/// parked rows.
pub(super) fn knots(due: &BTreeSet<TableName>, links: &[(TableName, TableName)]) -> Vec<BTreeSet<TableName>> {
    let mut neighbours: BTreeMap<&TableName, Vec<&TableName>> = BTreeMap::new();
    for (child, parent) in links {
        neighbours.entry(child).or_default().push(parent);
        neighbours.entry(parent).or_default().push(child);
    }
    let mut seen: BTreeSet<TableName> = BTreeSet::new();
    let mut knots = Vec::new();
    for table in due {
        if seen.contains(table) {
            continue;
        }
        let mut knot = BTreeSet::new();
        let mut open = vec![table];
        while let Some(table) = open.pop() {
            if knot.insert(table.clone()) {
                open.extend(neighbours.get(table).into_iter().flatten());
            }
        }
        seen.extend(knot.iter().cloned());
        knots.push(knot);
    }
    knots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    #[test]
    fn tables_are_tried_together_that_foreign_keys_connect() {
        let links = [("city", "land"), ("house", "city"), ("line", "bill"), ("a", "b")];
        let links: Vec<_> = links
            .iter()
            .map(|(child, parent)| (table(child), table(parent)))
            .collect();
        let due: BTreeSet<_> = ["land", "house", "line", "alone"].into_iter().map(table).collect();
        let names: Vec<Vec<_>> = knots(&due, &links)
            .iter()
            .map(|knot| knot.iter().map(|table| table.name.to_string()).collect())
            .collect();
        assert_eq!(
            names,
            [vec!["alone"], vec!["city", "house", "land"], vec!["bill", "line"]]
        );
    }
}
