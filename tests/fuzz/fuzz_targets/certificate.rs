//! Certificates of strangers: what is read of them for a verdict, and the search for a path. No panic, and no path from an authority
//! that is not there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use std::sync::LazyLock;
use thenodes_node::security::chain::{check, Authorities, Purpose};
use thenodes_node::security::{directory, pki};

static AUTHORITIES: LazyLock<(tempfile::TempDir, Authorities)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let issuers = dir.path().join("issuers");
    std::fs::create_dir(&issuers).expect("a directory");
    let certificate = include_bytes!("../authority.der");
    std::fs::write(issuers.join("authority.der"), certificate).expect("written");
    let authorities = Authorities { issuers, lists: vec![], self_signed: false };
    (dir, authorities)
});

fuzz_target!(|data: &[u8]| {
    let facts = pki::facts(data);
    assert!(directory::is_fingerprint(&facts.fingerprint));
    // The authority's key is in no corpus: nobody can have a path to it.
    let own = CertificateDer::from(data);
    for purpose in [Purpose::Client, Purpose::Server] {
        assert!(check(&AUTHORITIES.1, &[own.clone()], purpose, 1_800_000_000).is_err());
    }
});
