//! TLS towards clients.

use std::{fs, time::Duration};

use databroker::config::TlsFiles;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error},
};

use crate::{
    broker::{Broker, Options, Token, soon},
    services::http_get,
};

/// Writes a new pair, and returns its certificate.
fn new_pair(files: &TlsFiles) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    fs::write(&files.certificate, made.cert.pem()).unwrap();
    made.cert.pem()
}

async fn connect(broker: &Broker, trusted: &str) -> Result<Channel, Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted)).domain_name("localhost");
    let url = format!("https://{}", broker.addresses.grpc);
    Endpoint::from_shared(url).unwrap().tls_config(tls)?.connect().await
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    let first = new_pair(&files);
    let broker = Broker::start_with(Options { tls: Some(files.clone()), ..Options::default() }).await;
    let old = connect(&broker, &first).await.unwrap();
    let mut client = DataBrokerServiceClient::new(InterceptedService::new(old, Token));
    client.server_info(()).await.unwrap();
    // What rcgen gives where nothing is said: the year 4096.
    let ends = "databroker_certificate_expiry_timestamp_seconds{port=\"grpc\"} 67090118400\n";
    let metrics = http_get(&broker, "metrics").await;
    assert!(metrics.contains(ends), "{metrics}");

    let second = new_pair(&files);
    let shown = async {
        while connect(&broker, &second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(shown).await;
    assert!(connect(&broker, &first).await.is_err());
    client.server_info(()).await.unwrap();
    broker.stop().await;
}
