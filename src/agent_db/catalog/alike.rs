//! Whether two types print a value alike: pure.
//!
//! Where rows are counted, a row is known by its text. So the Agent DB's column must print what the Site DB's printed, or
//! refuse the value. A type that rounds, pads or rewrites it (`numeric(10,2)` for `numeric`, `jsonb` for `json`) makes equal
//! what is not, and no number of rows would be right.

/// A type's name as `format_type` prints it, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct TypeName<'t> {
    /// Without its schema.
    name: String,
    /// `10,2` of `numeric(10,2)`.
    length: Option<&'t str>,
    /// How many dimensions are written.
    array: bool,
}

impl<'t> TypeName<'t> {
    fn parse(text: &'t str) -> Self {
        let (text, array) = text.strip_suffix("[]").map_or((text, false), |text| (text, true));
        let parts = text
            .split_once('(')
            .and_then(|(before, rest)| rest.split_once(')').map(|(length, after)| (before, length, after)));
        let (name, length) = match parts {
            Some((before, length, after)) => (format!("{before}{after}"), Some(length)),
            None => (text.to_owned(), None),
        };
        // A schema depends on where an extension was installed; a name in quotes is left as it is.
        let name = match name.rsplit_once('.') {
            Some((_, bare)) if !name.contains('"') => bare.to_owned(),
            _ => name,
        };
        Self { name, length, array }
    }

    /// The numbers of the length; none where it is not limited.
    fn numbers(&self) -> Vec<i32> {
        self.length
            .map(|length| {
                length
                    .split(',')
                    .filter_map(|number| number.trim().parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    }
}

/// Whether the Agent DB's type prints every value that it takes as the Site DB's type does.
pub(super) fn prints_alike(site: &str, agent: &str) -> bool {
    const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];
    const TEXTS: &[&str] = &["text", "character varying", "citext"];
    let (site, agent) = (TypeName::parse(site), TypeName::parse(agent));
    // A text keeps whatever was printed, an array of texts the elements of any array.
    if matches!(agent.name.as_str(), "text" | "character varying") && agent.length.is_none() {
        return site.array || !agent.array;
    }
    if site.array != agent.array {
        return false;
    }
    if site.name == agent.name {
        return site.length == agent.length || takes_longer(&site, &agent);
    }
    let (from, to) = (site.name.as_str(), agent.name.as_str());
    match to {
        _ if INTEGERS.contains(&to) => INTEGERS.contains(&from),
        "numeric" => agent.length.is_none() && INTEGERS.contains(&from),
        "double precision" => from == "real",
        "citext" => TEXTS.contains(&from),
        "json" => from == "jsonb",
        _ => false,
    }
}

/// Whether the Agent DB's type has another length, and takes no value that it changes.
fn takes_longer(site: &TypeName<'_>, agent: &TypeName<'_>) -> bool {
    let (from, to) = (site.numbers(), agent.numbers());
    match agent.name.as_str() {
        // Digits before the point are checked, digits behind it are rounded or filled up.
        "numeric" => to.is_empty() || (!from.is_empty() && from.get(1) == to.get(1)),
        // Trailing blanks are cut in silence, anything else is refused.
        "character varying" => !from.is_empty() && from <= to,
        "bit" | "bit varying" => true,
        name if name.starts_with("time") || name.starts_with("interval") => {
            to.is_empty() || (!from.is_empty() && from <= to)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_keeps_the_text_will_do() {
        for (site, agent) in [
            ("json", "json"),
            ("numeric(10,2)", "numeric(10,2)"),
            ("numeric(10,2)", "numeric"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric", "text"),
            ("jsonb", "json"),
            ("integer", "bigint"),
            ("bigint", "integer"),
            ("smallint", "numeric"),
            ("real", "double precision"),
            ("character varying(10)", "character varying(20)"),
            ("character varying(10)", "character varying"),
            ("character(4)", "text"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("timestamp(3) without time zone", "timestamp(6) without time zone"),
            ("text", "extensions.citext"),
            ("public.citext", "extensions.citext"),
            ("public.mood", "text"),
            ("integer[]", "bigint[]"),
            ("integer[]", "text"),
            ("\"My Schema\".\"My Type\"", "\"My Schema\".\"My Type\""),
        ] {
            assert!(prints_alike(site, agent), "{site} {agent}");
        }
    }

    #[test]
    fn a_type_that_changes_it_will_not() {
        for (site, agent) in [
            ("numeric", "numeric(10,2)"),
            ("numeric(10,2)", "numeric(10,4)"),
            ("double precision", "real"),
            ("double precision", "numeric"),
            ("json", "jsonb"),
            ("text", "character varying(10)"),
            ("character varying(20)", "character varying(10)"),
            ("character(4)", "character(6)"),
            ("timestamp without time zone", "timestamp(0) without time zone"),
            ("timestamp without time zone", "timestamp with time zone"),
            ("text", "uuid"),
            ("text", "text[]"),
            ("integer", "integer[]"),
        ] {
            assert!(!prints_alike(site, agent), "{site} {agent}");
        }
    }
}
