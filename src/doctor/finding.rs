//! A finding: its code, how bad it is, what it is about, and what to do. The one list of codes; each says why it matters.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or can lose messages or rows: mend it.
    Fault,
    /// It works now, and may stop working.
    Warning,
    /// Good to know; nothing has to be done.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fault => "fault",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind it is; never renamed.
    pub code: Code,
    /// How bad it is: given by the code, less where the configuration accepts it.
    pub severity: Severity,
    /// What it is about: a database, a table, a number, an address.
    pub about: String,
    /// What is the matter.
    pub what: String,
    /// Why it matters: given by the code.
    pub why: &'static str,
    /// The statement or setting to paste; [`None`] where there is nothing to do.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding without a fix.
    #[must_use]
    pub fn new(code: Code, about: impl fmt::Display, what: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            about: about.to_string(),
            what: what.into(),
            why: code.why(),
            fix: None,
        }
    }

    /// The same with what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The same as a note: the configuration accepts it.
    #[must_use]
    pub const fn softened(mut self) -> Self {
        self.severity = Severity::Note;
        self
    }

    /// The same with what to do, if that is known.
    #[must_use]
    pub fn fix_if(mut self, fix: Option<String>) -> Self {
        self.fix = fix;
        self
    }
}

/// Defines the codes: for each its name, its severity, and why it matters.
macro_rules! codes {
    ($($code:ident $severity:ident $why:literal)*) => {
        /// The kinds of findings. Scripts know them by their names, which never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, strum::IntoStaticStr, strum::VariantArray)]
        #[strum(serialize_all = "snake_case")]
        #[serde(rename_all = "snake_case")]
        #[expect(missing_docs, reason = "each says of itself why it matters")]
        pub enum Code { $($code),* }

        impl Code {
            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$code => Severity::$severity),* }
            }

            /// Why it matters.
            #[must_use]
            pub const fn why(self) -> &'static str {
                match self { $(Self::$code => $why),* }
            }
        }
    };
}

impl Code {
    /// As scripts know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

codes! {
    // The examination itself.
    Unchecked Note "it could not be checked, so nothing is said about it"
    CheckFailed Warning "it was not checked, so it may be wrong"
    Configuration Fault "the process does not start with this configuration"

    // Either database.
    Unreachable Fault "nothing works without this database"
    Ipv6Only Fault "this machine may have no IPv6; then the address can't be reached from here"
    Pooler Fault "a pooler in transaction mode gives one server session to several clients: locks, settings and replication need a session of their own"
    TlsOff Warning "passwords and messages cross the network in plain text"
    TlsUnverified Warning "anybody between this machine and the server can pose as the server and read everything"
    Version Fault "Postgres before 14 does not send what Twinlog needs to tell copied rows from streamed ones"
    Standby Fault "a standby takes no writes; a slot or a message can't be stored there"
    ReadOnly Fault "every write is refused, so nothing is stored"
    Clock Warning "delays and expiry times are measured with both clocks"
    RoleTimeOut Note "it ends statements or sessions of the role; Twinlog sets it aside for its own sessions, except the replication connection's wal_sender_timeout"
    Connections Warning "without a free connection messages and webhooks are refused for a while"
    NotDurable Warning "after a crash of the machine the database may be unusable, or lack what was acknowledged"
    Encoding Warning "a character that the other database can't store parks its row"
    UrlsSwapped Fault "the daemon would read the copy and write into the original"

    // The Site DB and replication.
    WalLevel Fault "without logical decoding there is no stream"
    ReplicationRight Fault "the role can't open the stream"
    ReplicationLogin Fault "the stream can't be opened, though ordinary connections can"
    NoFreeSlot Fault "the daemon can't create its slot"
    NoFreeSender Fault "the daemon can't open the stream"
    SlotWalUnlimited Warning "while the daemon is away the slot keeps all WAL, until the Site DB's disk is full and the database stops"
    SlotHeadroom Warning "when it is used up, the slot is given up, and every table has to be read again"
    SenderTimeout Warning "a dead connection keeps the slot busy until it is noticed"
    IdleSlotTimeout Warning "Postgres invalidates the slot when the daemon is away for that long, and every table has to be read again"
    MarkRight Fault "tables are copied, compared and healed between marks in the log"
    StandbyWaitsHidden Note "before the daemon reads rows, it waits for all running transactions instead of those that wait for a standby"
    OldTransaction Warning "a new slot, and a table that joins, wait until it ends; it also keeps old rows and WAL"
    IdleSlot Warning "it keeps WAL that nothing reads, until the Site DB's disk is full"
    SlotFailover Warning "after a failover the slot is missing on the new primary: rows may be lost between, and every table has to be read again"
    SlotOfAnother Fault "two programs can't read one slot"
    Gap Fault "rows may be missing in the Agent DB"
    NoTables Fault "nothing is replicated"
    PublicationMissing Fault "the daemon can't start"
    PublicationLater Note "the daemon creates it at its first start, with every table that can be replicated"
    PublicationPartial Fault "these changes never reach the Agent DB"
    PublicationTruncate Warning "a TRUNCATE in the Site DB is not applied at once; the table is read again when it is noticed"
    PublicationRoot Warning "changes come as those of the partitions, so the Agent DB needs the same partitions"
    RowFilter Note "the Agent DB gets only the rows that match"
    OnlyInserts Warning "the Site DB refuses updates and deletes of a published table whose rows nothing identifies"
    WholeRowIdentity Note "each update and delete is found by the whole row, which is slow in a large table"

    // Tables, by the cause for which the daemon would hold them.
    TableMissing Fault "the table is held: its rows don't reach the Agent DB"
    ColumnMissing Fault "the table is held: its rows don't reach the Agent DB"
    ColumnUnwritable Fault "the table is held: its rows don't reach the Agent DB"
    TableUnlogged Fault "its changes are in no log, or a crash empties it, so the table is held"
    TableKey Fault "without the right key rows can't be told apart, so the table is held"
    TableRights Fault "the table is held: its rows don't reach the Agent DB"
    RowSecurity Fault "rows that are hidden from the role would be missing in the Agent DB, so the table is held"
    TableNotPublished Fault "its changes are not sent, so the table is held"
    TableNotReplicable Note "it has no rows of its own that the log has; it is left out unless sync.tables names it"
    TableClaimed Fault "two pipelines would overwrite each other's rows, so the table is held"
    TableRefused Fault "the Agent DB refuses what is written, so the table is held"
    TableHeld Fault "its changes are passed over until the reason is gone; then it is read again"

    // The Agent DB.
    NotMigrated Fault "what the process needs is not there"
    MigratedLater Note "the daemon applies it at its next start"
    MigrationChanged Fault "the schema is not the one that this version was made for"
    TriggersFire Warning "a row that a trigger changes or leaves out is parked: it would not be as the Site DB has it"
    ForeignKeysChecked Note "rows are written parents first; one that comes before its parent is parked until the parent is there"
    LargeValues Note "a value of more than 16 MB is in memory three times while it is written"
    RowsParked Warning "these rows are not as the Site DB has them"
    RowsDiffer Fault "these rows are not as the Site DB has them"
    DaemonNotRunning Warning "nothing is replicated, and the slot keeps WAL meanwhile"
    DaemonVersion Note "a daemon of another version than this command writes the Agent DB"

    // The server.
    SiteSchema Fault "the server can't store messages or webhooks"
    ListenTaken Fault "the server can't listen there"
    ServerNotRunning Note "no server of this configuration runs on this machine"
    AdminPublic Warning "health and metrics have no authentication"
    PublicUrlUnset Note "the way that Meta's webhooks take could not be tried"
    PublicUrlPlain Fault "Meta calls https only"
    PublicUrlUnreachable Fault "Meta's webhooks don't arrive: no message and no status is received"
    WebhookRoute Fault "Meta's webhooks don't arrive: no message and no status is received"
    VerifyTokenUnset Fault "Meta's handshake fails, so the callback can't be set"
    VerifyTokenDiffers Fault "Meta's handshake fails, so the callback can't be set"
    SignatureLost Fault "every webhook is refused as forged: no message and no status is received"
    FrontEndUnreachable Warning "the web pages that users open are not there, as seen from this machine"
    FrontEndPlain Warning "a login token crosses the network in plain text"
    FrontEndAny Note "scripts of any page may call the API with a user's token, if they have one"
    JwtKeys Fault "users' tokens can't be checked: nobody can log in"

    // Meta.
    GraphUnreachable Fault "nothing can be sent"
    TokenInvalid Fault "Meta refuses every send of the number"
    TokenExpires Warning "from then on Meta refuses every send of the number"
    TokenPermission Fault "Meta refuses calls that need the permission"
    TokenOfUser Note "it ends when the person changes the password or leaves; a system user's token does not"
    NumberUnknown Fault "nothing can be sent from the number"
    NumberNotConnected Fault "nothing can be sent from the number"
    NumberNotRegistered Fault "nothing can be sent from the number"
    NumberName Warning "people don't see the business's name, and Meta limits the number"
    Quality Warning "Meta limits or stops a number that many people block or report"
    SendingBlocked Fault "Meta takes no message"
    SendingLimited Warning "Meta takes fewer messages"
    RateAboveLimit Warning "Meta refuses what is above its limit, and the messages are tried again later"
    RateBelowLimit Note "messages wait longer than Meta asks for"
    WabaUnset Note "whether the account's webhooks are subscribed could not be checked"
    NotSubscribed Fault "the account's webhooks go nowhere: no message and no status is received"
    AppSecretWrong Fault "every webhook is refused as forged: no message and no status is received"
    CallbackElsewhere Fault "webhooks go to another address: no message and no status is received here"
    CallbackUnset Fault "webhooks go nowhere: no message and no status is received"
    FieldMissing Fault "without this field no message and no status is received"
    FieldOptional Note "Meta would tell by it about restrictions and quality of the number, which are logged"

    // Supabase.
    AnonymousReads Fault "everybody who knows the project's public key reads the messages"
    NoPolicy Warning "users who are logged in see nothing of the table, and hear nothing of it"
    RealtimeNotPublished Note "front ends that listen with Supabase's Realtime don't hear of it; those that use /v1/events do"
    RealtimeOldRow Note "Realtime checks policies of updates and deletes with the old row, of which only the key is sent"
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;

    #[test]
    fn the_name_in_json_is_the_one_in_words() {
        for code in Code::VARIANTS {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!(!code.why().ends_with('.'), "{code:?}");
        }
    }
}
