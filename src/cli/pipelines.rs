//! The configuration → the daemon's pipelines: one today.

use crate::config::Config;
use crate::replication::{
    BatchLimits, CopySettings, LostSlotSettings, ParkingSettings, PipelineSettings, VerificationSettings,
};

/// The pipeline of `[site]`, `[agent]` and `[sync]`.
pub(super) fn pipeline(config: &Config) -> PipelineSettings {
    let sync = &config.sync;
    PipelineSettings {
        pipeline: sync.slot.clone(),
        site: config.site.url.clone(),
        agent: config.agent.url.clone(),
        slot: sync.slot.clone(),
        publication: sync.publication.clone(),
        tables: sync.tables.clone(),
        shared_tables: sync.shared_tables.clone(),
        on_unreplicable_table: sync.on_unreplicable_table,
        on_new_column: sync.on_new_column,
        batch: BatchLimits {
            rows: sync.batch_rows,
            bytes: sync.batch_bytes,
        },
        copies: CopySettings {
            chunk_rows: sync.copy_chunk_rows,
            workers: sync.copy_workers,
        },
        parking: ParkingSettings {
            max_rows: sync.max_failed_rows,
            retry: (sync.retry_initial, sync.retry_max),
        },
        reconnect: (sync.reconnect_initial, sync.reconnect_max),
        ready_delay: sync.ready_delay,
        statement_limit: sync.statement_limit,
        verification: VerificationSettings {
            every: sync.verify_every,
            rows_per_second: sync.verify_rows_per_second,
        },
        lost_slot: LostSlotSettings {
            give_up_at: sync.give_up_slot_at,
            then: sync.on_lost_slot,
        },
    }
}
