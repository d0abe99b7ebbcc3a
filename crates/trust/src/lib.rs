//! Which authorities our HTTPS clients trust: those of the system, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR` instead. The clients of
//! the store and of the broker heed the same variables by themselves, so that one variable serves all.

use std::env::var_os;

use rustls_native_certs::load_native_certs;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Files and folders with authorities, in PEM, instead of the system's.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// For an agent of `ureq`.
pub fn tls() -> TlsConfig {
    let chosen = VARIABLES.iter().any(|variable| var_os(variable).is_some_and(|value| !value.is_empty()));
    let found = load_native_certs();
    if chosen {
        for error in &found.errors {
            tracing::warn!(%error, "cannot read an authority in SSL_CERT_FILE or SSL_CERT_DIR");
        }
    }
    TlsConfig::builder().root_certs(roots(&found.certs, chosen)).build()
}

/// `found`: the authorities, in DER; `chosen`: whether the user has named them. Then nobody else is trusted, even if none can be read.
fn roots(found: &[impl AsRef<[u8]>], chosen: bool) -> RootCerts {
    if found.is_empty() && !chosen {
        // A machine without a list of its own.
        return RootCerts::WebPki;
    }
    RootCerts::from(found.iter().map(|authority| Certificate::from_der(authority.as_ref()).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_authorities_trusts_mozillas_and_a_choice_that_cannot_be_read_trusts_nobody() {
        let none: [&[u8]; 0] = [];
        assert!(matches!(roots(&none, false), RootCerts::WebPki));
        let RootCerts::Specific(nobody) = roots(&none, true) else { panic!("a list") };
        assert!(nobody.is_empty());
        let RootCerts::Specific(authorities) = roots(&[[1, 2, 3]], false) else { panic!("a list") };
        assert_eq!(authorities.iter().map(|authority| authority.der().to_vec()).collect::<Vec<_>>(), [[1, 2, 3]]);
    }
}
