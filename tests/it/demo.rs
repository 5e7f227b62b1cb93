//! `twinlog demo` as a user runs it: what it prints, and that it leaves nothing behind, however it ends.

use std::future::ready;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;

use crate::harness::{Process, SOON, eventually, http_client};

/// Longest wait for the demo's end. On an idle machine it needs a tenth of that.
const LONG: Duration = Duration::from_secs(90);

/// A folder for temporary files that a server's user may use too, as `/tmp` is: with the sticky bit.
fn temporary() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

fn start(arguments: &[&str], folder: &Path) -> Process {
    let arguments = [&["demo"], arguments].concat();
    let folder = folder.to_str().unwrap();
    Process::start_with(Path::new("/nonexistent"), &arguments, &[("TMPDIR", folder)])
}

/// Waits until the folder is empty and no process has it as its working directory.
async fn until_gone(folder: &Path) {
    eventually("nothing is left", SOON, || async {
        let mut left: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        left.extend(
            processes
                .map(|process| process.path())
                .filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))),
        );
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn with_keep_the_demo_runs_on_after_its_proof_and_exits_with_0_on_ctrl_c() {
    let folder = temporary();
    let mut demo = start(&["--messages", "24", "--keep"], folder.path());
    demo.wait_for_output("everything stays up until Ctrl-C", LONG).await;
    demo.signal(Signal::SIGINT);
    let status = demo.wait(LONG).await;
    let output = demo.output();
    assert!(status.success(), "it was asked to end so: {output}");
    assert!(!output.contains("stopped before the end"), "{output}");
    assert!(
        output.contains("proved: both databases are equal") && !output.contains('\x1b'),
        "{output}"
    );
    until_gone(folder.path()).await;
}

#[tokio::test]
async fn for_a_program_the_demo_prints_one_line_with_all_that_it_needs() {
    let folder = temporary();
    let mut demo = start(&["--messages", "8", "--keep", "--json"], folder.path());
    demo.wait_for_output("agent_url", LONG).await;
    let printed = demo.output();
    let line = printed.lines().find(|line| line.starts_with('{')).unwrap();
    let world: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {printed}"));
    assert_eq!(world["differences"], serde_json::json!([]), "{printed}");
    let asked = http_client();
    let asked = asked
        .get(format!(
            "{}/v26.0/{}",
            world["api"].as_str().unwrap(),
            world["phone_number_ids"][0].as_str().unwrap()
        ))
        .bearer_auth(world["token"].as_str().unwrap());
    assert_eq!(asked.send().await.unwrap().status().as_u16(), 200, "{printed}");
    assert!(!printed.contains("starting two"), "{printed}");
    demo.signal(Signal::SIGINT);
    assert!(demo.wait(LONG).await.success());
}

#[tokio::test]
async fn ctrl_c_at_any_moment_leaves_nothing_and_reports_the_early_end() {
    const MANY: u32 = 2;
    for (moment, times) in [
        ("starting two", 1),
        ("Postgres ", 1),
        ("schemas migrated", 1),
        ("sending", 1),
        ("sending", MANY),
    ] {
        let folder = temporary();
        let mut demo = start(&["--messages", "2000"], folder.path());
        demo.wait_for_output(moment, LONG).await;
        demo.signal(Signal::SIGINT);
        if times == MANY {
            // A user who presses Ctrl-C twice.
            eventually("it ends", LONG, || {
                let running = demo.is_running();
                if running {
                    demo.signal(Signal::SIGINT);
                }
                ready(if running { Err("it runs") } else { Ok(()) })
            })
            .await;
        }
        let status = demo.wait(LONG).await;
        let output = demo.output();
        match status.code() {
            Some(1) => assert!(output.contains("stopped before the end"), "{moment}: {output}"),
            // The second Ctrl-C ends it without waiting.
            code => assert_eq!((code, times), (Some(130), MANY), "{moment}: {output}"),
        }
        until_gone(folder.path()).await;
    }
}

#[tokio::test]
async fn a_demo_that_is_killed_while_it_starts_its_clusters_leaves_nothing() {
    let folder = temporary();
    let mut demo = start(&[], folder.path());
    eventually("initdb is at work", LONG, || async {
        let made = std::fs::read_dir(folder.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("data/base").exists());
        made.then_some(()).ok_or("not yet")
    })
    .await;
    demo.kill9();
    until_gone(folder.path()).await;
}

#[test]
fn a_folder_that_cannot_be_used_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let output = Command::new(env!("CARGO_BIN_EXE_twinlog"))
        .arg("demo")
        .env("TMPDIR", &missing)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("missing") && said.contains("TMPDIR"), "{said}");
}

/// The terminal's width: the log's line needs one.
const COLUMNS: u16 = 600;

/// What is on a terminal's screen after `output`: the few sequences that a live line needs.
fn screen(output: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut input = output.chars().peekable();
    while let Some(character) = input.next() {
        match character {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == lines.len() {
                    lines.push(Vec::new());
                }
            }
            '\x1b' => {
                assert_eq!(input.next(), Some('['), "only control sequences");
                let mut parameter = String::new();
                let command = loop {
                    match input.next().unwrap() {
                        end @ '\x40'..='\x7e' => break end,
                        other => parameter.push(other),
                    }
                };
                let count = parameter.parse().unwrap_or(1);
                match (command, parameter.as_str()) {
                    ('m', _) => {}
                    ('A', _) => row = row.saturating_sub(count),
                    ('B', _) => row = (row + count).min(lines.len() - 1),
                    ('K', "2") => lines[row].clear(),
                    ('K', "" | "0") => lines[row].truncate(column),
                    other => panic!("a sequence that is not expected here: {other:?}"),
                }
            }
            other => {
                // A full line wraps only when the next character is printed.
                if column == usize::from(COLUMNS) {
                    (row, column) = (row + 1, 0);
                    lines.resize(lines.len().max(row + 1), Vec::new());
                }
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = other;
                column += 1;
            }
        }
    }
    lines
        .into_iter()
        .map(|line| line.into_iter().collect::<String>().trim_end().to_owned())
        .collect()
}

#[test]
fn on_a_terminal_the_live_line_breaks_no_other_line() {
    // GIVEN a demo on a terminal
    let size = Winsize {
        ws_row: 100,
        ws_col: COLUMNS,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(Some(&size), None).unwrap();
    let end = |_| Stdio::from(terminal.slave.try_clone().unwrap());
    let mut demo = Command::new(env!("CARGO_BIN_EXE_twinlog"))
        .args(["demo", "--messages", "240"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(end(1))
        .stderr(end(2))
        .spawn()
        .unwrap();
    drop(terminal.slave);

    // WHEN it runs to its end
    let (mut output, mut buffer) = (Vec::new(), [0; 4096]);
    let mut master = std::fs::File::from(terminal.master);
    // When the process ends, reading from the terminal gives an error, not an end of file.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        output.extend_from_slice(&buffer[..read]);
    }
    assert!(demo.wait().unwrap().success());
    let output = String::from_utf8(output).unwrap();

    // THEN each line is on the screen once, and the live line is gone
    let screen = screen(&output);
    let shown = screen.join("\n");
    let spinning = |text: &str| {
        text.chars()
            .any(|character| ('\u{2800}'..='\u{28ff}').contains(&character))
    };
    assert!(spinning(&output) && !spinning(&shown), "{shown}");
    for line in [
        "starting two temporary Postgres clusters …",
        "  server, daemon and Graph simulator are up",
        "  one row is parked: only the Agent DB refuses it; all other rows are applied",
        "  the constraint is gone, and the row was healed from the Site DB",
        "proved: both databases are equal, the ledger matches, nothing is behind",
    ] {
        assert_eq!(
            screen.iter().filter(|shown| *shown == line).count(),
            1,
            "{line:?}: {shown}"
        );
    }
    assert_eq!(
        shown.matches("HEALTH: number 106540352242999 is degraded").count(),
        1,
        "{shown}"
    );
    assert_eq!(
        shown.matches("Agent DB: sent").count(),
        1,
        "only the last figures stay: {shown}"
    );
}
