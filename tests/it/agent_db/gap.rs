//! The stored gap: it stays until a full resync has ended, and goes only together with that end.

use super::fixture::{Fixture, checkpoint};

#[tokio::test]
async fn a_gap_stays_until_it_is_cleared() {
    let mut fixture = Fixture::new("").await;
    fixture.applier().initialise_checkpoint(&checkpoint(10)).await.unwrap();
    fixture.applier().set_gap("the slot was recreated").await.unwrap();
    fixture.applier().set_gap("something else").await.unwrap();
    fixture.try_commit(checkpoint(11)).await.unwrap();
    fixture.applier().initialise_checkpoint(&checkpoint(5)).await.unwrap();
    let stored = fixture.applier().durable_checkpoint().await.unwrap().unwrap();
    assert_eq!(stored.gap.unwrap().reason, "the slot was recreated");
    // It is cleared only together with the end of the resync, and only if every table is read.
    fixture
        .on_agent(
            "INSERT INTO twinlog.commands (id, slot, kind, arguments) OVERRIDING SYSTEM VALUE
                 SELECT 7, slot, 'resync', '{\"all\": true}' FROM twinlog.checkpoint;
             INSERT INTO twinlog.tables (slot, schema_name, table_name, state, command_id)
                 SELECT slot, 'public', 't', 'resyncing', 7 FROM twinlog.checkpoint",
        )
        .await;
    assert!(!fixture.applier().clear_gap(7).await.unwrap());
    assert!(
        fixture
            .applier()
            .durable_checkpoint()
            .await
            .unwrap()
            .unwrap()
            .gap
            .is_some()
    );
    fixture.on_agent("UPDATE twinlog.tables SET state = 'streaming'").await;
    assert!(fixture.applier().clear_gap(7).await.unwrap());
    assert_eq!(fixture.lines("SELECT state FROM twinlog.commands").await, ["done"]);
    assert_eq!(fixture.applier().durable_checkpoint().await.unwrap().unwrap().gap, None);
}
