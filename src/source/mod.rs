//! All queries of the daemon to the Site DB over ordinary (not replication) connections.
//!
//! | file | its job |
//! |---|---|
//! | `chunk_rows` | a chunk's rows while it is read: their images, and how many more may come |
//! | `chunks` | a connection that reads chunks of rows and writes fences |
//! | `counted` | the same for tables whose rows are counted |
//! | `digests` | digests of ranges of rows |
//! | `parked_keys` | rows of several tables by their keys, under one snapshot |
//! | `readable_keys` | which keys of the Agent DB its types can be |
//! | [`fence`] | the marks in the log, as messages |
//! | [`snapshot`] | what a snapshot sees |
//! | `selection` | which tables `sync.tables` selects |
//! | `server` | what the server and our role there must allow |
//! | [`publication`] | the publication: check, create, extend |
//! | `published` | the relations that a publication sends, without a lock on any |
//! | `candidates` | which of the selected tables can be replicated, and why not |
//! | `catalog` | what the publication sends: tables, columns, types, keys, filters |
//! | `marks` | traces in the catalog of what the log does not carry |
//! | `table` | what the daemon knows about a table |
//! | `type_definitions` | the statements that create the types of columns |
//! | [`setup`] | what `twinlog doctor` asks: limits, rights, slot, publication |
//! | `slot_facts` | what the Site DB says about the slot |
//! | [`visibility`] | waiting for transactions that a snapshot does not see |
//! | `sequences` | how far its sequences are |
//! | `samples` | where the log ends and what the slot retains |
//! | `error` | why a query failed, or what the Site DB lacks |
//!
//! Not here: the replication connection (`wire`), what chunks are for (`copy`), and when to ask (`replication`).

mod bounded;
mod candidates;
mod catalog;
mod chunk_rows;
mod chunks;
mod counted;
mod digests;
mod error;
pub mod fence;
mod marks;
mod parked_keys;
pub mod publication;
mod published;
mod readable_keys;
mod samples;
mod selection;
mod sequences;
mod server;
pub mod setup;
mod slot_facts;
pub mod snapshot;
mod table;
mod type_definitions;
pub mod visibility;

pub use candidates::Faults;
pub use chunks::{ChunkRows, Columns, Source};
pub use counted::CountedRows;
pub use error::SourceError;
pub use fence::{ChunkId, Fence};
pub use parked_keys::{KeysOfTable, ParkedRows, RowsOfTable};
pub use samples::{Sample, sample};
pub use selection::Selection;
pub use sequences::sequences;
pub use server::{database_oid, version};
pub use slot_facts::{SlotFacts, end_reader, slot};
pub use snapshot::Snapshot;
pub use table::SourceTable;
pub use type_definitions::type_definitions;
pub use visibility::Visibility;
