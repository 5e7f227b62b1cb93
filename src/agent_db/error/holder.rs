//! Who holds a slot's lock.

/// Who holds a slot's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The backend's process id in the Agent DB.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// The client's address, if the server shows it.
    pub address: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backend {} ({}", self.pid, self.application)?;
        if let Some(address) = &self.address {
            write!(f, " from {address}")?;
        }
        write!(f, ")")
    }
}
