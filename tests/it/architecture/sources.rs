//! The sources as text, for the rules: comments and everything after `#[cfg(test)]` are left out, because a link in a
//! doc comment and a test's import are no dependency of the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(super) struct Source {
    /// Relative to `src`.
    pub(super) path: PathBuf,
    /// The module right under the crate's root.
    pub(super) module: String,
    pub(super) text: String,
    /// Without comments and without everything after `#[cfg(test)]`, which is at the end of a file by convention.
    pub(super) code: String,
}

pub(super) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    assert!(files.len() > 20, "the sources are not where they should be: {files:?}");
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().to_owned();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests in a file or folder of their own.
            let is_test = relative.with_extension("").iter().any(|part| part == "tests");
            let code = if is_test { String::new() } else { code_of(&text) };
            Source {
                module: first.trim_end_matches(".rs").to_owned(),
                path: relative,
                text,
                code,
            }
        })
        .collect()
}

/// All Rust files below a folder.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect(folder, &mut files);
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn code_of(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        // A module of tests in a file of its own does not end this file.
        if line.trim() == "#[cfg(test)]" && !text.contains(&format!("{line}\nmod tests;")) {
            break;
        }
        if !line.trim_start().starts_with("//") {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// Every module that code names as `crate::x` or in `crate::{x, y::z}`.
pub(super) fn named_modules(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth == 0 => {
                    named.insert(word(group[start..offset].trim()));
                    start = offset + 1;
                }
                '}' => {
                    named.insert(word(group[start..offset].trim()));
                    break;
                }
                _ => {}
            }
        }
    }
    named.remove("");
    named
}

pub(super) fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !before.is_some_and(inside) && !after.is_some_and(inside)
    })
}
