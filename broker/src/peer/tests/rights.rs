//! Who gets in, and how far.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

use databroker_proto::internal::StatusRequest;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::Code;

use super::*;
use crate::{
    jwt::SharedKey,
    peer::{
        SOCKET_FILE, Socket,
        operator::{Connection, DialError},
    },
};

#[tokio::test]
async fn a_peer_of_another_authority_cluster_or_name_is_refused_with_the_reason() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let b = client(&ours.node("b"));
    assert_eq!(read(&b, served.peer("a")).await.unwrap().from, 1);
    assert_eq!(read(&b, served.peer("")).await.unwrap().from, 1);
    assert_eq!(*served.node.asked_by.lock(), ["b", "b"]);

    // What the caller sees of the one that answers.
    let reason = refusal(read(&b, served.peer("c")).await);
    assert!(reason.contains("databroker://c/node/a answers where the node \"c\" was expected"), "{reason}");
    let stranger = client(&Issuer::new().node("b"));
    assert!(refusal(read(&stranger, served.peer("a")).await).contains("of another authority"));
    let elsewhere = client(&ours.material(Identity::node("d", "b")));
    let reason = refusal(read(&elsewhere, served.peer("a")).await);
    assert!(reason.contains("belongs to the cluster \"c\", this is \"d\""), "{reason}");
    served.stop().await;
}

/// Shows what it was made with, whatever the caller believes of the server.
async fn shows(config: ClientConfig, address: &str) -> String {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("x").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    error.to_string()
}

/// Believes any server.
fn credulous(material: Option<&Material>) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = match material {
        None => config.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
        Some(material) => {
            let keys = material.now();
            let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(keys.certified.clone()));
            config.with_root_certificates(RootCertStore::empty()).with_client_cert_resolver(resolver)
        }
    };
    config.dangerous().set_certificate_verifier(Arc::new(Believer));
    config
}

#[derive(Debug)]
struct Believer;

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn the_server_refuses_by_itself_whom_the_client_would_not_have_called() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    assert!(shows(credulous(None), &served.address).await.contains("CertificateRequired"));
    for stranger in [Issuer::new().node("b"), ours.material(Identity::node("d", "b"))] {
        let alert = shows(credulous(Some(&stranger)), &served.address).await;
        assert!(alert.contains("fatal alert"), "{alert}");
    }
    assert!(served.node.asked_by.lock().is_empty());
    served.stop().await;
}

#[tokio::test]
async fn nodes_may_look_and_administrators_may_act() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let node = Connection::tls(&served.address, &ours.node("b")).await.unwrap();
    assert_eq!(node.admin().status(StatusRequest {}).await.unwrap().into_inner().leader, "a");
    let refused = node.admin().init(InitRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let material = ours.material(Identity::admin("c"));
    let admin = Connection::tls(&served.address, &material).await.unwrap();
    let request = InitRequest { cluster_id: "new".into() };
    assert_eq!(admin.admin().init(request).await.unwrap().into_inner().cluster_id, "new");
    let behind = admin.admin().handover(HandoverRequest::default()).await.unwrap_err();
    assert_eq!((behind.code(), behind.message()), (Code::FailedPrecondition, "c is behind"));
    assert!(refusal(read(&client(&material), served.peer("a")).await).contains("may not call this"));
    served.stop().await;
}

#[tokio::test]
async fn the_shared_secret_makes_nodes_but_no_administrators() {
    let secret = SharedKey::from_bytes([7; 32]);
    let of = |byte, identity| Material::derived(&[SharedKey::from_bytes([byte; 32])], identity).unwrap();
    let served = Served::start(&of(7, Identity::node("c", "a"))).await;
    assert!(read(&client(&of(7, Identity::node("c", "b"))), served.peer("a")).await.is_ok());
    assert!(refusal(read(&client(&of(8, Identity::node("c", "b"))), served.peer("a")).await).contains("authority"));
    // Moving to another secret: both are trusted for a while.
    let both = [SharedKey::from_bytes([8; 32]), secret];
    let moving = Material::derived(&both, Identity::node("c", "a")).unwrap();
    let moved = Served::start(&moving).await;
    assert!(read(&client(&of(8, Identity::node("c", "b"))), moved.peer("a")).await.is_ok());

    let admin = Connection::tls(&served.address, &of(7, Identity::admin("c"))).await;
    let asked = match &admin {
        Ok(admin) => admin.admin().status(StatusRequest {}).await.map(|_| ()).map_err(|_| admin.broke().cloned()),
        Err(error) => Err(Some(error.clone())),
    };
    assert!(matches!(&asked, Err(Some(DialError::Refused(_)))), "{asked:?}");
    served.stop().await;
    moved.stop().await;
}

#[tokio::test]
async fn the_authority_follows_the_files_of_the_shared_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["current", "previous"].map(|name| folder.path().join(name));
    let write = |bytes: [u8; 2]| {
        for (file, byte) in files.iter().zip(bytes) {
            fs::write(file, SharedKey::from_bytes([byte; 32]).to_base64()).unwrap();
        }
    };
    let key = |file: &std::path::PathBuf| SharedKey::parse(&fs::read(file).unwrap());
    let read_files = {
        let files = files.clone();
        move || files.iter().map(key).collect::<Result<Vec<_>, _>>()
    };
    // Moving from 1 to 2: first the new one is accepted everywhere, then it signs, then the old one goes.
    write([1, 1]);
    let material = Material::derived(&read_files().unwrap(), Identity::node("c", "a")).unwrap();
    material.follow_secrets(files.to_vec(), read_files);
    let served = Served::start(&material).await;
    let of = |bytes: &[u8]| {
        let keys: Vec<_> = bytes.iter().map(|byte| SharedKey::from_bytes([*byte; 32])).collect();
        client(&Material::derived(&keys, Identity::node("c", "b")).unwrap())
    };
    refusal(read(&of(&[2, 1]), served.peer("a")).await);
    for (step, taken, refused) in
        [([1, 2], &[2, 1][..], None), ([2, 1], &[2][..], Some(&[1][..])), ([2, 2], &[2], Some(&[1, 2]))]
    {
        write(step);
        let start = Instant::now();
        while read(&of(taken), served.peer("a")).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the secrets {step:?} are not used");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        while let Some(refused) = refused
            && read(&of(refused), served.peer("a")).await.is_ok()
        {
            assert!(start.elapsed() < Duration::from_secs(20), "after {step:?} {refused:?} is still taken");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // What is no key changes nothing.
    fs::write(&files[0], "half").unwrap();
    read(&of(&[2]), served.peer("a")).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET_FILE);
    for _ in 0..2 {
        // What an earlier process left, which was killed.
        drop(std::os::unix::net::UnixListener::bind(&path));
        let socket = Socket::bind(folder.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (closing, node) = (CancellationToken::new(), Arc::new(Pretender::default()));
        let serving = tokio::spawn(socket.serve(node, closing.clone()));
        let admin = Connection::socket(&path).await.unwrap();
        let request = InitRequest { cluster_id: "new".into() };
        assert_eq!(admin.admin().init(request).await.unwrap().into_inner().cluster_id, "new");
        closing.cancel();
        serving.await.unwrap();
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn certificates_are_read_again_and_open_connections_stay() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let folder = tempfile::tempdir().unwrap();
    let a = Identity::node("c", "a");
    let files = old.write(folder.path(), &a);
    let material = Material::from_files(&files, a.clone()).unwrap();
    material.follow(&files);
    let served = Served::start(&material).await;
    let (before, after) = (client(&old.node("b")), client(&new.node("b")));
    read(&before, served.peer("a")).await.unwrap();
    refusal(read(&after, served.peer("a")).await);

    new.write(folder.path(), &a);
    let start = Instant::now();
    while read(&after, served.peer("a")).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "the new certificates are not used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    read(&before, served.peer("a")).await.unwrap();
    refusal(read(&client(&old.node("d")), served.peer("a")).await);

    let wrong = Material::from_files(&files, Identity::node("c", "z")).unwrap_err().to_string();
    assert!(wrong.contains("is for databroker://c/node/a, but this is databroker://c/node/z"), "{wrong}");
    served.stop().await;
}
