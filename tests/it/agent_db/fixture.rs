//! An applier on a fresh Agent DB, and short functions for the stream's changes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::Client;
use twinlog::agent_db::{
    AgentError, Applied, Applier, ApplierSettings, Checkpoint, Committed, Item, Segment, SourceIdentity, TableMode,
    Tally, Transaction,
};
use twinlog::change::{
    Change, ColumnValue, Identity, Key, Operation, Origin, Relation, RelationId, Row, SourceFacts, TableDescription,
    TableName, Truncate,
};
use twinlog::config::DatabaseUrl;
use twinlog::lsn::Lsn;
use twinlog::migrations;

use super::session::connect_soon;
use crate::harness::{self, Databases};

/// An Agent DB with tables of the test's own, and an applier on it.
pub(super) struct Fixture {
    pub(super) db: Databases,
    session: Option<Session>,
    url: DatabaseUrl,
    next_lsn: u64,
}

/// The applier, or the transaction that has it. None after a commit that failed.
enum Session {
    Idle(Applier),
    Open(Transaction),
}

pub(super) fn settings() -> ApplierSettings {
    ApplierSettings {
        application_name: "twinlog test".to_owned(),
        max_failed_rows: 100,
        retry_initial: Duration::from_secs(60),
        retry_max: Duration::from_secs(600),
        statement_limit: Duration::from_secs(10),
    }
}

pub(super) fn checkpoint(lsn: u64) -> Checkpoint {
    Checkpoint {
        identity: SourceIdentity {
            system_identifier: "7300000000000000001".into(),
            timeline: 1,
            database: "site".into(),
            database_oid: Some(16_384),
            slot: "slot".into(),
            publication: "publication".into(),
        },
        end_lsn: Lsn(lsn),
        source_commit_at: None,
    }
}

impl Fixture {
    /// As superuser: ordinary triggers do not fire and foreign keys are not checked.
    pub(super) async fn new(sql: &str) -> Self {
        Self::with(sql, settings()).await
    }

    pub(super) async fn with(sql: &str, settings: ApplierSettings) -> Self {
        let db = prepare(sql).await;
        let url = db.agent.database_url();
        Self::on(db, url, settings).await
    }

    /// As a role that may not set `session_replication_role`.
    pub(super) async fn without_replica_role(sql: &str) -> Self {
        let db = prepare(sql).await;
        let url = plain_role(&db).await;
        Self::on(db, url, settings()).await
    }

    async fn on(db: Databases, url: DatabaseUrl, settings: ApplierSettings) -> Self {
        let applier = Applier::connect(&url, "slot", settings).await.unwrap();
        Self {
            db,
            session: Some(Session::Idle(applier)),
            url,
            next_lsn: 1,
        }
    }

    /// Replaces the applier by a new one.
    pub(super) async fn reconnect(&mut self) {
        self.disconnect();
        self.session = Some(Session::Idle(connect_soon(&self.url, "slot").await));
    }

    pub(super) fn disconnect(&mut self) {
        self.session = None;
    }

    /// The applier, between two transactions.
    pub(super) fn applier(&mut self) -> &mut Applier {
        match self.session.as_mut() {
            Some(Session::Idle(applier)) => applier,
            _ => panic!("no applier, or a transaction is open"),
        }
    }

    /// The open transaction, begun where none is.
    pub(super) fn transaction(&mut self) -> &mut Transaction {
        let open = match self.session.take().expect("an applier") {
            Session::Idle(applier) => applier.begin(),
            Session::Open(transaction) => transaction,
        };
        match self.session.insert(Session::Open(open)) {
            Session::Open(transaction) => transaction,
            Session::Idle(_) => unreachable!(),
        }
    }

    fn take_transaction(&mut self) -> Transaction {
        match self.session.take().expect("an applier") {
            Session::Idle(applier) => applier.begin(),
            Session::Open(transaction) => transaction,
        }
    }

    /// With the stream's relation of a table.
    pub(super) async fn with_table(mut self, table: &str) -> (Self, Arc<Relation>) {
        let relation = self.resolve(table).await;
        (self, relation)
    }

    /// Runs statements on the Agent DB, in a session of the test's own.
    pub(super) async fn on_agent(&self, sql: &str) {
        self.db.on_agent(sql).await;
    }

    pub(super) fn agent(&self) -> &Client {
        &self.db.agent
    }

    /// The stream's description of a table: the Agent DB's columns without generated ones.
    pub(super) async fn describe(&self, table: &str) -> TableDescription {
        describe(&self.db.agent, table).await
    }

    pub(super) async fn resolve(&mut self, table: &str) -> Arc<Relation> {
        let description = self.describe(table).await;
        match self.session.as_mut().expect("an applier") {
            Session::Idle(applier) => applier.resolve(&description).await,
            Session::Open(transaction) => transaction.resolve(&description).await,
        }
        .unwrap()
    }

    pub(super) async fn try_apply(&mut self, changes: Vec<Change>) -> Result<Applied, AgentError> {
        self.try_apply_items(changes.into_iter().map(Item::Change).collect())
            .await
    }

    pub(super) async fn try_apply_items(&mut self, items: Vec<Item>) -> Result<Applied, AgentError> {
        self.next_lsn += 1;
        let lsn = Lsn(self.next_lsn);
        self.transaction().apply(Segment { items, lsn }).await
    }

    /// Applies what holds the one table that it is about; the reason.
    pub(super) async fn holds(&mut self, items: Vec<Item>) -> String {
        let applied = self.try_apply_items(items).await.unwrap();
        let total = applied.total();
        assert_eq!(
            (total.received, total.parked),
            (total.held, 0),
            "all is counted, nothing is parked"
        );
        let mut held = applied.held.into_values();
        let reason = held.next().expect("a table is held");
        assert_eq!(held.next(), None);
        self.commit().await;
        reason.reason
    }

    /// Releases a table that was held.
    pub(super) fn release(&mut self, relation: &Relation) {
        self.transaction().set_mode(&relation.table, TableMode::Complete);
    }

    /// Applies and commits; the sum over the tables.
    pub(super) async fn apply(&mut self, changes: Vec<Change>) -> Tally {
        let applied = self.try_apply(changes).await.unwrap();
        self.commit().await;
        applied.total()
    }

    pub(super) async fn commit(&mut self) {
        self.next_lsn += 1;
        self.try_commit(checkpoint(self.next_lsn)).await.unwrap();
    }

    /// After an error the applier is gone.
    pub(super) async fn try_commit(&mut self, checkpoint: Checkpoint) -> Result<Committed, AgentError> {
        let (applier, committed) = self.take_transaction().commit(checkpoint).await?;
        self.session = Some(Session::Idle(applier));
        Ok(committed)
    }

    pub(super) async fn rollback(&mut self) -> Result<(), AgentError> {
        let applier = self.take_transaction().rollback().await?;
        self.session = Some(Session::Idle(applier));
        Ok(())
    }

    /// A query's rows as text, in order.
    pub(super) async fn lines(&self, query: &str) -> Vec<String> {
        lines(&self.db.agent, query).await
    }

    /// Key, operation, reason and number of changes of each parked row.
    pub(super) async fn parked(&self) -> Vec<String> {
        self.lines(
            "SELECT key || ' ' || operation || ' ' || reason || ' ' || changes FROM twinlog.failed_rows ORDER BY id",
        )
        .await
    }
}

pub(super) async fn lines(client: &Client, query: &str) -> Vec<String> {
    client
        .query(&format!("SELECT q.line::text AS line FROM ({query}) AS q(line)"), &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get::<_, Option<String>>("line").unwrap_or_else(|| "∅".into()))
        .collect()
}

async fn prepare(sql: &str) -> Databases {
    let db = harness::databases().await;
    migrations::apply_twinlog(&db.agent.database_url()).await.unwrap();
    db.on_agent(sql).await;
    db
}

/// A role that owns nothing and may only read and write rows.
pub(super) async fn plain_role(db: &Databases) -> DatabaseUrl {
    let rights = "
        GRANT USAGE ON SCHEMA public, twinlog TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public, twinlog TO {role}";
    let role = db.agent.create_role("plain", rights).await;
    db.agent.url_as(&role).parse().unwrap()
}

pub(super) async fn describe(client: &Client, table: &str) -> TableDescription {
    let rows = client
        .query(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0
             AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            &[&table],
        )
        .await
        .unwrap();
    let unique = client
        .query(
            "SELECT array_agg(a.attname::text) AS columns FROM pg_index i
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
             WHERE i.indrelid = $1::text::regclass AND i.indisunique GROUP BY i.indexrelid",
            &[&table],
        )
        .await
        .unwrap();
    let columns: Vec<Arc<str>> = rows
        .iter()
        .map(|row| Arc::from(row.get::<_, &str>("attname")))
        .collect();
    // As if the Site DB had the same keys, and no NULL.
    let facts = SourceFacts {
        unique: unique
            .iter()
            .map(|row| row.get::<_, Vec<&str>>("columns").into_iter().map(Arc::from).collect())
            .collect(),
        not_null: columns.clone(),
        ..SourceFacts::default()
    };
    TableDescription {
        id: RelationId(rows.len() as u32),
        table: TableName::new("public", table),
        columns,
        identity: Identity::Full,
        facts: Arc::new(facts),
    }
}

/// `"∅"` is NULL and `"="` an unchanged value.
pub(super) fn row(values: &[&str]) -> Row {
    Row(values
        .iter()
        .map(|&value| match value {
            "∅" => ColumnValue::Null,
            "=" => ColumnValue::Unchanged,
            text => ColumnValue::Text(Bytes::copy_from_slice(text.as_bytes())),
        })
        .collect())
}

pub(super) fn key(parts: &[&str]) -> Key {
    Key(parts
        .iter()
        .map(|part| Bytes::copy_from_slice(part.as_bytes()))
        .collect())
}

fn change(relation: &Arc<Relation>, key: Key, operation: Operation) -> Change {
    Change {
        relation: Arc::clone(relation),
        key,
        operation,
        origin: Origin::Stream,
    }
}

pub(super) fn insert(relation: &Arc<Relation>, values: &[&str]) -> Change {
    let row = row(values);
    change(relation, relation.key_of(&row).unwrap(), Operation::Insert(row))
}

pub(super) fn update(relation: &Arc<Relation>, values: &[&str]) -> Change {
    let row = row(values);
    let key = relation.key_of(&row).unwrap();
    change(relation, key, Operation::Update { old_key: None, row })
}

pub(super) fn rekey(relation: &Arc<Relation>, old: &[&str], values: &[&str]) -> Change {
    let row = row(values);
    let new = relation.key_of(&row).unwrap();
    let old_key = Some(key(old));
    change(relation, new, Operation::Update { old_key, row })
}

pub(super) fn delete(relation: &Arc<Relation>, parts: &[&str]) -> Change {
    change(relation, key(parts), Operation::Delete)
}

/// The same change, read from the Site DB.
pub(super) fn chunk(change: Change) -> Change {
    Change {
        origin: Origin::Chunk,
        ..change
    }
}

pub(super) fn truncate(relations: &[&Arc<Relation>]) -> Item {
    Item::Truncate(Truncate {
        relations: relations.iter().map(|&relation| Arc::clone(relation)).collect(),
        restart_identity: false,
    })
}
