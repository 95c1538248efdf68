//! The Secrets of a `Databroker`: from those that are there to those that should be. Pure but for keys, which come from
//! the system's random numbers.
//!
//! | Secret | for | outlives the object |
//! |---|---|---|
//! | `NAME-shared-secret` | clients and brokers | while volumes are kept: without it nobody could read them |
//! | `NAME-ca` | the operator alone | no |
//! | `NAME-peers` | brokers, one certificate for each name there can be | no |
//! | `NAME-tls` | brokers, towards clients, who trust its `ca.crt` | no |

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{
    certificates::{self, Authorities, Error, Pair, Subject},
    meta, pod,
};
use crate::{
    api::databroker::Retention,
    reconcile::{plan::PODS_MAX, validate::Valid},
};

/// The data of the Secrets that are there, by name.
pub type Found = BTreeMap<String, BTreeMap<String, ByteString>>;

/// What should be there.
pub struct Secrets {
    /// In this order.
    pub all: Vec<Secret>,
    /// The operator's own way to the brokers.
    pub admin: Admin,
}

/// What the operator shows to brokers, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The operator's certificate.
    pub pair: Pair,
    /// The authorities, as PEM.
    pub trusted: String,
}

/// What should be there, from what is.
///
/// # Errors
/// The library of certificates refuses.
pub fn build(valid: &Valid, found: &Found, now: Timestamp) -> Result<Secrets, Error> {
    let cluster = meta::cluster(valid);
    let authority = found.get(&meta::authority(&valid.name));
    let authorities = Authorities::renew(authorities(authority), &cluster, now)?;
    let trusted = authorities.bundle();

    let subject = Subject {
        common_name: "databroker-operator".into(),
        uri: Some(format!("databroker://{cluster}/admin")),
        dns: Vec::new(),
        server: false,
        client: true,
    };
    let admin = authorities.issue(pair(authority, "admin"), &subject, now)?;

    let peers = found.get(&meta::peers(&valid.name));
    let mut brokers = BTreeMap::from([("ca.crt".to_owned(), trusted.clone())]);
    // Each has its certificate before it starts.
    for ordinal in 0..PODS_MAX {
        let name = meta::pod(&valid.name, ordinal);
        let broker = authorities.issue(pair(peers, &name), &peer(valid, ordinal), now)?;
        brokers.insert(format!("{name}.crt"), broker.certificate);
        brokers.insert(format!("{name}.key"), broker.key);
    }

    let mut all = Vec::new();
    all.extend(shared_secret(valid, found));
    all.push(secret(valid, meta::authority(&valid.name), kept(&authorities, &admin)));
    all.push(secret(valid, meta::peers(&valid.name), brokers));
    if valid.has_tls() {
        let shown = authorities.issue(pair(found.get(&meta::tls(&valid.name)), "tls"), &server(valid), now)?;
        let data = [("ca.crt", trusted.clone()), ("tls.crt", shown.certificate), ("tls.key", shown.key)];
        all.push(secret(valid, meta::tls(&valid.name), data.map(|(key, value)| (key.to_owned(), value)).into()));
    }
    Ok(Secrets { all, admin: Admin { pair: admin, trusted } })
}

/// The names of all there should be.
pub fn names(valid: &Valid) -> Vec<String> {
    let name = &valid.name;
    let shared = valid.spec.shared_secret.secret_ref.is_none().then(|| meta::shared_secret(name));
    let tls = valid.has_tls().then(|| meta::tls(name));
    shared.into_iter().chain([meta::authority(name), meta::peers(name)]).chain(tls).collect()
}

/// When the first of the certificates ends that brokers and operator use; `None` until all are there.
pub fn not_after(valid: &Valid, found: &Found) -> Option<Timestamp> {
    let of = |name: String, key: &str| certificates::not_after(&text(found.get(&name), key)?);
    let brokers =
        (0..PODS_MAX).map(|ordinal| of(meta::peers(&valid.name), &format!("{}.crt", meta::pod(&valid.name, ordinal))));
    let tls = valid.has_tls().then(|| of(meta::tls(&valid.name), "tls.crt"));
    let all = brokers.chain([of(meta::authority(&valid.name), "admin.crt")]).chain(tls);
    all.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// A broker, for its peers and for the operator.
fn peer(valid: &Valid, ordinal: u32) -> Subject {
    let name = meta::pod(&valid.name, ordinal);
    Subject {
        uri: Some(format!("databroker://{}/node/{name}", meta::cluster(valid))),
        dns: vec![meta::host(valid, ordinal)],
        common_name: name,
        server: true,
        client: true,
    }
}

/// Any broker, for clients: by every name they may know it by.
fn server(valid: &Valid) -> Subject {
    let (name, namespace) = (&valid.name, &valid.namespace);
    let headless = meta::headless(name);
    let services = [name.clone(), meta::leader(name), headless.clone(), format!("*.{headless}")];
    let of_service = |service: String| {
        let short = (!service.starts_with('*')).then(|| service.clone());
        let long = ["", ".svc", ".svc.cluster.local"].map(|domain| format!("{service}.{namespace}{domain}"));
        short.into_iter().chain(long)
    };
    let dns = services.into_iter().flat_map(of_service).chain(["localhost".to_owned()]).collect();
    Subject { common_name: format!("{name}.{namespace}"), uri: None, dns, server: true, client: false }
}

fn text(data: Option<&BTreeMap<String, ByteString>>, key: &str) -> Option<String> {
    String::from_utf8(data?.get(key)?.0.clone()).ok()
}

fn pair(data: Option<&BTreeMap<String, ByteString>>, name: &str) -> Option<Pair> {
    Some(Pair { certificate: text(data, &format!("{name}.crt"))?, key: text(data, &format!("{name}.key"))? })
}

fn authorities(data: Option<&BTreeMap<String, ByteString>>) -> Option<Authorities> {
    Some(Authorities {
        current: pair(data, "ca")?,
        next: pair(data, "next-ca"),
        previous: text(data, "previous-ca.crt"),
    })
}

fn kept(authorities: &Authorities, admin: &Pair) -> BTreeMap<String, String> {
    let mut data = BTreeMap::new();
    let pairs = [("ca", Some(&authorities.current)), ("next-ca", authorities.next.as_ref()), ("admin", Some(admin))];
    for (name, pair) in pairs {
        if let Some(pair) = pair {
            data.insert(format!("{name}.crt"), pair.certificate.clone());
            data.insert(format!("{name}.key"), pair.key.clone());
        }
    }
    if let Some(previous) = &authorities.previous {
        data.insert("previous-ca.crt".into(), previous.clone());
    }
    data
}

fn secret(valid: &Valid, name: String, data: BTreeMap<String, String>) -> Secret {
    Secret {
        metadata: meta::owned(valid, name),
        type_: Some("Opaque".into()),
        data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    }
}

/// The generated one: made once, and what is there is never changed. `None` where the spec names another.
fn shared_secret(valid: &Valid, found: &Found) -> Option<Secret> {
    if valid.spec.shared_secret.secret_ref.is_some() {
        return None;
    }
    let name = meta::shared_secret(&valid.name);
    let mut secret = secret(valid, name.clone(), BTreeMap::new());
    // As it is: brokers also take bytes that are no text.
    let there = found.get(&name).and_then(|data| data.get(pod::SHARED_SECRET_FILE));
    let value = there.filter(|value| !value.0.is_empty()).cloned();
    let value = value.unwrap_or_else(|| ByteString(BASE64_STANDARD.encode(rand::random::<[u8; 32]>()).into_bytes()));
    secret.data = Some([(pod::SHARED_SECRET_FILE.to_owned(), value)].into());
    let retention = valid.spec.storage.retention_policy.unwrap_or_default().when_deleted;
    if retention == Retention::Retain && !valid.spec.storage.ephemeral {
        secret.metadata = meta::kept(valid, name);
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::reconcile::validate::tests::valid;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn found(secrets: &Secrets) -> Found {
        let each = |secret: &Secret| (secret.metadata.name.clone().unwrap(), secret.data.clone().unwrap());
        secrets.all.iter().map(each).collect()
    }

    #[test]
    fn what_is_there_is_left_as_it_is() {
        let valid = valid(json!({}));
        let first = build(&valid, &Found::new(), now()).unwrap();
        let again = build(&valid, &found(&first), now()).unwrap();
        assert_eq!((first.all, first.admin), (again.all, again.admin));
    }

    #[test]
    fn the_names_are_those_of_the_table_and_every_broker_has_a_certificate() {
        let secrets = build(&valid(json!({})), &Found::new(), now()).unwrap();
        let found = found(&secrets);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["main-ca", "main-peers", "main-shared-secret", "main-tls"]);
        assert!((0..7).all(|ordinal| found["main-peers"].contains_key(&format!("main-{ordinal}.key"))));
        let secret = &found["main-shared-secret"]["shared_secret"].0;
        assert_eq!(BASE64_STANDARD.decode(secret).unwrap().len(), 32);
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), names(&valid(json!({}))).into_iter().collect());
    }

    #[test]
    fn a_shared_secret_made_before_is_kept_byte_by_byte() {
        let bytes = ByteString(vec![0xff; 32]);
        let data = [(pod::SHARED_SECRET_FILE.to_owned(), bytes.clone())].into();
        let secrets = build(&valid(json!({})), &[("main-shared-secret".to_owned(), data)].into(), now()).unwrap();
        assert_eq!(secrets.all[0].data.as_ref().unwrap()[pod::SHARED_SECRET_FILE], bytes);
    }

    #[test]
    fn the_end_told_is_that_of_the_certificates_that_are_there() {
        let valid = valid(json!({}));
        let mut found = found(&build(&valid, &Found::new(), now()).unwrap());
        let end = Timestamp::from_second(1_800_000_000 + 90 * 86_400).unwrap();
        assert_eq!(not_after(&valid, &found), Some(end));
        found.remove("main-tls");
        assert_eq!(not_after(&valid, &found), None);
    }

    #[test]
    fn the_shared_secret_outlives_the_object_as_its_volumes_do() {
        let owned = |spec| {
            let secrets = build(&valid(spec), &Found::new(), now()).unwrap();
            secrets.all[0].metadata.owner_references.is_some()
        };
        assert!(!owned(json!({})));
        assert!(owned(json!({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}})));
        assert!(owned(json!({"storage": {"ephemeral": true}})));
        let named = json!({"sharedSecret": {"secretRef": {"name": "mine"}}});
        let secrets = build(&valid(named), &Found::new(), now()).unwrap();
        assert_eq!(secrets.all[0].metadata.name.as_deref(), Some("main-ca"));
    }

    #[test]
    fn without_tls_for_clients_there_is_no_certificate_for_it() {
        let secrets = build(&valid(json!({"tls": {"mode": "Disabled"}})), &Found::new(), now()).unwrap();
        assert!(!found(&secrets).contains_key("main-tls"));
    }
}
