//! A connection pooler in transaction mode before the Agent DB is refused, before anything reaches its sessions.

use std::process::{Child, Command, Stdio};

use crate::harness::{NOTES, SOON, Twins, eventually};

const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A running PgBouncer.
struct Pooler {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pooler(twins: &Twins, mode: &str) -> Pooler {
    let cluster = &twins.agent.cluster;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let folder = tempfile::tempdir().unwrap();
    let url = twins.agent.database_url();
    let password = cluster.password();
    let config = format!(
        "[databases]\n{db} = host=127.0.0.1 port={server} dbname={db} user={user} password={password}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n",
        db = twins.agent.name,
        server = cluster.port(),
        user = url.user,
    );
    let file = folder.path().join("pgbouncer.ini");
    std::fs::write(&file, config).unwrap();
    // It does not run as root, and the user that it becomes must read the file.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let child = Command::new(PROGRAM)
        .args(["-q", "-u", "nobody"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the pooler listens", SOON, || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map(drop)
    })
    .await;
    Pooler {
        port,
        child,
        _folder: folder,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_refused_and_its_sessions_stay_as_they_were() {
    if !std::path::Path::new(PROGRAM).exists() {
        eprintln!("skipped: PgBouncer is not installed (apt-get install pgbouncer)");
        return;
    }
    let mut twins = Twins::new(NOTES).await;
    let transactions = pooler(&twins, "transaction").await;
    twins.set_agent_url(&twins.agent.url_through(transactions.port));
    let daemon = twins.launch();
    daemon
        .says("a connection pooler in transaction or statement mode is between us and the Agent DB")
        .await;
    // Whoever shares the pool's sessions finds them untouched.
    let url = twins.agent.url_through(transactions.port);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for setting in ["search_path", "row_security", "lock_timeout"] {
        let rows = client.simple_query(&format!("SHOW {setting}")).await.unwrap();
        let shown = rows.iter().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let plain: String = twins.agent.value(&format!("SELECT current_setting('{setting}')")).await;
        assert_eq!(shown, Some(plain), "{setting}");
    }
    drop(daemon);

    // A pool in session mode works.
    let sessions = pooler(&twins, "session").await;
    twins.set_agent_url(&twins.agent.url_through(sessions.port));
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
}
