//! `sync.tables`: which tables are synchronised.

use std::fmt::Write;

use globset::{GlobBuilder, GlobMatcher};

use super::error::SourceError;
use crate::change::{TableName, is_unprintable};

/// `sync.tables`: the last pattern that matches decides.
#[derive(Debug, Clone)]
pub struct Selection(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    /// True: selects tables. False (`!`): excludes them.
    takes: bool,
    glob: GlobMatcher,
}

impl Selection {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// One of them is not a glob.
    pub fn new(patterns: &[String]) -> Result<Self, SourceError> {
        let compile = |pattern: &String| {
            let (takes, glob) = pattern
                .strip_prefix('!')
                .map_or((true, pattern.as_str()), |rest| (false, rest));
            // A table's name may contain a slash; `*` must match it.
            let glob = GlobBuilder::new(glob).literal_separator(false).build()?;
            Ok(Pattern {
                takes,
                glob: glob.compile_matcher(),
            })
        };
        Ok(Self(patterns.iter().map(compile).collect::<Result<_, SourceError>>()?))
    }

    /// Whether a table is selected. Tables of our own schema `twinlog` never are.
    #[must_use]
    pub fn takes(&self, table: &TableName) -> bool {
        let name = table.to_string();
        &*table.schema != "twinlog"
            && self
                .0
                .iter()
                .rev()
                .find(|pattern| pattern.glob.is_match(&name))
                .is_some_and(|pattern| pattern.takes)
    }

    /// Whether a table is selected by its name, not by a wildcard.
    #[must_use]
    pub fn names(&self, table: &TableName) -> bool {
        let name = table.to_string();
        let decides = self.0.iter().rev().find(|pattern| pattern.glob.is_match(&name));
        decides.is_some_and(|pattern| pattern.takes && !pattern.glob.glob().glob().contains(['*', '?', '[', '{']))
    }

    /// The patterns as they are configured, extended so that they leave a table out; as TOML.
    #[must_use]
    pub fn without(&self, table: &TableName) -> String {
        let mut patterns = self.patterns();
        // The last pattern that matches decides.
        patterns.push(format!("!{}", table.pattern()));
        let patterns: Vec<String> = patterns.iter().map(|pattern| toml_text(pattern)).collect();
        format!("[{}]", patterns.join(", "))
    }

    /// The patterns as they were configured.
    #[must_use]
    pub fn patterns(&self) -> Vec<String> {
        let text = |pattern: &Pattern| {
            let not = if pattern.takes { "" } else { "!" };
            format!("{not}{}", pattern.glob.glob())
        };
        self.0.iter().map(text).collect()
    }
}

/// A text of TOML.
fn toml_text(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // All of these have four digits at most.
            unprintable if is_unprintable(unprintable) => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(unprintable));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_pattern_decides() {
        let patterns = ["public.*", "!public.audit_*", "public.audit_keep", "crm.leads"].map(String::from);
        let selection = Selection::new(&patterns).unwrap();
        let takes = |schema: &str, name: &str| selection.takes(&TableName::new(schema, name));
        assert!(takes("public", "leads") && takes("public", "audit_keep") && takes("crm", "leads"));
        let names = |schema: &str, name: &str| selection.names(&TableName::new(schema, name));
        assert!(names("crm", "leads") && !names("public", "leads") && !names("crm", "other"));
        assert!(takes("public", "with.dot") && takes("public", "with/slash"));
        assert!(!takes("public", "audit_log") && !takes("crm", "other"));
        assert!(
            !Selection::new(&["*".into()])
                .unwrap()
                .takes(&TableName::new("twinlog", "checkpoint"))
        );
        assert!(Selection::new(&["a[".into()]).is_err());
        assert_eq!(selection.patterns(), patterns);
        assert_eq!(
            selection.without(&TableName::new("crm", "leads")),
            r#"["public.*", "!public.audit_*", "public.audit_keep", "crm.leads", "!crm.leads"]"#
        );
        assert_eq!(
            Selection::new(&["*".into()])
                .unwrap()
                .without(&TableName::new("a\n\u{202e}", "\"b")),
            r#"["*", "!a\u000A\u202E.\"b"]"#
        );
    }
}
