//! Which authorities our HTTPS clients trust: those of the system, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR` instead. The clients of
//! the store and of the broker heed the same variables by themselves, so that one variable serves all.

use std::env::var_os;

use rustls_native_certs::{CertificateResult, load_native_certs};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Files and folders with authorities, in PEM, instead of the system's.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// For an agent of `ureq`.
pub fn tls() -> TlsConfig {
    let is_set = VARIABLES.iter().any(|variable| var_os(variable).is_some_and(|value| !value.is_empty()));
    TlsConfig::builder().root_certs(roots(load_native_certs(), is_set)).build()
}

/// `chosen`: whether the user has named them. Then nobody else is trusted, even if they cannot be read.
fn roots(CertificateResult { certs, errors, .. }: CertificateResult, chosen: bool) -> RootCerts {
    if chosen {
        for error in &errors {
            tracing::warn!(%error, "cannot read an authority in SSL_CERT_FILE or SSL_CERT_DIR");
        }
    } else if certs.is_empty() {
        // A machine without a list of its own.
        return RootCerts::WebPki;
    }
    RootCerts::from(certs.iter().map(|authority| Certificate::from_der(authority).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_authorities_trusts_mozillas_and_a_choice_that_cannot_be_read_trusts_nobody() {
        let none = CertificateResult::default;
        assert!(matches!(roots(none(), false), RootCerts::WebPki));
        let RootCerts::Specific(nobody) = roots(none(), true) else { panic!("a list") };
        assert!(nobody.is_empty());
        let one = CertificateResult { certs: vec![vec![1, 2, 3].into()], ..none() };
        let RootCerts::Specific(authorities) = roots(one, false) else { panic!("a list") };
        assert_eq!(authorities.iter().map(|authority| authority.der().to_vec()).collect::<Vec<_>>(), [[1, 2, 3]]);
    }
}
