//! README.md's section "In production", run exactly as written: its SQL with its roles, `config/production.toml`, and a
//! message from the API to the Agent DB.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use twinlog::dev::graph_simulator::{Account, Settings as SimulatorSettings, Simulator};
use twinlog::dev::postgres::{Cluster, Settings};

use crate::harness::{Process, SOON, eventually, eventually_equal, http_client};

/// The database and the password in the README.
const DATABASE: &str = "crm";
const PASSWORD: &str = "change-me";

/// The number in config/production.toml.
const NUMBER: &str = "106540352242922";

fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The statements of the README's SQL block with this name.
fn statements(block: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let fence = format!("\n```sql {block}\n");
    let (_, rest) = readme
        .split_once(&fence)
        .unwrap_or_else(|| panic!("README.md has no block {block:?}"));
    let sql = rest.split("\n```").next().unwrap();
    let without_comments: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap()).collect();
    without_comments
        .join("\n")
        .split(';')
        .map(|statement| statement.trim().to_owned())
        .filter(|statement| !statement.is_empty())
        .collect()
}

async fn run(client: &Client, block: &str) {
    for statement in statements(block) {
        client
            .batch_execute(&statement)
            .await
            .unwrap_or_else(|error| panic!("{block}: {statement}: {error:?}"));
    }
}

/// A server with a database as the README assumes it, and its administrator's session.
struct Server {
    cluster: Arc<Cluster>,
    superuser: Client,
    admin: Client,
    /// Whether the administrator is a superuser, as on a server of one's own; else it has the rights of Supabase's `postgres`.
    own: bool,
}

impl Server {
    async fn start(own: bool) -> Self {
        let cluster = Arc::new(Cluster::start(Settings::default()).await.unwrap());
        cluster.create_database(DATABASE).await.unwrap();
        let superuser = cluster.client(DATABASE).await.unwrap();
        let admin = if own {
            cluster.client(DATABASE).await.unwrap()
        } else {
            superuser
                .batch_execute(&format!(
                    "CREATE ROLE admin LOGIN NOSUPERUSER CREATEROLE CREATEDB REPLICATION BYPASSRLS PASSWORD '{PASSWORD}';
                     ALTER DATABASE {DATABASE} OWNER TO admin"
                ))
                .await
                .unwrap();
            connect(&cluster, "admin").await
        };
        Self {
            cluster,
            superuser,
            admin,
            own,
        }
    }

    /// Runs a block as the administrator.
    async fn administer(&self, block: &str) {
        for statement in statements(block) {
            // Supabase's `postgres` may create such roles; in Postgres itself before 16 only superusers may.
            let client = if statement.starts_with("CREATE ROLE") {
                &self.superuser
            } else {
                &self.admin
            };
            client
                .batch_execute(&statement)
                .await
                .unwrap_or_else(|error| panic!("{block}: {statement}: {error:?}"));
        }
    }

    fn url(&self) -> String {
        format!(
            "postgres://twinlog:{PASSWORD}@127.0.0.1:{}/{DATABASE}",
            self.cluster.port()
        )
    }

    async fn count(&self, query: &str) -> i64 {
        self.superuser.query_one(query, &[]).await.unwrap().get("count")
    }
}

async fn connect(cluster: &Cluster, role: &str) -> Client {
    let config = format!(
        "host=127.0.0.1 port={} user={role} password={PASSWORD} dbname={DATABASE}",
        cluster.port()
    );
    let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
    // The connection's task ends when the client is dropped.
    tokio::spawn(connection);
    client
}

/// The site's and the agent's URL as environment variables.
fn urls(site: &Server, agent: &Server) -> [(&'static str, String); 2] {
    [("TWINLOG__SITE__URL", site.url()), ("TWINLOG__AGENT__URL", agent.url())]
}

fn borrowed<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Runs a command to its end and expects success.
async fn command(arguments: &[&str], config: &Path, variables: &[(&'static str, String)]) -> String {
    let mut process = Process::start_with(config, arguments, &borrowed(variables));
    let status = process.wait(SOON).await;
    assert!(status.success(), "{arguments:?}: {}", process.output());
    process.output()
}

/// A copy of config/production.toml that reads the secrets from `folder` instead of systemd's credentials folder.
fn production(folder: &Path, secrets: &BTreeMap<&str, String>) -> PathBuf {
    for (name, secret) in secrets {
        // With a newline at the end, as `cat` and Enter write it.
        std::fs::write(folder.join(name), format!("{secret}\n")).unwrap();
    }
    let example = std::fs::read_to_string(repository("config/production.toml")).unwrap();
    let file = folder.join("twinlog.toml");
    let text = example.replace("/run/credentials/twinlog.service", folder.to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    file
}

async fn follow(own: bool) {
    // GIVEN two servers that are set up with the README's statements
    let (site, agent) = tokio::join!(Server::start(own), Server::start(own));
    if own {
        site.administer("site-server").await;
    }
    site.administer("site").await;
    agent.administer("agent").await;
    if own && agent.cluster.major() >= 15 {
        agent.administer("agent-server").await;
    }

    let defaults = tempfile::NamedTempFile::new().unwrap();
    let migrated = command(&["migrate"], defaults.path(), &urls(&site, &agent)).await;
    assert_eq!(migrated.matches("applied 1 ").count(), 3, "{migrated}");
    // Supabase has this role already.
    site.superuser.batch_execute("CREATE ROLE authenticated").await.unwrap();
    let twinlog = connect(&site.cluster, "twinlog").await;
    run(&twinlog, "publication").await;
    run(&twinlog, "ui").await;
    site.administer("revoke").await;
    agent.administer("revoke").await;
    // Before Postgres 15 every role may create tables in public; the README does not change that.
    let public_may_create = "SELECT count(*) FROM pg_namespace, aclexplode(nspacl) a
                     WHERE nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE'";
    assert_eq!(
        site.count(public_may_create).await,
        i64::from(site.cluster.major() < 15)
    );
    if site.cluster.major() >= 15 {
        assert!(twinlog.batch_execute("CREATE TABLE public.mine ()").await.is_err());
    }
    assert!(twinlog.batch_execute("CREATE SCHEMA mine").await.is_err());
    let published = "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'twinlog'";
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(
        site.count(published).await,
        site.count(tables).await,
        "every table is published"
    );

    // GIVEN Meta's simulator, and the production configuration with its secrets
    let simulator = Simulator::start(SimulatorSettings {
        app_secret: SecretString::from("the app's secret"),
        verify_token: "a verify token".to_owned(),
        accounts: vec![Account {
            phone_number_id: NUMBER.to_owned(),
            waba_id: "102290129340398".to_owned(),
            display_phone_number: "15550783881".to_owned(),
            access_token: "EAAtoken".to_owned(),
        }],
        ..SimulatorSettings::default()
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let secrets = [
        ("site-url", site.url()),
        ("agent-url", agent.url()),
        ("app-secret", "the app's secret".to_owned()),
        ("verify-token", "a verify token".to_owned()),
        ("whatsapp-token", "EAAtoken".to_owned()),
    ];
    let config = production(folder.path(), &secrets.into());
    let hash = hex::encode(Sha256::digest("api-token"));
    let variables = [
        ("TWINLOG__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
        ("TWINLOG__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ("TWINLOG__WHATSAPP__GRAPH_URL", simulator.url()),
        (
            "TWINLOG__AUTH__TOKENS",
            format!("[{{ name = \"crm\", sha256 = \"{hash}\" }}]"),
        ),
    ];

    // WHEN the service is started, twice
    for (round, text) in ["Hello", "Hello after a restart, without the right to create anything"]
        .into_iter()
        .enumerate()
    {
        let mut service = Process::start_with(&config, &["run"], &borrowed(&variables));
        service.wait_for_output("\"listening\"", SOON).await;
        let listening = service
            .output()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == "listening")
            .unwrap();
        let base = format!("http://{}", listening["http"].as_str().unwrap());
        let admin = format!("http://{}", listening["admin"].as_str().unwrap());
        simulator.set_callback(Some(format!("{base}/webhook").parse().unwrap()));
        let client = http_client();
        eventually("it is ready", SOON, || async {
            let answer = client
                .get(format!("{admin}/readyz"))
                .send()
                .await
                .map_err(|error| error.to_string())?;
            let ready = answer.status().is_success();
            let reasons = answer.text().await.unwrap_or_default();
            if ready { Ok(()) } else { Err(reasons) }
        })
        .await;
        simulator.handshake().await.unwrap();

        // THEN a message is sent, and it reaches the Agent DB with its statuses
        let sent = client
            .post(format!("{base}/v1/messages"))
            .bearer_auth("api-token")
            // curl sends this type with -d.
            .header("content-type", "application/x-www-form-urlencoded")
            .body(json!({"to": "+16505551234", "text": text, "wait": true}).to_string())
            .send()
            .await
            .unwrap();
        assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
        let arrived = format!(
            "SELECT count(*) FROM public.whatsapp_messages WHERE body = '{text}' AND status IN ('delivered', 'read')"
        );
        eventually_equal("the message and its statuses are in the Agent DB", SOON, 1, || {
            agent.count(&arrived)
        })
        .await;
        assert_eq!(agent.count("SELECT count(*) FROM twinlog.failed_rows").await, 0);
        assert_eq!(simulator.ledger().messages.len(), round + 1);

        // THEN the doctor finds nothing wrong, with these rights and no more
        let mut asked = variables.to_vec();
        asked.push(("TWINLOG__HTTP__PUBLIC_URL", base.clone()));
        let found = command(&["doctor", "--json"], &config, &asked).await;
        let found: Value =
            serde_json::from_str(found.lines().find(|line| line.starts_with("{\"healthy\"")).unwrap()).unwrap();
        // These servers are throwaway ones, and on a managed one the operator sets the limit of its slots.
        let expected = ["not_durable", "slot_wal_unlimited"];
        let alarms: Vec<_> = found["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|finding| finding["severity"] != "note" && !expected.contains(&finding["code"].as_str().unwrap()))
            .collect();
        assert!(alarms.is_empty(), "{alarms:#?}");
        let checked = found["checked"].to_string();
        for what in [
            "a signed probe through the public URL",
            "table public.leads",
            "its token",
            "a replication connection",
        ] {
            assert!(checked.contains(what), "{what}: {checked}");
        }

        // THEN the status shows that the daemon is streaming, and the service ends cleanly
        let status = command(&["status"], defaults.path(), &urls(&site, &agent)).await;
        assert!(status.contains("streaming"), "{status}");
        service.terminate();
        assert!(service.wait(SOON).await.success(), "{}", service.output());
    }

    // THEN users who are logged in can read the messages, and others cannot
    site.superuser
        .batch_execute("CREATE ROLE anon; SET ROLE authenticated")
        .await
        .unwrap();
    assert_eq!(site.count("SELECT count(*) FROM public.whatsapp_messages").await, 2);
    assert!(
        site.superuser
            .query("SELECT FROM public.whatsapp_accounts", &[])
            .await
            .is_err()
    );
    site.superuser.batch_execute("RESET ROLE; SET ROLE anon").await.unwrap();
    assert!(
        site.superuser
            .query("SELECT FROM public.whatsapp_messages", &[])
            .await
            .is_err()
    );
    assert_eq!(site.own, own);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_works_if_the_administrator_is_a_superuser() {
    follow(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_works_if_the_administrator_is_no_superuser() {
    follow(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_alone_needs_only_what_the_readme_grants() {
    // GIVEN two databases with the same tables, and the README's grants
    let (site, agent) = tokio::join!(Server::start(true), Server::start(true));
    let schema = "CREATE SCHEMA shop;
                  CREATE TABLE shop.customers (id int PRIMARY KEY, name text);
                  CREATE TABLE shop.orders (id int PRIMARY KEY, customer int REFERENCES shop.customers, total numeric);";
    for server in [&site, &agent] {
        server.admin.batch_execute(schema).await.unwrap();
    }
    let rows = "INSERT INTO shop.customers SELECT i, 'customer ' || i FROM generate_series(1, 100) i;
                INSERT INTO shop.orders SELECT i, i, i * 1.5 FROM generate_series(1, 100) i";
    site.admin.batch_execute(rows).await.unwrap();
    run(&site.admin, "daemon-site").await;
    run(&agent.admin, "daemon-agent").await;

    let defaults = tempfile::NamedTempFile::new().unwrap();
    let mut variables = urls(&site, &agent).to_vec();
    variables.push(("TWINLOG__SYNC__TABLES", "[\"shop.*\"]".to_owned()));
    variables.push(("TWINLOG__ADMIN__LISTEN", "127.0.0.1:0".to_owned()));
    // WHEN the daemon is started, twice
    for expected in [100, 101] {
        let mut daemon = Process::start_with(defaults.path(), &["sync"], &borrowed(&variables));
        daemon.wait_for_output("the stream flows", SOON).await;

        // THEN it has copied the rows, and applies every change
        eventually_equal("the orders are there", SOON, expected, || {
            agent.count("SELECT count(*) FROM shop.orders")
        })
        .await;
        site.admin
            .batch_execute(
                "INSERT INTO shop.customers VALUES (101, 'new') ON CONFLICT DO NOTHING;
                 INSERT INTO shop.orders VALUES (101, 101, 7) ON CONFLICT DO NOTHING;
                 UPDATE shop.customers SET name = 'other' WHERE id = 1;
                 DELETE FROM shop.orders WHERE id = 2; INSERT INTO shop.orders VALUES (2, 2, 9)",
            )
            .await
            .unwrap();
        eventually_equal("the changes are there", SOON, 1, || {
            agent.count("SELECT count(*) FROM shop.orders WHERE id = 2 AND total = 9 AND EXISTS (SELECT FROM shop.orders WHERE id = 101)")
        })
        .await;
        let found = command(&["doctor", "--json"], defaults.path(), &variables).await;
        assert!(found.contains("\"healthy\":true"), "{found}");
        let is_allowed = |code: &str| ["not_durable", "slot_wal_unlimited"].contains(&code);
        let warned = found
            .split("{\"code\":\"")
            .skip(1)
            .filter(|rest| rest.contains("\"severity\":\"warning\""));
        let warned: Vec<_> = warned
            .filter(|rest| !is_allowed(rest.split('"').next().unwrap()))
            .collect();
        assert!(warned.is_empty(), "{warned:#?}");
        daemon.terminate();
        assert!(daemon.wait(SOON).await.success(), "{}", daemon.output());
        // The first start has created the schema, so the second one needs no right to create.
        agent
            .admin
            .batch_execute("REVOKE CREATE ON DATABASE crm FROM twinlog")
            .await
            .unwrap();
    }
}

#[test]
fn every_statement_of_the_readme_is_run_by_these_tests() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let blocks: Vec<&str> = readme
        .split("\n```sql ")
        .skip(1)
        .map(|rest| rest.lines().next().unwrap())
        .collect();
    let run = [
        "site-server",
        "site",
        "agent",
        "agent-server",
        "publication",
        "ui",
        "revoke",
        "daemon-site",
        "daemon-agent",
        // By sync::fresh.
        "writer",
        "reader",
    ];
    assert_eq!(blocks, run);
    assert!(!readme.contains("\n```sql\n"), "a block without a name is not tested");
}

#[test]
fn the_readme_lists_every_command() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_twinlog"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help
        .split("\nCommands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    // A line that goes on with a command's description is indented further.
    let commands = listed.lines().filter_map(|line| line.strip_prefix("  "));
    for name in commands.filter_map(|line| line.split(' ').next().filter(|name| !name.is_empty())) {
        if name != "help" {
            assert!(readme.contains(&format!("\n| `twinlog {name}` | ")), "{name}");
        }
    }
}

#[test]
fn what_the_readme_calls_missing_is_missing() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let section = readme.split("\n## What is not there yet\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let routes = std::fs::read_to_string(repository("src/http/mod.rs")).unwrap();
    let words: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    assert!(!words.is_empty(), "{section}");
    for word in words {
        let path = word.split_once(' ').map_or(word, |(_, path)| path);
        assert!(!routes.contains(&format!(".route(\"{path}\"")), "{word} is there");
        assert!(
            twinlog::metrics::ALL.iter().all(|metric| metric.name != word),
            "{word} is there"
        );
        let mut arguments: Vec<&str> = word.split(' ').collect();
        arguments.push("--help");
        let asked = std::process::Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!asked.status.success(), "there is a command {word}");
    }
}
