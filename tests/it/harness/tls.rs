//! Certificates for servers of the test's own.

use rcgen::KeyPair;
use twinlog::dev::postgres::Cluster;

/// Has a server speak TLS with this certificate (PEM) to those who connect from now on.
pub(crate) async fn serve_tls(cluster: &Cluster, certificate: &str, key: &KeyPair) {
    cluster.write_file("server.crt", certificate.as_bytes()).unwrap();
    let key = key.serialize_pem();
    cluster.write_file("server.key", key.as_bytes()).unwrap();
    cluster.set("ssl", "on").await.unwrap();
}
