//! Connecting and logging in: TLS modes, login methods, and the error of each failure.

use std::io::Write;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twinlog::config::{DatabaseUrl, SslMode};
use twinlog::dev::postgres::{Cluster, Settings};
use twinlog::lsn::Lsn;
use twinlog::retry::Disposition;
use twinlog::wire::{Frame, ReplicationConnection, ServerFault, WireError};

use crate::harness::{SOON, serve_tls};

async fn connect(url: &str) -> Result<ReplicationConnection, WireError> {
    let url: DatabaseUrl = url.parse().unwrap();
    ReplicationConnection::connect(&url, "twinlog-test").await
}

/// A server with a role `r` whose password is `p`, and a superuser on it.
async fn cluster_with_role() -> (Cluster, Client) {
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    let client = cluster.client("postgres").await.unwrap();
    client
        .batch_execute("CREATE ROLE r LOGIN REPLICATION PASSWORD 'p'")
        .await
        .unwrap();
    (cluster, client)
}

/// A role's URL over TCP on the cluster's database `postgres`.
fn url_of(cluster: &Cluster, role: &str, host: &str, tail: &str) -> String {
    format!("postgres://{role}@{host}:{}/postgres{tail}", cluster.port())
}

/// Whether the walsender of the connection is on TLS.
async fn on_tls(connection: &mut ReplicationConnection) -> bool {
    let rows = connection
        .simple_query("SELECT ssl::text FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()")
        .await
        .unwrap();
    rows == [[Some("true".to_owned())]]
}

#[tokio::test]
async fn a_connection_identifies_the_server_that_it_reached() {
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    for url in [cluster.url("postgres"), cluster.socket_url("postgres")] {
        let mut connection = connect(&url).await.unwrap();
        let identity = connection.identify_system().await.unwrap();
        let client = cluster.client("postgres").await.unwrap();
        let expected: String = client
            .query_one("SELECT system_identifier::text AS id FROM pg_control_system()", &[])
            .await
            .unwrap()
            .get("id");
        assert_eq!(identity.system_identifier, expected);
        assert_eq!((identity.timeline, identity.database.as_str()), (1, "postgres"));
        assert!(identity.position.is_valid());
        let version = connection.simple_query("SHOW server_version_num").await.unwrap();
        let version: u32 = version[0][0].as_deref().unwrap().parse().unwrap();
        assert_eq!(version / 10_000, cluster.major());
        // After an error of the server the connection is still usable.
        let error = connection.simple_query("SELECT 1/0").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("22012"));
        assert_eq!(
            connection.simple_query("SELECT 1; SELECT NULL, ''").await.unwrap(),
            [vec![Some("1".to_owned())], vec![None, Some(String::new())]]
        );
        connection.close().await;
    }
    let client = cluster.client("postgres").await.unwrap();
    streams_over(&client, &cluster.socket_url("postgres")).await;
}

#[tokio::test]
async fn every_login_method_works_and_each_refusal_has_its_remedy() {
    let cluster = Cluster::start(Settings::default()).await.unwrap();
    let client = cluster.client("postgres").await.unwrap();
    client
        .batch_execute(
            "SET password_encryption = 'scram-sha-256';
             CREATE ROLE by_scram LOGIN REPLICATION PASSWORD 'pä55 wörd';
             CREATE ROLE by_cleartext LOGIN REPLICATION PASSWORD 'p';
             CREATE ROLE no_replication LOGIN PASSWORD 'p';
             CREATE ROLE not_admitted LOGIN REPLICATION PASSWORD 'p';
             SET password_encryption = 'md5';
             CREATE ROLE by_md5 LOGIN REPLICATION PASSWORD 'p';",
        )
        .await
        .unwrap();
    let hba = "local all all trust\n\
               host all by_scram 127.0.0.1/32 scram-sha-256\n\
               host all by_cleartext 127.0.0.1/32 password\n\
               host all by_md5 127.0.0.1/32 md5\n\
               host all no_replication 127.0.0.1/32 scram-sha-256\n";
    cluster.write_file("pg_hba.conf", hba.as_bytes()).unwrap();
    cluster.set("log_connections", "on").await.unwrap();
    let url = |login: &str| url_of(&cluster, login, "127.0.0.1", "");

    // The right password is accepted.
    for login in ["by_scram:p%C3%A455%20w%C3%B6rd", "by_cleartext:p", "by_md5:p"] {
        let mut connection = connect(&url(login))
            .await
            .unwrap_or_else(|error| panic!("{login}: {error}"));
        connection.identify_system().await.unwrap();
    }
    // A wrong password is an error that does not contain it.
    for login in ["by_scram:wrong", "by_cleartext:wrong", "by_md5:wrong"] {
        let error = connect(&url(login)).await.err().unwrap();
        assert_eq!(error.fault(), Some(ServerFault::WrongPassword), "{login}: {error}");
        assert_eq!(error.disposition(), Disposition::Systemic);
        assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("wrong"));
    }
    // So is a missing password.
    for login in ["by_scram", "by_cleartext", "by_md5"] {
        let error = connect(&url(login)).await.err().unwrap();
        assert!(matches!(error, WireError::PasswordMissing), "{login}: {error}");
    }
    // A role without the right to connect gets the remedy.
    let fault = |error: Option<WireError>| {
        let error = error.unwrap();
        (error.fault().unwrap(), error.hint().unwrap())
    };
    let (what, hint) = fault(connect(&url("no_replication:p")).await.err());
    assert_eq!(what, ServerFault::NoReplicationRight);
    assert_eq!(hint, "ALTER ROLE \"no_replication\" REPLICATION");
    let (what, hint) = fault(connect(&url("not_admitted:p")).await.err());
    assert_eq!(what, ServerFault::NotAdmitted);
    assert!(hint.contains("hostssl postgres not_admitted"), "{hint}");
    let (what, hint) = fault(
        connect(&format!("postgres://by_md5:p@127.0.0.1:{}/nowhere", cluster.port()))
            .await
            .err(),
    );
    assert_eq!(what, ServerFault::DatabaseMissing);
    assert!(hint.contains("nowhere"));
}

#[tokio::test]
async fn an_unreachable_host_is_distinguished_from_a_refusal() {
    // Nothing listens on a port that was just released.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = connect(&format!("postgres://me@127.0.0.1:{port}/crm"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, WireError::Unreachable { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Transient);
    assert!(error.to_string().contains(&port.to_string()));
}

fn authority(name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Issuer::new(params, KeyPair::generate().unwrap())
}

fn pem(issuer: &Issuer<'static, KeyPair>, name: &str) -> NamedTempFile {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    file_of(&params.self_signed(issuer.key()).unwrap().pem())
}

/// A self-signed certificate for `localhost`.
fn self_signed() -> (Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap(), key)
}

fn file_of(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn sslmode_means_what_it_means_to_libpq() {
    let (cluster, _) = cluster_with_role().await;
    let url = |host: &str, tail: &str| url_of(&cluster, "r:p", host, tail);

    let refused = connect(&url("127.0.0.1", "?sslmode=require")).await.err().unwrap();
    assert!(matches!(refused, WireError::TlsRefused), "{refused}");

    let issuer = authority("the authority");
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    serve_tls(&cluster, &certificate.pem(), &key).await;
    let (right, wrong) = (
        pem(&issuer, "the authority"),
        pem(&authority("another"), "the authority"),
    );

    for (host, mode, authority, expected) in [
        ("127.0.0.1", "disable", None, Ok(false)),
        ("127.0.0.1", "require", None, Ok(true)),
        ("127.0.0.1", "require", Some(&right), Ok(true)),
        // libpq takes `require` for `verify-ca` where it has an authority.
        ("127.0.0.1", "require", Some(&wrong), Err("sslrootcert")),
        ("127.0.0.1", "verify-ca", Some(&right), Ok(true)),
        ("127.0.0.1", "verify-ca", Some(&wrong), Err("sslrootcert")),
        ("localhost", "verify-full", Some(&right), Ok(true)),
        ("localhost", "verify-full", Some(&wrong), Err("sslrootcert")),
        ("127.0.0.1", "verify-full", Some(&right), Err("subjectAltName")),
        // The system's authorities do not include ours.
        ("localhost", "verify-full", None, Err("ca-certificates|sslrootcert")),
    ] {
        let root = authority.map_or_else(String::new, |file| format!("&sslrootcert={}", file.path().display()));
        let tail = format!("?sslmode={mode}{root}");
        match (connect(&url(host, &tail)).await, expected) {
            (Ok(mut connection), Ok(tls)) => assert_eq!(on_tls(&mut connection).await, tls, "{host} {tail}"),
            (Err(error), Err(advice)) => {
                assert!(
                    matches!(error, WireError::TlsHandshake(_) | WireError::Tls(_)),
                    "{tail}: {error:?}"
                );
                assert_eq!(error.disposition(), Disposition::Systemic);
                let hint = error.hint().unwrap();
                assert!(advice.split('|').any(|word| hint.contains(word)), "{tail}: {hint}");
            }
            (Ok(_), Err(_)) => panic!("{host} {tail}: was let in"),
            (Err(error), Ok(_)) => panic!("{host} {tail}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_self_signed_authority_as_the_servers_certificate_is_trusted_where_it_is_named() {
    let (cluster, client) = cluster_with_role().await;
    // What the manual's `openssl req -x509 … -subj /CN=localhost` makes: one certificate that calls itself an
    // authority, for both ends, with a CN alone.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    serve_tls(&cluster, &certificate, &key).await;
    let root = file_of(&certificate);
    let root = root.path().display();
    let url = |host: &str, mode: &str| url_of(&cluster, "r:p", host, &format!("?sslmode={mode}&sslrootcert={root}"));

    assert!(on_tls(&mut connect(&url("localhost", "verify-full")).await.unwrap()).await);
    streams_over(&client, &url("localhost", "verify-full")).await;
    assert!(on_tls(&mut connect(&url("127.0.0.1", "verify-ca")).await.unwrap()).await);
    let error = connect(&url("127.0.0.1", "verify-full")).await.err().unwrap();
    assert!(matches!(error, WireError::TlsHandshake(_)), "{error}");
}

/// An attacker in the middle: a proxy with its own certificate and TLS to both sides.
async fn in_the_middle(cluster: &Cluster) -> u16 {
    let (certificate, key) = self_signed();
    let theirs = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let ours = twinlog::postgres::tls::client_config(SslMode::Require, None).unwrap();
    let (acceptor, connector) = (TlsAcceptor::from(Arc::new(theirs)), TlsConnector::from(Arc::new(ours)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, server_port) = (listener.local_addr().unwrap().port(), cluster.port());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
        let mut request = [0; 8];
        client.read_exact(&mut request).await.unwrap();
        server.write_all(&request).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'S');
        client.write_all(b"S").await.unwrap();
        let mut client = acceptor.accept(client).await.unwrap();
        let name = twinlog::postgres::tls::server_name("localhost").unwrap();
        let mut server = connector.connect(name, server).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    port
}

#[tokio::test]
async fn a_login_cannot_be_relayed_under_another_certificate() {
    let (cluster, _) = cluster_with_role().await;
    let (certificate, key) = self_signed();
    serve_tls(&cluster, &certificate.pem(), &key).await;
    // `require` does not check who signed the certificate, but SCRAM channel binding ties the login to it.
    assert!(
        connect(&url_of(&cluster, "r:p", "127.0.0.1", "?sslmode=require"))
            .await
            .is_ok()
    );
    let port = in_the_middle(&cluster).await;
    let error = connect(&format!("postgres://r:p@127.0.0.1:{port}/postgres?sslmode=require"))
        .await
        .err()
        .unwrap();
    assert_eq!(error.fault(), Some(ServerFault::Intercepted), "{error:?}");
}

/// Many small rows and a huge one arrive, and feedback goes back to the server.
async fn streams_over(client: &Client, url: &str) {
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR ALL TABLES")
        .await
        .unwrap();
    let mut connection = connect(url).await.unwrap();
    let slot = "s".parse().unwrap();
    connection.create_slot(&slot, SOON).await.unwrap();
    let (mut stream, feedback) = connection
        .start_replication(&slot, Lsn::INVALID, &["p".to_owned()])
        .await
        .unwrap();
    client
        .batch_execute(
            "INSERT INTO t SELECT i, i FROM generate_series(1, 50000) i;
             INSERT INTO t VALUES (0, repeat('x', 30000000))",
        )
        .await
        .unwrap();
    let (mut rows, mut longest, mut durable) = (0, 0, Lsn::INVALID);
    while rows < 50_001 {
        for frame in stream.next().await.unwrap().unwrap() {
            if let Frame::XLogData { payload, wal_end, .. } = frame {
                rows += u32::from(payload.starts_with(b"I"));
                longest = longest.max(payload.len());
                feedback.durable(wal_end);
                durable = durable.max(wal_end);
            }
        }
    }
    assert!(longest > 30_000_000);
    stream.close().await.unwrap();
    let confirmed: String = client
        .query_one(
            "SELECT confirmed_flush_lsn::text AS confirmed FROM pg_replication_slots",
            &[],
        )
        .await
        .unwrap()
        .get("confirmed");
    assert_eq!(confirmed.parse::<Lsn>().unwrap(), durable);
    assert!(durable.is_valid());
}
