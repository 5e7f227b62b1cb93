//! `twinlog doctor`: a bench of seeded faults, each found by its code. Seeds are sown many at a time on one pair of databases, and
//! a table, a number or a database beside them that is in order must not be told of.

mod databases;
mod meta;
mod tables;

use serde_json::Value;

use crate::harness::{Process, SOON};

/// What a doctor must find: the code, and a part of what it is about.
type Expected<'a> = (&'a str, &'a str);

/// What `twinlog doctor --json` has printed.
struct Diagnosis {
    value: Value,
    success: bool,
    output: String,
}

impl Diagnosis {
    /// Runs the command to its end.
    async fn of(mut process: Process) -> Self {
        let status = process.wait(4 * SOON).await;
        let output = process.output();
        let line = output.lines().find(|line| line.starts_with("{\"healthy\""));
        let line = line.unwrap_or_else(|| panic!("no diagnosis: {output}"));
        Self {
            value: serde_json::from_str(line).unwrap(),
            success: status.success(),
            output,
        }
    }

    fn findings(&self) -> &[Value] {
        self.value["findings"].as_array().unwrap()
    }

    /// All of these are found, each with its reason and mostly with a fix.
    fn finds(&self, expected: &[Expected<'_>]) {
        let missing: Vec<_> = expected
            .iter()
            .filter(|(code, about)| {
                !self
                    .findings()
                    .iter()
                    .any(|finding| finding["code"] == *code && finding["about"].as_str().unwrap().contains(about))
            })
            .collect();
        assert!(missing.is_empty(), "not found: {missing:?} in {:#?}", self.findings());
        let faults = self.findings().iter().any(|finding| finding["severity"] == "fault");
        assert_eq!(self.success, !faults, "{}", self.output);
        assert_eq!(self.value["healthy"], !faults);
    }

    /// Nothing worse than a note is said, but for these codes.
    fn is_quiet_but_for(&self, codes: &[&str]) {
        let loud: Vec<_> = self
            .findings()
            .iter()
            .filter(|finding| finding["severity"] != "note" && !codes.contains(&finding["code"].as_str().unwrap()))
            .collect();
        assert!(loud.is_empty(), "{loud:#?}");
    }

    /// No fault and no warning is about this.
    fn says_nothing_bad_about(&self, about: &str) {
        let said: Vec<_> = self
            .findings()
            .iter()
            .filter(|finding| finding["about"] == about && finding["severity"] != "note")
            .collect();
        assert!(said.is_empty(), "{said:#?}");
    }
}
