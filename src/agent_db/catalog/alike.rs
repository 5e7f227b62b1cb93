//! Whether two types print a value alike, and whether the Agent DB's keeps different values apart: pure.
//!
//! Where rows are counted, a row is known by its text. So the Agent DB's column must print what the Site DB's printed, or
//! refuse the value. A type that rounds, pads or rewrites it (`numeric(10,2)` for `numeric`, `jsonb` for `json`) makes equal
//! what is not, and no number of rows would be right.
//!
//! A key need not be printed alike, but two rows of the Site DB must not get the same one: the upsert of the second would
//! change the first (`'a'` and `'A'` in a `citext`, two times of one day in a `date`).

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

/// Whether values that differ in the Site DB differ in the Agent DB's type, too, or are refused there. (Not for enums, whose
/// labels differ if their texts do; and a collation may be another matter.)
pub(super) fn keeps_apart(site: &str, agent: &str) -> bool {
    const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];
    const TIMESTAMPS: &[&str] = &["timestamp without time zone", "timestamp with time zone"];
    let (from, to) = (TypeName::parse(site), TypeName::parse(agent));
    if to.name == "citext" && from.name != "citext" {
        return false;
    }
    if prints_alike(site, agent) {
        return true;
    }
    if from.array != to.array {
        return false;
    }
    let is_integer = |of: &TypeName<'_>| INTEGERS.contains(&of.name.as_str());
    match to.name.as_str() {
        // What is longer is refused (but for blanks at its end, which are cut).
        "character varying" => true,
        "character" => from.name == "character",
        // A text that is no whole number is refused.
        "smallint" | "integer" | "bigint" => from.name == "numeric",
        // Of a length with digits behind the point, or none: a negative scale rounds.
        "numeric" if is_integer(&from) => to.numbers().get(1).is_none_or(|scale| *scale >= 0),
        "numeric" => to.length.is_none() && matches!(from.name.as_str(), "real" | "double precision"),
        "double precision" => matches!(from.name.as_str(), "smallint" | "integer"),
        name if TIMESTAMPS.contains(&name) => {
            from.name == "date"
                || TIMESTAMPS.contains(&from.name.as_str()) && (to.length.is_none() || to.length == from.length)
        }
        "inet" => from.name == "cidr",
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
    fn a_key_must_stay_apart_from_others() {
        for (site, agent) in [
            ("text", "text"),
            ("citext", "ext.citext"),
            ("citext", "text"),
            ("text", "character varying(10)"),
            ("character(4)", "character(6)"),
            ("numeric", "bigint"),
            ("bigint", "numeric(20,0)"),
            ("double precision", "numeric"),
            ("integer", "double precision"),
            ("date", "timestamp with time zone"),
            ("timestamp(3) without time zone", "timestamp(3) with time zone"),
            ("mood", "text"),
        ] {
            assert!(keeps_apart(site, agent), "{site} {agent}");
        }
        for (site, agent) in [
            ("text", "citext"),
            ("text", "character(3)"),
            ("text", "integer"),
            ("text", "uuid"),
            ("numeric", "numeric(10,0)"),
            ("bigint", "numeric(5,-2)"),
            ("bigint", "double precision"),
            ("double precision", "real"),
            ("timestamp without time zone", "date"),
            ("timestamp without time zone", "timestamp(0) without time zone"),
            ("timestamp without time zone", "timestamp(0) with time zone"),
        ] {
            assert!(!keeps_apart(site, agent), "{site} {agent}");
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
