//! A configuration file for the binary, with ports that no other test uses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;

use super::databases::Databases;

/// A configuration file for the binary, removed when dropped.
pub(crate) struct ConfigFile {
    folder: tempfile::TempDir,
    /// Where its public listener will be on 127.0.0.1.
    pub(crate) http_port: u16,
    /// Where its admin listener will be on 127.0.0.1.
    pub(crate) admin_port: u16,
}

impl ConfigFile {
    /// For a test's two databases: slot and publication are named as the Site DB is, since slots belong to the whole
    /// cluster. `more` is TOML that is appended, whole sections.
    pub(crate) fn new(db: &Databases, more: &str) -> Self {
        Self::with_urls(&db.site.url, &db.agent.url, &db.site.name, more)
    }

    /// The same with other URLs, such as through a proxy.
    pub(crate) fn with_urls(site: &str, agent: &str, slot: &str, more: &str) -> Self {
        Self::layered(site, agent, slot, &[more])
    }

    /// The same with several pieces of TOML; the keys of a later one override those of an earlier one.
    pub(crate) fn layered(site: &str, agent: &str, slot: &str, layers: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (http_port, admin_port) = (free_port(), free_port());
        let ours = format!(
            "site.url = '{site}'
             agent.url = '{agent}'
             sync.slot = '{slot}'
             sync.publication = '{slot}'
             http.listen = '127.0.0.1:{http_port}'
             admin.listen = '127.0.0.1:{admin_port}'"
        );
        let mut sections = toml::Table::new();
        for layer in std::iter::once(&ours.as_str()).chain(layers) {
            overlay(&mut sections, layer.parse().unwrap());
        }
        std::fs::write(folder.path().join("twinlog.toml"), sections.to_string()).unwrap();
        Self {
            folder,
            http_port,
            admin_port,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("twinlog.toml")
    }

    /// The URL of a path on the public listener.
    pub(crate) fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http_port)
    }

    /// The URL of a path on the admin listener.
    pub(crate) fn admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin_port)
    }
}

/// Sets the keys of `over` in `under`, section by section.
fn overlay(under: &mut toml::Table, over: toml::Table) {
    for (section, value) in over {
        match (under.get_mut(&section), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => under.extend(over),
            (_, value) => {
                under.insert(section, value);
            }
        }
    }
}

/// A free port that no other test of this run was given.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    // Below the ports that outgoing connections get, or a connection of another test could take it before the binary does.
    let port = (0..1000)
        .map(|_| rand::random_range(10_000..15_000))
        .find(|port| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .unwrap();
    given.insert(port);
    port
}
