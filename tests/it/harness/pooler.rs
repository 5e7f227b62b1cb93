//! PgBouncer before a database.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::databases::Database;
use super::wait::{SOON, eventually};

/// Where distributions install it.
const PROGRAMS: [&str; 3] = [
    "/usr/sbin/pgbouncer",
    "/usr/bin/pgbouncer",
    "/opt/homebrew/bin/pgbouncer",
];

/// A running PgBouncer. Killed when dropped.
pub(crate) struct Pooler {
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

impl Pooler {
    /// Starts one in `transaction` or `session` mode; `None` where it is not installed.
    pub(crate) async fn start(database: &Database, mode: &str) -> Option<Self> {
        let Some(program) = PROGRAMS.into_iter().find(|program| Path::new(program).exists()) else {
            eprintln!("skipped: PgBouncer is not installed (apt-get install pgbouncer)");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder = tempfile::tempdir().unwrap();
        let url = database.database_url();
        let password = database.cluster.password();
        let config = format!(
            "[databases]\n{db} = host=127.0.0.1 port={server} dbname={db} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n",
            db = database.name,
            server = database.cluster.port(),
            user = url.user,
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, config).unwrap();
        // It does not run as root, and the user that it becomes must read the file.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let child = Command::new(program)
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
        Some(Self {
            port,
            child,
            _folder: folder,
        })
    }

    /// The database's URL through it.
    pub(crate) fn url(&self, database: &Database) -> String {
        database.url_through(self.port)
    }

    /// Asserts that whoever shares the pool's sessions finds them as a session of the server's own is.
    pub(crate) async fn is_untouched(&self, database: &Database) {
        let (client, connection) = tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        for setting in [
            "search_path",
            "row_security",
            "lock_timeout",
            "statement_timeout",
            "TimeZone",
        ] {
            let rows = client.simple_query(&format!("SHOW {setting}")).await.unwrap();
            let shown = rows.iter().find_map(|row| match row {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            let plain = database.value(&format!("SELECT current_setting('{setting}')")).await;
            assert_eq!(shown, Some(plain), "{setting}");
        }
    }
}
