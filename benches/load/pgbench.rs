//! What the database itself can do: single rows committed by `pgbench`, over the same delay.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Figures, World};

pub(crate) fn measure(world: &World<'_>) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("insert.sql");
    std::fs::write(
        &script,
        "INSERT INTO webhook_events (body, body_sha256) VALUES (decode(repeat('78', 500), 'hex'), 'x');\n",
    )?;
    let output = Command::new(world.cluster.bin().join("pgbench"))
        .args(["-n", "-M", "prepared", "-j", "2", "-h", "127.0.0.1", "-U", "postgres"])
        .args(["-c", &world.options.connections.to_string()])
        .args(["-T", &world.options.length.as_secs().to_string()])
        .args(["-p", &world.proxy.port().to_string()])
        .arg("-f")
        .arg(&script)
        .arg(&world.database)
        .env("PGPASSWORD", world.cluster.password())
        .output()
        .context("run pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no rate in pgbench's output")?
        .parse()?;
    Ok(Figures { rate, ..Figures::NONE })
}
