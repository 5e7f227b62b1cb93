//! The rules for the tests themselves: no sleeps, a header in each file, and a limited length.

use std::path::Path;

use super::sources::rust_files;

/// A longer test file should be two files.
const MAX_LINES: usize = 500;

/// Calls that let time pass without a condition. Only the harness may use them: its polls have a deadline, its proxy plays a slow network, and
/// `pace` is the rhythm of load that a test makes.
const HOPES: &[&str] = &[concat!("time::sle", "ep("), concat!("thread::sle", "ep(")];

#[test]
fn no_test_sleeps_and_every_file_of_tests_says_its_job_and_fits_in_a_head() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let files = rust_files(&root);
    assert!(files.len() > 50, "the tests are not where they should be: {files:?}");
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(&root).unwrap();
        let harness = name.starts_with("harness");
        for (number, line) in (1..).zip(text.lines()) {
            if !harness && HOPES.iter().any(|hope| line.contains(hope)) {
                wrong.push(format!("{}:{number}: wait for a fact instead", name.display()));
            }
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines", name.display()));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("{}: no header", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
