//! The `--help` text of every command, as a snapshot.

use std::process::Command;

fn twinlog(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_twinlog"))
        .args(arguments)
        .env_remove("TWINLOG_CONFIG")
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    listed
        .lines()
        .take_while(|line| !line.is_empty())
        // A continued line is indented further.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_explains_itself() {
    let mut pages = String::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = twinlog(&arguments);
        pages.push_str(&format!("$ twinlog {}\n{help}\n", arguments.join(" ")));
        let further = commands(&help);
        waiting.extend(
            further
                .into_iter()
                .rev()
                .map(|name| [path.clone(), vec![name]].concat()),
        );
    }
    insta::assert_snapshot!("help", pages);
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(
        twinlog(&["--version"]),
        format!("twinlog {}\n", env!("CARGO_PKG_VERSION"))
    );
}
