//! Certificates for servers of the test's own.

use rcgen::KeyPair;
use twinlog::dev::postgres::Cluster;

/// Makes a server use TLS with this certificate (PEM) for new connections.
pub(crate) async fn serve_tls(cluster: &Cluster, certificate: &str, key: &KeyPair) {
    cluster.write_file("server.crt", certificate.as_bytes()).unwrap();
    let key = key.serialize_pem();
    cluster.write_file("server.key", key.as_bytes()).unwrap();
    cluster.set("ssl", "on").await.unwrap();
}
