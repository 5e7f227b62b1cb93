//! Sessions with either database: every driver gives `sslmode` the same meaning, and every session of the daemon prints and
//! parses values under the same settings.

use std::io::Write;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tempfile::NamedTempFile;
use twinlog::config::DatabaseUrl;
use twinlog::dev::postgres::{Cluster, Settings};
use twinlog::postgres::connect::open;
use twinlog::postgres::session_settings::{PINNED, SessionKind, pin_values};
use twinlog::postgres::{Side, connect, sqlx_access};
use twinlog::wire::ReplicationConnection;

use crate::harness::{ConfigFile, Process, SOON, databases, private_databases, serve_tls};

#[tokio::test]
async fn every_session_prints_and_parses_values_under_the_one_list_of_settings() {
    // GIVEN databases whose own settings are others
    let db = databases().await;
    for database in [&db.site, &db.agent] {
        for setting in [
            "DateStyle = 'SQL, DMY'",
            "IntervalStyle = 'iso_8601'",
            "TimeZone = 'Asia/Tokyo'",
            "extra_float_digits = 0",
            "bytea_output = 'escape'",
            "xmloption = 'document'",
            "quote_all_identifiers = on",
            "search_path = 'public'",
        ] {
            database
                .run(&format!("ALTER DATABASE \"{}\" SET {setting}", database.name))
                .await;
        }
    }
    // WHEN the daemon opens its kinds of sessions, and the server its own
    let site = connect(Side::Site, &db.site.database_url(), "test").await.unwrap();
    let agent = connect(Side::Agent, &db.agent.database_url(), "test").await.unwrap();
    let mut stream = ReplicationConnection::connect(&db.site.database_url(), "test")
        .await
        .unwrap();
    let (writer, _) = open(
        Side::Agent,
        &db.agent.database_url(),
        "test",
        SessionKind::Writing,
        None,
    )
    .await
    .unwrap();
    let mut sqlx = sqlx_access(&db.site.database_url(), "test").connect().await.unwrap();
    sqlx.execute(AssertSqlSafe(pin_values())).await.unwrap();
    // THEN each has every pinned setting, as the server itself says
    let names: Vec<String> = PINNED
        .iter()
        .map(|(name, _)| format!("'{}'", name.to_lowercase()))
        .collect();
    let settings = format!(
        "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_catalog.pg_settings WHERE lower(name) IN ({})",
        names.join(", ")
    );
    let of_site: String = site.query_one(&settings, &[]).await.unwrap().get(0);
    assert_eq!(of_site.matches('=').count(), PINNED.len(), "{of_site}");
    let of_agent: String = agent.query_one(&settings, &[]).await.unwrap().get(0);
    let of_writer: String = writer.query_one(&settings, &[]).await.unwrap().get(0);
    let of_stream = stream
        .simple_query(&settings)
        .await
        .unwrap()
        .remove(0)
        .remove(0)
        .unwrap();
    let of_sqlx: String = sqlx::query_scalar(AssertSqlSafe(settings))
        .fetch_one(&mut sqlx)
        .await
        .unwrap();
    for (session, found) in [
        ("reading, Agent DB", of_agent),
        ("writing", of_writer),
        ("replication", of_stream),
        ("sqlx", of_sqlx),
    ] {
        assert_eq!(found, of_site, "{session}");
    }
    // and names mean those of pg_catalog where rows are read, and what they mean to the role where triggers fire.
    let path = "SHOW search_path";
    for (session, client, expected) in [
        ("reading, Site DB", &site, "pg_catalog"),
        ("reading, Agent DB", &agent, "pg_catalog"),
        ("writing", &writer, "public"),
    ] {
        let shown: String = client.query_one(path, &[]).await.unwrap().get(0);
        assert_eq!(shown, expected, "{session}");
    }
    assert_eq!(
        stream.simple_query(path).await.unwrap(),
        [[Some("pg_catalog".to_owned())]]
    );
    for &(name, value) in PINNED {
        let show = format!("SHOW {name}");
        for (session, client) in [("site", &site), ("agent", &agent)] {
            let shown: String = client.query_one(&show, &[]).await.unwrap().get(0);
            assert_eq!(shown, value, "{session}: {name}");
        }
        let rows = stream.simple_query(&show).await.unwrap();
        assert_eq!(rows, [[Some(value.to_owned())]], "replication connection: {name}");
    }
}

/// Whether the three users of a database URL get a session: tokio-postgres, the replication connection, sqlx.
async fn reached(url: &str) -> [(&'static str, Result<(), String>); 3] {
    let url: DatabaseUrl = url.parse().unwrap();
    let plain = connect(Side::Site, &url, "test").await;
    let stream = ReplicationConnection::connect(&url, "test").await;
    let pool = match sqlx_access(&url, "test").connect().await {
        Ok(connection) => connection.close().await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    [
        ("tokio-postgres", plain.map(drop).map_err(|error| format!("{error:?}"))),
        ("replication", stream.map(drop).map_err(|error| format!("{error:?}"))),
        ("sqlx", pool),
    ]
}

/// What the certificate of an authority with this name says.
fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn file(pem: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn sslmode_means_the_same_to_every_driver() {
    // GIVEN a server whose certificate an authority signed for the name localhost
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    let (ours, others) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let right = file(&authority("ours").self_signed(&ours).unwrap().pem());
    let wrong = file(&authority("others").self_signed(&others).unwrap().pem());
    let issuer = Issuer::new(authority("ours"), ours);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    cluster.write_file("server.crt", certificate.pem().as_bytes()).unwrap();
    cluster
        .write_file("server.key", key.serialize_pem().as_bytes())
        .unwrap();
    let (right, wrong) = (right.path().display(), wrong.path().display());
    let url = |host: &str, tail: &str| {
        let url = cluster.url("postgres").replace("127.0.0.1", host);
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}{tail}")
    };
    // a server without TLS is reached by `disable` alone
    for (mode, expected) in [("disable", true), ("require", false), ("verify-full", false)] {
        for (driver, result) in reached(&url("localhost", &format!("sslmode={mode}"))).await {
            assert_eq!(result.is_ok(), expected, "{driver}: {mode} without TLS: {result:?}");
        }
    }
    cluster.set("ssl", "on").await.unwrap();

    for (host, tail, expected) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={right}"), true),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={wrong}"), false),
        ("127.0.0.1", "sslmode=require&sslrootcert=system".to_owned(), false),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}"), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={wrong}"), false),
        ("127.0.0.1", "sslmode=verify-ca".to_owned(), false),
        ("localhost", format!("sslmode=verify-full&sslrootcert={right}"), true),
        ("localhost", format!("sslmode=verify-full&sslrootcert={wrong}"), false),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={right}"), false),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned(), false),
        (
            "localhost",
            "sslmode=verify-full&sslrootcert=/absent.pem".to_owned(),
            false,
        ),
    ] {
        for (driver, result) in reached(&url(host, &tail)).await {
            assert_eq!(result.is_ok(), expected, "{driver}: {host} {tail}: {result:?}");
        }
    }
    // AND one that a user has made as the manual says, which calls itself an authority and has a CN alone
    let mut params = authority("localhost");
    params.subject_alt_names.clear();
    let key = KeyPair::generate().unwrap();
    let itself = params.self_signed(&key).unwrap().pem();
    serve_tls(&cluster, &itself, &key).await;
    let root = file(&itself);
    let root = root.path().display();
    for (host, mode, expected) in [
        ("localhost", "verify-full", true),
        ("127.0.0.1", "verify-ca", true),
        ("127.0.0.1", "verify-full", false),
    ] {
        for (driver, result) in reached(&url(host, &format!("sslmode={mode}&sslrootcert={root}"))).await {
            assert_eq!(result.is_ok(), expected, "{driver}: {host} {mode}: {result:?}");
        }
    }
}

#[tokio::test]
async fn an_authority_that_the_system_trusts_is_no_authority_where_another_one_is_named() {
    // GIVEN a server with a certificate of an authority that the system trusts
    let db = private_databases(Settings::default(), Settings::default()).await;
    let (public, private) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let trusted = file(&authority("public").self_signed(&public).unwrap().pem());
    let named = file(&authority("private").self_signed(&private).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &Issuer::new(authority("public"), public))
        .unwrap();
    serve_tls(&db.site.cluster, &certificate.pem(), &key).await;
    let environment = [("SSL_CERT_FILE", trusted.path().to_str().unwrap())];
    let run = async |tail: &str, arguments: &[&str]| {
        let site = db.site.url.replace("127.0.0.1", "localhost");
        let joint = if site.contains('?') { '&' } else { '?' };
        let config = ConfigFile::layered(&format!("{site}{joint}{tail}"), &db.agent.url, "slot", &[]);
        let mut process = Process::start_with(&config.path(), arguments, &environment);
        let status = process.wait(2 * SOON).await;
        (status.success(), process.output())
    };
    // WHEN another one is named, THEN nothing connects, and the reason is said
    let named = named.path().display();
    for mode in ["require", "verify-ca", "verify-full"] {
        let tail = format!("sslmode={mode}&sslrootcert={named}");
        let (succeeded, output) = run(&tail, &["migrate", "site"]).await;
        assert!(!succeeded && output.contains("sslrootcert=FILE"), "{mode}: {output}");
    }
    // AND the system's are asked where none is named
    let (succeeded, output) = run("sslmode=verify-full", &["migrate", "site"]).await;
    assert!(succeeded, "{output}");
}
