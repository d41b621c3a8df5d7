//! Certificates: whom the client trusts, and what it says of whom it doesn't.
//!
//! `tls/` holds an authority without its key, a server of 127.0.0.1 and a client, all of it made
//! for these tests and good for 100 years.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::config::{CloudSettings, Credentials, NameOrId, Scope};
use crate::openstack::{Cloud, CloudError, CloudErrorKind};

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "src/openstack/tests/tls", name].iter().collect()
}

/// Answers one request with 401 (the handshake was fine, then) and ends. Gives its port.
fn server(wants_client_certificate: bool) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_client_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            let mut line = String::new();
            if stream.read_line(&mut line).is_err() || line.is_empty() {
                continue;
            }
            let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.get_mut().write_all(refusal.as_bytes());
            return;
        }
    });
    port
}

fn settings(host: &str, port: u16) -> CloudSettings {
    CloudSettings {
        endpoint: format!("https://{host}:{port}/v3"),
        credentials: Credentials::Password {
            user: NameOrId::Name("mesos".to_owned()),
            user_domain: NameOrId::Name("Default".to_owned()),
            password: "pw".to_owned().into(),
        },
        scope: Scope::Unscoped,
        region: String::new(),
        interface: "public".to_owned(),
        block_storage_endpoint: None,
        ca_file: None,
        client_certificate: None,
        insecure: false,
    }
}

async fn login(settings: &CloudSettings) -> CloudError {
    Cloud::new(settings).unwrap().facts().await.unwrap_err()
}

#[tokio::test]
async fn an_unknown_authority_is_refused_with_the_way_out() {
    let error = login(&settings("127.0.0.1", server(false))).await;
    assert_eq!(error.kind, CloudErrorKind::Unreachable);
    assert!(error.message.contains("set CACert"), "{error}");
}

#[tokio::test]
async fn the_authority_of_cacert_is_trusted() {
    let ca_file = Some(file("ca.pem"));
    let error = login(&CloudSettings { ca_file, ..settings("127.0.0.1", server(false)) }).await;
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
}

#[tokio::test]
async fn insecure_trusts_everybody() {
    let open = CloudSettings { insecure: true, ..settings("localhost", server(false)) };
    let error = login(&open).await;
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let ca_file = Some(file("ca.pem"));
    let error = login(&CloudSettings { ca_file, ..settings("localhost", server(false)) }).await;
    assert_eq!(error.kind, CloudErrorKind::Unreachable);
    assert!(error.message.contains("another name"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_opens_a_door_that_wants_one() {
    let ca_file = Some(file("ca.pem"));
    let client_certificate = Some((file("client.pem"), file("client.key")));
    let known = CloudSettings { ca_file, ..settings("127.0.0.1", server(true)) };
    let error = login(&known).await;
    assert_eq!(error.kind, CloudErrorKind::Unreachable);
    assert!(error.message.contains("set Cert and Key"), "{error}");
    let error = login(&CloudSettings { client_certificate, ..known }).await;
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
}

#[test]
fn files_that_hold_no_certificate_are_named() {
    let base = settings("127.0.0.1", 1);
    let missing = CloudSettings { ca_file: Some("/nonexistent.pem".into()), ..base.clone() };
    let error = Cloud::new(&missing).unwrap_err();
    assert!(error.message.starts_with("cannot read CACert /nonexistent.pem"), "{error}");
    let no_pem = CloudSettings { ca_file: Some(file("../tls.rs")), ..base.clone() };
    let error = Cloud::new(&no_pem).unwrap_err();
    assert!(error.message.contains("holds no PEM certificate"), "{error}");
    let swapped = Some((file("ca.pem"), file("../tls.rs")));
    let error = Cloud::new(&CloudSettings { client_certificate: swapped, ..base }).unwrap_err();
    assert!(error.message.contains("private key"), "{error}");
}
