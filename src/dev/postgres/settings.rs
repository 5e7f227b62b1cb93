//! The settings of a throwaway server.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// How a cluster is set up.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub(super) bin: Option<PathBuf>,
    pub(super) folder: Option<PathBuf>,
    durable: bool,
    parameters: BTreeMap<String, String>,
}

impl Settings {
    /// The folder of the server programs; without it they are searched for ([`find()`](super::find())).
    #[must_use]
    pub fn bin(mut self, folder: impl Into<PathBuf>) -> Self {
        self.bin = Some(folder.into());
        self
    }

    /// Makes the cluster's folder in this one instead of in the one for temporary files.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Writes to disk (`fsync`, full-page writes), as a production server does. Without it the data survive a crash of the
    /// server (the kernel has them) but not of the machine: enough for throwaway data, and much faster.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Sets a server parameter, such as `max_slot_wal_keep_size`.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.insert(name.into(), value.into());
        self
    }

    pub(super) fn into_parameters(self) -> BTreeMap<String, String> {
        let defaults: &[(&str, &str)] = &[
            ("wal_level", "logical"),
            // Every test may hold a slot or two and a walsender at once.
            ("max_replication_slots", "64"),
            ("max_wal_senders", "64"),
            ("max_connections", "200"),
            // What initdb would have written.
            ("shared_buffers", "128MB"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ];
        let fast: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off")];
        defaults
            .iter()
            .chain(if self.durable { &[] } else { fast })
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .chain(self.parameters)
            .collect()
    }
}
