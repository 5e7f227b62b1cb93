//! The binary as users run it: exit codes, configuration problems, `migrate`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::{self, ConfigFile, Database, Process, SOON, private_databases, serve_tls};
use twinlog::config::{self, DatabaseUrl, Needs};
use twinlog::dev::postgres::{Settings, Shutdown};
use twinlog::migrations::{self, MigrationError, Set};

#[tokio::test]
async fn usage_and_configuration_errors_end_with_2_and_say_what_to_do() {
    // GIVEN a configuration with several mistakes
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("twinlog.toml");
    std::fs::write(&file, "[sync]\nslott = \"x\"\nslot = \"A B\"\n").unwrap();

    // WHEN a command reads it, THEN every mistake is reported, with its remedy
    let mut process = Process::start_with(&file, &["migrate"], &[("TWINLOG__AGENT__URL", "nonsense")]);
    assert_eq!(process.wait(SOON).await.code(), Some(2));
    let output = process.output();
    for expected in [
        "sync.slott",
        "did you mean sync.slot?",
        "site.url is missing",
        "agent.url",
        "TWINLOG__AGENT__URL",
        "a-z, 0-9",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }

    // WHEN the file is missing, THEN its name and the cause are reported
    let mut process = Process::start_with(&folder.path().join("none.toml"), &["migrate"], &[]);
    assert_eq!(process.wait(SOON).await.code(), Some(2));
    assert!(
        process
            .output()
            .contains("none.toml cannot be read\n  because: No such file"),
        "{}",
        process.output()
    );

    // WHEN the command does not exist, THEN the exit code is 2 too
    let mut process = Process::start_with(&file, &["migrat"], &[]);
    assert_eq!(process.wait(SOON).await.code(), Some(2));
}

#[tokio::test]
async fn serve_and_run_with_a_wrong_configuration_list_everything_and_end_with_2() {
    // GIVEN a configuration with a mistake in every section
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("twinlog.toml");
    std::fs::write(
        &file,
        r#"
        [site]
        url = "postgres://site.example.com/crm"
        max_connections = 0
        [http]
        listen = "everywhere"
        [whatsapp]
        graph_url = "ftp://graph.example.com"
        app_secrets = []
        send_timeout_ms = "soon"
        [[whatsapp.accounts]]
        phone_number_id = "+49 30"
        acess_token = "a-misspelt-secret"
        [[auth.tokens]]
        name = "crm"
        sha256 = "a-token-and-not-its-hash"
        "#,
    )
    .unwrap();

    // WHEN a command reads it
    for command in ["serve", "run"] {
        let mut process = Process::start_with(&file, &[command], &[]);
        assert_eq!(process.wait(SOON).await.code(), Some(2), "{}", process.output());

        // THEN it names every key, and no secret
        let output = process.output();
        let mut keys = vec![
            "site.max_connections",
            "http.listen",
            "whatsapp.graph_url",
            "whatsapp.app_secrets",
            "whatsapp.send_timeout_ms",
            "phone_number_id",
            "acess_token",
            "did you mean",
            "sha256",
        ];

        // The server does not need the Agent DB.
        if command == "run" {
            keys.push("agent.url is missing");
        } else {
            assert!(!output.contains("agent.url"), "{output}");
        }
        for key in keys {
            assert!(output.contains(key), "{command}: {key}: {output}");
        }
        for secret in ["a-misspelt-secret", "a-token-and-not-its-hash"] {
            assert!(!output.contains(secret), "{command}: {output}");
        }
    }
}

#[tokio::test]
async fn the_harness_writes_a_configuration_that_the_binary_takes() {
    let db = harness::databases().await;
    let file = ConfigFile::new(&db, "[sync]\nbatch_rows = 7");
    let needs = Needs {
        site: true,
        agent: true,
        whatsapp: false,
    };
    let config = config::load(Some(&file.path()), needs).unwrap();
    assert_eq!((&config.sync.slot, config.sync.batch_rows), (&db.site.name, 7));
    assert_eq!(file.http("/webhook"), format!("http://{}/webhook", config.http.listen));
    assert_eq!(file.admin("/readyz"), format!("http://{}/readyz", config.admin.listen));
}

async fn has_table(database: &Database, table: &str) -> bool {
    let found = database.text(&format!("SELECT to_regclass('{table}')")).await;
    found.is_some()
}

#[tokio::test]
async fn migrate_creates_everything_once_and_keeps_its_own_tables_out_of_public() {
    let db = harness::databases().await;
    let config = ConfigFile::new(&db, "");

    // WHEN two processes migrate at the same time, and a third one after them
    let mut first = Process::start(&config, &["migrate"], "");
    let mut second = Process::start(&config, &["migrate", "--json"], "");
    let (first_status, second_status) = (first.wait(SOON).await, second.wait(SOON).await);
    assert!(
        first_status.success() && second_status.success(),
        "{}{}",
        first.output(),
        second.output()
    );

    let mut third = Process::start(&config, &["migrate"], "");
    assert!(third.wait(SOON).await.success());
    assert_eq!(third.output().matches("up to date").count(), 3, "{}", third.output());

    // THEN everything exists once, and the list of migrations is in the schema twinlog
    let in_public = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE '%sqlx%'";
    assert_eq!(db.site.text(in_public).await.as_deref(), Some("0"));
    assert_eq!(db.agent.text(in_public).await.as_deref(), Some("0"));
    let names = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables
                 WHERE schemaname = 'twinlog' AND tablename LIKE '%sqlx%'";
    assert_eq!(db.site.text(names).await.as_deref(), Some("_sqlx_migrations_site"));
    assert_eq!(
        db.agent.text(names).await.as_deref(),
        Some("_sqlx_migrations _sqlx_migrations_agent")
    );
    assert!(has_table(&db.site, "public.whatsapp_messages").await);
    assert!(has_table(&db.agent, "public.agent_processing_log").await);
    assert!(has_table(&db.agent, "twinlog.checkpoint").await);
}

#[tokio::test]
async fn a_role_without_rights_gets_the_grants_to_run_and_needs_none_once_migrated() {
    let db = harness::databases().await;
    // GIVEN a role without rights
    let role = format!("role_of_{}", db.agent.name);
    let database = &db.agent.name;
    db.agent
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'pw'; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        ))
        .await
        .unwrap();
    let url: DatabaseUrl = format!("postgres://{role}:pw@127.0.0.1:{}/{database}", db.agent.cluster.port())
        .parse()
        .unwrap();

    // WHEN it migrates, THEN the error contains the grants to run
    let error = migrations::apply(&url, Set::Agent).await.unwrap_err();
    assert!(matches!(&error, MigrationError::Rights { .. }), "{error:?}");
    let hint = error.hint().unwrap();
    let create = format!("GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\"");
    let public = format!("GRANT USAGE, CREATE ON SCHEMA public TO \"{role}\"");
    assert_eq!(hint, format!("run as the database's owner: {create}; {public}"));

    // WHEN they are run, THEN they are sufficient
    db.agent.batch_execute(&format!("{create}; {public}")).await.unwrap();
    assert_eq!(migrations::apply_agent(&url).await.unwrap().len(), 2);
    // WHEN they are revoked again, THEN a database that is up to date needs no right to create
    db.agent
        .batch_execute(&format!(
            "REVOKE CREATE ON DATABASE \"{database}\" FROM {role}; ALTER SCHEMA twinlog OWNER TO postgres;
             GRANT USAGE ON SCHEMA twinlog TO {role}"
        ))
        .await
        .unwrap();
    let again = migrations::apply_twinlog(&url).await.unwrap();
    assert!(again.applied.is_empty() && again.present > 0);
    db.agent
        .batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_and_says_why() {
    let db = harness::databases().await;
    // GIVEN a table that has the name of one of Twinlog's
    db.site
        .batch_execute("CREATE TABLE public.leads (mine int)")
        .await
        .unwrap();

    // WHEN the migration runs, THEN it says so and leaves no table
    let error = migrations::apply_site(&db.site.database_url()).await.unwrap_err();
    assert!(
        error.hint().unwrap().contains("already has a table of that name"),
        "{error:?}"
    );
    assert!(!has_table(&db.site, "public.whatsapp_accounts").await);
}

#[tokio::test]
async fn an_older_binary_accepts_a_newer_database_and_refuses_a_changed_migration() {
    let db = harness::databases().await;
    let url = db.agent.database_url();
    migrations::apply_twinlog(&url).await.unwrap();
    // WHEN the database has a later migration, THEN it is accepted
    db.agent
        .batch_execute(
            "INSERT INTO twinlog._sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of the future', true, '\\x00', 0)",
        )
        .await
        .unwrap();
    assert!(migrations::apply_twinlog(&url).await.is_ok());
    // WHEN the text of an applied migration was different, THEN it is refused
    db.agent
        .batch_execute("UPDATE twinlog._sqlx_migrations SET checksum = '\\x00' WHERE version = 1")
        .await
        .unwrap();
    let error = migrations::apply_twinlog(&url).await.unwrap_err();
    assert!(error.hint().unwrap().contains("another text"), "{error:?}");
}

#[tokio::test]
async fn one_unreachable_database_does_not_stop_the_migration_of_the_other() {
    // GIVEN an Agent DB that does not run
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    db.agent.cluster.stop(Shutdown::Immediate).await.unwrap();
    let config = ConfigFile::new(&db, "log.filter = \"warn\"");

    // WHEN both databases are migrated, THEN the Site DB is, and the error names the Agent DB
    let mut process = Process::start(&config, &["--log-format", "json", "migrate"], "");
    assert_eq!(process.wait(SOON).await.code(), Some(1));
    let output = process.output();
    assert!(
        output.contains("Site DB, business tables: applied") && output.contains("connect to the Agent DB"),
        "{output}"
    );
    assert!(!output.contains(db.agent.cluster.password()), "{output}");

    // WHEN it runs again, THEN it is migrated alone
    db.agent.cluster.start_again().await.unwrap();
    db.agent.reconnect().await;
    let mut process = Process::start(&config, &["migrate", "agent"], "");
    assert!(process.wait(SOON).await.success(), "{}", process.output());
    assert!(has_table(&db.agent, "twinlog.commands").await);
}

#[tokio::test]
async fn an_unreachable_database_is_named_with_the_remedy_and_without_the_password() {
    // GIVEN URLs that are wrong in one part, each with the remedy of its error
    let db = harness::databases().await;
    let (url, port, password) = (&db.agent.url, db.agent.cluster.port(), db.agent.cluster.password());
    let cases = [
        (
            url.replace(&format!("/{}", db.agent.name), "/none"),
            "check the database's name",
        ),
        (url.replace(password, "wrong"), "check role and password"),
        (
            url.replace(&format!(":{port}/"), ":1/"),
            "check the URL, that the server runs",
        ),
        (
            url.replace("127.0.0.1", "nowhere.invalid"),
            "check the URL, that the server runs",
        ),
        (format!("{url}?sslmode=require"), "ssl = on"),
    ];

    // WHEN a command uses one, THEN the error has the remedy and the URL without its password
    for (wrong, remedy) in cases {
        for arguments in [&["status"][..], &["failed", "list"], &["migrate", "agent"]] {
            let config = ConfigFile::with_urls(&db.site.url, &wrong, &db.site.name, "");
            let mut process = Process::start(&config, arguments, "");
            assert_eq!(process.wait(SOON).await.code(), Some(1), "{arguments:?} {remedy}");
            let output = process.output();
            assert!(output.contains(remedy), "{arguments:?} {remedy}: {output}");
            assert!(
                output.contains("postgres://postgres@"),
                "{arguments:?} {remedy}: {output}"
            );
            assert!(!output.contains(password) && !output.contains("wrong@"), "{output}");
        }
    }
}

#[tokio::test]
async fn a_command_whose_output_is_closed_ends_without_a_message() {
    let db = harness::databases().await;
    db.migrate().await;
    let config = ConfigFile::new(&db, "");
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["failed", "list"],
        &["migrate"],
    ] {
        // GIVEN an output whose reader has gone, as after `| head`
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        // WHEN a command prints to it, THEN it exits as after SIGPIPE, and reports no error
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .args(arguments)
            .env("TWINLOG_CONFIG", config.path())
            .stdout(write)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), errors.as_str()),
            (Some(141), ""),
            "{arguments:?}"
        );
    }
}

#[tokio::test]
async fn help_is_printed_and_a_waiting_migration_can_be_stopped() {
    let db = harness::databases().await;
    let config = ConfigFile::new(&db, "");
    let mut process = Process::start(&config, &["--help"], "");
    process.wait_for_output("migrate", SOON).await;
    assert!(process.wait(SOON).await.success());

    // GIVEN a lock that a migration must wait for
    let lock = db.site.connect().await;
    db.migrate().await;
    db.site
        .batch_execute("DELETE FROM twinlog._sqlx_migrations_site")
        .await
        .unwrap();
    lock.batch_execute("BEGIN; LOCK TABLE twinlog._sqlx_migrations_site")
        .await
        .unwrap();

    // WHEN the waiting migration gets a signal, THEN it ends at once
    for end in ["terminate", "kill9"] {
        let mut process = Process::start(&config, &["migrate", "site"], "");
        harness::eventually("it waits for the lock", SOON, || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                           AND application_name = 'twinlog migrate' AND datname = current_database()";
            match db.site.text(waiting).await.as_deref() {
                Some("1") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(process.is_running());
        if end == "terminate" {
            process.terminate()
        } else {
            process.kill9()
        }
        assert!(!process.wait(Duration::from_secs(5)).await.success());
        // The server notices a dead client only when it writes to it.
        db.site
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'twinlog migrate' AND datname = current_database()",
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn migrations_connect_over_tls_only_to_a_verified_server() {
    // GIVEN an Agent DB with TLS, whose certificate is for the name localhost
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let db = private_databases(Settings::default(), Settings::default()).await;
    serve_tls(&db.agent.cluster, &authority.cert.pem(), &authority.signing_key).await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.crt");
    std::fs::write(&root, authority.cert.pem()).unwrap();

    let url = |host: &str, more: &str| -> DatabaseUrl {
        let url = db.agent.url.replace("127.0.0.1", host);
        format!("{url}?sslmode=verify-full{more}").parse().unwrap()
    };
    // WHEN the certificate can be verified, THEN migrations run
    let trusted = format!("&sslrootcert={}", root.display());
    let applied = migrations::apply_agent(&url("localhost", &trusted)).await.unwrap();
    assert_eq!(applied.len(), 2);
    // WHEN its authority is unknown or its name differs, THEN no connection is made
    for unverified in [url("localhost", ""), url("127.0.0.1", &trusted)] {
        let error = migrations::apply_agent(&unverified).await.unwrap_err();
        assert!(matches!(error, MigrationError::Connect { .. }), "{error:?}");
    }
}

#[test]
fn the_systemd_unit_loads_the_credentials_that_the_production_example_reads() {
    let read = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("config")
            .join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (unit, example) = (read("twinlog.service"), read("production.toml"));
    let folder = "/run/credentials/twinlog.service/";
    let wanted: BTreeSet<&str> = example
        .split(folder)
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    let given: BTreeSet<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next())
        .collect();
    assert_eq!(wanted, given);
    for line in ["Type=notify", "WatchdogSec=30s", "RestartPreventExitStatus=2"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}
