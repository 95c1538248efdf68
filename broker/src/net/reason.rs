//! Why a connection was not made, in words: the library hides what our own verifiers say.

use std::{error::Error as _, io};

use rustls::CertificateError;

/// What an error of a connection, or of TLS on it, says.
pub(crate) fn reason(error: &io::Error) -> String {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        // Authorities of one name and two keys look like a forged signature.
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "its certificate is of another authority".to_owned()
        }
        Some(rustls::Error::NoCertificatesPresented) => "it shows no certificate".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => format!("it refuses our certificate ({alert:?})"),
        Some(error) => error.to_string(),
        None => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    }
}

/// The error of TLS in an error of a connection.
pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
