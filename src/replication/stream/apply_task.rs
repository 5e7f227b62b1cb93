//! The sink's own task: it applies one batch while the pipeline fills the next one.
//!
//! Orders are taken one by one; the channel holds one more, so that neither side waits for the other in the steady
//! state and no more than two batches are ever in memory. The first error ends the task: the transaction is gone with
//! the connection, and the next run resumes at the checkpoint.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::agent_db::{AgentError, Applied, Applier, Checkpoint, Committed, Segment, SourceIdentity, Transaction};
use crate::change::{Relation, TableDescription, TableName};
use crate::copy::ChunkOutcome;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

use super::buffer::Closed;

/// What the pipeline asks of the sink.
enum Order {
    /// Apply the beginning of a transaction; keep the Agent transaction open.
    Apply(Segment),
    /// Apply whole transactions and commit them with their checkpoint.
    Commit(Closed),
    /// Move the checkpoint of an idle stream.
    Checkpoint(Lsn),
    /// Look a table up.
    Resolve(TableDescription, oneshot::Sender<Result<Arc<Relation>, AgentError>>),
    /// A table's first copy begins or ends.
    Copying(TableName, bool),
    /// A full resync has shown that nothing is missing.
    ClearGap(oneshot::Sender<Result<(), AgentError>>),
}

/// What the sink says of its own accord.
#[derive(Debug)]
pub(in crate::replication) enum Report {
    /// A commit is durable.
    Durable {
        /// What it held.
        committed: Committed,
        /// When its source transactions committed.
        commits: Vec<PgTimestamp>,
        /// Readers whose chunks are in it.
        chunks: Vec<oneshot::Sender<ChunkOutcome>>,
    },
    /// A part of an open transaction is written.
    Applied(Applied),
    /// It is over.
    Failed(AgentError),
}

/// The pipeline's end of the sink's task.
#[derive(Debug)]
pub(in crate::replication) struct SinkHandle {
    orders: mpsc::Sender<Order>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Orders that will be reported and are not yet.
    in_flight: usize,
    task: JoinHandle<()>,
}

/// The sink's task has ended; its last report says why.
#[derive(Debug)]
pub(in crate::replication) struct SinkEnded;

impl SinkHandle {
    /// Gives the sink its task.
    pub(in crate::replication) fn spawn(applier: Applier, identity: SourceIdentity) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        // Unbounded in type only: one report an order, and two orders at most.
        let (outbox, reports) = mpsc::unbounded_channel();
        let task = tokio::spawn(Box::pin(work(applier, identity, inbox, outbox)));
        Self {
            orders,
            reports,
            in_flight: 0,
            task,
        }
    }

    /// Whether it has nothing to do.
    pub(in crate::replication) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Hands over the beginning of a transaction; waits while the sink is two batches behind.
    pub(in crate::replication) async fn apply(&mut self, segment: Segment) -> Result<(), SinkEnded> {
        self.order(Order::Apply(segment)).await
    }

    /// Hands over whole transactions; waits while the sink is two batches behind.
    pub(in crate::replication) async fn commit(&mut self, closed: Closed) -> Result<(), SinkEnded> {
        self.order(Order::Commit(closed)).await
    }

    /// Moves the checkpoint of an idle stream.
    pub(in crate::replication) async fn checkpoint(&mut self, position: Lsn) -> Result<(), SinkEnded> {
        self.order(Order::Checkpoint(position)).await
    }

    async fn order(&mut self, order: Order) -> Result<(), SinkEnded> {
        self.orders.send(order).await.map_err(|_| SinkEnded)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Looks a table up, behind everything that was ordered before.
    pub(in crate::replication) async fn resolve(
        &self,
        description: TableDescription,
    ) -> Result<Result<Arc<Relation>, AgentError>, SinkEnded> {
        let (reply, answer) = oneshot::channel();
        self.orders
            .send(Order::Resolve(description, reply))
            .await
            .map_err(|_| SinkEnded)?;
        answer.await.map_err(|_| SinkEnded)
    }

    /// Says that a table's first copy begins or ends.
    pub(in crate::replication) async fn copying(&self, table: TableName, copying: bool) -> Result<(), SinkEnded> {
        self.orders
            .send(Order::Copying(table, copying))
            .await
            .map_err(|_| SinkEnded)
    }

    /// Takes the mark off that rows may be missing.
    pub(in crate::replication) async fn clear_gap(
        &self,
        reply: oneshot::Sender<Result<(), AgentError>>,
    ) -> Result<(), SinkEnded> {
        self.orders.send(Order::ClearGap(reply)).await.map_err(|_| SinkEnded)
    }

    /// The next report. Cancel-safe. `None` once the task has ended and everything was read.
    pub(in crate::replication) async fn report(&mut self) -> Option<Report> {
        let report = self.reports.recv().await;
        self.in_flight = self.in_flight.saturating_sub(1);
        report
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        // An open transaction is rolled back by the server when the connection goes.
        self.task.abort();
    }
}

async fn work(
    applier: Applier,
    identity: SourceIdentity,
    mut inbox: mpsc::Receiver<Order>,
    outbox: mpsc::UnboundedSender<Report>,
) {
    let mut transaction = applier.begin();
    while let Some(order) = inbox.recv().await {
        let report = match order {
            Order::Resolve(description, reply) => {
                // A reader that no longer waits has been stopped with the run.
                let _ = reply.send(transaction.resolve(&description).await);
                continue;
            }
            Order::ClearGap(reply) => {
                // Between two transactions of the stream only: the mark is a transaction of its own.
                let _ = reply.send(transaction.clear_gap().await);
                continue;
            }
            Order::Copying(table, copying) => {
                transaction.set_copying(&table, copying);
                continue;
            }
            Order::Apply(segment) => transaction.apply(segment).await.map(Report::Applied),
            Order::Commit(closed) => match commit(transaction, &identity, closed).await {
                Ok((applier, report)) => {
                    transaction = applier.begin();
                    Ok(report)
                }
                Err(error) => return end(&outbox, error),
            },
            Order::Checkpoint(position) => {
                let checkpoint = Checkpoint {
                    identity: identity.clone(),
                    end_lsn: position,
                    source_commit_at: None,
                };
                match transaction.commit(checkpoint).await {
                    Ok((applier, committed)) => {
                        transaction = applier.begin();
                        Ok(Report::Durable {
                            committed,
                            commits: Vec::new(),
                            chunks: Vec::new(),
                        })
                    }
                    Err(error) => return end(&outbox, error),
                }
            }
        };
        match report {
            Ok(report) => {
                // The pipeline has gone: so does this task.
                if outbox.send(report).is_err() {
                    return;
                }
            }
            Err(error) => return end(&outbox, error),
        }
    }
}

/// Says why the task ends.
fn end(outbox: &mpsc::UnboundedSender<Report>, error: AgentError) {
    // Where the pipeline has gone, nobody asks.
    let _ = outbox.send(Report::Failed(error));
}

async fn commit(
    mut transaction: Transaction,
    identity: &SourceIdentity,
    closed: Closed,
) -> Result<(Applier, Report), AgentError> {
    let Closed {
        items,
        boundary,
        commits,
        chunks,
    } = closed;
    transaction
        .apply(Segment {
            items,
            lsn: boundary.end_lsn,
        })
        .await?;
    let checkpoint = Checkpoint {
        identity: identity.clone(),
        end_lsn: boundary.end_lsn,
        source_commit_at: boundary.committed_at.to_datetime(),
    };
    let (applier, committed) = transaction.commit(checkpoint).await?;
    let report = Report::Durable {
        committed,
        commits,
        chunks,
    };
    Ok((applier, report))
}
