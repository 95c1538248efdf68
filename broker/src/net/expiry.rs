//! How long the certificates that this process shows are good for: people are told in time, and metrics have the date.
//!
//! Not here: where certificates come from, and what becomes of those that have ended (peers and clients refuse them).

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How often somebody is told.
const EVERY: Duration = Duration::from_secs(3600);

/// Gives the certificate that is shown now: files are read again when they change.
pub(crate) type Shown = Arc<dyn Fn() -> Arc<CertifiedKey> + Send + Sync>;

/// The certificates of this process, by the port that shows them.
#[derive(Clone, Default)]
pub struct Certificates(Vec<(&'static str, Shown)>);

/// When a certificate begins and ends, in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) begins: i64,
    pub(crate) ends: i64,
}

/// What is to be said about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    /// Whoever renews certificates has missed his time: a fifth of its life is left.
    EndsSoon,
    Ended,
    NotYet,
}

impl Validity {
    /// Of a chain's first certificate. `None` for what rustls takes and the parser does not.
    fn of(shown: &CertifiedKey) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(shown.cert.first()?).ok()?;
        let validity = certificate.validity();
        Some(Self { begins: validity.not_before.timestamp(), ends: validity.not_after.timestamp() })
    }

    fn notice(self, now: i64) -> Option<Notice> {
        match now {
            _ if now < self.begins => Some(Notice::NotYet),
            _ if now >= self.ends => Some(Notice::Ended),
            _ if self.ends - now < self.ends.saturating_sub(self.begins) / 5 => Some(Notice::EndsSoon),
            _ => None,
        }
    }
}

impl Certificates {
    /// Adds the one that a port shows.
    pub(crate) fn add(&mut self, port: &'static str, shown: Shown) {
        self.0.push((port, shown));
    }

    /// Of each port.
    pub(crate) fn validities(&self) -> impl Iterator<Item = (&'static str, Validity)> {
        self.0.iter().filter_map(|(port, shown)| Some((*port, Validity::of(&shown())?)))
    }

    /// Tells of those that end soon, now and each hour.
    pub(crate) async fn tell(self) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            for (port, validity) in self.validities() {
                let hours = (validity.ends - now) / 3600;
                match validity.notice(now) {
                    Some(Notice::EndsSoon) => {
                        tracing::warn!(port, hours, "the certificate ends soon: give this node a new one");
                    }
                    Some(Notice::Ended) => {
                        tracing::error!(port, "the certificate has ended: the other side refuses it")
                    }
                    Some(Notice::NotYet) => {
                        tracing::error!(port, "the certificate is not valid yet, or this clock is behind");
                    }
                    None => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_of_the_last_fifth_of_a_certificates_life_and_of_its_end() {
        let validity = Validity { begins: 1000, ends: 2000 };
        for (now, notice) in [
            (999, Some(Notice::NotYet)),
            (1000, None),
            (1800, None),
            (1801, Some(Notice::EndsSoon)),
            (1999, Some(Notice::EndsSoon)),
            (2000, Some(Notice::Ended)),
        ] {
            assert_eq!(validity.notice(now), notice, "{now}");
        }
        // Without an end, as RFC 5280 (4.1.2.5) writes it, and before the epoch.
        assert_eq!(Validity { begins: i64::MIN, ends: i64::MAX }.notice(0), None);
    }

    #[test]
    fn the_dates_are_those_of_the_certificate_that_is_shown_now() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2030, 1, 1));
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = vec![params.self_signed(&key).unwrap().der().clone()];
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let shown = CertifiedKey::from_der(chain, private, &rustls::crypto::ring::default_provider()).unwrap();
        let shown = Arc::new(shown);
        let mut certificates = Certificates::default();
        certificates.add("grpc", Arc::new(move || shown.clone()));
        let found: Vec<_> = certificates.validities().collect();
        assert_eq!(found, [("grpc", Validity { begins: 1_577_836_800, ends: 1_893_456_000 })]);
    }
}
