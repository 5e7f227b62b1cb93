//! Tables that come and go while the daemon looks at the catalog: nobody's fault.

use std::time::Duration;

use twinlog::source::{Selection, Source, publication};

use crate::harness::{Background, databases};

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_dropped_while_the_catalog_is_read_are_passed_over() {
    // GIVEN many tables that are dropped and created again
    let databases = databases().await;
    databases
        .on_site("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION all_of_them FOR ALL TABLES")
        .await;
    let session = databases.site.connect().await;
    let tables = |sql: &str| {
        format!("DO $$ BEGIN FOR i IN 1..60 LOOP EXECUTE format('{sql}', 'fleeting_' || i); END LOOP; END $$")
    };
    let (create, drop) = (tables("CREATE TABLE %I (id int)"), tables("DROP TABLE %I"));
    let churn = Background::start(|rounds| async move {
        while rounds.go_on() {
            session.batch_execute(&create).await.unwrap();
            session.batch_execute(&drop).await.unwrap();
            rounds.count();
        }
    });
    churn.more(1).await;
    // WHEN the catalog is read meanwhile, THEN it can be read each time
    let source = Source::connect(&databases.site.database_url(), "twinlog test")
        .await
        .unwrap();
    let selection = Selection::new(&["public.*".to_owned()]).unwrap();
    let version: i32 = (databases.site.value("current_setting('server_version_num')").await)
        .parse()
        .unwrap();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        publication::faults(source.client(), "all_of_them", version, &selection)
            .await
            .unwrap();
    }
    churn.end().await;
}
