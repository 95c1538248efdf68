//! Who may speak on the peers' port.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use k8s_openapi::{ByteString, api::core::v1::Secret, api::networking::v1::NetworkPolicy};
use kube::Api;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::harness::{NAME, Scene, load::Way, scene};

#[tokio::test]
async fn strangers_are_refused_on_the_peers_port_from_inside_the_cluster() -> anyhow::Result<()> {
    scene("peers", async |scene| {
        scene.found(json!({})).await?;
        let load = scene.load("load", Way::Service, None).await?;
        let authority = secret(scene, "databroker-ca").await?;
        let peers = secret(scene, "databroker-peers").await?;
        let text = |data: &BTreeMap<String, ByteString>, key: &str| -> anyhow::Result<String> {
            Ok(String::from_utf8(data.get(key).with_context(|| format!("no {key}"))?.0.clone())?)
        };
        let host = format!("{NAME}-0.{NAME}-headless.{}.svc", scene.namespace);
        let greeted = async |certificate: String, key: String| {
            let address = format!("{host}:5999");
            let authority = text(&peers, "ca.crt")?;
            load.greet(&json!({"address": address, "serverName": host, "authority": authority,
                "certificate": certificate, "key": key}))
                .await
        };

        // So that a refusal means something.
        let member = greeted(text(&peers, "databroker-1.crt")?, text(&peers, "databroker-1.key")?).await?;
        ensure!(member.is_none(), "a member is refused: {member:?}");

        let nobody = greeted(String::new(), String::new()).await?;
        ensure!(nobody.is_some(), "whoever comes without a certificate is answered");
        println!("without a certificate: {nobody:?}");

        let (certificate, key) = of_another_authority(&host)?;
        let stranger = greeted(certificate, key).await?;
        ensure!(stranger.is_some(), "a certificate of another authority is answered");
        println!("of another authority: {stranger:?}");

        // What clients are shown is no certificate for peers, and the authority's own key is in no pod.
        let shown = secret(scene, "databroker-tls").await?;
        let client = greeted(text(&shown, "tls.crt")?, text(&shown, "tls.key")?).await?;
        ensure!(client.is_some(), "the certificate for clients is taken for a peer's");
        ensure!(authority.contains_key("ca.key") && !peers.contains_key("ca.key"), "the authority's key is exposed");
        load.finish().await?;

        // Whether they are enforced is the network's business; what they say is ours.
        let policies: Api<NetworkPolicy> = Api::namespaced(scene.client.clone(), &scene.namespace);
        let spec = policies.get(NAME).await?.spec.context("spec")?;
        let rules = spec.ingress.unwrap_or_default();
        let of_peers = rules.iter().find(|rule| {
            let ports = rule.ports.iter().flatten();
            ports.into_iter().any(|port| format!("{:?}", port.port).contains("peers"))
        });
        let from = of_peers.and_then(|rule| rule.from.as_ref()).context("anybody may reach the peers' port")?;
        ensure!(from.len() == 2, "members and the operator are to reach the peers' port: {from:?}");
        Ok(())
    })
    .await
}

async fn secret(scene: &Scene, name: &str) -> anyhow::Result<BTreeMap<String, ByteString>> {
    let secrets: Api<Secret> = Api::namespaced(scene.client.clone(), &scene.namespace);
    secrets.get(name).await?.data.context("a Secret without data")
}

/// As good as a member's but for who signed it.
fn of_another_authority(host: &str) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &issuer)?;
    Ok((leaf.pem(), key.serialize_pem()))
}
