//! A connection pooler in transaction mode before the Site DB: neither the server nor `migrate` works through it.

use super::world::{World, sections};
use crate::harness::{ConfigFile, Pooler, Process, SOON, http_client};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_migrate_refuse_a_pooler_in_transaction_mode() {
    let world = World::new().await;
    let site = &world.db.site;
    let Some(pooler) = Pooler::start(site, "transaction").await else {
        return;
    };
    let more = sections(&world.meta.url(), "simulator-token");
    let config = ConfigFile::with_urls(&pooler.url(site), &world.db.agent.url, &site.name, &more);
    let refusal = "a connection pooler in transaction or statement mode is between us and the Site DB";

    let mut migrate = Process::start(&config, &["migrate"], "");
    assert!(!migrate.wait(SOON).await.success());
    assert!(migrate.output().contains(refusal), "{}", migrate.output());
    let server = Process::start(&config, &["serve"], "");
    server.says(refusal).await;
    server.says("pool_mode = session").await;

    let ready = http_client().get(config.admin("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    pooler.is_untouched(site).await;
    let locks = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                 WHERE locktype = 'advisory' AND datname = current_database()";
    assert_eq!(site.value(locks).await, "0");
}
