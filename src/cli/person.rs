//! Who runs a command, as it is kept with a decision.

use std::os::unix::fs::MetadataExt;

/// Longest reason, in characters.
const LONGEST_REASON: usize = 2_000;

/// User and host, as the environment says. Nobody has proved it: whoever decides over a database is known to that by the role.
pub(super) fn person() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| match std::fs::metadata("/proc/self") {
        Ok(own) => format!("uid {}", own.uid()),
        Err(_) => "unknown".to_owned(),
    });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let of = |text: &str| text.trim().chars().take(100).collect::<String>();
    format!("{}@{}", of(&user), of(&host))
}

/// Why somebody decides something, as an option of a command: not empty, and not too long.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        Err("say why".to_owned())
    } else if text.chars().count() > LONGEST_REASON {
        Err(format!("at most {LONGEST_REASON} characters"))
    } else {
        Ok(text.to_owned())
    }
}
